# SPDX-License-Identifier: Apache-2.0
"""The scorer's rules: what is matched, what is labelled, what a figure says."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import pytest

from bench.figures import figures, longest_segment, table, wilson_lower
from bench.labels import Cycle, Injection, Waits, overlapping
from bench.matrix import NEGATIVES, PATHS, VICTIMS, Trial, in_a_round, trials
from bench.score import Matched, Score, Verdict, add_run, match, saved_form, score_of

PERIOD = 1000
DONE = Injection("lock.intc", "lock", frozenset({"intc"}), begin_ns=900, end_ns=2300, delay_ns=1400)
LATE = Cycle(7, 1, start_ns=1000, deadline_ns=2000, closing_ns=2350, leg="completion")
TOLD = Verdict(
    id=1,
    episode=1,
    wake_eventfd=7,
    cycle=1,
    start_ns=990,
    deadline_ns=2003,
    late_ns=347,
    leg="completion",
    cause="lock",
    lock="intc",
    sufficient=("lock:intc",),
    carried_from=None,
    segments=(("host", "", 60), ("lock", "", 1300)),
)


def scored(*told: Verdict, injections: tuple[Injection, ...] = (DONE,), cycle: Cycle = LATE) -> Score:
    score = Score()
    add_run(score, "run", [cycle], told, injections, PERIOD // 4)
    return score


def test_a_miss_matches_one_verdict_of_the_same_eventfd_and_deadline_only() -> None:
    other = replace(TOLD, id=2, wake_eventfd=8)
    far = replace(TOLD, id=3, deadline_ns=2300)
    twice = replace(TOLD, id=4, deadline_ns=2010)
    found = match([LATE], [twice, other, far, TOLD], 250)
    assert found.pairs == [(LATE, TOLD)]
    assert found.unseen == []
    assert [v.id for v in found.invented] == [4, 2, 3]


def labelled(injection: Injection = DONE, cycle: Cycle = LATE) -> tuple[list[str], dict[str, int]]:
    """The causes that are the truth of a miss for an injection, and why there is none."""
    score = scored(TOLD, injections=(injection,), cycle=cycle)
    return [one.injection.cause for one in score.labelled], dict(score.reasons)


def test_only_what_lies_within_the_cycle_has_delayed_it() -> None:
    """Late by 350 of the 1000 that the cycle has; the delay's time before the start is nobody's."""
    assert labelled(replace(DONE, end_ns=1350)) == (["lock"], {})
    assert labelled(replace(DONE, end_ns=1349)) == ([], {"later than the injected delay": 1})


@pytest.mark.parametrize("cause", ["forward_failed", "unknown"])
def test_what_fails_after_the_deadline_made_nothing_late(cause: str) -> None:
    at = replace(DONE, cause=cause, delay_ns=None, begin_ns=2000, end_ns=2000)
    assert labelled(at) == ([], {"no injection": 1})
    assert labelled(replace(at, begin_ns=1999, end_ns=1999)) == ([cause], {})


def test_a_completion_did_not_wait_for_what_went_on_after_it() -> None:
    long = replace(DONE, end_ns=2351)
    assert labelled(long) == ([], {"completed before the delay ended": 1})
    assert labelled(replace(long, kind="lock.barging")) == (["lock"], {})
    assert labelled(long, replace(LATE, leg="wake")) == (["lock"], {})


def test_a_cycle_into_which_the_driver_caught_up_is_nobody_else_s_fault() -> None:
    short = replace(LATE, start_ns=1501)
    assert labelled(cycle=short) == ([], {"the driver caught up": 1})
    assert labelled(cycle=replace(short, start_ns=1500)) == (["lock"], {})


def test_a_worker_that_holds_its_lock_in_another_turn_serialises_its_wakeups() -> None:
    held = replace(DONE, kind="lock.item_state")
    assert labelled(held) == (["lock"], {})
    assert labelled(held, replace(LATE, leg="wake")) == (["serialised"], {})


def test_a_late_rearm_of_a_turn_that_may_have_been_chosen_first_is_of_no_known_cause() -> None:
    late = replace(DONE, kind="not_rearmed.guest", cause="not_rearmed", locks=frozenset(), begin_ns=1100)
    wake = replace(LATE, leg="wake", signal_ns=1099)
    assert labelled(late, wake) == ([], {"begun after the wakeup was there": 1})
    assert labelled(late, replace(wake, signal_ns=1100)) == (["not_rearmed"], {})
    assert labelled(replace(late, kind="not_rearmed.g"), wake) == (["not_rearmed"], {})


def test_a_busy_g_that_keeps_the_worker_from_its_wakeup_is_a_late_rearm_as_well() -> None:
    busy = replace(DONE, kind="head_of_line.cpu", cause="head_of_line", locks=frozenset())
    told = replace(TOLD, cause="not_rearmed", sufficient=("not_rearmed",))
    for leg, right in (("completion", 0.0), ("wake", 1.0)):
        score = scored(told, injections=(busy,), cycle=replace(LATE, leg=leg))
        row = figures(score)["by_cause"][f"head_of_line/{leg}"]
        assert (row["label"]["share"], row["set"]["share"]) == (right, right)


def test_a_failure_of_another_stream_is_in_nobody_else_s_way() -> None:
    failed = replace(DONE, cause="forward_failed", delay_ns=None, stream=1)
    assert overlapping(LATE, 990, [failed, DONE]) == [DONE]
    assert overlapping(replace(LATE, stream=1), 990, [failed, DONE]) == [failed, DONE]


def test_a_cycle_in_time_matches_nothing() -> None:
    assert match([replace(LATE, leg="none")], [TOLD], 250) == Matched([], [], [TOLD], [])


def test_a_cycle_that_another_client_closed_is_told_falsely_only_if_ours_was_done() -> None:
    others = replace(LATE, leg="none", closer="other")
    beside = replace(others, at_work=True)
    assert match([others], [TOLD], 250) == Matched([], [], [TOLD], [])
    assert match([beside], [TOLD], 250) == Matched([], [], [], [(beside, TOLD)])
    assert match([beside], [], 250) == Matched([], [], [], [])


def test_a_wakeup_that_was_not_read_is_missed_whoever_closed_the_cycle() -> None:
    for closer in ("other", "either"):
        late = replace(LATE, leg="wake", closer=closer, at_work=True)
        assert match([late], [], 250) == Matched([], [late], [], [])
        assert match([late], [TOLD], 250) == Matched([(late, TOLD)], [], [], [])


def test_where_the_closing_completion_has_two_possible_authors_nothing_is_counted() -> None:
    unclear = replace(LATE, closer="either")
    assert match([unclear], [], 250) == Matched([], [], [], [])
    assert match([unclear], [TOLD], 250) == Matched([], [], [], [(unclear, TOLD)])


def test_what_nobody_told_is_not_seen_unless_the_run_ends_with_it() -> None:
    result = figures(scored())["detection"]
    assert (result["recall"], result["not_seen"], result["last_cycle_not_seen"]) == (1.0, 0, 1)
    score = Score()
    add_run(score, "run", [LATE, replace(LATE, cycle=2, leg="none")], [], [DONE], PERIOD // 4)
    result = figures(score)["detection"]
    assert (result["recall"], result["not_seen"], result["last_cycle_not_seen"]) == (0.0, 1, 0)


def test_a_right_label_counts_for_its_cause_and_leg() -> None:
    result = figures(scored(TOLD))
    row = result["by_cause"]["lock/completion"]
    assert (row["label"]["share"], row["set"]["share"], row["precision"]) == (1.0, 1.0, 1.0)
    assert result["lock_named_right"] == 1.0
    assert result["late_bias_us"] == pytest.approx(-0.003)


def test_another_lock_of_the_same_cause_is_told_apart() -> None:
    assert figures(scored(replace(TOLD, lock="item_state")))["lock_named_right"] == 0.0


@pytest.mark.parametrize("said", ["mixed", "unknown", "serialised"])
def test_a_label_that_is_not_the_cause_is_an_error_although_the_set_has_it(said: str) -> None:
    row = figures(scored(replace(TOLD, cause=said)))["by_cause"]["lock/completion"]
    assert (row["label"]["share"], row["set"]["share"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("injections", "reason"),
    [
        ((), "no injection"),
        ((DONE, replace(DONE, kind="guest_late", cause="guest_late")), "several injections"),
        ((replace(DONE, delay_ns=349),), "later than the injected delay"),
    ],
)
def test_without_one_injection_that_explains_the_lateness_there_is_no_label(
    injections: tuple[Injection, ...], reason: str
) -> None:
    score = scored(TOLD, injections=injections)
    assert (score.labelled, dict(score.reasons)) == ([], {reason: 1})


def test_what_begins_after_the_deadline_made_nothing_late() -> None:
    after = replace(DONE, begin_ns=2000, delay_ns=400)
    assert dict(scored(TOLD, injections=(after,)).reasons) == {"no injection": 1}
    assert len(scored(TOLD, injections=(DONE, after)).labelled) == 1


def test_only_what_lies_in_the_window_of_a_delay_explains_a_lateness() -> None:
    """[1000, 2350] is the window; of a lock held for 5000 before it and 349 in it nothing is late by 350."""
    early = replace(DONE, begin_ns=1000 - 5000, end_ns=1000 + 349, delay_ns=5349)
    assert dict(scored(TOLD, injections=(early,)).reasons) == {"later than the injected delay": 1}
    assert len(scored(TOLD, injections=(replace(early, end_ns=1000 + 350),)).labelled) == 1


def test_a_burst_that_begins_when_w_has_read_the_wakeup_is_in_the_way_of_other_cycles() -> None:
    burst = replace(DONE, kind="serialised", cause="serialised", begin_ns=1100)
    assert len(scored(TOLD, injections=(burst,)).labelled) == 1  # an older log: when W read is not known
    assert len(scored(TOLD, injections=(burst,), cycle=replace(LATE, read_ns=1101)).labelled) == 1
    read = replace(LATE, read_ns=1100)
    assert dict(scored(TOLD, injections=(burst,), cycle=read).reasons) == {"no injection": 1}
    assert len(scored(TOLD, injections=(replace(burst, kind="lock.intc"),), cycle=read).labelled) == 1


def test_a_cycle_of_less_than_half_a_period_is_the_driver_s() -> None:
    short = replace(LATE, start_ns=1501)
    assert dict(scored(TOLD, cycle=short).reasons) == {"the driver caught up": 1}
    assert len(scored(TOLD, cycle=replace(LATE, start_ns=1500)).labelled) == 1


def test_a_leaf_is_as_long_as_it_was_asked_to_be() -> None:
    """A fault of 340 after which W waits for a CPU for as long is no 680 that W was blocked."""
    fault = replace(DONE, kind="blocked.w", cause="blocked", end_ns=1700, delay_ns=800, asked_ns=310)
    assert dict(scored(TOLD, injections=(fault,)).reasons) == {"later than the injected delay": 1}
    assert len(scored(TOLD, injections=(replace(fault, asked_ns=700),)).labelled) == 1
    turns = replace(fault, kind="serialised", cause="serialised", asked_ns=500)  # all of a turn is a turn
    assert len(scored(TOLD, injections=(turns,)).labelled) == 1


def test_an_injection_that_lasted_longer_than_asked_by_what_the_cycle_was_late_has_help() -> None:
    burst = replace(DONE, kind="serialised", cause="serialised", asked_ns=950)  # 1400, of which 1045
    assert dict(scored(TOLD, injections=(burst,)).reasons) == {"longer than asked for": 1}
    assert len(scored(TOLD, injections=(replace(burst, asked_ns=960),)).labelled) == 1
    missing = replace(burst, cause="not_scheduled")  # what stretches a missing CPU is a missing CPU
    assert len(scored(TOLD, injections=(missing,)).labelled) == 1


def test_where_a_cpu_was_missing_for_as_long_as_the_cycle_was_late_there_are_two_causes() -> None:
    def with_waits(waited: int, said: str, injected: Injection = DONE) -> Score:
        score = Score()
        of_g = [5, 10, 10, 10 + waited, 900]
        waits = Waits([900, 980, 1500, 2400, 3000], list(zip([7] * 5, of_g, strict=True)))
        told = replace(TOLD, cause=said)
        add_run(score, "run", [LATE], [told], [injected], PERIOD // 4, waits=waits)
        return score

    assert len(with_waits(349, "lock").labelled) == 1
    for said, right in (("lock", 1), ("not_scheduled", 1), ("mixed", 1), ("guest_late", 0)):
        score = with_waits(350, said)
        assert dict(score.reasons) == {"a CPU was missing as well": 1}
        assert (score.labelled, score.pairs, score.pairs_right) == ([], 1, right)
    missing = replace(DONE, kind="not_scheduled.w", cause="not_scheduled")
    assert len(with_waits(350, "not_scheduled", missing).labelled) == 1


def test_a_cpu_that_was_missing_before_the_completion_was_written_did_not_make_the_driver_read_it_late() -> (
    None
):
    waits = Waits([900, 2400], [(0,), (400,)])
    read_late = replace(DONE, kind="host_late.read", cause="host_late")
    for written, injected, known in (
        (DONE.end_ns - 1, read_late, 1),
        (DONE.end_ns, read_late, 0),
        (0, read_late, 0),  # an older log
        (DONE.end_ns - 1, replace(read_late, kind="host_late"), 0),
    ):
        score, cycle = Score(), replace(LATE, written_ns=written)
        add_run(score, "run", [cycle], [TOLD], [injected], PERIOD // 4, waits=waits)
        assert len(score.labelled) == known, (written, injected.kind)


def test_a_cycle_after_the_end_of_the_recording_is_counted_nowhere() -> None:
    score = Score()
    later = replace(LATE, cycle=2, start_ns=2000, deadline_ns=3000, closing_ns=3100)
    rest = replace(LATE, cycle=3, start_ns=3000, deadline_ns=0, leg="none")
    add_run(score, "run", [LATE, later, rest], [TOLD], [DONE], PERIOD // 4, until_ns=2999)
    assert (score.cycles, score.hit, score.not_seen, score.not_recorded) == (1, 1, 0, 2)


def test_a_delay_as_long_as_the_lateness_explains_it() -> None:
    assert len(scored(TOLD, injections=(replace(DONE, delay_ns=350),)).labelled) == 1


def test_a_write_that_never_came_explains_any_lateness() -> None:
    lost = replace(DONE, kind="forward_failed", cause="forward_failed", end_ns=901, delay_ns=None)
    told = replace(TOLD, cause="forward_failed", sufficient=())
    row = figures(scored(told, injections=(replace(lost, end_ns=1100),)))["by_cause"]
    assert row["forward_failed/completion"]["set"]["share"] == 1.0


def test_stolen_cpu_above_a_tenth_of_the_lateness_takes_the_label_away() -> None:
    stolen = replace(TOLD, segments=(*TOLD.segments, ("stolen", "", 35)))
    assert dict(scored(stolen).reasons) == {"stolen CPU": 1}
    assert len(scored(replace(stolen, segments=(("stolen", "", 34),))).labelled) == 1


def test_the_window_of_a_miss_ends_with_its_closing() -> None:
    after = replace(DONE, begin_ns=2351, end_ns=2500)
    before = replace(DONE, begin_ns=100, end_ns=989)
    assert overlapping(LATE, TOLD.start_ns, [before, DONE, after]) == [DONE]


def test_a_carried_miss_is_scored_by_its_origin_and_apart() -> None:
    second = replace(LATE, cycle=2, start_ns=2000, deadline_ns=3000, closing_ns=3100)
    first = replace(LATE, closing_ns=3100)
    long = replace(DONE, end_ns=3050, delay_ns=2150)
    carried = replace(TOLD, id=2, start_ns=1990, deadline_ns=3003, carried_from=1)
    score = Score()
    add_run(score, "run", [first, second], [TOLD, carried], [long], PERIOD // 4)
    assert (len(score.labelled), score.carried, score.carried_right) == (1, 1, 1)
    lost = Score()
    add_run(lost, "run", [first, second], [TOLD, replace(carried, carried_from=9)], [long], PERIOD // 4)
    assert (lost.carried, lost.carried_right) == (1, 0)


def test_what_is_false_in_a_negative_run_is_counted_as_such() -> None:
    score = Score()
    add_run(score, "run", [replace(LATE, leg="none")], [TOLD], [], PERIOD // 4, negative=True)
    result = figures(score)
    assert (result["negatives_cycles"], result["negatives_false_misses"]) == (1, 1)
    assert result["detection"]["precision"] == 0.0
    assert result["negatives_bound"] is None


def test_the_longest_segment_adds_up_what_belongs_together() -> None:
    told = replace(TOLD, segments=(("lock", "", 50), ("guest", "serialised", 30), ("host", "serialised", 30)))
    assert longest_segment(told) == "serialised"
    assert longest_segment(replace(TOLD, segments=(("guest", "", 9),))) == "guest_late"


@pytest.mark.parametrize(
    ("share", "n", "bound"), [(1.0, 200, 0.9812), (0.95, 200, 0.9103), (0.5, 10, 0.2366), (0.0, 5, 0.0)]
)
def test_the_bound_is_wilsons(share: float, n: int, bound: float) -> None:
    assert wilson_lower(share, n) == pytest.approx(bound, abs=2e-4)


def test_the_bound_counts_episodes_not_misses() -> None:
    score = Score()
    for run in ("a", "b"):
        twice = [TOLD, replace(TOLD, id=2, start_ns=1990, deadline_ns=3003)]
        later = replace(LATE, start_ns=2000, deadline_ns=3000, closing_ns=3100)
        add_run(
            score, run, [LATE, later], twice, [replace(DONE, kind="lock.barging", end_ns=3000)], PERIOD // 4
        )
    label = figures(score)["by_cause"]["lock/completion"]["label"]
    assert (label["n"], label["episodes"]) == (4, 2)
    assert label["lower"] == wilson_lower(1.0, 2)


def test_a_delay_in_another_stream_s_turn_labels_only_its_own_stream() -> None:
    other = replace(DONE, stream=3)
    assert dict(scored(TOLD, injections=(other,)).reasons) == {"another stream's delay": 1}
    assert len(scored(TOLD, injections=(other,), cycle=replace(LATE, stream=3)).labelled) == 1


def test_of_two_delays_at_once_either_or_mixed_is_right() -> None:
    two = (DONE, replace(DONE, kind="guest_late", cause="guest_late"))
    for said, right in (("lock", 1), ("guest_late", 1), ("mixed", 1), ("unknown", 0), ("serialised", 0)):
        score = scored(replace(TOLD, cause=said), injections=two)
        assert (score.pairs, score.pairs_right) == (1, right)


def test_a_write_that_never_came_without_an_error_must_be_told_as_unknown() -> None:
    lost = replace(DONE, kind="no_write", cause="unknown", end_ns=901, begin_ns=900, delay_ns=None)
    lost = replace(lost, begin_ns=1100, end_ns=1101)
    right = figures(scored(replace(TOLD, cause="unknown", sufficient=()), injections=(lost,)))
    assert right["by_cause"]["unknown/completion"]["label"]["share"] == 1.0
    assert (right["unknown_share"], right["cause"]["precision"]) == (0.0, 1.0)
    wrong = figures(scored(replace(TOLD, cause="guest_late"), injections=(lost,)))
    assert (wrong["cause"]["recall"], wrong["cause"]["precision"]) == (0.0, 0.0)


def test_a_lock_that_is_blamed_in_a_negative_run_is_counted() -> None:
    score = Score()
    add_run(score, "run", [LATE], [TOLD], [], PERIOD // 4, negative=True)
    assert figures(score)["negatives_locks_blamed"] == 1


def test_without_item_state_is_held_against_what_was_injected() -> None:
    score = scored(replace(TOLD, sufficient=("lock:item_state",)))
    item_state = replace(DONE, locks=frozenset({"item_state"}))
    score.add(scored(replace(TOLD, sufficient=("lock:item_state@1",)), injections=(item_state,)))
    calibration = figures(score)["without_item_state"]
    assert calibration == {"would_avoid": {"n": 1, "predicted": 1}, "would_not": {"n": 1, "predicted": 1}}


def test_scores_survive_being_saved_and_add_up() -> None:
    one = scored(TOLD)
    one.add(scored(replace(TOLD, cause="mixed"), injections=()))
    back = score_of(json.loads(json.dumps(saved_form(one), default=sorted)))
    assert back == one
    total = Score()
    for score in (back, one):
        total.add(score)
    figure = figures(total)
    assert (figure["cycles"], len(total.labelled), figure["unlabelled"]["reasons"]) == (
        4,
        2,
        {"no injection": 2},
    )


def test_the_json_line_has_the_keys_that_consumers_rely_on() -> None:
    result = figures(scored(TOLD))
    assert {"precision", "recall"} <= result["detection"].keys()
    assert isinstance(result["cause"]["precision"], float) and isinstance(result["cause"]["recall"], float)
    assert {"by_cause", "unknown_share", "negatives_false_misses"} <= result.keys()
    result |= {"runs": 1, "failed_runs": 0, "host": {}}
    assert "lock/completion" in table(result)


def test_the_most_that_a_delay_was_to_last_is_what_its_option_allows() -> None:
    trial = Trial("serialised:0.88..1.02+lock.intc&guest_late+host_late.read", "dup", "480/48000", 1.0, 1)
    asked = {
        kind: trial.asked_ns(kind) for kind in ("serialised", "guest_late", "host_late.read", "blocked.w")
    }
    assert asked == {
        "serialised": 10_200_000,
        "guest_late": 18_000_000,
        "host_late.read": 10_000_000,
        "blocked.w": 0,
    }


@pytest.mark.parametrize("quick", [True, False])
def test_the_matrix_has_every_victim_and_negative_and_in_some_rounds_every_write_path(quick: bool) -> None:
    one = in_a_round(quick)
    runs = list(islice(trials(quick, 50), 4 * one))
    assert [trial.seed for trial in runs] == list(range(50, 50 + 4 * one))
    first = runs[:one]
    assert {f"not_scheduled.{victim}" for victim in VICTIMS} <= {trial.inject for trial in first}
    assert {trial.extra[-1] for trial in first if "--negative" in trial.extra} == set(NEGATIVES)
    paths = {(trial.inject, trial.condition, trial.write_path) for trial in runs}
    for trial in first:
        mine = {
            path
            for inject, condition, path in paths
            if (inject, condition) == (trial.inject, trial.condition)
        }
        assert mine == set(("locked", "dup") if quick else PATHS)
