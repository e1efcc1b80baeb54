# SPDX-License-Identifier: Apache-2.0
"""Sides of runs, compared: the run is the unit.

Owns what is compared with what, which outcome a test gives, and what makes runs not comparable. The primary
measure is fixed here, before anybody looks: missed cycles per minute of audio watched. The statistics are
runstats.py's; how it reads is a view's.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from tracer.errors import UsageError
from tracer.model import runstats
from tracer.model.runfigures import EPISODES, EXTRA, EXTRA_CORRECTED, MEASURES, PRIMARY, Measure, Run
from tracer.model.runstats import Shift

SCHEMA: Final = 1
SIGNIFICANT: Final = 0.05
#: Runs that differ by more than this factor in length or records per second are said to.
_UNLIKE: Final = 1.5
_BUSIER: Final = 2.0
_STEAL_APART: Final = 5.0  # percent of all CPUs' time


@dataclass(frozen=True, slots=True)
class SideFigures:
    """One side: its runs, and how many of them missed anything.

    Attributes:
        label: A, B, C …; what: its name, else its write path where all runs agree, else "".
        any_low, any_high: Clopper–Pearson 95 % interval of the share of runs with any miss.
        clean_bound: without any miss, the share of runs that may still glitch (95 %); else None.
    """

    label: str
    what: str
    runs: tuple[Run, ...]
    with_miss: int
    any_low: float
    any_high: float
    clean_bound: float | None


@dataclass(frozen=True, slots=True)
class Contrast:
    """One measure between two sides.

    Attributes:
        p_adjusted: by Holm over the contrasts of this kind (primary; episodes; exploratory).
        superiority: how often a run of the second side has the larger value (0 to 1, ties half).
        outcome: less or more (the second side, at p_adjusted < 0.05), not_shown, or impossible (so few
            runs cannot give p < 0.05 whatever they say).
        needed: runs a side (pairs if blocked) that would show a difference like the one seen; None: none.
    """

    measure: str
    first: str
    second: str
    n_first: int
    n_second: int
    shift: Shift
    p: float
    p_adjusted: float
    superiority: float
    outcome: str
    needed: int | None


@dataclass(frozen=True, slots=True)
class CostContrast:
    """What one write costs on two sides beyond write(2) itself, which its wakes make vary severalfold.

    Attributes:
        raw, corrected: how much more the second side's write takes, ns; None where not known.
        correction_ns: the probes' part of the raw difference, None where a run was not calibrated.
        resolvable: whether that is at most half of the raw difference; None where not known.
    """

    first: str
    second: str
    raw: Shift | None
    corrected: Shift | None
    correction_ns: float | None
    resolvable: bool | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything ``compare`` has to say. ``warnings``: why runs may not be comparable, in words."""

    sides: tuple[SideFigures, ...]
    blocked: bool
    contrasts: tuple[Contrast, ...]
    costs: tuple[CostContrast, ...]
    warnings: tuple[str, ...]
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: nested dicts and lists of plain values."""
        return {"type": "comparison", **dataclasses.asdict(self)}


def compare(
    sides: Sequence[Sequence[Run]],
    *,
    names: Sequence[str] = (),
    blocked: bool = False,
    all_pairs: bool = False,
) -> Comparison:
    """Compare sides, each later one with the first.

    Args:
        sides: at least two, each of at least one run that saw audio.
        names: of the sides; without them their write paths must do.
        blocked: run i of each side belong together (interleaved rounds): signs of pairs are flipped.
        all_pairs: every side with every other, not only with the first.

    Raises:
        UsageError: too few or too many runs, or blocks that are none.
    """
    _check(sides, blocked)
    called = [*names, *([""] * len(sides))][: len(sides)]
    figures = tuple(
        _side(chr(ord("A") + at), what, runs)
        for at, (what, runs) in enumerate(zip(called, sides, strict=True))
    )
    pairs = list(combinations(figures, 2)) if all_pairs else [(figures[0], other) for other in figures[1:]]
    contrasts: list[Contrast] = []
    for kind in ((PRIMARY,), (EPISODES,), tuple(m for m in MEASURES if m.exploratory)):
        found = [c for a, b in pairs for m in kind if (c := _contrast(m, a, b, blocked)) is not None]
        adjusted = runstats.holm({str(at): one.p for at, one in enumerate(found)})
        contrasts += [_decided(one, adjusted[str(at)], blocked) for at, one in enumerate(found)]
    costs = tuple(_cost(a, b, blocked) for a, b in pairs)
    return Comparison(figures, blocked, tuple(contrasts), costs, tuple(_warnings(figures)))


def _check(sides: Sequence[Sequence[Run]], blocked: bool) -> None:
    if not 2 <= len(sides) <= 26 or not all(sides):
        raise UsageError(
            "compare needs two sides of runs", "write: xdtrace compare A1.xdt A2.xdt -- B1.xdt B2.xdt"
        )
    for at, runs in enumerate(sides):
        label = chr(ord("A") + at)
        if len(runs) > runstats.MAX_RUNS:
            raise UsageError(f"side {label} has {len(runs)} runs", f"give at most {runstats.MAX_RUNS} a side")
        for run in runs:
            if run.values[PRIMARY.name] is None:
                raise UsageError(
                    f"{run.name}: no audio stream was seen, which is not the same as no miss",
                    f"leave it out of side {label}, or record while audio plays",
                )
    if blocked and len({len(runs) for runs in sides}) > 1:
        raise UsageError(
            "--blocked needs as many runs on each side", "name runs in the order of their rounds"
        )
    if blocked and len(sides[0]) < runstats.MIN_PAIRS:
        raise UsageError(
            f"{len(sides[0])} pairs cannot show anything (the least p is {2 / 2 ** len(sides[0]):.2g})",
            f"record at least {runstats.MIN_PAIRS} rounds, or leave --blocked away",
        )


def _side(label: str, what: str, runs: Sequence[Run]) -> SideFigures:
    hit = sum(run.misses > 0 for run in runs)
    low, high = runstats.share_interval(hit, len(runs))
    kinds = {run.write_paths for run in runs}
    what = what or (", ".join(next(iter(kinds))) if len(kinds) == 1 else "")
    clean = runstats.clean_bound(len(runs)) if hit == 0 else None
    return SideFigures(label, what, tuple(runs), hit, low, high, clean)


def _values(
    name: str, first: SideFigures, second: SideFigures, blocked: bool
) -> tuple[list[float], list[float]]:
    """Both sides' known values; of pairs only whole ones."""
    a, b = ([run.values[name] for run in side.runs] for side in (first, second))
    if blocked:
        whole = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
        return [x for x, _ in whole], [y for _, y in whole]
    return [x for x in a if x is not None], [y for y in b if y is not None]


def _shift(a: Sequence[float], b: Sequence[float], blocked: bool) -> Shift:
    if blocked:
        return runstats.paired_shift([y - x for x, y in zip(a, b, strict=True)])
    return runstats.shift(a, b)


def _contrast(measure: Measure, first: SideFigures, second: SideFigures, blocked: bool) -> Contrast | None:
    """A contrast that is not decided yet; None where a side does not know the measure."""
    a, b = _values(measure.name, first, second, blocked)
    if not a or not b:
        return None
    if blocked:
        differences = [y - x for x, y in zip(a, b, strict=True)]
        p, larger = runstats.sign_flip_p(differences), runstats.paired_superiority(differences)
    else:
        p, larger = runstats.permutation_p(a, b), runstats.superiority(a, b)
    needed = runstats.runs_needed(larger, blocked=blocked)
    return Contrast(
        measure.name,
        first.label,
        second.label,
        len(a),
        len(b),
        _shift(a, b, blocked),
        p,
        p,
        larger,
        "",
        needed,
    )


def _decided(one: Contrast, p_adjusted: float, blocked: bool) -> Contrast:
    least = 2 / 2**one.n_first if blocked else runstats.least_p(one.n_first, one.n_second)
    if least >= SIGNIFICANT:
        outcome = "impossible"
    elif p_adjusted >= SIGNIFICANT:
        outcome = "not_shown"
    else:
        outcome = "less" if one.superiority < 0.5 else "more"
    return dataclasses.replace(one, p_adjusted=p_adjusted, outcome=outcome)


def _cost(first: SideFigures, second: SideFigures, blocked: bool) -> CostContrast:
    found = []
    for measure in (EXTRA, EXTRA_CORRECTED):
        a, b = _values(measure.name, first, second, blocked)
        found.append(_shift(a, b, blocked) if a and b else None)
    raw, corrected = found
    share = [[c for run in side.runs if (c := run.correction_ns) is not None] for side in (first, second)]
    if raw is None or not all(share):
        return CostContrast(first.label, second.label, raw, None, None, None)
    correction = statistics.median(share[1]) - statistics.median(share[0])
    resolvable = abs(correction) <= abs(raw.estimate) / 2
    return CostContrast(first.label, second.label, raw, corrected, correction, resolvable)


def _warnings(sides: Sequence[SideFigures]) -> list[str]:
    """Why the runs may not be comparable."""
    runs = [run for side in sides for run in side.runs]
    found: list[str] = []
    twice = sorted({run.name for run in runs if sum(other.name == run.name for other in runs) > 1})
    if twice:
        found.append(f"a run is named more than once, and counts each time: {', '.join(twice)}")
    for what, of in (
        ("periods", {", ".join(sorted({_period(ns) for ns in run.periods_ns})) for run in runs}),
        ("numbers of streams", {str(run.streams) for run in runs}),
        ("kernels", {run.kernel for run in runs}),
        ("numbers of CPUs", {str(run.cpus) for run in runs}),
        ("summary schemas", {str(run.schema) for run in runs}),
    ):
        if len(of) > 1:
            found.append(f"runs have other {what}: {'; '.join(sorted(of))}")
    lengths = [run.audio_s for run in runs]
    if max(lengths) > _UNLIKE * min(lengths):
        found.append(
            f"runs watched {min(lengths):.3g} to {max(lengths):.3g} s of audio: rates still compare, "
            "shares of runs with any miss do not"
        )
    lossy = [run.name for run in runs if run.lost]
    if lossy:
        found.append(f"records were lost in {', '.join(lossy)}: misses there may lack their cause")
    guessed = {run.inferred for run in runs}
    if len(guessed) > 1:
        found.append("in some runs the audio server was not seen and periods are inferred, in others not")
    found += [f"{run.name}: {run.note}" for run in runs if run.note]
    medians = [
        (
            side.label,
            statistics.median(run.records_per_s for run in side.runs),
            statistics.median(run.steal_percent for run in side.runs),
            [run.load for run in side.runs if run.load >= 0],
        )
        for side in sides
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


def _period(ns: int) -> str:
    """To three digits: the median of measured cycles differs in the fourth."""
    return f"{ns / 1e6:.3g} ms"


def _apart(one: float, other: float) -> bool:
    """Whether two load averages are of different machines' days: more than 1 and a factor of two apart."""
    return abs(one - other) > 1 and max(one, other) > _BUSIER * min(one, other)
