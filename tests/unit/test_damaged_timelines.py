# SPDX-License-Identifier: Apache-2.0
"""Properties of verdicts on any timeline, whole or damaged: random delays, lost records, silent threads."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import records as r
from hypothesis import given, settings
from hypothesis import strategies as st
from world import (
    MS,
    US,
    D,
    Delays,
    G,
    V,
    W,
    World,
    feed,
    play_on,
)

from tracer.model.analysis import Analysis
from tracer.model.counterfactual import Case
from tracer.schema import Kind, Records, end_ns


def possible(delays: Delays) -> Delays:
    """The world's guest cannot compute while another context's command is played."""
    return replace(delays, guest=0) if delays.gpu_syscall else delays


some_delays = st.builds(
    Delays,
    driver_start=st.sampled_from([0, 0, 50 * US, 3 * MS, 12 * MS]),
    lock=st.sampled_from([0, 0, 0, 5 * MS, 30 * MS]),
    lock_preempted=st.sampled_from([0, 0, 0, 20 * MS]),
    worker_cpu=st.sampled_from([0, 0, 8 * MS]),
    worker_off=st.sampled_from([0, 0, 9 * MS]),
    channel_turns=st.integers(0, 6),
    turn=st.integers(0, 6 * MS),
    guest=st.sampled_from([0, 0, 3 * MS, 18 * MS, 45 * MS]),
    gpu_syscall=st.sampled_from([0, 0, 10 * MS, 25 * MS]),
    write=st.sampled_from([0, 0, 12 * MS]),
    host_read=st.sampled_from([0, 0, 14 * MS]),
    pipe_under_lock=st.sampled_from([0, 0, 15 * MS]),
).map(possible)


def damaged(world: World, records: Records, rng: random.Random, share: float) -> Records:
    """A share of records lost, some spans never closed but swept, some threads gone silent."""
    keep = np.array([rng.random() >= share for _ in range(len(records))])
    out = [records[keep]]
    spans = np.flatnonzero((records["kind"] <= Kind.OFFCPU) & (records["dur_ns"] > 2 * MS))
    for i in rng.sample(spans.tolist(), min(len(spans), 40)):
        span = records[i : i + 1]
        begin, end = int(span["enter_ns"][0]), int(span["enter_ns"][0] + span["dur_ns"][0])
        out += [r.opened(span, at) for at in range(begin + 1 * MS, end, 4 * MS)][:40]
    if rng.random() < 0.3:
        whole = r.trace(out)
        silent, since = rng.choice((W, G, V, D)), world.start_of(rng.randrange(26, 32))
        kept: Records = whole[~((whole["tid"] == silent) & (end_ns(whole) > since))]
        return kept
    return r.trace(out)


def check(analysis: Analysis, rng: random.Random) -> None:
    for miss in analysis.verdicts.misses:
        case = miss.case
        if case is None:
            continue
        at = miss.cycle.nominal_ns
        for leaf in case.leaves:
            assert leaf.start_ns == at < leaf.end_ns
            at = leaf.end_ns
        assert at == miss.cycle.end_ns == case.path.end_ns
        assert case.replay({}) == case.path.end_ns
        keys = sorted(case.members, key=str)
        for _ in range(12):
            one = set(rng.sample(keys, rng.randint(0, len(keys))))
            both = one | set(rng.sample(keys, rng.randint(0, len(keys))))

            def out(some: set[tuple[str | int, ...]], case: Case = case) -> int:
                removed = {i: 1.0 for k in some for i in case.members[k]}
                return case.replay(removed, unqueued=("head_of_line",) in some, freed=case.freed(some))

            assert case.path.start_ns <= out(both) <= out(one) <= case.path.end_ns, (one, both)
        found = miss.judgement
        if found is not None and found.key is not None:
            assert found.key in found.sufficient
    for row in analysis.summary().misses:
        late = row.late_ns if row.late_ns is not None else 2_000 * MS
        assert sum(s.ns for s in row.segments) == row.deadline_ns + late - row.start_ns


@settings(max_examples=30, deadline=None)
@given(st.lists(some_delays, min_size=1, max_size=5), st.integers(0, 1 << 30).map(random.Random))
def test_replay_is_exact_and_monotone(plan: list[Delays], rng: random.Random) -> None:
    world = World()
    check(feed(world, play_on(world, *plan)), rng)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(some_delays, min_size=1, max_size=4),
    st.integers(0, 1 << 30).map(random.Random),
    st.sampled_from([0.0, 0.01, 0.1, 0.4]),
)
def test_damaged_timelines_crash_nothing(plan: list[Delays], rng: random.Random, share: float) -> None:
    world = World()
    check(feed(world, damaged(world, play_on(world, *plan), rng, share)), rng)


@settings(max_examples=30, deadline=None)
@given(st.lists(some_delays, min_size=1, max_size=3), st.integers(0, 1 << 30).map(random.Random))
def test_cuts_within_episodes_and_open_records_change_nothing(plan: list[Delays], rng: random.Random) -> None:
    """Batches may hold records beyond their watermark, in any order among themselves."""
    world = World()
    records = damaged(world, play_on(world, *plan), rng, 0.0)
    ends = end_ns(records)
    low, high = world.start_of(22), int(ends[-1])

    def run(marks: list[int]) -> str:
        analysis = Analysis()
        sent = np.zeros(len(records), dtype=bool)
        for i, mark in enumerate([*marks, high]):
            due = ~sent & (
                (ends <= mark) | (np.array([rng.random() < 0.02 for _ in ends]) & (ends <= mark + 50 * MS))
            )
            sent |= due
            part = np.flatnonzero(due)
            rng.shuffle(order := part.tolist())
            analysis.feed(world.batch(records[order], mark, first=i == 0))
        assert sent.all()
        analysis.finish()
        return json.dumps(analysis.summary().to_dict())

    cuts = sorted({rng.randrange(low, high) for _ in range(8)} | {rng.randrange(int(ends[0]), low)})
    assert run([]) == run(cuts)
