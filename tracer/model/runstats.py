# SPDX-License-Identifier: Apache-2.0
"""Exact statistics for a handful of runs a side.

Owns the tests and intervals of ``xdtrace compare``; knows nothing of audio. Everything is exact
for any number of ties: null distributions are counted, never approximated, because five runs a
side are the norm and counts of misses are bursty (a bootstrap over five runs covers 72 %, a
Poisson interval 33 %). scipy gives what it has in exact form; it has no exact test with ties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, rankdata

LEVEL: Final = 0.95
#: Fewer pairs cannot reach p < 0.05 by flipping signs: 2 / 2^5 is 0.0625.
MIN_PAIRS: Final = 6
#: Three against three give p = 0.1 at least, four against four 0.029.
MIN_RUNS: Final = 4
#: Runs a side that the counting below does in about a second.
MAX_RUNS: Final = 100
_POWER: Final = 0.8


@dataclass(frozen=True, slots=True)
class Shift:
    """A difference of locations with its interval.

    Attributes:
        estimate: the median of the differences (Hodges and Lehmann 1963).
        low, high: the ordered differences number ``low_rank`` and ``high_rank`` (from 1) of ``of``; None
            where even the least and the greatest do not cover 95 %.
        level: what they cover, None likewise.
    """

    estimate: float
    low: float | None
    high: float | None
    level: float | None
    low_rank: int
    high_rank: int
    of: int


def _doubled_ranks(values: Sequence[float]) -> NDArray[np.int64]:
    """Twice the mid-ranks (n,): whole numbers, so that sums compare exactly."""
    doubled: NDArray[np.int64] = np.rint(2 * rankdata(values, method="average")).astype(np.int64)
    return doubled


def _subset_sums(weights: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """How many subsets of ``size`` weights (n,) have each sum 0, 1, …"""
    counts = np.zeros((size + 1, int(weights.sum()) + 1))
    counts[0, 0] = 1
    for weight in weights.tolist():
        counts[1:, weight:] += counts[:-1, : counts.shape[1] - weight].copy()
    found: NDArray[np.float64] = counts[size]
    return found


def _flip_sums(weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many of all subsets of weights (n,) have each sum."""
    counts = np.zeros(int(weights.sum()) + 1)
    counts[0] = 1
    for weight in weights.tolist():
        counts[weight:] += counts[: len(counts) - weight].copy()
    return counts


def _two_sided(counts: NDArray[np.float64], seen: int, twice_mean: float) -> float:
    """Share of arrangements whose sum lies as far from the mean as the seen one, or farther."""
    sums = np.arange(len(counts))
    far = np.abs(2 * sums - twice_mean) >= abs(2 * seen - twice_mean)
    return float(min(1.0, counts[far].sum() / counts.sum()))


def permutation_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of the exact permutation of run labels, on mid-ranks."""
    doubled = _doubled_ranks([*first, *second])
    counts = _subset_sums(doubled, len(first))
    return _two_sided(counts, int(doubled[: len(first)].sum()), 2 * len(first) * float(doubled.mean()))


def least_p(first: int, second: int) -> float:
    """The smallest p that so many runs a side can ever give (no ties)."""
    return min(1.0, 2 / math.comb(first + second, first))


def shift(first: Sequence[float], second: Sequence[float]) -> Shift:
    """How much larger ``second`` is: Hodges–Lehmann, with the interval that belongs to the rank test."""
    differences = sorted(b - a for a in first for b in second)
    ranks = np.arange(1, len(first) + len(second) + 1, dtype=np.int64)
    counts = _subset_sums(ranks, len(first))[len(first) * (len(first) + 1) // 2 :]
    return _interval(differences, counts)


def _interval(ordered: Sequence[float], counts: NDArray[np.float64]) -> Shift:
    """The ordered differences that the null distribution (counts of 0, 1, … of them below 0) allows."""
    below = np.cumsum(counts) / counts.sum()
    k = int(np.searchsorted(below, (1 - LEVEL) / 2, side="right"))  # the k-th and the k-th from the end
    estimate = float(np.median(ordered))
    if k == 0:
        return Shift(estimate, None, None, None, 0, 0, len(ordered))
    level = float(1 - 2 * below[k - 1])
    return Shift(estimate, ordered[k - 1], ordered[-k], level, k, len(ordered) - k + 1, len(ordered))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the exact flipping of the signs of pairs' differences, on mid-ranks of their sizes."""
    doubled = _doubled_ranks([abs(d) for d in differences])
    values = np.asarray(differences)
    moving = doubled[values != 0]  # a zero has its rank and no sign (Pratt 1959)
    counts = _flip_sums(moving)
    return _two_sided(counts, int(doubled[values > 0].sum()), float(moving.sum()))


def paired_shift(differences: Sequence[float]) -> Shift:
    """The median of the Walsh averages of pairs' differences, with the signed-rank test's interval."""
    n = len(differences)
    walsh = sorted((differences[i] + differences[j]) / 2 for i in range(n) for j in range(i, n))
    return _interval(walsh, _flip_sums(np.arange(1, n + 1, dtype=np.int64)))


def share_interval(hits: int, runs: int) -> tuple[float, float]:
    """Clopper–Pearson 95 % interval of a share of runs."""
    found = binomtest(hits, runs).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)


def clean_bound(runs: int) -> float:
    """The share of runs that may still glitch after so many clean ones (95 %, one-sided)."""
    return float(1 - (1 - LEVEL) ** (1 / runs))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p adjusted for their number (Holm 1979)."""
    adjusted: dict[str, float] = {}
    floor = 0.0
    for done, name in enumerate(sorted(p_values, key=lambda key: (p_values[key], key))):
        floor = max(floor, min(1.0, (len(p_values) - done) * p_values[name]))
        adjusted[name] = floor
    return adjusted


def superiority(first: Sequence[float], second: Sequence[float]) -> float:
    """P(a run of ``second`` has the larger value) + half of P(equal), over all pairs of runs."""
    pairs = [(a, b) for a in first for b in second]
    return sum((a < b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def paired_superiority(differences: Sequence[float]) -> float:
    """The same of pairs' differences: P(their Walsh averages are positive), half of P(zero) added."""
    n = len(differences)
    sums = [differences[i] + differences[j] for i in range(n) for j in range(i, n)]
    return sum((s > 0) + (s == 0) / 2 for s in sums) / len(sums)


def runs_needed(probability: float, *, blocked: bool = False) -> int | None:
    """Runs a side (pairs if blocked) that would show such a superiority in 8 of 10 tries; None at 1/2.

    Source: Noether, Sample size determination for some common nonparametric tests, JASA 82 (1987).
    """
    distance = abs(probability - 0.5)
    if distance < 1e-9:
        return None
    z = float(norm.ppf(0.5 + LEVEL / 2) + norm.ppf(_POWER))
    least, factor = (MIN_PAIRS, 3) if blocked else (MIN_RUNS, 6)
    return max(least, math.ceil(z * z / (factor * distance * distance)))
