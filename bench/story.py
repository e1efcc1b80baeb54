# SPDX-License-Identifier: Apache-2.0
"""The incident replayed: a sine beside 200 short-lived streams, with each write path and remedy in turn.

On the real device where it builds (locked, dup, refcount, a context of its own, real-time priority), and on
the mini-VMM what only that has (task, a fair worker); where it does not build, all of it on the mini-VMM.
Runs are interleaved in random order. ``--full`` takes 20 rounds; without it three, which is an illustration.
Each run leaves its summary in ``--save DIR``: `xdtrace compare` takes those, the same command goes on where
the folder ends, and DIR/story.md is what it says so far.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import played
from bench.accuracy import json_lines
from bench.common import host
from bench.runs import Condition, realtime
from bench.series import order
from bench.told import Side, checked, compared, page, told
from tracer import audio
from tracer.capture.session import Session, Settings
from tracer.cli import realdevice
from tracer.cli.minivmm import MiniVmm, binary
from tracer.errors import HostError, UsageError, XdtraceError
from tracer.model.analysis import Analysis
from tracer.model.whatif import Predictor, WhatIf
from tracer.views.compare import render_comparison

RATE, QUANTUM, TONE_HZ = 48_000, 1024, 997
CHURN = ("--churn", "200")
#: W, G and the vCPUs, by how their names begin: what real-time priority is a prediction of.
_FIFO = ("cross domain", "gpu worker", "fc_vcpu")


def sides_of(program: str, *, only_there: bool) -> list[Side]:
    """Sides of one program, the first one being the incident."""

    def of(name: str, path: str, *words: str, remedy: str = "", fifo: bool = False) -> Side:
        if program == "minivmm":
            condition = Condition(program, ("--write-path", path, *CHURN, *words), fifo)
            return Side(f"mini-{name}", condition, remedy)
        return Side(name, Condition(path, (*CHURN, *words, *(("--realtime",) * fifo)), fifo), remedy)

    first = of("locked", "locked")
    paths = [of("dup", "dup", remedy="dup"), of("refcount", "refcount", remedy="refcount")]
    others = [
        of("own-context", "locked", "--topology", "per-client", remedy="own_context"),
        of("realtime", "locked", remedy="realtime", fifo=True),
    ]
    mini = [
        of("task", "task", remedy="task"),
        of("fair", "locked", "--worker", "fair", remedy="fair"),
    ]
    if program != "minivmm":
        return [first, *paths, *others]
    return [first, *mini] if only_there else [first, *paths, *others, *mini]


def groups() -> list[list[Side]]:
    """The sides that this machine can run, grouped by what is compared with what."""
    try:
        for variant in realdevice.VARIANTS:
            realdevice.binary(variant, stripped=True)
    except HostError as error:
        print(f"story: on the mini-VMM alone: {error.message}", file=sys.stderr)
        return [sides_of("minivmm", only_there=False)]
    return [sides_of("real", only_there=False), sides_of("minivmm", only_there=True)]


def play(side: Side, remedies: Sequence[str], seconds: float, seed: int) -> dict[str, Any]:
    """One run under a session with live analysis: its summary, with what the story adds to it.

    Args:
        remedies: predicted from this run.

    Raises:
        RuntimeError: the target said nothing at its end.
    """
    analysis = Analysis()
    predictors = {name: Predictor(analysis, WhatIf((name,))) for name in remedies}
    mini = side.condition.program == "minivmm"
    program = binary() if mini else realdevice.binary(side.condition.program, stripped=True)
    with tempfile.TemporaryDirectory(prefix="xdtrace-story-") as name, ExitStack() as stack:
        folder = Path(name)
        words = [*side.condition.arguments, "--duration", f"{seconds:g}", "--seed", str(seed)]
        words += ["--log", str(folder / "log"), *(("--wav", str(folder / "heard.wav")) if mini else ())]
        target = stack.enter_context(MiniVmm(program, words))
        session = stack.enter_context(Session([target.vmm], Settings()))
        if side.condition.realtime_vcpus:
            realtime(target.vmm, _FIFO)
        played.play(target, session, analysis, seconds)
        analysis.finish()
        summary = analysis.summary(0).to_dict()
        for misses in ("misses", "episodes", "blame", "held", "threads"):
            summary[misses] = []
        if not mini:
            heard(folder / "log", folder / "heard.wav")
        summary["story"] = {
            "side": side.name,
            "seconds": seconds,
            "ended": time.time(),
            "bursts": len(audio.analyse(folder / "heard.wav").bursts),
            "truth": dict(target.ground_truth or {}),
            "remain": {n: p.misses - p.avoided for n, one in predictors.items() if (p := one.prediction())},
        }
        return summary


def heard(log: Path, wav: Path) -> None:
    """What a sink would have played by the audio server's log: the tone, and silence in each missed cycle."""
    rows = [row for row in json_lines(log) if row["type"] == "cycle" and row["stream"] == 0]
    missed = np.array([row["leg"] != "none" for row in sorted(rows, key=lambda row: row["cycle"])])
    tone = 0.5 * np.sin(2 * math.pi * TONE_HZ / RATE * np.arange(len(missed) * QUANTUM))
    tone[np.repeat(missed, QUANTUM)] = 0
    soundfile.write(wav, tone, RATE, subtype="FLOAT")


def same_length(folder: Path, seconds: float) -> None:
    """Refuse a folder whose runs are of another length: a side would be a mixture.

    Raises:
        UsageError: it has one.
    """
    for path in sorted(folder.glob("*-*.json")):
        kept = json.loads(path.read_text(encoding="utf-8")).get("story", {}).get("seconds", seconds)
        if kept != seconds:
            raise UsageError(
                f"{path}: a run of {kept:g} s, and {seconds:g} s are asked for",
                f"say --seconds {kept:g}, or name another folder",
            )


def record(chosen: argparse.Namespace, sides: Sequence[Sequence[Side]], rounds: int) -> None:
    """Run what is not in the folder yet."""
    by_condition = {str(side.condition): (side, of) for of in sides for side in of}
    left = [
        (by_condition[str(condition)], number)
        for condition, number in order([side.condition for of in sides for side in of], rounds)
        if not (chosen.save / f"{by_condition[str(condition)][0].name}-{number}.json").exists()
    ]
    end = time.monotonic() + chosen.budget if chosen.budget else math.inf
    for at, ((side, of), number) in enumerate(left):
        if time.monotonic() >= end:
            print(f"{len(left) - at} runs are left: the same command goes on", file=sys.stderr)
            return
        remedies = [one.remedy for one in of if one.remedy] if side is of[0] else []
        try:
            summary = play(side, remedies, chosen.seconds, number)
        except (RuntimeError, audio.AudioError) as error:  # shown, and no reason to lose the other runs
            print(f"left out: {side.name}, run {number}: {error}", file=sys.stderr, flush=True)
            continue
        path = chosen.save / f"{side.name}-{number}.json"
        path.with_suffix(".new").write_text(json.dumps(summary), encoding="utf-8")
        path.with_suffix(".new").rename(path)
        story = summary["story"]
        print(
            f"round {number}: {side.name}: {story['truth']['missed_cycles']} missed",
            file=sys.stderr,
            flush=True,
        )


def options(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./dev story", description=__doc__)
    parser.add_argument("--full", action="store_true", help="20 rounds; without: 3, an illustration")
    parser.add_argument("--rounds", type=int, default=0, help="runs a side")
    parser.add_argument("--seconds", type=float, default=8.0, help="per run")
    parser.add_argument(
        "--side", action="append", default=[], metavar="NAME", help="only this, and the incident; repeatable"
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="keep each run's summary there, and go on from it"
    )
    parser.add_argument(
        "--budget", type=float, metavar="S", help="start no further run after so many seconds"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line")
    chosen = parser.parse_args(words)
    chosen.rounds = chosen.rounds or (20 if chosen.full else 3)
    return chosen


def chosen_sides(sides: Sequence[Sequence[Side]], names: Sequence[str]) -> list[list[Side]]:
    """The named sides with the incident of their group; all without names."""
    found = [[s for s in of if not names or s is of[0] or s.name in names] for of in sides]
    return [of for of in found if len(of) > 1]


def main() -> None:
    """Run it."""
    chosen = options(sys.argv[1:])
    rounds = chosen.rounds
    sides = chosen_sides(groups(), chosen.side)
    if not sides:
        sys.exit(f"no side is called {', '.join(chosen.side)}\n  name one of the table of a whole story")
    with ExitStack() as stack:
        if chosen.save is None:
            chosen.save = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xdtrace-story-")))
        chosen.save = chosen.save.absolute()
        chosen.save.mkdir(parents=True, exist_ok=True)
        same_length(chosen.save, chosen.seconds)
        record(chosen, sides, rounds)
        kept = [[one for side in of if (one := told(chosen.save, side, rounds)).runs] for of in sides]
        kept = [of for of in kept if len(of) > 1 and of[0].side.remedy == ""]
        found = [one for of in kept for one in compared(of)]
        rows = [checked(of[0], other) for of in kept for other in of[1:]]
        where = host("./dev story")
        said = "\n".join(page([one for of in kept for one in of], found, rows, where)) + "\n"
        (chosen.save / "story.md").write_text(said, encoding="utf-8")
    if chosen.json:
        compared_json = [one.to_dict() for one in found]
        predicted = [vars(row) for row in rows]
        print(
            json.dumps({"bench": "story", "host": where, "compared": compared_json, "predicted": predicted})
        )
        return
    print(said, end="")
    for comparison in found:
        print("\n" + render_comparison(comparison).plain(118), end="")


if __name__ == "__main__":
    try:
        main()
    except XdtraceError as error:
        sys.exit(f"{error.message}\n  {error.hint}")
