# SPDX-License-Identifier: Apache-2.0
"""VMMs in which no guest kicks: W answers what it reads itself, or hands it to G."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import records as r
from world import (
    CONDVAR,
    DONE_ID,
    IRQ_ID,
    LATE,
    LOCK,
    MS,
    US,
    VMM,
    WAKE_ID,
    Delays,
    G,
    W,
    World,
    feed,
    play_on,
)

from tracer.model.analysis import Analysis
from tracer.model.summary import Miss, Summary
from tracer.schema import FUTEX, RW, Fd, Kind, Records, end_ns

PPOLL = 271


def origins(summary: Summary) -> list[Miss]:
    return [miss for miss in summary.misses if miss.carried_from is None]


class Alone(World):
    """W writes the completion in the turn in which it reads the signal. There is neither G nor interrupt."""

    def _serve(self, t: int, d: Delays) -> int:
        if d.lock:
            t = self._lock(t, d.lock, preempted=False, pipe=False)
        ahead = 0
        while self.start_of(self.number + ahead) + 25 * US <= t:
            ahead += 1
        self.add(r.read(W, t + 1 * US, t + 2 * US, fd=11, eventfd=WAKE_ID, value=self.unread + ahead))
        self.unread = -ahead
        return self._worked(t + 10 * US + d.worker_cpu, d)

    def _worked(self, t: int, d: Delays) -> int:
        if d.gpu_syscall:
            t += d.gpu_syscall
            self.add(self._slow(t - d.gpu_syscall, t))
            self.add(r.offcpu(W, t - d.gpu_syscall + US, t - US, woken=t - 3 * US, waker=0, irq=True))
        self.add(r.write(W, t + 2 * US, t + 4 * US, fd=14, eventfd=DONE_ID))
        self.free[W] = t + 6 * US
        return t + 4 * US

    def _slow(self, start: int, end: int) -> Records:
        return r.syscall(W, start, end)

    def _complete(self, t: int, d: Delays) -> int:
        return t


class Reading(Alone):
    """So does this one, which waits in the read of its stream's eventfd; its slow syscall is a ppoll."""

    def _choose(self, t: int, d: Delays) -> int:
        back = t + 5 * US + d.worker_off
        self.sleep(W, t - 1 * US, back, 100, 10)
        self.free[W] = back
        return back

    def _slow(self, start: int, end: int) -> Records:
        call = r.epoll_wait(W, start, end, ret=0)
        call["op"] = PPOLL
        return call


class Handing(Alone):
    """W hands each signal to G, which idles in a condvar: by waking it, or, G awake, by no syscall at all."""

    def _worked(self, t: int, d: Delays) -> int:
        if d.write:  # W's own slow syscall, before it hands over
            self.add(r.syscall(W, t, t + d.write))
            self.add(r.offcpu(W, t + US, t + d.write - US, woken=t + d.write - 3 * US, waker=0, irq=True))
            t += d.write
        self.free[W] = t + 6 * US
        busy = d.gpu_syscall + d.gpu_cpu
        woken = t - 12 * US if busy else t  # somebody else's command was handed over just before
        self.add(r.wait(G, CONDVAR, self.free[G], woken + 5 * US, expected=2 * self.number + 1))
        self.sleep(G, woken, woken + 4 * US, W, VMM)
        self.add(r.wake(W, CONDVAR, woken + 1 * US, dur=2 * US))
        if d.gpu_syscall:
            self.add(r.syscall(G, woken + 8 * US, woken + d.gpu_syscall))
            self.add(
                r.offcpu(
                    G,
                    woken + 9 * US,
                    woken + d.gpu_syscall - US,
                    woken=woken + d.gpu_syscall - 3 * US,
                    waker=0,
                    irq=True,
                )
            )
        done = woken + busy + 20 * US
        self.add(r.write(G, done - 2 * US, done, fd=14, eventfd=DONE_ID))
        self.free[G] = done + 2 * US
        return done


ALONE = {
    "on_cpu": Delays(worker_cpu=LATE),
    "slow_syscall": Delays(gpu_syscall=LATE),
    "not_scheduled": Delays(worker_off=LATE),
    "lock": Delays(lock=LATE),
    "host_late": Delays(host_read=LATE),
}


@pytest.mark.parametrize("world", [Alone, Reading])
@pytest.mark.parametrize("cause", ALONE)
def test_what_a_worker_does_that_answers_itself_is_its_own(world: type[Alone], cause: str) -> None:
    played = world()
    summary = feed(played, play_on(played, ALONE[cause])).summary()
    (origin,) = origins(summary)
    assert origin.cause == cause
    assert origin.kick == "none"
    assert not any("guest" in s or "head_of_line" in s for s in origin.sufficient)
    assert not any(s.kind == "guest" or s.via == "head_of_line" for s in origin.segments)


HANDING = {
    "on_cpu": (Delays(worker_cpu=LATE), "on_cpu"),
    "slow_syscall": (Delays(write=LATE), "slow_syscall"),
    "busy_in_a_syscall": (Delays(gpu_syscall=LATE), "head_of_line"),
    "busy_computing": (Delays(gpu_cpu=LATE), "head_of_line"),
}


@pytest.mark.parametrize("name", HANDING)
def test_a_worker_that_hands_over_itself_is_late_until_then_and_g_busy_after(name: str) -> None:
    delays, cause = HANDING[name]
    world = Handing()
    (origin,) = origins(feed(world, play_on(world, delays)).summary())
    assert (origin.cause, origin.leg, origin.kick) == (cause, "completion", "exact")
    assert not any(s.kind == "lock" for s in origin.segments)  # G's idle wait ends after it was woken
    assert not any(s.kind == "guest" for s in origin.segments)


def test_a_guest_that_kicks_is_no_worker_that_hands_over() -> None:
    world = World()
    (origin,) = origins(feed(world, play_on(world, Delays(guest=LATE))).summary())
    assert origin.cause == "guest_late"


def test_a_worker_that_interrupts_for_each_of_many_messages_is_not_waiting_for_a_rearm() -> None:
    class All(Alone):
        """W serves all that is ready, each message with an interrupt, before it chooses again."""

        def _channel(self, t: int, d: Delays) -> int:
            return t

        def _choose(self, t: int, d: Delays) -> int:
            if d.channel_turns:  # they came a millisecond before the cycle
                at = self.start_of(self.number - 1) - 1 * MS
                at = super()._choose(at, Delays())
                for _ in range(d.channel_turns):
                    self.add(r.recvmsg(W, at + 2 * US, at + 5 * US))
                    at += 2 * MS
                    self.add(r.write(W, at - 4 * US, at - 2 * US, fd=12, eventfd=IRQ_ID))
                self.free[W] = at
                t = at
            return super()._choose(t, d)

    world = All()
    (origin,) = origins(feed(world, play_on(world, Delays(channel_turns=20))).summary())
    assert origin.cause == "serialised"


def test_musl_mutexes_are_locks() -> None:
    """Their word is 16, or the owner's tid, under the bit of waiters; an unlock need not wake anybody."""

    class Musl(Alone):
        def _lock(self, t: int, hold: int, *, preempted: bool, pipe: bool) -> int:
            parts, self.parts = self.parts, []
            end = super()._lock(t, hold, preempted=preempted, pipe=pipe)
            for part in self.parts:
                if part["kind"][0] == Kind.FUTEX and part["op"][0] == r.WAIT:
                    part = part.copy()
                    futex = part.view(FUTEX)
                    futex["op"], futex["expected"] = 128, 0x80000010
                parts.append(part)
            self.parts = parts
            return end

    world = Musl()
    short = Delays(lock=1 * MS)
    summary = feed(world, play_on(world, short, short, None, Delays(lock=LATE), short)).summary()
    (origin,) = origins(summary)
    assert (origin.cause, origin.lock) == ("lock", f"lock@{LOCK:#x}")
    (row,) = [row for row in summary.locks if row.address == LOCK]
    assert (row.contended, row.barged, row.misses_caused) == (4, 0, 1)
    assert row.wait_ns.max < LATE + MS


@pytest.mark.parametrize("uring", [False, True])
def test_completions_that_io_uring_hides_are_not_said_to_be_in_time(uring: bool) -> None:
    world = World()
    records = play_on(world, Delays(guest=LATE), warm=80)
    rw = records.view(RW)
    seen = records[~np.isin(records["kind"], [Kind.WRITE, Kind.READ]) | (rw["eventfd_id"] != DONE_ID)]
    batch = world.batch(seen, int(end_ns(seen)[-1]), first=True)
    fds = (*batch.fds, *([Fd(VMM, 30, "io_uring")] if uring else ()))
    analysis = Analysis()
    analysis.feed(replace(batch, fds=fds))
    analysis.finish()
    (found,) = [f for f in analysis.summary().findings if f.what.startswith("no completion ever seen")]
    assert ("io_uring" in found.what, "not counted" in found.why) == (uring, uring)


def test_a_g_that_idles_in_musls_condvar_waits_for_no_lock() -> None:
    """There a waiter waits for 2, on a word of its own; a mutex's wait shows that it is musl."""

    class Musl(Handing):
        def _worked(self, t: int, d: Delays) -> int:
            parts, self.parts = self.parts, []
            done = super()._worked(t, d)
            for part in self.parts:
                if part["kind"][0] == Kind.FUTEX and part["op"][0] == r.WAIT:
                    part = part.copy()
                    futex = part.view(FUTEX)
                    futex["op"], futex["expected"] = 128, 2
                parts.append(part)
            if self.number % 8 == 3:
                held = r.wait(W, LOCK, done + MS, done + 2 * MS, op=128, expected=0x80000010)
                parts += [held, r.wake(G, LOCK, done + 2 * MS)]
            self.parts = parts
            return done

    world = Musl()
    summary = feed(world, play_on(world, Delays(gpu_syscall=LATE))).summary()
    assert [m.cause for m in origins(summary)] == ["head_of_line"]
    assert [row.address for row in summary.locks if row.kind in ("mutex", "pthread")] == [LOCK]
