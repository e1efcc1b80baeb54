# SPDX-License-Identifier: Apache-2.0
"""What-if against what was: one schedule of injected delays, run for real under each remedy.

The mini-VMM runs once as it is (its trace gives the predictions), twice more unchanged, and once under each
remedy, all with the same seed, so that the same delays meet the same work. Per injected delay the cycles from
it on are compared, predicted missed against really missed. The peer is the last unchanged rerun: how well
does a run predict its own repetition? Figures are given for all cycles, and for those that the first rerun
missed as well: the others were missed by chance, and no remedy's doing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.accuracy import json_lines
from bench.common import host
from bench.played import play
from bench.predicted import AFTER, UNCHANGED, Delay, Outcome, Tally, figures, table
from bench.runs import realtime
from tracer.capture.session import Session, Settings
from tracer.cli.minivmm import MiniVmm, binary
from tracer.errors import XdtraceError
from tracer.model.analysis import Analysis
from tracer.model.whatif import Prediction, Predictor, WhatIf

#: The server's deadline and xdtrace's are one moment, seen by both within this.
_NEAR_NS = 1_000_000
#: How a remedy is carried out: arguments that replace those of the unchanged run, and whether by priority.
REMEDIES: Mapping[str, tuple[WhatIf, tuple[str, ...], bool]] = {
    "dup": (WhatIf(("dup",)), ("--write-path", "dup"), False),
    "refcount": (WhatIf(("refcount",)), ("--write-path", "refcount"), False),
    "task": (WhatIf(("task",)), ("--write-path", "task"), False),
    "fair": (WhatIf(("fair",)), ("--worker", "fair"), False),
    "own_context": (WhatIf(("own_context",)), ("--topology", "per-client"), False),
    "realtime": (WhatIf(("realtime",)), (), True),
}
#: One victim of not_scheduled a run (tests/minivmm/README.md), so two schedules.
SCHEDULES = {
    "locks and queues": "+".join(
        (
            "lock.item_state",
            "lock.control_queue",
            "serialised",
            "head_of_line.syscall",
            "guest_late",
            "on_cpu.w",
        )
    ),
    "missing CPU": "not_scheduled.w+serialised+lock.item_state",
}
_NOT_WITH = {"missing CPU": ("dup", "refcount")}  # there the write path changes nothing new


def run(
    words: Sequence[str], seed: int, seconds: float, inject: str, *, fifo: bool, predict: bool
) -> Outcome:
    """Run the mini-VMM under a session with live analysis; the audio server's own log is what was."""
    analysis = Analysis()
    predictors = (
        {name: Predictor(analysis, what) for name, (what, _, _) in REMEDIES.items()} if predict else {}
    )
    with tempfile.TemporaryDirectory(prefix="xdtrace-whatif-") as name, ExitStack() as stack:
        folder = Path(name)
        arguments = [*words, "--period", "256/48000", "--duration", f"{seconds:g}", "--seed", str(seed)]
        arguments += ["--inject", inject, "--truth", str(folder / "truth"), "--log", str(folder / "log")]
        target = stack.enter_context(MiniVmm(binary(), arguments))
        session = stack.enter_context(Session([target.vmm], Settings()))
        if fifo:
            realtime(target.vmm, ("fc_vcpu", "gpu worker", "cross domain"))
        play(target, session, analysis, seconds)
        analysis.finish()
        predictions = {name: one.prediction() for name, one in predictors.items()}
        return _outcome(folder, analysis, predictions)


def _outcome(folder: Path, analysis: Analysis, predictions: Mapping[str, Prediction]) -> Outcome:
    rows = [r for r in json_lines(folder / "log") if r["type"] == "cycle" and r["stream"] == 0]
    missed = {r["cycle"]: r["leg"] != "none" for r in rows}
    at = {r["deadline_ns"]: r["cycle"] for r in rows}
    deadlines = sorted(at)
    remain: dict[str, set[int]] = {name: set() for name in predictions}
    states = {m.id: m for m in analysis.verdicts.misses}
    for name, found in predictions.items():
        for row in found.cycles:
            if not row.avoided:
                i = bisect_left(deadlines, states[row.miss].cycle.deadline_ns - _NEAR_NS)
                if i < len(deadlines):
                    remain[name].add(at[deadlines[i]])
    delays, covered = [], set()
    injections = [entry for entry in json_lines(folder / "truth") if "kind" in entry]
    for entry in sorted(injections, key=lambda e: e["cycle"]):
        cycles = [entry["cycle"] + k for k in range(AFTER)]
        if not all(c in missed for c in cycles):
            continue  # at the run's end
        covered.update(cycles)
        predicted = {name: tuple(c in left for c in cycles) for name, left in remain.items()}
        delays.append(Delay(entry["kind"], tuple(missed[c] for c in cycles), predicted))
    others = sum(was for cycle, was in missed.items() if cycle not in covered)
    return Outcome(tuple(delays), len(rows), others)


def measure(rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """All rounds; the runs of a round in random order after its first two."""
    totals: dict[str, Tally] = {}
    failed, runs, others = 0, 0, Counter[str]()
    chance = random.Random(seed)
    words = ("--write-path", "locked")
    for number in range(rounds):
        for schedule, inject in SCHEDULES.items():
            names = [n for n in (UNCHANGED, *REMEDIES) if n not in _NOT_WITH.get(schedule, ())]
            at = seed + number

            def go(
                more: Sequence[str], fifo: bool, predict: bool, at: int = at, inject: str = inject
            ) -> Outcome:
                return run(_merged(words, more), at, seconds, inject, fifo=fifo, predict=predict)

            try:
                base, again = go((), False, True), go((), False, False)
            except RuntimeError as error:
                failed += 1
                print(error, file=sys.stderr)
                continue
            others["before"] += base.others
            for name in chance.sample(names, len(names)):
                _, more, fifo = REMEDIES.get(name, (WhatIf(), (), False))
                try:
                    after = go(more, fifo, False)
                except RuntimeError as error:
                    failed += 1
                    print(error, file=sys.stderr)
                    continue
                runs += 1
                others[name] += after.others
                totals.setdefault(name, Tally()).add(base, again, after, name)
                line = f"round {number + 1}, {schedule}: {name} {dict(totals[name].repeatable)}"
                print(line, file=sys.stderr, flush=True)
    return {
        "all": {name: figures(found.all) for name, found in totals.items()},
        "repeatable": {name: figures(found.repeatable) for name, found in totals.items()},
        "by_kind": {n: {k: dict(c) for k, c in sorted(t.kinds.items())} for n, t in totals.items()},
        "misses_outside_injections": dict(others),
        "runs": runs,
        "failed_runs": failed,
    }


def _merged(base: Sequence[str], words: Sequence[str]) -> list[str]:
    """Options of both; a later one of the same name wins."""
    found = dict(zip(base[::2], base[1::2], strict=True)) | dict(zip(words[::2], words[1::2], strict=True))
    return [word for pair in found.items() for word in pair]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="./dev bench whatif", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of short runs: an illustration")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--rounds", type=int, default=0, help="(5)")
    parser.add_argument("--seconds", type=float, default=0.0, help="per run (8; quick 5)")
    parser.add_argument("--seed", type=int, default=7000)
    chosen = parser.parse_args()
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    result = measure(rounds, chosen.seconds or (5.0 if chosen.quick else 8.0), chosen.seed)
    result["host"] = host("./dev bench whatif")
    print(json.dumps({"bench": "whatif", **result}) if chosen.json else table(result, (UNCHANGED, *REMEDIES)))


if __name__ == "__main__":
    try:
        main()
    except XdtraceError as error:
        sys.exit(f"{error.message}\n  {error.hint}")
