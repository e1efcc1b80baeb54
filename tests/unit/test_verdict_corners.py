# SPDX-License-Identifier: Apache-2.0
"""Verdicts in corners: a timeline each on which somebody else, or nobody, was nearly blamed.

Owns small variations of the scripted world: starts, drivers, completions, and who was responsible.
"""

from __future__ import annotations

import numpy as np
import pytest
import records as r
from records import WAIT, WAKE
from test_verdicts import analyse, origins
from world import (
    CONDVAR,
    DONE_ID,
    HOG,
    IRQ_ID,
    KICK_ID,
    LATE,
    LOCK,
    MS,
    PERIOD,
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
    feed,
    play_on,
)

from tracer.model.analysis import Analysis
from tracer.schema import FUTEX, OFFCPU, RW, Flag, Kind, Records, end_ns, view

# --- nominal starts and drivers -------------------------------------------------------


def test_the_nominal_start_is_on_the_grid_of_the_earliest_starts() -> None:
    world = World()
    # The first start seen came 60 us after its expiry, the others 5 or 25 us.
    for i in range(40):
        world.cycle(Delays(driver_start=55 * US if i == 0 else (i % 2) * 20 * US))
    records = world.finish()
    analysis = feed(world, records)
    (driver,) = [d for d in analysis.streams.loops.drivers.values() if d.total > 10]
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
    kept = len(analysis.streams.filing.eventfds[WAKE_ID].signals.end)
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

    def _round(self, irq: int, guest: int, busy: int = 0) -> int:
        if not guest:
            return super()._round(irq, guest, busy)
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
        self._rearmed(rearm)
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
        self._rearmed(rearm)
        return self._completed(rearm)


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
        self._rearmed(rearm)
        return self._completed(rearm)


def test_a_lock_that_g_waits_for_in_another_command_is_the_more_specific_cause() -> None:
    world = BusyWaiting()
    records = play_on(world, Delays(lock=MS), Delays(gpu_syscall=LATE))
    (miss,) = origins(analyse(world, records))
    assert any(s.startswith("lock:") for s in miss.sufficient), (miss.detail, miss.segments)
    assert miss.cause == "lock", (miss.detail, miss.sufficient)


def test_what_g_computes_before_it_rearms_w_is_another_command() -> None:
    """Commands that make no syscall do not show; but ours is what comes after the re-arm."""
    world = World()
    (miss,) = origins(analyse(world, play_on(world, Delays(gpu_cpu=LATE))))
    assert (miss.cause, miss.kick) == ("head_of_line", "inferred"), (miss.detail, miss.sufficient)
    world = World()
    (miss,) = origins(analyse(world, play_on(world, Delays(write=LATE))))
    assert (miss.cause, miss.kick) == ("slow_syscall", "exact"), (miss.detail, miss.sufficient)


def of_glibc(records: Records, lock: int, unlock: int) -> Records:
    """The same calls on LOCK, as glibc makes them (FUTEX_WAIT for 2, or with priority inheritance)."""
    records = records.copy()
    futex = view(records, FUTEX)
    on_lock = (records["kind"] == int(Kind.FUTEX)) & (futex["word"] == LOCK)
    futex["op"][on_lock & (records["op"] == WAIT)] = lock
    futex["op"][on_lock & (records["op"] == WAKE)] = unlock
    if lock == INHERITING[0]:
        futex["expected"][on_lock] = 0  # the kernel locks; no value is given
    return records


GLIBC, INHERITING = (128, 129), (134, 135)


@pytest.mark.parametrize("ops", [GLIBC, INHERITING])
def test_a_lock_of_glibc_is_a_lock(ops: tuple[int, int]) -> None:
    world = World()
    records = of_glibc(play_on(world, *[Delays(lock=MS)] * 8, Delays(lock=LATE)), *ops)
    (miss,) = origins(analyse(world, records))
    assert miss.cause == "lock", (miss.detail, miss.sufficient)


class LockInTurn(World):
    """W waits for LOCK while it serves its channel, before the interrupt."""

    def _channel(self, t: int, d: Delays) -> int:
        if not d.channel_turns:
            return super()._channel(t, d)
        back = t + 5 * US
        self.add(r.epoll_wait(W, self.free[W], back, data=0))
        self.add(r.recvmsg(W, back + 2 * US, back + 5 * US, eventfds=(7, 8)))
        irq = self._lock(back + 10 * US, d.turn, preempted=False, pipe=False) + 20 * US
        self.add(r.write(W, irq - 2 * US, irq, fd=12, eventfd=IRQ_ID))
        self.free[W] = irq
        return self._round(irq, 0) + 8 * US


@pytest.mark.parametrize("ops", [(WAIT, WAKE), GLIBC, INHERITING])
def test_a_wait_for_a_lock_in_the_turn_of_another_event_is_no_rearm(ops: tuple[int, int]) -> None:
    world = LockInTurn()
    plan = [*[Delays(lock=MS)] * 8, Delays(channel_turns=1, turn=LATE)]
    (miss,) = origins(analyse(world, of_glibc(play_on(world, *plan), *ops)))
    assert f"lock:lock@{LOCK:#x}" in miss.sufficient, (miss.detail, miss.sufficient, miss.segments)


def test_a_thread_stopped_inside_a_syscall_that_goes_on_afterwards_is_blocked() -> None:
    """SIGSTOP while G is inside a syscall that is restarted: the syscall's span lasts over the stop."""
    world = World()
    for i in range(36):
        if i == 24:
            t = world.start_of(world.number) + 4 * MS
            world.add(
                r.offcpu(G, t, t + LATE - 4 * MS, woken=t + LATE - 4 * MS, waker=1, waker_tgid=1, state=4)
            )
            world.cycle(Delays(write=LATE))
        else:
            world.cycle()
    (miss,) = origins(analyse(world, world.finish()))
    assert miss.cause == "blocked", (miss.detail, miss.sufficient)


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


class ByItsClock(World):
    """A driver that sleeps from one start to the next, and looks for completions only then."""

    def _asleep(self, until: int) -> None:
        begin = self.free[D]
        self.add(r.syscall(D, begin, until + 2 * US, number=230))
        self.sleep(D, until, until + 2 * US, 0, 0, irq=True)
        self.free[D] = until + 3 * US

    def _answer(self, done: int, d: Delays) -> None:
        begin = self.start_of(self.number - 1) + 30 * US
        self.free[D] = max(self.free[D], begin)
        while self.start_of(self.number) < done:
            self._asleep(self.start_of(self.number) - 6 * US)
            start = self.start_of(self.number) + 5 * US
            self.add(r.timer_read(D, start - 2 * US, start, fd=4))
            self.add(r.write(D, start + 16 * US, start + 20 * US, fd=9, eventfd=WAKE_ID))
            self.free[D] = start + 22 * US
            self.number += 1
            self.unread += 1
        tick = self.start_of(self.number)
        self._asleep(tick - 6 * US)
        self.add(r.read(D, tick - 2 * US, tick, fd=15, eventfd=DONE_ID))
        self.busy_until = done + 50 * US


@pytest.mark.parametrize(
    ("delays", "cause"),
    [(Delays(guest=PERIOD - 40 * US), "guest_late"), (Delays(gpu_syscall=PERIOD), "head_of_line")],
)
def test_a_driver_that_looks_only_at_its_next_start_makes_no_cause_longer(delays: Delays, cause: str) -> None:
    """It reads what came just too late one period late; without the cause it had read it a period before."""
    world = ByItsClock()
    (miss,) = origins(analyse(world, play_on(world, delays)))
    assert miss.late_ns is not None and miss.late_ns > PERIOD - 100 * US
    assert (miss.cause, miss.sufficient) == (cause, (cause,)), (miss.detail, miss.segments)
    assert sum(s.ns for s in miss.segments) == miss.deadline_ns + miss.late_ns - miss.start_ns
