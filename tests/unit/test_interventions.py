# SPDX-License-Identifier: Apache-2.0
"""The tables of ``./dev bench interventions``: rates, ratios, and what counts as a disagreement."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from bench.compared import Comparison, detection, render
from bench.interventions import PROGRAMS, interventions
from bench.runs import CANDIDATES, Condition, Count, Run
from tracer.model.summary import CAUSES, REMEDIES

BEFORE, AFTER = Condition("locked", ("--churn", "200")), Condition("locked", ())


def run(condition: Condition, misses: int, left: int = 0, *, seen: int | None = None) -> Run:
    """A run of a minute of audio."""
    cycles = round(60 / condition.period_s)
    count = Count(cycles, misses, min(misses, 2))
    return Run(
        condition=str(condition),
        seed=1,
        truth=count,
        seen=count if seen is None else replace(count, misses=seen),
        by_cause={"serialised": misses},
        remaining={"own_context": (left, left)},
        steal_percent=1.0,
        load_average=2.0,
        lost=0,
    )


def compare(before: list[Run], after: list[Run], *, carried_out: bool = True) -> Comparison:
    return Comparison.of("w", BEFORE, AFTER, before, after, "own_context", "serialised", carried_out)


def test_rates_are_per_minute_of_audio() -> None:
    one = compare([run(BEFORE, 100, 10)], [run(AFTER, 20)])
    assert one.before.misses_per_minute == pytest.approx([100], rel=1e-3)
    assert one.predicted == pytest.approx([10], rel=1e-3)
    assert one.ratio == pytest.approx(2)
    assert (one.predicted_avoided, one.real_avoided) == pytest.approx((0.9, 0.8))


def test_a_prediction_far_from_what_remained_does_not_hold() -> None:
    before = [run(BEFORE, 100 + i, 0) for i in range(5)]
    assert compare(before, [run(AFTER, i) for i in range(5)]).holds
    assert compare(before, [run(AFTER, 50 + i) for i in range(5)]).holds is False


def test_the_interval_of_a_ratio_has_the_ratio_in_it() -> None:
    one = compare([run(BEFORE, 100, n) for n in (2, 9, 20)], [run(AFTER, n) for n in (1, 8, 40)])
    assert one.low is not None and one.high is not None and one.ratio is not None
    assert one.low < one.ratio < one.high


def test_a_prediction_that_is_not_carried_out_is_shown_without_a_judgement() -> None:
    one = compare([run(BEFORE, 100, 100)], [run(AFTER, 0)], carried_out=False)
    assert one.holds is None
    assert "not this" in render([one], {})


def test_runs_more_than_one_off_are_counted() -> None:
    runs = [run(BEFORE, 10), run(BEFORE, 10, seen=9), run(BEFORE, 10, seen=13)]
    row = detection(runs)["locked"]
    assert (row["runs"], row["runs_equal"], row["runs_beyond"]) == (3, 1, 1)
    assert (row["misses"], row["misses_off"]) == (30, 4)


def test_a_kept_run_reads_back_equal() -> None:
    one = run(BEFORE, 7, 3)
    assert Run.from_json(json.dumps(asdict(one))) == one


def test_every_intervention_names_causes_and_predictions_that_exist() -> None:
    known = {*REMEDIES, *CANDIDATES, ""}
    for one in interventions(list(PROGRAMS), []):
        assert one.cause in CAUSES
        assert {one.prediction, one.contrast} <= known
        assert str(one.before) != str(one.after)
