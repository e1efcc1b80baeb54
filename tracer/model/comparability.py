# SPDX-License-Identifier: Apache-2.0
"""Which runs can be compared at all, and what else might explain a difference.

Owns both lists of reasons, in words. Knows no statistics and no outcome.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Final

from tracer.model.runfigures import Run

#: Runs that differ by more than this factor in length or records per second are said to.
_UNLIKE: Final = 1.5
_BUSIER: Final = 2.0
_STEAL_APART: Final = 5.0  # percent of all CPUs' time


def barred(sides: Sequence[tuple[str, Sequence[Run]]]) -> list[str]:
    """Why the runs cannot be compared, whatever a test says: their misses do not count the same thing.

    Args:
        sides: label and runs of each.
    """
    runs = [run for _, of in sides for run in of]
    found = _unequal(
        runs,
        ("periods", lambda run: ", ".join(sorted({_period(ns) for ns in run.periods_ns}))),
        ("numbers of streams", lambda run: str(run.streams)),
    )
    if len({run.inferred for run in runs}) > 1:
        found.append("in some runs the audio server was not seen and periods are inferred, in others not")
    lossy = [run.name for run in runs if run.lost]
    if lossy:
        found.append(f"records were lost in {', '.join(lossy)}: misses there may lack their cause")
    return found + [f"{run.name}: {run.note}" for run in runs if run.note]


def doubts(sides: Sequence[tuple[str, Sequence[Run]]]) -> list[str]:
    """What else may explain a difference: the reader's to judge. Arguments as for barred()."""
    runs = [run for _, of in sides for run in of]
    found: list[str] = []
    twice = sorted({run.name for run in runs if sum(other.name == run.name for other in runs) > 1})
    if twice:
        found.append(f"a run is named more than once, and counts each time: {', '.join(twice)}")
    found += _unequal(
        runs,
        ("kernels", lambda run: run.kernel),
        ("numbers of CPUs", lambda run: str(run.cpus)),
        ("summary schemas", lambda run: str(run.schema)),
    )
    lengths = [run.audio_s for run in runs]
    if max(lengths) > _UNLIKE * min(lengths):
        found.append(
            f"runs watched {min(lengths):.3g} to {max(lengths):.3g} s of audio: rates still compare, "
            "shares of runs with any miss do not"
        )
    medians = [
        (
            label,
            statistics.median(run.records_per_s for run in of),
            statistics.median(run.steal_percent for run in of),
            [run.load for run in of if run.load >= 0],
        )
        for label, of in sides
    ]
    for (a, busy, steal, load), (b, busy2, steal2, load2) in combinations(medians, 2):
        if max(busy, busy2) > _BUSIER * min(busy, busy2):
            found.append(
                f"{a} has {busy:,.0f} records a second, {b} {busy2:,.0f}: another load, or a remedy's effect"
            )
        if abs(steal - steal2) > _STEAL_APART:
            found.append(f"the hypervisor took {steal:.1f} % of the CPUs in {a}, {steal2:.1f} % in {b}")
        if load and load2 and _apart(statistics.median(load), statistics.median(load2)):
            found.append(
                f"the machine's load at the start was {statistics.median(load):.1f} in {a}, "
                f"{statistics.median(load2):.1f} in {b}"
            )
    return found


def _unequal(runs: Sequence[Run], *facts: tuple[str, Callable[[Run], str]]) -> list[str]:
    found = []
    for what, fact in facts:
        if len(values := {fact(run) for run in runs}) > 1:
            found.append(f"runs have other {what}: {'; '.join(sorted(values))}")
    return found


def _period(ns: int) -> str:
    """To three digits: the median of measured cycles differs in the fourth."""
    return f"{ns / 1e6:.3g} ms"


def _apart(one: float, other: float) -> bool:
    """Whether two load averages are of different machines' days: more than 1 and a factor of two apart."""
    return abs(one - other) > 1 and max(one, other) > _BUSIER * min(one, other)
