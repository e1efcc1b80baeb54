# SPDX-License-Identifier: Apache-2.0
"""A command that G took in time and that wrote nothing, told from a late guest by G's kicks.

Owns a world whose guest kicks once a command, as a guest does: for W's re-arm and for the completion.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import records as r
from test_verdicts import analyse, origins
from world import CONDVAR, DONE_ID, KICK_ID, MS, US, V2, VMM, Delays, F, G, V, W, World, feed

from tracer.model.summary import Miss

FENCE = 0xA000
OURS = 80 * US  # from the re-arm to our command's kick


@dataclass
class Kicks(World):
    """A world of one kick a command.

    Attributes:
        lost: this cycle's completion is not written.
        other_ns: so long after the re-arm G gets somebody else's command, 0: none.
        kicker: the vCPU that kicks for our completion.
        wakes: that command wakes the fence thread, which sleeps unless it is ``awake``.
    """

    lost: bool = False
    other_ns: int = 0
    kicker: int = V
    wakes: bool = False
    awake: bool = False

    def kick(self, at: int, by: int) -> None:
        """An idle G is woken for a command that leaves no trace."""
        self.sleep(G, at, at + 4 * US, by, VMM)
        self.add(r.read(G, self.free[G], at + 5 * US, fd=13, eventfd=KICK_ID))
        self.free[G] = at + 12 * US

    def _other(self, rearm: int) -> None:
        at = rearm + self.other_ns
        if self.wakes:
            woken = at + 8 * US if not self.awake else at - 5 * US
            self.add(r.wait(F, FENCE, self.free[F], woken + 5 * US, expected=7))
            self.sleep(F, woken, woken + 4 * US, 0 if self.awake else G, VMM, irq=self.awake)
            self.free[F] = at + 30 * US
            if not self.awake:
                self.add(r.wake(G, FENCE, at + 7 * US, dur=2 * US, count=1))
        self.kick(at, V2)

    def _completed(self, rearm: int, write: int = 0) -> int:
        self.free[G] = rearm + 2 * US
        if 0 < self.other_ns < OURS:
            self._other(rearm)
        self.kick(rearm + OURS, self.kicker)
        done = rearm + OURS + 20 * US
        if not self.lost:
            done = super()._completed(rearm + OURS + 5 * US, write)
        if self.other_ns > OURS:
            self._other(rearm)
        return done

    def _answer(self, done: int, d: Delays) -> None:
        if self.lost:
            self.busy_until = done + 50 * US
        else:
            super()._answer(done, d)


def told(world: Kicks, late: Delays | None = None) -> Miss:
    """The one miss among cycles on time: it has these delays, or else its completion is lost."""
    for i in range(48):
        world.lost = i == 32 and late is None
        world.cycle(late if i == 32 else None)
    (miss,) = origins(analyse(world, world.finish()))
    return miss


def test_a_command_that_was_taken_in_time_and_wrote_nothing_is_told() -> None:
    miss = told(Kicks())
    assert (miss.leg, miss.cause) == ("completion", "unknown")
    assert "no write" in miss.detail


def test_a_late_guest_is_not_taken_for_a_command_that_wrote_nothing() -> None:
    assert told(Kicks(), Delays(guest=30 * MS)).cause == "guest_late"


@pytest.mark.parametrize(("other_ns", "cause"), [(40 * US, "guest_late"), (5 * MS, "unknown")])
def test_kicks_without_a_trace_prove_nothing_where_they_are_usual_as_soon(other_ns: int, cause: str) -> None:
    """Every cycle has a kick of somebody else's: before ours, which then says nothing, or long after it."""
    assert told(Kicks(other_ns=other_ns)).cause == cause


@pytest.mark.parametrize(("awake", "cause"), [(True, "guest_late"), (False, "unknown")])
def test_a_kick_was_not_ours_where_whom_it_was_for_may_have_needed_no_waking(awake: bool, cause: str) -> None:
    """G wakes the fence thread in every cycle; in the lost one that is awake: waking it leaves no trace."""
    world = Kicks(other_ns=40 * US, wakes=True)
    for i in range(48):
        world.lost, world.awake = i == 32, i == 32 and awake
        world.cycle()
    (miss,) = origins(analyse(world, world.finish()))
    assert miss.cause == cause


@pytest.mark.parametrize(("by", "cause"), [(V2, "guest_late"), (V, "unknown")])
def test_a_kick_by_a_vcpu_that_does_not_kick_for_ours_is_no_evidence(by: int, cause: str) -> None:
    """A kick without a command where ours is missing: somebody else's, if it comes from elsewhere."""
    world = Kicks()
    for i in range(48):
        world.lost, world.kicker = i == 32, by if i == 32 else V
        world.cycle()
    (miss,) = origins(analyse(world, world.finish()))
    assert miss.cause == cause


def test_a_run_of_g_that_began_before_the_wakeup_was_served_is_no_evidence() -> None:
    """G may take several commands at once; the kicks of those it has taken already are read later."""
    world = Kicks()
    for _ in range(20):
        world.cycle()
    asleep, begin = world.free[G], world.free[G] + MS
    world.kick(begin, V)
    world.add(r.read(G, begin + 59 * US, begin + 60 * US, fd=13, eventfd=KICK_ID))
    world.free[G] = begin + 80 * US
    world.kick(begin + 90 * US, V)
    analysis = feed(world, world.finish())
    runs = analysis.verdicts._judge._failures._kicks.runs(G, VMM, asleep, begin + 100 * US)
    assert runs.spare.tolist() == [2]
    served = begin + 30 * US  # between the two kicks
    assert runs.traceless(served) == (0, 0, 0)
    assert runs.traceless(begin)[0] == begin + 5 * US


def spare_kicks(world: Kicks, start: int, stop: int) -> list[int]:
    """Kicks without a command, run by run, among all of G's records in an interval."""
    analysis = feed(world, world.finish())
    runs = analysis.verdicts._judge._failures._kicks.runs(G, VMM, start, stop)
    return [int(spare) for spare in runs.spare]


def played() -> tuple[Kicks, int]:
    """A world after some cycles, and a millisecond later."""
    world = Kicks()
    for _ in range(20):
        world.cycle()
    return world, world.free[G] + MS


@pytest.mark.parametrize("before", [500 * US, 1100 * US])
def test_the_sleep_that_lies_over_the_beginning_is_where_a_run_begins(before: int) -> None:
    world, begin = played()
    world.kick(begin, V)
    world.kick(begin + 90 * US, V)
    assert spare_kicks(world, begin - before, begin + 100 * US)[-1] == 1


@pytest.mark.parametrize(("slept", "spare"), [((V, V2), [0, 1]), ((V,), [0, 0])])
def test_kicks_are_not_owed_by_a_guest_that_has_slept(slept: tuple[int, ...], spare: list[int]) -> None:
    """G ends two commands for one kick, the second's to come as it seems; then none for one."""
    world, begin = played()
    world.kick(begin, V)
    for at in (20 * US, 25 * US):
        world.add(r.wake(G, CONDVAR, begin + at, dur=2 * US, count=1))
    again = begin + 200 * US
    for tid in (V, V2):
        world.free[tid] = begin + (50 * US if tid in slept else 500 * US)
        if tid in slept:
            world.sleep(tid, again - 20 * US, again - 10 * US, W, VMM)
            world.free[tid] = again + MS
    world.free[G] = begin + 40 * US
    world.kick(again, V)
    world.kick(again + 90 * US, V)
    assert spare_kicks(world, begin - 500 * US, again + 100 * US) == spare


@pytest.mark.parametrize(("fd", "spare"), [(14, 1), (30, 0)])
@pytest.mark.parametrize("call", ["write", "epoll_ctl"])
def test_a_close_of_what_was_just_used_ends_no_command_of_its_own(call: str, fd: int, spare: int) -> None:
    """Two kicks. A close of another fd is a hang-up, in whichever way completions are written."""
    world, begin = played()
    world.kick(begin, V)
    world.add(r.read(G, begin + 14 * US, begin + 15 * US, fd=13, eventfd=KICK_ID))
    at, end = begin + 20 * US, begin + 22 * US
    if call == "write":
        world.add(r.write(G, at, end, fd=14, eventfd=DONE_ID))
    else:
        world.add(r.epoll_ctl(G, at, end, fd=14, ctl_op=2))
    world.add(r.close(G, begin + 24 * US, begin + 25 * US, fd=fd))
    world.free[G] = begin + 40 * US
    world.kick(begin + 90 * US, V)
    assert spare_kicks(world, begin - 500 * US, begin + 100 * US) == [spare]
