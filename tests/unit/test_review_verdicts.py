# SPDX-License-Identifier: Apache-2.0
"""Verdicts in corners: each test is a timeline on which a verdict was, or still is, wrong.

Owns small variations of the scripted world. What is known to be wrong and not mended yet
is marked xfail(strict), with what is said instead.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import records as r
from hypothesis import given, settings
from hypothesis import strategies as st
from test_verdicts import analyse, origins
from world import (
    CONDVAR,
    DONE_ID,
    HOG,
    IRQ_ID,
    KICK_ID,
    LOCK,
    MS,
    US,
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
)

from tracer.model import verdicts
from tracer.model.analysis import Analysis
from tracer.model.baselines import Usual
from tracer.model.counterfactual import Case, Names, remedy_removal
from tracer.model.counterfactual import judge as judge_case
from tracer.model.leaves import Holder, Leaf
from tracer.model.phases import GPU, HEAD_OF_LINE, WORKER, Path, Phase
from tracer.model.remedies import Remedies
from tracer.model.streams import Stream
from tracer.model.summary import Summary
from tracer.model.verdicts import EpisodeState
from tracer.schema import OFFCPU, RW, Batch, Flag, Kind, Records, Target, end_ns

LATE = 40 * MS


def play_on(world: World, *plan: Delays | None, warm: int = 24, tail: int = 12) -> Records:
    for delays in [*([None] * warm), *plan, *([None] * tail)]:
        world.cycle(delays)
    return world.finish()


def feed(world: World, records: Records) -> Analysis:
    analysis = Analysis()
    analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
    analysis.finish()
    return analysis


# --- nominal starts and drivers -------------------------------------------------------


def test_the_nominal_start_is_on_the_grid_of_the_earliest_starts() -> None:
    world = World()
    # The first start seen came 60 us after its expiry, the others 5 or 25 us.
    for i in range(40):
        world.cycle(Delays(driver_start=55 * US if i == 0 else (i % 2) * 20 * US))
    records = world.finish()
    analysis = feed(world, records)
    (driver,) = [d for d in analysis.streams.drivers.values() if d.total > 10]
    for i, nominal in enumerate(driver.nominal[2:], 2):
        assert abs(nominal - world.start_of(i)) < 1 * MS, (i, nominal - world.start_of(i))


def test_a_late_guest_is_not_blamed_on_the_host_for_a_jittering_timer() -> None:
    world = World()
    for i in range(36):
        late = i == 25
        world.cycle(
            Delays(driver_start=20 * US if i < 1 else 0 if late else 40 * US, guest=30 * MS if late else 0)
        )
    summary = analyse(world, world.finish())
    found = origins(summary)
    assert [m.cause for m in found] == ["guest_late"], [m.detail for m in found]
    assert "host_late" not in found[0].sufficient


def _write(tid: int, at: int, eventfd: int) -> Records:
    return r.write(tid, at - 4 * US, at, fd=9, eventfd=eventfd)


def test_a_stream_that_changes_its_driver_keeps_its_deadlines() -> None:
    """In cycle 40 it moves from the timer on fd 4 to one on fd 5, which had ticked 60 times by then."""
    world = World()
    for _ in range(80):
        world.cycle()
    records = world.finish().copy()
    rw = records.view(RW)
    timer = (rw["kind"] == Kind.READ) & (rw["tid"] == D) & ((rw["flags"] & Flag.TIMERFD) != 0)
    rw["fd"][timer & (records["enter_ns"] > world.start_of(40) - MS)] = 5
    before = [world.start_of(i // 2) + (9 + 2 * (i % 2)) * MS for i in range(10, 70)]
    ticks = [r.timer_read(D, at, at + 2 * US, fd=5) for at in before]
    still = [r.timer_read(D, world.start_of(i) + 5 * MS, world.start_of(i) + 5 * MS, fd=4) for i in (40, 41)]
    summary = analyse(world, r.trace([records, *ticks, *still]))
    assert summary.misses == (), [m.detail for m in summary.misses[:3]]


def test_a_stream_whose_driver_stopped_for_good_is_watched_on_its_new_one() -> None:
    world = World()
    for _ in range(100):
        world.cycle()
    records = world.finish().copy()
    rw = records.view(RW)
    timer = (rw["kind"] == Kind.READ) & (rw["tid"] == D) & ((rw["flags"] & Flag.TIMERFD) != 0)
    rw["fd"][timer & (records["enter_ns"] > world.start_of(80) - MS)] = 5
    analysis = Analysis()
    analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
    (stream,) = analysis.streams.streams
    assert stream.cycles >= 85, stream.cycles


def test_events_are_forgotten_although_a_cycle_never_ends() -> None:
    """The driver of one stream stops for good after a signal; another goes on for half a minute."""
    world = World()
    for _ in range(20):
        world.cycle()
    # The last signal of a stream whose driver (fd 6) never ticks again.
    at = world.start_of(world.number) - 9 * MS
    parts = []
    for i in range(3):
        t = at - (3 - i) * 2 * MS
        parts += [
            r.timer_read(D, t - 2 * US, t, fd=6),
            _write(D, t + 10 * US, 77),
            r.read(W, t + 30 * US, t + 31 * US, fd=11, eventfd=77),
        ]
    world.add(*parts)
    for _ in range(1400):
        world.cycle()
    analysis = feed(world, world.finish())
    kept = len(analysis.streams.eventfds[WAKE_ID].signals.end)
    assert kept < 600, kept


# --- completions -------------------------------------------------------------------------


def test_a_stream_whose_target_changes_is_not_missed_for_ever() -> None:
    """The sink was switched: from cycle 40 on the same stream completes to another eventfd."""
    world = World()
    for _ in range(100):
        world.cycle()
    records = world.finish().copy()
    rw = records.view(RW)
    done = (rw["eventfd_id"] == DONE_ID) & (rw["kind"] <= Kind.WRITE)
    rw["eventfd_id"][done & (records["enter_ns"] > world.start_of(40))] = 48
    summary = analyse(world, records)
    assert summary.misses == (), (len(summary.misses), summary.misses[0].detail)


def test_another_client_that_finishes_late_is_no_miss_of_ours() -> None:
    """From cycle 30 on somebody untraced writes the completion, once after the deadline."""
    world = World()
    for _ in range(60):
        world.cycle()
    records = world.finish().copy()
    rw = records.view(RW)
    theirs = (rw["eventfd_id"] == DONE_ID) & (rw["tid"] == G) & (records["enter_ns"] > world.start_of(30))
    late = (rw["eventfd_id"] == DONE_ID) & (rw["tid"] == D)
    k = np.flatnonzero(late & (records["enter_ns"] > world.start_of(40)))[0]
    records["enter_ns"][k] = world.start_of(41) + 3 * MS
    # In that cycle the driver starts the next one at its time all the same.
    summary = analyse(world, r.trace(records[~theirs]))
    assert summary.misses == (), [m.detail for m in summary.misses]


def test_a_failed_write_for_somebody_else_is_not_the_cause() -> None:
    world = World()
    for i in range(36):
        world.cycle(Delays(guest=LATE) if i == 24 else None)
    records = world.finish()
    done = np.flatnonzero(
        (records.view(RW)["eventfd_id"] == DONE_ID)
        & (records["tid"] == G)
        & (records["enter_ns"] > world.start_of(25))
    )[0]
    at = int(records["enter_ns"][done])
    refused = r.write(G, at - 4 * US, at - 2 * US, fd=55, eventfd=99, ret=-32)
    (miss,) = origins(analyse(world, r.trace([records, refused])))
    assert miss.cause == "guest_late", miss.detail


def test_a_refused_completion_is_forward_failed() -> None:
    """G's write to the stream's completion fails; nothing is read any more."""
    world = World()
    for _ in range(150):
        world.cycle()
    records = world.finish().copy()
    rw = records.view(RW)
    done = rw["eventfd_id"] == DONE_ID
    gone = (records["enter_ns"] > world.start_of(24)) & done
    rw["ret"][gone & (rw["tid"] == G)] = -22
    records = records[~(gone & (rw["tid"] == D))]
    # Long enough after for a verdict.
    found = origins(analyse(world, records))
    assert found
    assert found[0].cause == "forward_failed", found[0].detail


def test_a_guest_that_never_kicks_is_late_although_g_sleeps() -> None:
    world = World()
    for i in range(180):
        world.cycle(Delays(guest=3500 * MS) if i == 24 else None)
    records = world.finish()
    off = records.view(OFFCPU)
    sleeps = [
        records[i : i + 1]
        for i in np.flatnonzero((records["kind"] == Kind.OFFCPU) & (records["dur_ns"] > 1000 * MS)).tolist()
        if off["tid"][i] in (G, W, D)
    ]
    waits = [
        records[i : i + 1]
        for i in np.flatnonzero((records["kind"] <= Kind.FUTEX) & (records["dur_ns"] > 1000 * MS)).tolist()
    ]
    swept = [
        r.opened(span, at)
        for span in (*sleeps, *waits)
        for at in range(
            int(span["enter_ns"][0]) + 60 * MS, int(span["enter_ns"][0] + span["dur_ns"][0]), 100 * MS
        )
    ]
    found = origins(analyse(world, r.trace([records, *swept])))
    assert found[0].late_ns is None
    assert found[0].cause == "guest_late", found[0].detail


def test_a_recording_that_stops_within_a_late_cycle_invents_no_cause() -> None:
    world = World()
    for i in range(30):
        world.cycle(Delays(guest=300 * MS) if i == 24 else None)
    records = world.finish()
    cut = records[end_ns(records) < world.start_of(24) + 90 * MS]
    summary = analyse(world, cut)
    for miss in summary.misses:
        assert miss.late_ns is not None or miss.cause == "unknown", miss.detail


def test_a_cycle_of_a_driver_that_catches_up_is_left_out_of_the_causes() -> None:
    """Cycle 24 is late for its guest; the driver starts 25 late and 26 right after it: 25 is carried."""
    world = World()
    for i in range(40):
        world.cycle(Delays(guest=50 * MS) if i == 24 else None)
    records = world.finish().copy()
    rw = records.view(RW)
    late = world.start_of(26) - world.start_of(25) - 3 * MS
    mine = (records["tid"] == D) & (rw["eventfd_id"] != DONE_ID) & (records["kind"] <= Kind.WRITE)
    moved = (
        mine & (records["enter_ns"] > world.start_of(25)) & (records["enter_ns"] < world.start_of(25) + MS)
    )
    assert moved.sum() == 2
    records["enter_ns"][moved] += np.uint64(late)
    analysis = feed(world, r.trace(records))
    by_cycle = {m.cycle.number: m for m in analysis.verdicts.misses}
    assert by_cycle[25].origin is not None
    assert by_cycle[25].driver_fault
    assert sum(sum(s.by_cause.values()) for s in analysis.verdicts.states.values()) == len(by_cycle) - 1


# --- who was responsible -------------------------------------------------------------------


class OtherVcpu(World):
    """In late cycles the interrupt and the kick are V2's; V is runnable, not running, all the while."""

    def _round(self, irq: int, guest: int) -> int:
        if not guest:
            return super()._round(irq, guest)
        kick = irq + 100 * US + guest
        self.add(
            r.offcpu(V, self.free[V] + 1 * US, kick + 300 * US, woken=irq - 5 * US, waker=1, instead=HOG)
        )
        self.free[V] = kick + 400 * US
        self.sleep(V2, irq - 1 * US, irq + 3 * US, W, VMM)
        self.free[V2] = kick + 2 * US
        self.sleep(G, kick, kick + 4 * US, V2, VMM)
        self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
        rearm = kick + 12 * US
        self.add(r.wake(G, CONDVAR, rearm, dur=2 * US, count=1))
        self.free[G] = rearm
        self.sequence += 1
        park = self.free[W] + 3 * US
        self.add(r.wait(W, CONDVAR, park, rearm + 5 * US, expected=self.sequence * 3))
        self.free[W] = park
        self.sleep(W, rearm - 1 * US, rearm + 4 * US, G, VMM)
        self.free[W] = rearm + 6 * US
        return rearm


def test_a_g_that_idles_in_epoll_is_not_busy_with_others() -> None:
    """As in crosvm: epoll_wait, then a read that does not block."""
    world = World()
    records = play_on(world, Delays(guest=LATE))
    kicks = (records["tid"] == G) & (records["kind"] == Kind.READ)
    parts = [records[~kicks]]
    for row in records[kicks]:
        begin, end = int(row["enter_ns"]), int(row["enter_ns"] + row["dur_ns"])
        parts.append(r.epoll_wait(G, begin, end - 600))
        parts.append(r.read(G, end - 400, end, fd=13, eventfd=KICK_ID))
    summary = analyse(world, r.trace(parts))
    assert [(m.cause, m.sufficient) for m in origins(summary)] == [("guest_late", ("guest_late",))]
    assert summary.counterfactual["realtime"].avoided == 0


def test_a_vcpu_that_has_nothing_to_do_with_it_is_not_blamed() -> None:
    world = OtherVcpu()
    (miss,) = origins(analyse(world, play_on(world, Delays(guest=LATE))))
    assert miss.cause == "guest_late", (miss.detail, miss.sufficient)


class OwnRearm(World):
    """The guest completes at once, but re-arms W a period later (``guest``)."""

    def _complete(self, irq: int, d: Delays) -> int:
        if not d.guest:
            return super()._complete(irq, d)
        kick = self._guest(irq, 0)
        self.sleep(G, kick, kick + 4 * US, V, VMM)
        self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
        done = kick + 20 * US
        self.add(r.write(G, done - 5 * US, done, fd=14, eventfd=DONE_ID))
        self.free[G] = done + 2 * US
        closing = done + 15 * US
        self.add(r.read(D, closing - 2 * US, closing, fd=15, eventfd=DONE_ID))
        # The next cycle is signalled while W still waits to be re-armed for this one.
        start = self.start_of(self.number) + 5 * US
        self.add(r.timer_read(D, start - 2 * US, start, fd=4))
        self.add(r.write(D, start + 16 * US, start + 20 * US, fd=9, eventfd=WAKE_ID))
        self.number += 1
        rearm_kick = kick + d.guest
        self.sleep(V, rearm_kick - 60 * US, rearm_kick - 50 * US, 1, 1)
        self.free[V] = rearm_kick + 2 * US
        self.sleep(G, rearm_kick, rearm_kick + 4 * US, V, VMM)
        self.add(r.read(G, self.free[G], rearm_kick + 5 * US, fd=13, eventfd=KICK_ID))
        rearm = rearm_kick + 12 * US
        self.add(r.wake(G, CONDVAR, rearm, dur=2 * US, count=1))
        self.free[G] = rearm
        park = self.free[W] + 3 * US
        self.add(r.wait(W, CONDVAR, park, rearm + 5 * US, expected=999))
        self.free[W] = park
        self.sleep(W, rearm - 1 * US, rearm + 4 * US, G, VMM)
        self.free[W] = rearm + 6 * US
        t = rearm + 10 * US
        self.add(r.epoll_wait(W, self.free[W], t, data=1))
        self.free[W] = t
        t = self._serve(t, Delays())
        return super()._complete(t, Delays())


def test_a_context_of_its_own_does_not_help_against_a_late_rearm_of_the_stream_itself() -> None:
    world = OwnRearm()
    summary = analyse(world, play_on(world, Delays(guest=50 * MS)))
    assert [m.cause for m in origins(summary)] == ["not_rearmed"], [m.detail for m in summary.misses]
    assert summary.counterfactual["own_context"].avoided == 0


class TwoKicks(World):
    """The guest kicks once for W's re-arm and once for its completion, and G sleeps in between.

    In cycle 24 (``what``) G takes the second kick and writes nothing, or writes to a device and waits for
    its answer before it completes.
    """

    what = ""

    def _complete(self, irq: int, d: Delays) -> int:
        rearm = self._round(irq, 0)
        odd = self.what if self.number == 25 else ""
        kick = rearm + 60 * US + d.guest
        self.sleep(G, kick, kick + 4 * US, V, VMM)
        self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
        self.free[G] = done = kick + 10 * US
        if odd == "device":
            done = kick + LATE
            self.add(r.write(G, kick + 7 * US, kick + 9 * US, fd=30, eventfd=-1, ret=16))
            self.add(r.read(G, kick + 10 * US, done, fd=31, eventfd=-1, ret=1))
            self.add(r.offcpu(G, kick + 11 * US, done - 2 * US, woken=done - 4 * US, waker=1, waker_tgid=1))
        if odd != "nothing":
            self.add(r.write(G, done + 2 * US, done + 4 * US, fd=14, eventfd=DONE_ID))
            self.free[G] = done = done + 5 * US
        return done

    def _answer(self, done: int, d: Delays) -> None:
        if self.what == "nothing" and self.number == 25:
            self.busy_until = done + 50 * US
            self.unread = 0
        else:
            super()._answer(done, d)


def test_a_command_that_wrote_nothing_is_no_late_guest() -> None:
    """The next cycle's completion closes it: without the kick that G took it would be the guest's fault."""
    world = TwoKicks()
    world.what = "nothing"
    (miss,) = origins(analyse(world, play_on(world, None)))
    assert (miss.cycle, miss.cause) == (24, "unknown"), (miss.cause, miss.detail)
    world = TwoKicks()
    (late,) = origins(analyse(world, play_on(world, Delays(guest=LATE))))
    assert late.cause == "guest_late", late.detail


def test_what_g_reads_before_it_completes_is_part_of_that_command() -> None:
    """Its own command talks to a slow device; nobody else's was in the way."""
    world = TwoKicks()
    world.what = "device"
    (miss,) = origins(analyse(world, play_on(world, None)))
    assert (miss.cause, miss.sufficient) == ("slow_syscall", ("slow_syscall:read",)), miss.detail


class WokenForOthers(World):
    """In late cycles another context kicks first; G, woken for it, waits for a CPU, and V does too."""

    def _complete(self, irq: int, d: Delays) -> int:
        if not d.gpu_syscall:
            return super()._complete(irq, d)
        self._guest(irq, 0)
        away = irq + 200 * US
        self.add(r.offcpu(V, away, away + 13 * MS, preempted=True, instead=HOG))
        self.free[V] = away + 13 * MS + 50 * US
        back = irq - 60 * US + d.gpu_syscall
        self.sleep(G, irq - 60 * US, back, V2, VMM)
        self.add(r.read(G, self.free[G], back + 2 * US, fd=13, eventfd=KICK_ID, value=3))
        self.add(r.wake(G, CONDVAR + 64, back + 90 * US, dur=2 * US, count=1))
        rearm = back + 100 * US
        self.add(r.wake(G, CONDVAR, rearm, dur=2 * US, count=1))
        self.sequence += 1
        park = self.free[W] + 3 * US
        self.add(r.wait(W, CONDVAR, park, rearm + 5 * US, expected=self.sequence * 3))
        self.free[W] = park
        self.sleep(W, rearm - 1 * US, rearm + 4 * US, G, VMM)
        self.free[W] = rearm + 6 * US
        done = rearm + 10 * US
        self.add(r.write(G, rearm + 5 * US, done, fd=14, eventfd=DONE_ID))
        self.free[G] = done + 2 * US
        return done


def test_a_g_that_was_woken_for_somebody_else_is_not_free_while_it_waits_for_a_cpu() -> None:
    """Wherever our kick lies, it was G's CPU: a kick without the vCPU's delay would have waited as well."""
    world = WokenForOthers()
    (miss,) = origins(analyse(world, play_on(world, Delays(gpu_syscall=26 * MS))))
    assert (miss.cause, miss.kick) == ("not_scheduled", "inferred"), (miss.detail, miss.sufficient)
    assert "not_scheduled:gpu worker" in miss.sufficient
    assert not any("vcpu" in s for s in miss.sufficient)


class BusyWaiting(World):
    """G runs another context's command, in which it waits for LOCK (held by the fence thread)."""

    def _complete(self, irq: int, d: Delays) -> int:
        if not d.gpu_syscall:
            return super()._complete(irq, d)
        kick = irq + 50 * US
        self._guest(irq, d.guest)
        self.sleep(G, kick, kick + 4 * US, V2, VMM)
        self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
        end = kick + 10 * US + d.gpu_syscall
        self.add(r.wait(G, LOCK, kick + 8 * US, end))
        self.add(r.offcpu(G, kick + 9 * US, end - 1 * US, woken=end - 3 * US, waker=F, waker_tgid=VMM))
        self.add(
            r.syscall(F, kick, end - 5 * US, number=16),
            r.offcpu(F, kick + 1 * US, end - 6 * US, woken=end - 7 * US, waker=0, irq=True),
            r.wake(F, LOCK, end - 2 * US, dur=2 * US),
        )
        self.free[F] = end
        self.add(r.write(G, end + 2 * US, end + 4 * US, fd=12, eventfd=IRQ_ID))
        self.free[G] = end + 4 * US
        rearm = end + 10 * US
        self.add(r.wake(G, CONDVAR, rearm, dur=2 * US))
        self.sequence += 1
        park = self.free[W] + 3 * US
        self.add(r.wait(W, CONDVAR, park, rearm + 5 * US, expected=self.sequence * 3))
        self.free[W] = park
        self.sleep(W, rearm - 1 * US, rearm + 4 * US, G, VMM)
        self.free[W] = rearm + 6 * US
        done = rearm + 10 * US
        self.add(r.write(G, rearm + 5 * US, done, fd=14, eventfd=DONE_ID))
        self.free[G] = done + 2 * US
        return done


def test_a_lock_that_g_waits_for_in_another_command_is_the_more_specific_cause() -> None:
    world = BusyWaiting()
    records = play_on(world, Delays(lock=MS), Delays(gpu_syscall=LATE))
    (miss,) = origins(analyse(world, records))
    assert any(s.startswith("lock:") for s in miss.sufficient), (miss.detail, miss.segments)
    assert miss.cause == "lock", (miss.detail, miss.sufficient)


def test_a_stopped_thread_is_blocked_and_wants_no_priority() -> None:
    """SIGSTOP while W computes: prev_state is __TASK_STOPPED."""
    world = World()
    for i in range(36):
        if i == 24:
            t = world.start_of(world.number) + 60 * US
            world.add(
                r.offcpu(
                    W, t, t + LATE - 100 * US, woken=t + LATE - 103 * US, waker=1, waker_tgid=1, state=0x104
                )
            )
            world.cycle(Delays(worker_cpu=LATE))
        else:
            world.cycle()
    (miss,) = origins(analyse(world, world.finish()))
    assert miss.cause == "blocked", (miss.detail, miss.sufficient)


# --- replay, labels, baselines --------------------------------------------------------------

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


def test_remedies_do_not_depend_on_how_often_one_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Live asks for a summary every second, a report once: the table is the same."""
    monkeypatch.setattr(verdicts, "KEEP_CASES", 4)
    world = World()
    for i in range(120):
        world.cycle(Delays(channel_turns=12, turn=3 * MS) if i >= 20 and i % 6 == 0 else None)
    records = world.finish()

    def run(*, looking: bool) -> Summary:
        analysis, first = Analysis(), True
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
    assert len(analysis._rows._misses) == 2


def test_what_a_remedy_avoids_follows_the_roles_known_now() -> None:
    """Real-time priority moves W and G; who they are may be learnt after the first summary."""
    world = World()
    analysis = feed(world, play_on(world, Delays(worker_off=LATE)))
    (origin,) = [m for m in analysis.verdicts.misses if m.origin is None]
    remedies = Remedies()
    before = Names(frozenset(), frozenset(), frozenset())
    assert not remedies.avoids(origin, "realtime", before)
    assert remedies.avoids(origin, "realtime", replace(before, movable=frozenset({W})))


def episode_state(number: int, stream: Stream, end: int | None, start: int = 1000) -> EpisodeState:
    return EpisodeState(number, stream, start, end, misses=1)


def test_streams_of_one_worker_that_died_are_one_episode() -> None:
    world = World()
    analysis = feed(world, play_on(world))
    (one,) = analysis.streams.streams
    two = replace(one, serial=one.serial + 1)
    states = [episode_state(1, one, None), episode_state(2, two, None, start=1500)]
    assert len(analysis._rows._episodes(states)) == 1


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
    judge = analysis.verdicts
    monkeypatch.setattr(judge, "_moved", lambda case, cycle, window, usual, kick: busy(kick == 1))
    usual = Usual([], lambda entries, totals: None)
    found = judge_case(busy(False), usual.of)
    assert found.cause == "slow_syscall"
    window = judge._finder.window(miss.cycle)
    bound = judge._within_bounds(miss.cycle, window, usual, busy(False), found)
    assert bound.cause == "mixed"


# --- random timelines -------------------------------------------------------------------------


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
