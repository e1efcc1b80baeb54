# SPDX-License-Identifier: Apache-2.0
"""Verdicts where G or W is at somebody else's work, and no call of its own shows where that ends."""

from __future__ import annotations

import pytest
import records as r
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
    US,
    V2,
    VMM,
    WAKE_ID,
    D,
    Delays,
    G,
    V,
    W,
    World,
    play_on,
)


class Unslept(World):
    """G is inside another's ioctl under LOCK while W waits for it, then goes to ours without a sleep.

    A queue is worked off until it is empty: the end of the one command is the beginning of the next.
    """

    def _lock(self, t: int, hold: int, *, preempted: bool, pipe: bool) -> int:
        kick, release = t - 500 * US, t + 10 * US + hold
        self.sleep(G, kick, kick + 4 * US, V2, VMM)
        self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
        self.add(r.syscall(G, kick + 8 * US, release - 3 * US, number=16))
        self.add(r.offcpu(G, kick + 9 * US, release - 4 * US, woken=release - 5 * US, waker=0, irq=True))
        self.add(r.wait(W, LOCK, t + 2 * US, release + 6 * US))
        self.add(r.offcpu(W, t + 3 * US, release + 5 * US, woken=release, waker=G, waker_tgid=VMM))
        self.add(r.wake(G, LOCK, release + 1 * US, dur=2 * US))
        self.free[G] = release + 1 * US
        return release + 6 * US

    def _complete(self, irq: int, d: Delays) -> int:
        if not d.lock:
            return super()._complete(irq, d)
        kick = self._guest(irq, d.guest)
        self.add(r.offcpu(G, self.free[G] + 3 * US, kick + 4 * US, preempted=True, instead=HOG))
        rearm = kick + 12 * US
        self.add(r.wake(G, CONDVAR, rearm, dur=2 * US, count=1))
        self.free[G] = rearm
        self._rearmed(rearm)
        return self._completed(rearm)


def test_what_g_does_before_the_interrupt_that_a_command_answers_is_another_command() -> None:
    """The guest cannot have kicked yet, so G was not free: without the lock ours would have waited for it."""
    world = Unslept()
    (miss,) = origins(analyse(world, play_on(world, Delays(lock=LATE))))
    assert miss.leg == "wake"
    assert (miss.cause, miss.sufficient) == ("head_of_line", ("head_of_line",)), (miss.detail, miss.segments)


class AnsweredLate(World):
    """G completes a cycle so late that it closes the next one too, which W, in another turn, has not read."""

    def _answer(self, done: int, d: Delays) -> None:
        if not d.write:
            super()._answer(done, d)
            return
        # In time: W is at a pipe from before the next signal on until after that cycle has closed as well.
        first, late = self.start_of(self.number) - 1 * MS, self.start_of(self.number + 1) + 2 * MS
        self.add(r.read(D, first - 2 * US, first, fd=15, eventfd=DONE_ID))
        self.add(r.epoll_wait(W, self.free[W], first - 200 * US, data=5))
        self.add(r.read(W, first - 190 * US, late + 200 * US, fd=31, eventfd=-1))
        self.add(r.offcpu(W, first - 180 * US, late + 190 * US, woken=late + 185 * US, waker=1, waker_tgid=1))
        irq = late + 210 * US
        self.add(r.write(W, irq - 2 * US, irq, fd=12, eventfd=IRQ_ID))
        for number in (self.number, self.number + 1):
            start = self.start_of(number) + 5 * US
            self.add(r.timer_read(D, start - 2 * US, start, fd=4))
            self.add(r.write(D, start + 16 * US, start + 20 * US, fd=9, eventfd=WAKE_ID))
        self.number += 2
        self.unread += 2
        # G's completion of what the guest kicked before.
        self.add(r.write(G, late - 30 * US, late - 20 * US, fd=14, eventfd=DONE_ID))
        self.add(r.read(D, late - 2 * US, late, fd=15, eventfd=DONE_ID))
        self.free[W] = irq
        self.free[G] = late
        self.busy_until = self._round(irq, 0) + 8 * US


def test_a_cycle_closed_by_an_earlier_one_s_completion_was_kept_by_the_turn_that_w_was_in() -> None:
    world = AnsweredLate()
    miss, *_ = origins(analyse(world, play_on(world, Delays(write=10 * US))))
    assert miss.leg == "wake"
    assert (miss.cause, miss.via) == ("serialised", "serialised"), (
        miss.detail,
        miss.sufficient,
        miss.segments,
    )
    assert {s.via for s in miss.segments if s.kind == "slow_syscall" and s.ns > MS} == {"serialised"}


class BusyBeforeRearm(World):
    """W serves its channel; G, kicked for two commands, is in another's ioctl before it re-arms W."""

    one_by_one = False  # it takes one kick for each command

    def _channel(self, t: int, d: Delays) -> int:
        if not d.channel_turns:
            return super()._channel(t, d)
        back = t + 5 * US
        self.add(r.epoll_wait(W, self.free[W], back, data=0))
        self.add(r.recvmsg(W, back + 2 * US, back + 5 * US, eventfds=(7, 8)))
        irq = back + 20 * US
        self.add(r.write(W, irq - 2 * US, irq, fd=12, eventfd=IRQ_ID))
        self.free[W] = irq
        kick = self._guest(irq, 0)
        self.sleep(G, kick, kick + 4 * US, V, VMM)
        self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
        rearm = kick + 12 * US + d.turn
        if self.one_by_one:
            self.add(r.read(G, rearm - 4 * US, rearm - 3 * US, fd=13, eventfd=KICK_ID))
        self.add(r.syscall(G, kick + 8 * US, rearm - 5 * US, number=16))
        self.add(r.offcpu(G, kick + 9 * US, rearm - 6 * US, woken=rearm - 7 * US, waker=0, irq=True))
        self.add(r.wake(G, CONDVAR, rearm, dur=2 * US))
        self.free[G] = rearm
        self._rearmed(rearm)
        return rearm + 8 * US


@pytest.mark.parametrize("one_by_one", [False, True])
def test_what_g_works_before_it_rearms_w_is_another_command_in_any_turn(one_by_one: bool) -> None:
    world = BusyBeforeRearm()
    world.one_by_one = one_by_one
    (miss,) = origins(analyse(world, play_on(world, Delays(channel_turns=1, turn=LATE))))
    assert miss.leg == "wake"
    assert set(miss.sufficient) == {"serialised", "head_of_line"}, (miss.detail, miss.segments)


class VcpuWithoutCpu(World):
    """G is in another's ioctl before our interrupt; the vCPU that takes that has no CPU for ``guest``."""

    def _guest(self, irq: int, extra: int) -> int:
        kick = irq + 100 * US + extra
        self.sleep(V, irq - 1 * US, irq + 3 * US + extra, W, VMM)
        self.free[V] = kick + 2 * US
        return kick

    def _complete(self, irq: int, d: Delays) -> int:
        if not d.gpu_syscall:
            return super()._complete(irq, d)
        self._guest(irq, d.guest)
        kick, end = irq - 200 * US, irq + d.gpu_syscall
        self.sleep(G, kick, kick + 4 * US, V2, VMM)
        self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
        self.add(r.syscall(G, kick + 8 * US, end, number=16))
        self.add(r.offcpu(G, kick + 9 * US, end - 1 * US, woken=end - 3 * US, waker=0, irq=True))
        self.add(r.write(G, end + 2 * US, end + 4 * US, fd=12, eventfd=IRQ_ID))
        self.free[G] = end + 4 * US
        rearm = end + 10 * US
        self.add(r.wake(G, CONDVAR, rearm, dur=2 * US))
        self._rearmed(rearm)
        return self._completed(rearm)


def test_no_kick_comes_while_no_vcpu_runs() -> None:
    """G is busy for others until after the deadline, and no vCPU runs before it: either alone is enough."""
    world = VcpuWithoutCpu()
    (miss,) = origins(analyse(world, play_on(world, Delays(gpu_syscall=30 * MS, guest=25 * MS))))
    assert miss.kick == "inferred"
    assert (miss.cause, miss.sufficient) == ("mixed", ()), (miss.detail, miss.segments)
    assert set(miss.jointly) == {"head_of_line", "not_scheduled:fc_vcpu 0"}


class PollThenWrite(World):
    """Each command has its kick: the POLL's comes at once, ours 300 µs later, and of another context's one.

    G computes for ``gpu_cpu``, and takes with ours what was kicked meanwhile.
    """

    theirs = True  # the other one kicks too
    slept = False  # between the POLL and ours G slept

    def _kicked(self, kick: int) -> None:
        self.sleep(G, kick, kick + 4 * US, V, VMM)
        self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
        self.free[G] = kick + 5 * US

    def _complete(self, irq: int, d: Delays) -> int:
        poll, ours = irq + 20 * US, irq + 320 * US
        self.sleep(V, irq - 1 * US, irq + 3 * US, W, VMM)
        self.free[V] = ours + 2 * US
        self._kicked(poll)
        rearm = poll + 12 * US
        self.add(r.wake(G, CONDVAR, rearm, dur=2 * US, count=1))
        self.free[G] = rearm
        self._rearmed(rearm)
        meanwhile = int(self.theirs)
        if d.gpu_cpu and not self.slept:
            meanwhile += 1
        else:
            self._kicked(ours)
        done = self.free[G] + 10 * US + d.gpu_cpu
        self.add(r.write(G, done - 4 * US, done, fd=14, eventfd=DONE_ID))
        self.free[G] = done + 2 * US
        if d.gpu_cpu and meanwhile:
            self.add(r.read(G, done + 1 * US, done + 2 * US, fd=13, eventfd=KICK_ID, value=meanwhile))
        return done


def test_what_g_computes_before_ours_can_have_come_is_another_command_if_it_read_a_kick_for_that() -> None:
    """What woke G was the POLL's kick; the third of the drain is another's, of which nothing else shows."""
    world = PollThenWrite()
    (miss,) = origins(analyse(world, play_on(world, Delays(gpu_cpu=LATE))))
    assert (miss.leg, miss.kick) == ("completion", "inferred")
    assert (miss.cause, miss.sufficient) == ("head_of_line", ("head_of_line",)), (miss.detail, miss.segments)


@pytest.mark.parametrize(("theirs", "slept"), [(False, False), (True, True), (False, True)])
def test_what_g_computes_is_ours_if_it_slept_until_then_or_each_kick_has_its_command(
    theirs: bool, slept: bool
) -> None:
    world = PollThenWrite()
    world.theirs, world.slept = theirs, slept
    (miss,) = origins(analyse(world, play_on(world, Delays(gpu_cpu=LATE))))
    assert (miss.cause, miss.sufficient) == ("on_cpu", ("on_cpu:gpu worker",)), (miss.detail, miss.segments)


class WithoutPoll(PollThenWrite):
    """The guest kicks for its command alone. G, woken ``after`` the interrupt in a late cycle, computes."""

    after = 20 * US

    def _complete(self, irq: int, d: Delays) -> int:
        ours = irq + 320 * US
        self.sleep(V, irq - 1 * US, irq + 3 * US, W, VMM)
        self.free[V] = ours + 2 * US
        self._rearmed(irq + 30 * US)
        kick = irq + self.after if d.gpu_cpu else ours
        self._kicked(kick)
        done = self.free[G] + 10 * US + d.gpu_cpu
        self.add(r.write(G, done - 4 * US, done, fd=14, eventfd=DONE_ID))
        self.free[G] = done + 2 * US
        if d.gpu_cpu and self.theirs:
            self.add(r.read(G, done + 1 * US, done + 2 * US, fd=13, eventfd=KICK_ID))
        return done


def test_what_g_computes_from_a_kick_on_that_came_before_ours_ever_does_is_another_command() -> None:
    (miss,) = origins(analyse(world := WithoutPoll(), play_on(world, Delays(gpu_cpu=LATE))))
    assert (miss.leg, miss.kick) == ("completion", "inferred")
    assert (miss.cause, miss.sufficient) == ("head_of_line", ("head_of_line",)), (miss.detail, miss.segments)


@pytest.mark.parametrize(("theirs", "after"), [(False, 20 * US), (True, 320 * US), (True, 300 * US)])
def test_it_is_ours_if_no_kick_came_meanwhile_or_g_was_woken_when_ours_comes(
    theirs: bool, after: int
) -> None:
    world = WithoutPoll()
    world.theirs, world.after = theirs, after
    (miss,) = origins(analyse(world, play_on(world, Delays(gpu_cpu=LATE))))
    assert (miss.cause, miss.sufficient) == ("on_cpu", ("on_cpu:gpu worker",)), (miss.detail, miss.segments)
