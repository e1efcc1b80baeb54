# SPDX-License-Identifier: Apache-2.0
"""The statistics of compare, against enumerations and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tracer.model import runstats

#: Few distinct values, so that ties are the rule.
counts = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def enumerated(first: Sequence[float], second: Sequence[float]) -> float:
    """All ways to label the runs, one by one."""
    ranks = stats.rankdata([*first, *second])
    mean = len(first) * ranks.mean()
    seen = abs(ranks[: len(first)].sum() - mean)
    sums = [abs(ranks[list(c)].sum() - mean) for c in combinations(range(len(ranks)), len(first))]
    return float(sum(s >= seen - 1e-9 for s in sums) / len(sums))


@settings(max_examples=60, deadline=None)
@given(counts, counts)
def test_the_permutation_test_is_the_enumeration_of_all_labellings(
    first: list[int], second: list[int]
) -> None:
    assert runstats.permutation_p(first, second) == pytest.approx(enumerated(first, second))


def test_without_ties_the_permutation_test_is_scipys_exact_rank_test() -> None:
    chance = np.random.default_rng(5)
    for n, m in ((4, 6), (8, 8), (20, 20)):
        values = chance.permutation(n + m).tolist()
        expected = stats.mannwhitneyu(values[:n], values[n:], method="exact").pvalue
        assert runstats.permutation_p(values[:n], values[n:]) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_the_sign_flip_test_is_the_enumeration_of_all_signs(differences: list[int]) -> None:
    ranks = stats.rankdata([abs(d) for d in differences])
    signed = ranks * np.sign(differences)
    sums = [abs((np.abs(signed) * signs).sum()) for signs in product((-1, 1), repeat=len(differences))]
    expected = sum(s >= abs(signed.sum()) - 1e-9 for s in sums) / len(sums)
    assert runstats.sign_flip_p(differences) == pytest.approx(expected)


def test_without_ties_the_sign_flip_test_is_scipys_exact_wilcoxon() -> None:
    differences = [1.5, -0.5, 3.0, 4.5, 2.0, -1.0, 7.0]
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert runstats.sign_flip_p(differences) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("runs", "ranks", "level"),
    [(5, (3, 23, 25), 0.968), (4, (1, 16, 16), 0.971), (3, (0, 0, 9), None), (20, (128, 273, 400), 0.9506)],
)
def test_the_interval_takes_the_ordered_differences_that_belong_to_the_test(
    runs: int, ranks: tuple[int, int, int], level: float | None
) -> None:
    first, second = [float(i) for i in range(runs)], [100.5 + 7 * i for i in range(runs)]
    found = runstats.shift(first, second)
    assert (found.low_rank, found.high_rank, found.of) == ranks
    assert found.level == (None if level is None else pytest.approx(level, abs=5e-4))
    ordered = sorted(b - a for a in first for b in second)
    assert found.estimate == np.median(ordered)
    if level is None:
        assert found.low is None
        assert found.high is None
    else:
        assert (found.low, found.high) == (ordered[ranks[0] - 1], ordered[ranks[1] - 1])


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 7), st.integers(4, 7), st.randoms())
def test_the_interval_leaves_zero_out_exactly_where_the_test_says_so(n: int, m: int, chance: object) -> None:
    """Without ties, test and interval are the same decision."""
    values = list(range(n + m))
    chance.shuffle(values)  # type: ignore[attr-defined]
    first, second = [float(v) for v in values[:n]], [float(v) for v in values[n:]]
    found = runstats.shift(first, second)
    assert found.low is not None
    assert found.high is not None
    assert (found.low > 0 or found.high < 0) == (runstats.permutation_p(first, second) <= 0.05)


def test_an_interval_covers_what_it_says() -> None:
    """Over all labellings of ten values, the shift 0 is inside in 244 of 252: 96.8 %."""
    values = np.arange(10.0)
    inside = 0
    for chosen in combinations(range(10), 5):
        rest = [i for i in range(10) if i not in chosen]
        found = runstats.shift(values[list(chosen)].tolist(), values[rest].tolist())
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0 <= found.high
    assert inside == 244


def test_six_pairs_are_the_first_that_can_show_anything() -> None:
    assert runstats.sign_flip_p([1.0, 2, 3, 4, 5]) == 0.0625
    assert runstats.sign_flip_p([1.0, 2, 3, 4, 5, 6]) == 0.03125
    found = runstats.paired_shift([1.0, 2, 3, 4, 5, 6])
    assert (found.low, found.high, found.level) == (1.0, 6.0, 0.96875)
    assert runstats.paired_shift([1.0, 2, 3, 4, 5]).level is None


@pytest.mark.parametrize(("hits", "runs"), [(0, 5), (2, 5), (5, 5), (3, 20)])
def test_the_share_of_runs_has_the_exact_binomial_interval(hits: int, runs: int) -> None:
    low, high = runstats.share_interval(hits, runs)
    assert low == pytest.approx(0.0 if not hits else stats.beta.ppf(0.025, hits, runs - hits + 1))
    assert high == pytest.approx(1.0 if hits == runs else stats.beta.ppf(0.975, hits + 1, runs - hits))


def test_five_clean_runs_leave_45_percent_open() -> None:
    assert round(runstats.clean_bound(5), 2) == 0.45
    assert round(runstats.clean_bound(1), 2) == 0.95
    assert runstats.clean_bound(5) == pytest.approx(stats.beta.ppf(0.95, 1, 5))


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert runstats.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert runstats.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert runstats.holm({}) == {}


def test_runs_needed_are_enough_by_simulation_and_half_of_them_are_not() -> None:
    """Normal values one standard deviation apart: P(first < second) is 0.76."""
    grid = stats.norm.ppf((np.arange(60) + 0.5) / 60)
    needed = runstats.runs_needed(runstats.superiority(grid.tolist(), (grid + 1).tolist()))
    assert needed is not None
    chance = np.random.default_rng(1)

    def power(runs: int) -> float:
        hits = [
            runstats.permutation_p(chance.normal(0, 1, runs).tolist(), chance.normal(1, 1, runs).tolist())
            <= 0.05
            for _ in range(300)
        ]
        return float(np.mean(hits))

    assert power(needed) > 0.7
    assert power(needed // 2) < 0.65


def test_no_difference_has_no_number_of_runs() -> None:
    assert runstats.runs_needed(runstats.superiority([1, 2], [1, 2])) is None
    assert runstats.runs_needed(runstats.paired_superiority([0, 0, 0]), blocked=True) is None
    assert runstats.runs_needed(runstats.superiority([0, 0, 0], [9, 9, 9])) == 6
    assert runstats.runs_needed(runstats.paired_superiority([1, 1, 1]), blocked=True) == 11
