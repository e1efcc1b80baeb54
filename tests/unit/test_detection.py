# SPDX-License-Identifier: Apache-2.0
"""``./dev bench detection``: what is run, in which pieces, and what counts as a difference."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bench.detection import VARIANTS, cells, condition, difference, render
from bench.runs import Condition, Count, Run
from bench.series import measure, order, saved

CONDITIONS = [Condition("locked", ("--churn", str(n))) for n in range(4)]


def run(at: Condition, number: int = 1, seen: Count | None = None) -> Run:
    truth = Count(282, 12, 5)
    return Run(str(at), number, truth, seen or truth, {}, {}, 0.5, 1.0, 0)


def options(save: Path | None, budget: float | None = None) -> argparse.Namespace:
    return argparse.Namespace(save=save, budget=budget)


def test_the_matrix_is_every_combination_once() -> None:
    full = [str(condition(variant, cell)) for variant in VARIANTS for cell in cells(quick=False)]
    assert len(full) == len(set(full)) == 72
    assert {str(condition("dup", cell)) for cell in cells(quick=True)} < set(full)


def test_every_condition_is_run_once_a_round() -> None:
    runs = order(CONDITIONS, 3)
    assert len(runs) == 12 and set(runs) == {(c, n) for c in CONDITIONS for n in (1, 2, 3)}
    assert [number for _, number in runs] == sorted(number for _, number in runs)


def test_a_piece_goes_on_where_the_saved_runs_end(tmp_path: Path) -> None:
    kept = tmp_path / "runs"
    ran: list[tuple[Condition, int]] = []

    def one(at: Condition, number: int) -> Run:
        if len(ran) == 3:
            raise KeyboardInterrupt  # killed in its fourth run
        ran.append((at, number))
        return run(at, number)

    for _ in range(3):
        try:
            runs = measure(CONDITIONS, 2, options(kept), one)
        except KeyboardInterrupt:
            assert len(saved(kept)) % 3 == 0
            ran = []
    assert [(r.condition, r.seed) for r in runs] == [(str(c), n) for c, n in order(CONDITIONS, 2)]
    assert saved(kept) == runs


def test_no_run_starts_once_the_budget_is_spent(tmp_path: Path) -> None:
    kept = tmp_path / "runs"
    assert measure(CONDITIONS, 1, options(kept, budget=1e-9), run) == []
    assert not kept.exists()


def test_a_run_that_fails_leaves_the_others() -> None:
    def one(at: Condition, number: int) -> Run:
        if at == CONDITIONS[1]:
            raise RuntimeError("said nothing")
        return run(at, number)

    left = [str(c) for c in CONDITIONS if c != CONDITIONS[1]]
    assert sorted(r.condition for r in measure(CONDITIONS, 1, options(None), one)) == left


def test_a_difference_of_any_count_is_shown_and_more_than_one_stands_out() -> None:
    cell = cells(quick=True)[0]
    at = condition("locked", cell)
    equal, near, far = run(at), run(at, 2, Count(283, 12, 5)), run(at, 3, Count(282, 12, 3))
    assert [difference(r) for r in (equal, near, far)] == [0, 1, 2]
    text = render([equal, near, far], [cell], ["locked"])
    assert (
        "| 282 / 12 / 5<br>282 / 12 / 5 (xdtrace 283 / 12 / 5)<br>**282 / 12 / 5 (xdtrace 282 / 12 / 3)**"
        in text
    )
    assert "| locked | 3 | 846 | 36 | 15 | 1 | 0 | 2 | 1 | 1 | 0 |" in text
    assert "–" in render([replace(equal, condition="other")], [cell], ["dup"])
