# SPDX-License-Identifier: Apache-2.0
"""Sides of runs, compared: the run is the unit.

Owns what is compared with what and which outcome a test gives. The primary measure is fixed here, before
anybody looks: missed cycles per minute of audio watched. The statistics are runstats.py's, which runs can be
compared is comparability.py's; how it reads is a view's.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from tracer.errors import UsageError
from tracer.model import comparability, runstats
from tracer.model.runfigures import EPISODES, EXTRA, EXTRA_CORRECTED, MEASURES, PRIMARY, Measure, Run
from tracer.model.runstats import Shift

SCHEMA: Final = 1
SIGNIFICANT: Final = 0.05


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
        outcome: less or more (the second side, at p_adjusted < 0.05), not_shown, impossible (so few runs
            cannot give p < 0.05 whatever they say), or not_comparable (it would be less or more).
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
    """Everything ``compare`` has to say.

    Attributes:
        not_comparable: why these runs cannot be compared, in words; then no contrast has a winner.
        warnings: what else may explain a difference, in words.
    """

    sides: tuple[SideFigures, ...]
    blocked: bool
    contrasts: tuple[Contrast, ...]
    costs: tuple[CostContrast, ...]
    not_comparable: tuple[str, ...]
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
    runs = [(side.label, side.runs) for side in figures]
    reasons = tuple(comparability.barred(runs))
    if reasons:
        contrasts = [_barred(one) for one in contrasts]
    return Comparison(figures, blocked, tuple(contrasts), costs, reasons, tuple(comparability.doubts(runs)))


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


def _barred(one: Contrast) -> Contrast:
    return dataclasses.replace(one, outcome="not_comparable") if one.outcome in ("less", "more") else one


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
