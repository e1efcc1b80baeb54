# SPDX-License-Identifier: Apache-2.0
"""Locks whose waiters park on words of their own, and waits that only look like it.

The scripted world with LOCK's waits and wakes on a word of the waiter's, as parking_lot makes them; there a
condvar parks its waiter on that same word.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import records as r
from records import PTHREAD_WAIT
from test_verdict_corners import BusyWaiting, LockInTurn
from test_verdicts import analyse, origins
from world import CONDVAR, LATE, LOCK, MS, US, VMM, Delays, F, W, World, play_on

from tracer.model.step import Step
from tracer.model.summary import Miss
from tracer.model.timeline import Timeline
from tracer.model.window import Window
from tracer.model.worker import Worker
from tracer.model.workerreading import WorkerReading
from tracer.schema import FUTEX, Kind, Records, view

PARKER = 0xA000
STD_PARK = (r.WAIT, 0xFFFF_FFFF)
PARKING_LOT = (PTHREAD_WAIT, 1)


def parked(records: Records, how: tuple[int, int] = PARKING_LOT, words: Sequence[int] = (LOCK,)) -> Records:
    """The same calls as waits (operation, expected value) and wakes on the waiter's own word."""
    records = records.copy()
    futex = view(records, FUTEX)
    there = (records["kind"] == int(Kind.FUTEX)) & [word in words for word in futex["word"].tolist()]
    waits = there & (records["op"] == r.WAIT)
    futex["op"][waits], futex["expected"][waits] = how
    futex["word"][there] = PARKER
    return records


def told(world: World, *plan: Delays, how: tuple[int, int] = PARKING_LOT, both: bool = False) -> Miss:
    """The one origin of a plan; ``both``: the condvar's waits are on that word as well."""
    records = parked(play_on(world, *plan), how, (LOCK, CONDVAR) if both else (LOCK,))
    (miss,) = origins(analyse(world, records))
    return miss


@pytest.mark.parametrize("both", [False, True])
def test_who_ends_a_wait_within_a_turn_held_the_lock(both: bool) -> None:
    miss = told(World(), Delays(lock=LATE), both=both)
    assert (miss.cause, miss.lock) == ("lock", f"parked@{PARKER:#x}"), (miss.detail, miss.segments)
    (held,) = [s for s in miss.segments if s.kind == "lock" and s.ns > MS]
    assert held.detail.startswith("held by virgl fence")


def test_the_lock_is_listed_with_what_was_late_for_it() -> None:
    world = World()
    summary = analyse(world, parked(play_on(world, Delays(lock=LATE))))
    (row,) = [lock for lock in summary.locks if lock.address == PARKER]
    assert (row.name, row.kind, row.misses_caused, row.contended) == (
        f"parked@{PARKER:#x}",
        "parked",
        len(summary.misses),
        0,
    )


@pytest.mark.parametrize("both", [False, True])
def test_in_the_turn_of_another_event_it_is_a_lock_and_no_rearm(both: bool) -> None:
    miss = told(LockInTurn(), Delays(channel_turns=1, turn=LATE), both=both)
    assert f"lock:parked@{PARKER:#x}" in miss.sufficient, (miss.detail, miss.sufficient, miss.segments)


def test_g_that_waits_in_another_command_waits_for_the_lock() -> None:
    miss = told(BusyWaiting(), Delays(gpu_syscall=LATE))
    assert miss.cause == "lock", (miss.detail, miss.sufficient)


def test_waits_for_a_rearm_on_the_same_word_are_none_for_a_lock() -> None:
    miss = told(World(), Delays(gpu_cpu=LATE), both=True)
    assert miss.cause == "head_of_line", (miss.detail, miss.sufficient)
    miss = told(World(), Delays(channel_turns=4, turn=10 * MS), both=True)
    assert miss.cause == "serialised", (miss.detail, miss.sufficient)
    assert not any(s.startswith("lock") for s in miss.sufficient)


def test_a_thread_that_parks_by_itself_waits_for_no_lock() -> None:
    """Channels are built on it: it is known only that the thread did not go on."""
    miss = told(World(), Delays(lock=LATE), how=STD_PARK)
    assert miss.cause == "blocked", (miss.detail, miss.segments)


class Asking(World):
    """W wakes the fence thread before it waits for it: a request and its answer."""

    def _lock(self, t: int, hold: int, *, preempted: bool, pipe: bool) -> int:
        self.add(r.wake(W, 0xB000, t + 1 * US))
        self.sleep(F, t + 1 * US, t + 1 * US, W, VMM)
        return super()._lock(t, hold, preempted=preempted, pipe=pipe)


def test_who_was_asked_and_answers_holds_no_lock() -> None:
    miss = told(Asking(), Delays(lock=LATE))
    assert miss.cause == "blocked", (miss.detail, miss.segments)


def turn(at: int, *waits: int) -> list[Records]:
    """Choice, read and interrupt end 10, 30 and 50 us after ``at``; waits begin so much after it."""
    return [
        r.epoll_wait(W, at, at + 10 * US),
        r.read(W, at + 25 * US, at + 30 * US, fd=3, eventfd=7),
        r.write(W, at + 45 * US, at + 50 * US, fd=4, eventfd=8),
        *(r.wait(W, CONDVAR, at + w * US, at + (w + 3) * US, expected=3) for w in waits),
    ]


def worker(*turns: list[Records]) -> Worker:
    """W as it is read in a window of these turns."""
    timeline = Timeline()
    timeline.step(Step(r.trace([row for rows in turns for row in rows]), MS))
    window = Window(timeline, 0, MS)
    track = window.track(W)
    return Worker(window, W, WorkerReading(track, lambda word: False))


def test_a_wait_is_within_a_turn_where_the_turn_goes_on_after_it() -> None:
    found = worker(turn(0, 12, 35, 60), turn(100 * US, 60), turn(200 * US, 60))
    assert found.within == {12 * US, 35 * US}
    assert [wait.enter for wait in found.parked] == [60 * US, 160 * US, 260 * US]


def test_a_turn_without_an_interrupt_ends_with_its_wait() -> None:
    """The fence fires before G has registered it in one turn of ten."""
    epoll, read, _, wait = turn(0, 60)
    found = worker([epoll, read, wait], turn(100 * US, 60))
    assert found.within == set()
    assert [wait.enter for wait in found.parked] == [60 * US, 160 * US]


def test_a_worker_that_waits_before_it_serves_in_most_turns_is_rearmed_there() -> None:
    found = worker(turn(0, 12), turn(100 * US, 12), turn(200 * US, 12, 60))
    assert found.within == set()
    assert [wait.enter for wait in found.parked] == [12 * US, 112 * US, 212 * US, 260 * US]
