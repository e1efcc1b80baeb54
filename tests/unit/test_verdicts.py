# SPDX-License-Identifier: Apache-2.0
"""Verdicts on a scripted world whose delays are known exactly."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import MS, Delays, World

from tracer.model.analysis import Analysis
from tracer.model.summary import Miss, Summary
from tracer.schema import Records, end_ns

LATE = 40 * MS
CASES = {
    "lock": (Delays(lock=LATE), "lock", "wake"),
    "guest": (Delays(guest=LATE), "guest_late", "completion"),
    "serialised": (Delays(channel_turns=12, turn=3 * MS), "serialised", "wake"),
    "head_of_line": (Delays(gpu_syscall=LATE), "head_of_line", "completion"),
    "on_cpu": (Delays(worker_cpu=LATE), "on_cpu", "completion"),
    "not_scheduled": (Delays(worker_off=LATE), "not_scheduled", "wake"),
    "slow_syscall": (Delays(write=LATE), "slow_syscall", "completion"),
    "host_read": (Delays(host_read=LATE), "host_late", "completion"),
    "holder_off": (Delays(lock_preempted=LATE), "not_scheduled", "wake"),
}


def play(*plan: Delays | None, warm: int = 24, tail: int = 12) -> tuple[World, Records]:
    world = World()
    for delays in [*([None] * warm), *plan, *([None] * tail)]:
        world.cycle(delays)
    return world, world.finish()


def analyse(world: World, records: Records, cuts: list[int] | None = None) -> Summary:
    analysis = Analysis()
    ends = end_ns(records)
    bounds = [0, *sorted(cuts or []), len(records)]
    for i, (low, high) in enumerate(pairwise(bounds)):
        part = records[low:high]
        watermark = int(ends[high - 1]) - 1 if high > low and high < len(records) else int(ends[-1])
        analysis.feed(world.batch(part, watermark if high > low else 0, first=i == 0))
    analysis.finish()
    return analysis.summary()


def origins(summary: Summary) -> list[Miss]:
    return [m for m in summary.misses if m.carried_from is None]


def test_cycles_in_time_are_no_misses() -> None:
    world, records = play(warm=100)
    summary = analyse(world, records)
    assert [s.cycles for s in summary.streams] == [112]
    assert summary.misses == ()
    assert summary.streams[0].period_ns == world.period
    assert {t.role for t in summary.threads} >= {"D", "W", "G", "vcpu"}


@pytest.mark.parametrize("name", CASES)
def test_the_injected_cause_is_found(name: str) -> None:
    delays, cause, leg = CASES[name]
    summary = analyse(*play(delays))
    found = origins(summary)
    assert len(found) == 1, [m.detail for m in summary.misses]
    assert (found[0].leg, found[0].cause) == (leg, cause), (found[0].detail, found[0].segments)
    assert len(summary.episodes) == 1


@pytest.mark.parametrize("name", CASES)
def test_segments_sum_to_the_window(name: str) -> None:
    summary = analyse(*play(CASES[name][0]))
    for miss in summary.misses:
        assert miss.late_ns is not None
        assert sum(s.ns for s in miss.segments) == miss.deadline_ns + miss.late_ns - miss.start_ns


def test_a_starvation_is_one_episode_with_carried_misses() -> None:
    summary = analyse(*play(Delays(guest=130 * MS)))
    assert len(summary.episodes) == 1
    assert summary.episodes[0].misses == 6
    assert [m.carried_from for m in summary.misses] == [None, 1, 1, 1, 1, 1]
    assert summary.streams[0].carried == 5


def test_a_lock_held_over_a_pipe_write_is_not_the_cause() -> None:
    """W waits for G's lock, but G is as blocked without it: the period misses all the same."""
    summary = analyse(*play(Delays(pipe_under_lock=LATE)))
    (miss,) = origins(summary)
    assert miss.leg == "wake"
    assert not any(s.startswith("lock:") for s in miss.sufficient), miss.detail
    assert summary.counterfactual["item_state"].avoided == 0


def test_the_holder_off_the_cpu_and_its_lock_are_both_sufficient() -> None:
    (miss,) = origins(analyse(*play(Delays(lock_preempted=LATE))))
    assert "not_scheduled:virgl fence" in miss.sufficient
    assert any(s.startswith("lock:") for s in miss.sufficient)


@pytest.mark.parametrize(("warm", "said"), [(0, "baseline:none"), (4, "baseline:smallest"), (24, "")])
def test_it_is_said_what_a_time_was_held_against(warm: int, said: str) -> None:
    (miss,) = origins(analyse(*play(Delays(guest=LATE), warm=warm)))
    assert miss.cause == "guest_late"
    assert (said in miss.detail) if said else ("baseline" not in miss.detail), miss.detail


@pytest.mark.parametrize(("turns", "turn", "avoided"), [(12, 3 * MS, 1), (2, 30 * MS, 0)])
def test_a_fair_worker_lets_each_other_event_go_first_once(turns: int, turn: int, avoided: int) -> None:
    summary = analyse(*play(Delays(channel_turns=turns, turn=turn)))
    assert [m.cause for m in origins(summary)] == ["serialised"]
    assert summary.counterfactual["fair"].episodes_avoided == avoided


def test_went_first_counts_the_channel() -> None:
    (miss,) = origins(analyse(*play(Delays(channel_turns=12, turn=3 * MS))))
    assert miss.went_first == {"channel": 12}


delays = st.builds(
    Delays,
    lock=st.sampled_from([0, 0, 30 * MS]),
    worker_off=st.sampled_from([0, 0, 9 * MS]),
    channel_turns=st.integers(0, 6),
    turn=st.integers(0, 6 * MS),
    guest=st.integers(0, 25 * MS),
    write=st.integers(0, 12 * MS),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(delays, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_verdicts_do_not_depend_on_where_batches_are_cut(plan: list[Delays], rng: random.Random) -> None:
    world, records = play(*plan)
    whole = analyse(world, records)
    cuts = sorted(rng.sample(range(1, len(records)), 9))
    pieces = analyse(world, records, cuts)
    assert json.dumps(whole.to_dict()) == json.dumps(pieces.to_dict())


@settings(max_examples=25, deadline=None)
@given(st.lists(delays, min_size=1, max_size=4))
def test_segments_partition_and_replay_reproduces_the_recording(plan: list[Delays]) -> None:
    world, records = play(*plan)
    analysis = Analysis()
    analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
    analysis.finish()
    for miss in analysis.verdicts.misses:
        if miss.case is None:
            continue
        path = miss.case.path
        assert path.start_ns == miss.cycle.nominal_ns and path.end_ns == miss.cycle.end_ns
        at = path.start_ns
        for leaf in miss.case.leaves:
            assert leaf.start_ns == at
            at = leaf.end_ns
        assert at == path.end_ns
        assert miss.case.replay({}) == path.end_ns


def test_lost_records_make_a_verdict_unknown() -> None:
    import records as r

    world, records = play(Delays(guest=LATE))
    lost_at = world.start_of(25)
    records = np.concatenate([records, r.loss(lost_at, 3)])
    (miss,) = origins(analyse(world, r.trace(records)))
    assert (miss.cause, miss.evidence) == ("unknown", "degraded")


def test_habits_measured_together_are_those_measured_one_by_one() -> None:
    """What habits.py tells against path.py, cycle by cycle, with records missing here and there."""
    rng = random.Random(7)
    told = 0
    for _ in range(6):
        world, records = play(*(Delays(guest=rng.choice((0, 1, 3)) * MS) for _ in range(40)))
        records = records[np.array([rng.random() > 0.02 for _ in records])]
        analysis = Analysis()
        analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
        verdicts = analysis.verdicts
        for state in verdicts.states.values():
            together = verdicts._judge._baselines._answers.measure([entry.cycle for entry in state.on_time])
            for entry, answer in zip(state.on_time, together, strict=True):
                verdicts._judge._baselines._find(entry)
                if answer is not None:
                    told += answer.exact
                    mine = (answer.guest_ns, answer.command_ns) if answer.exact else (None, None)
                    assert mine == (entry.guest_ns, entry.command_ns)
    assert told > 100
