# SPDX-License-Identifier: Apache-2.0
"""Is every missed cycle found, and none invented? xdtrace's counts against the audio server's own.

The real device (stripped builds) in each variant, without churn, with some and with much, quiet and with
CPU hogs, at both periods, with one context and with three: 72 runs. Each under xdtrace as ``attach`` runs
it, from its first cycle to its last. A run that differs by more than one a stream (whose last cycle may lack
its end on one side) keeps its trace and the server's log (--keep).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import host
from bench.compared import detection, markdown
from bench.runs import Condition, Run, traced
from bench.series import absolute, add_options, measure, saved

VARIANTS = ("locked", "dup", "refcount")
_CHURN = (0, 40, 200)
_LOADS = ("none", "hogs")
_PERIODS = ("1024/48000", "256/48000")
_CONTEXTS = (1, 3)
#: What three contexts run with: a sustained stream each.
_STREAMS = 3
_Cell = tuple[int, str, str, int]  # churn, load, period, contexts


def cells(quick: bool) -> list[_Cell]:
    """The rows of the table; quick: the six that differ most."""
    full = list(product(_CHURN, _LOADS, _PERIODS, _CONTEXTS))
    return [cell for cell in full if cell[1] == "none" and cell[3] == 1] if quick else full


def condition(variant: str, cell: _Cell) -> Condition:
    """How the device is run for a cell."""
    churn, load, period, contexts = cell
    words = ["--period", period, "--churn", str(churn), "--load", load]
    if contexts > 1:
        words += ["--contexts", str(contexts), "--streams", str(_STREAMS)]
    return Condition(variant, tuple(words))


def difference(run: Run) -> int:
    """The largest difference of a run's three counts."""
    ours, theirs = run.seen, run.truth
    return max(
        abs(ours.cycles - theirs.cycles),
        abs(ours.misses - theirs.misses),
        abs(ours.episodes - theirs.episodes),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench detection", description=__doc__)
    add_options(parser, rounds=1)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="may be repeated (all)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help="conditions with these words; may be repeated",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="traces and logs of runs that differ by more than that"
    )
    chosen = parser.parse_args()
    absolute(chosen, "save", "load", "keep")
    return chosen


def _watched(condition: Condition, number: int, seconds: float, keep: Path | None) -> Run:
    """One run; its trace and log stay where its counts differ."""
    with tempfile.TemporaryDirectory(prefix="xdtrace-bench-") as folder:
        trace, log = (Path(folder, "run.xdt"), Path(folder, "cycles")) if keep else (None, None)
        run = traced(condition, seconds, number, trace, log)
        if not keep or trace is None or difference(run) <= run.streams:
            return replace(run, trace="")
        kept = keep / (str(condition).replace(" ", "_").replace("/", "-") + f"_{number}")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)
        return replace(run, trace=str(kept / trace.name))


def _cell(runs: Sequence[Run]) -> str:
    """Counts of the audio server, and how xdtrace's differ where they do; runs one after another."""
    texts = []
    for run in runs:
        ours, theirs = asdict(run.seen).values(), asdict(run.truth).values()
        text = " / ".join(f"{count:,}" for count in theirs)
        if difference(run):
            text += " (xdtrace " + " / ".join(f"{count:,}" for count in ours) + ")"
        texts.append(f"**{text}**" if difference(run) > run.streams else text)
    return "<br>".join(texts) or "–"


def render(runs: Iterable[Run], shown: Sequence[_Cell], variants: Sequence[str]) -> str:
    """Two tables: each cell's counts, and sums by variant."""
    runs = list(runs)
    rows = []
    for cell in shown:
        churn, load, period, contexts = cell
        what = (str(churn), "hogs" if load == "hogs" else "quiet", period, str(contexts))
        sides = ([r for r in runs if r.condition == str(condition(v, cell))] for v in variants)
        rows.append((*what, *(_cell(side) for side in sides)))
    head = ("churn", "machine", "period", "contexts", *(f"{v}: cycles / missed / episodes" for v in variants))
    found = detection(runs)
    columns = list(next(iter(found.values()), {}))
    sums = [(name, *(f"{row[column]:,}" for column in columns)) for name, row in sorted(found.items())]
    return (
        markdown(head, rows)
        + "\n"
        + markdown(("program", *(name.replace("_", " ") for name in columns)), sums)
    )


def main() -> None:
    """Run it."""
    chosen = _options()
    variants, shown = chosen.variant or list(VARIANTS), cells(chosen.quick)
    wanted = [condition(variant, cell) for variant in variants for cell in shown]
    if chosen.only:
        wanted = [one for one in wanted if any(words in str(one) for words in chosen.only)]
    rounds = chosen.rounds or 1
    if chosen.load:
        names = {str(one) for one in wanted}
        runs = [run for run in saved(chosen.load) if run.condition in names]
    else:
        if chosen.keep:
            chosen.keep.mkdir(mode=0o700, parents=True, exist_ok=True)
        runs = measure(wanted, rounds, chosen, lambda c, n: _watched(c, n, chosen.seconds, chosen.keep))
    where = host("./dev bench detection")
    if chosen.json:
        kept = [asdict(run) for run in runs]
        print(json.dumps({"bench": "detection", "host": where, "runs": kept, "sums": detection(runs)}))
        return
    print(render(runs, shown, variants))
    print(where)


if __name__ == "__main__":
    main()
