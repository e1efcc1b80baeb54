# SPDX-License-Identifier: Apache-2.0
"""Beside the cause of a miss: what counts as usual, what an episode is, what a remedy avoids, whose it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import records as r
from test_verdicts import analyse, origins
from world import (
    DONE_ID,
    IRQ_ID,
    KICK_ID,
    LATE,
    MS,
    V2,
    VMM,
    WAKE_ID,
    D,
    Delays,
    F,
    G,
    V,
    W,
    World,
    feed,
    play_on,
)

from tracer.model.analysis import Analysis
from tracer.model.baselines import Usual
from tracer.model.counterfactual import Case, Names, remedy_removal
from tracer.model.counterfactual import judge as judge_case
from tracer.model.cycles import Cycle
from tracer.model.episodes import culprit, merged
from tracer.model.leaves import Holder, Leaf
from tracer.model.misses import EpisodeState, MissState
from tracer.model.phases import GPU, HEAD_OF_LINE, WORKER, Path, Phase
from tracer.model.remedies import Remedies
from tracer.model.streams import Stream
from tracer.model.summary import Summary
from tracer.model.verdicts import Keep
from tracer.schema import OFFCPU, RW, Batch, Kind, Target, end_ns

A, B = (VMM, 0x9000), (VMM, 0xA000)


def case_of(leaves: list[Leaf], phases: list[Phase], deadline: int) -> Case:
    return Case(Path(phases, deadline), leaves)


def test_a_lock_that_comes_twice_in_a_chain_is_counted_once() -> None:
    """W waits for A, whose holder waits for B, whose holder waits for A."""
    leaf = Leaf(0, 100, "lock", W, 0, word=A, holder=Holder(F, "lock", None, (A, B, A), (F, G)))
    case = case_of([leaf], [Phase(0, 100, WORKER, W)], 50)
    assert case.totals() == {("lock", *A): 100, ("lock", *B): 100}


def test_a_queue_without_a_known_command_does_not_vanish_for_a_nanosecond() -> None:
    """G took our command 100 later than it was kicked, and nobody knows why (records lost, say)."""
    leaves = [
        Leaf(0, 10, "not_scheduled", W, 0),
        Leaf(10, 110, "slow_syscall", G, 1, call=(int(Kind.SYSCALL), 16, -1, -1)),
    ]
    phases = [Phase(0, 10, WORKER, W), Phase(10, 110, GPU, G, HEAD_OF_LINE, queued=True)]
    case = case_of(leaves, phases, 50)
    assert not case.avoided_without({("not_scheduled", W): 0.1})


def test_dup_takes_out_the_run_queue_delay_after_the_lock_too() -> None:
    held = Holder(G, "blocked", (int(Kind.WRITE), 1, 30, -1), (A,), (G,))
    leaves = [
        Leaf(0, 100, "lock", W, 0, word=A, holder=held),
        Leaf(100, 200, "not_scheduled", W, 0, after=A),
    ]
    case = case_of(leaves, [Phase(0, 200, WORKER, W)], 50)
    names = Names(frozenset({A}), frozenset({W, G}), frozenset({G}))
    assert case.meets(remedy_removal(case, "item_state", names))
    assert case.meets(remedy_removal(case, "dup", names))


def test_a_cycle_that_was_late_is_no_baseline() -> None:
    """Two streams share a completion: the miss is named on one, and is no on-time cycle of the other."""
    world = World()
    for i in range(60):
        world.cycle(Delays(write=30 * MS) if i in (24, 30, 36, 42) else None)
    second = []
    for part in list(world.parts):
        rw = part.view(RW)
        if int(rw["kind"][0]) <= Kind.WRITE and int(rw["eventfd_id"][0]) == WAKE_ID:
            twin = part.copy()
            twin.view(RW)["eventfd_id"] = WAKE_ID + 100
            twin["enter_ns"] += np.uint64(500)
            second.append(twin)
    world.add(*second)
    analysis = feed(world, world.finish())
    assert len(analysis.streams.streams) == 2
    for stream in analysis.streams.streams:
        state = analysis.verdicts.state(stream)
        assert state.min_slack is not None and state.min_slack >= 0
        assert all((e.cycle.closing_ns or 0) <= e.cycle.deadline_ns for e in state.on_time)


def test_remedies_do_not_depend_on_how_often_one_looked() -> None:
    """Live asks for a summary every second, a report once: the table is the same."""
    world = World()
    for i in range(120):
        world.cycle(Delays(channel_turns=12, turn=3 * MS) if i >= 20 and i % 6 == 0 else None)
    records = world.finish()

    def run(*, looking: bool) -> Summary:
        analysis, first = Analysis(keep=Keep(cases=4)), True
        for part, mark in r.steps(records, range(world.start_of(5), world.start_of(119), 200 * MS)):
            analysis.feed(world.batch(part, mark, first=first))
            first = False
            if looking:
                analysis.summary()
        analysis.finish()
        return analysis.summary()

    live, offline = run(looking=True), run(looking=False)
    assert len(origins(offline)) > 8
    assert {k: v.avoided for k, v in live.counterfactual.items()} == {
        k: v.avoided for k, v in offline.counterfactual.items()
    }


def test_a_worker_that_exits_is_one_episode_and_not_a_miss_per_cycle() -> None:
    world = World()
    for _ in range(260):
        world.cycle()
    records = world.finish()
    dead = world.start_of(30) - 3 * MS
    after = end_ns(records) > dead
    mine = np.isin(records["tid"], (W, G)) | (
        (records["kind"] == Kind.READ) & (records.view(RW)["eventfd_id"] == DONE_ID)
    )
    records = r.trace([records[~(after & mine)], r.life(W, dead, op=4, comm="cross domain", tgid=VMM)])
    summary = analyse(world, records)
    assert len(summary.episodes) == 1
    assert origins(summary)[0].cause == "forward_failed"
    assert len(summary.misses) - sum(m.carried_from is not None for m in summary.misses) == 1


def test_rows_of_misses_are_kept_only_as_long_as_they_are_shown() -> None:
    world = World()
    for i in range(80):
        world.cycle(Delays(guest=LATE) if i >= 20 and i % 6 == 0 else None)
    analysis = feed(world, world.finish())
    assert len(analysis.summary().misses) > 5
    assert len(analysis.summary(misses=2).misses) == 2
    assert len(analysis._rows._misses._rows) == 2


def test_what_a_remedy_avoids_follows_the_roles_known_now() -> None:
    """Real-time priority moves W and G; who they are may be learnt after the first summary."""
    world = World()
    analysis = feed(world, play_on(world, Delays(worker_off=LATE)))
    (origin,) = [m for m in analysis.verdicts.misses if m.origin is None]
    remedies = Remedies()
    before = Names(frozenset(), frozenset(), frozenset())
    assert not remedies.avoids(origin, "realtime", before)
    assert remedies.avoids(origin, "realtime", replace(before, movable=frozenset({W})))


def test_an_analysis_that_nobody_asks_for_a_summary_does_not_grow() -> None:
    """A flight recorder runs for weeks and only counts: what was judged is let go with its miss."""
    world = World()
    for i in range(240):
        world.cycle(Delays(worker_off=LATE) if i % 20 == 19 else None)
    records = world.finish()
    analysis = feed(world, records, Keep(misses=3, cases=1))
    assert analysis.tally().misses > 10
    assert 0 < len(analysis._rows._remedies) <= 3
    last = analysis.summary()
    assert len(last.misses) == 3 >= len(analysis._rows._remedies)
    # What is counted is whole, and what is said of those kept says that it is.
    whole = feed(world, records).summary()
    assert last.verdict.split(" (")[0] == whole.verdict.split(" (")[0]
    assert "of the last 3" in last.verdict and "of the last" not in whole.verdict
    assert "of the last 3 episodes" in last.lead and "last" not in whole.lead


def episode_state(number: int, stream: Stream, end: int | None, start: int = 1000) -> EpisodeState:
    return EpisodeState(number, stream, start, end, misses=1)


def test_streams_of_one_worker_that_died_are_one_episode() -> None:
    world = World()
    analysis = feed(world, play_on(world))
    (one,) = analysis.streams.streams
    two = replace(one, serial=one.serial + 1)
    states = [episode_state(1, one, None), episode_state(2, two, None, start=1500)]
    assert len(merged(states, lambda state: culprit(state, analysis.registry, lambda word: "a lock"))) == 1


@pytest.mark.parametrize(("other", "episodes"), [(W, 1), (F, 2)])
def test_each_worker_that_died_is_an_episode_of_its_own(other: int, episodes: int) -> None:
    world = World()
    analysis = feed(world, play_on(world))
    (one,) = analysis.streams.streams
    two = replace(one, serial=one.serial + 1)
    states = [episode_state(1, one, None), episode_state(2, two, None, start=1500)]
    for state, tid in zip(states, (W, other), strict=True):
        cycle = Cycle(state.stream, one.driver, 1, 1000, 1000, 1000, 1010, reader_tid=tid)
        state.origins.append(MissState(1, cycle, state.id, "wake", "forward_failed"))
    found = merged(states, lambda state: culprit(state, analysis.registry, lambda word: "a lock"))
    assert [len(group) for _, group in found] == [2 // episodes] * episodes


def two_vmms() -> tuple[Batch, World]:
    """VMMs 20 and 21 share a driver's completion eventfd: one finishes last in even, one in odd cycles.

    In cycle 41 the guest of VMM 21 is late.
    """
    theirs, ours = World(), World()
    for i in range(80):
        ours.cycle()
        theirs.cycle(Delays(guest=LATE) if i == 41 else None)
    parts = []
    for world, parity in ((ours, 0), (theirs, 1)):
        rows = world.finish().copy()
        cycle = (rows["enter_ns"].astype(np.int64) - world.start_of(0)) // world.period
        rw, off = rows.view(RW), rows.view(OFFCPU)
        done = (rows["tid"] == G) & (rows["kind"] == Kind.WRITE) & (rw["eventfd_id"] == DONE_ID)
        stuck = (cycle >= 41) & (cycle <= 43)
        last = np.where(stuck, parity == 1, cycle % 2 == parity)
        keep = ~done | last
        if parity == 0:
            keep &= rows["tid"] != D
        else:
            threads = (W, G, V, V2, F)
            asleep = (rows["kind"] == Kind.OFFCPU) & np.isin(off["waker_tid"], threads)
            off["waker_tid"][asleep] += 1000
            off["waker_tgid"][asleep] = VMM + 1
            rows["tid"][np.isin(rows["tid"], threads)] += 1000
            own = (rows["kind"] <= Kind.WRITE) & np.isin(rw["eventfd_id"], (WAKE_ID, IRQ_ID, KICK_ID))
            rw["eventfd_id"][own] += 100
            signals = rows[own & (rows["tid"] == D)].copy()
            signals.view(RW)["eventfd_id"] -= 100
            signals["enter_ns"] -= np.uint64(500)
            parts.append(signals)
        parts.append(rows[keep])
    records = r.trace(parts)
    batch = ours.batch(records, int(end_ns(records)[-1]), first=True)
    more = tuple(replace(t, tid=t.tid + 1000, tgid=VMM + 1) for t in batch.threads if t.tgid == VMM)
    targets = (*batch.targets, Target(VMM + 1, "vmm", "minivmm"))
    return replace(batch, targets=targets, threads=(*batch.threads, *more)), ours


def test_of_two_vmms_that_share_a_driver_the_late_one_is_named() -> None:
    batch, _ = two_vmms()
    analysis = Analysis()
    analysis.feed(batch)
    analysis.finish()
    summary = analysis.summary()
    vmm_of = {s.id: s.tgid for s in summary.streams}
    assert set(vmm_of.values()) == {VMM, VMM + 1}
    found = [m for m in origins(summary) if m.cycle == 41]
    assert [(vmm_of[m.stream], m.leg, m.cause) for m in found] == [(VMM + 1, "completion", "guest_late")]


def test_a_wakeup_read_late_is_explained_although_somebody_else_finished_last() -> None:
    """From cycle 22 on an untraced client finishes last; W is kept off the CPU in cycle 24."""
    world = World()
    records = play_on(world, Delays(worker_off=LATE))
    theirs = (records.view(RW)["eventfd_id"] == DONE_ID) & (records["tid"] == G)
    records = records[~(theirs & (records["enter_ns"] > world.start_of(22)))]
    (miss,) = origins(analyse(world, records))
    assert (miss.cycle, miss.leg, miss.cause) == (24, "wake", "not_scheduled"), miss.detail
    read = next(
        r
        for r in records.view(RW)
        if r["tid"] == W and r["enter_ns"] > miss.deadline_ns and r["eventfd_id"] == WAKE_ID
    )
    assert miss.late_ns == int(read["enter_ns"] + read["dur_ns"]) - miss.deadline_ns


def busy(bound_low: bool) -> Case:
    """A path whose kick is inferred; which of two leaves is long depends on where the kick is put."""
    long, short = (40 * MS, 1 * MS) if bound_low else (1 * MS, 40 * MS)
    phases = [Phase(0, long, WORKER, W), Phase(long, long + short, GPU, G)]
    path = Path(phases, 20 * MS, kick="inferred", kick_low_ns=1, kick_high_ns=2)
    write = (int(Kind.WRITE), 1, 9, DONE_ID)
    return Case(
        path, [Leaf(0, long, "on_cpu", W, 0), Leaf(long, long + short, "slow_syscall", G, 1, call=write)]
    )


def test_a_label_that_depends_on_an_inferred_kick_is_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    analysis = feed(world, play_on(world, Delays(guest=LATE)))
    (miss,) = analysis.verdicts.misses
    judge = analysis.verdicts._judge
    monkeypatch.setattr(judge, "_moved", lambda case, cycle, window, usual, kick: busy(kick == 1))
    usual = Usual([], lambda entries, totals: None)
    found = judge_case(busy(False), usual.of)
    assert found.cause == "slow_syscall"
    window = judge._finder.window(miss.cycle)
    bound = judge._within_bounds(miss.cycle, window, usual, busy(False), found)
    assert bound.cause == "mixed"
