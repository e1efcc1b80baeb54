# SPDX-License-Identifier: Apache-2.0
"""Data loops that read no timer: cycles that start at the driver's first follower write.

A loop that sleeps until its next period (clock_nanosleep, the timeout of a poll) or is woken by a
sound card reads no timerfd. Its cycles begin where it writes a follower that it has already
written in the cycle under way, and, where it signals nobody because answers to its last signals
are still missing, where a sleep of its own ran out a period after its last cycle. Owns telling
such a loop from a thread that writes now and then: by the regularity of its signals. Knows no
stream.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tracer.model.drivers import Driver
from tracer.model.eventfds import Eventfd
from tracer.model.step import Step
from tracer.schema import EPOLL_WAIT, Kind, end_ns, view

#: Signals of one eventfd from which on they are asked for a period, and how many of the last are.
MIN_SIGNALS: Final = 16
LAST_SIGNALS: Final = 64
#: A period is no shorter (16/48000) and no longer (8192/44100) than audio's are, with some room.
MIN_PERIOD_NS: Final = 300_000
MAX_PERIOD_NS: Final = 250_000_000
#: Signals are a driver's if so many of their distances are within a quarter of the median.
MIN_REGULAR: Final = 0.7
NEAR: Final = 0.25
#: Signals a timer's start; a loop whose timer expires for less than half of them is not driven by it.
TIMER_SHARE: Final = 0.5
#: clock_nanosleep and nanosleep on x86-64 and arm64.
SLEEPS: Final = (230, 35, 115, 101)
#: Sleeps of a loop that are remembered at most.
MOST_SLEEPS: Final = 4096
#: The fd of a driver without a timer.
NO_TIMER: Final = -1

NewDriver = Callable[[int, int], Driver]


def period_of(times: list[int]) -> int:
    """The period of signals in ns, 0 where they have none (or are too few to tell)."""
    if len(times) < MIN_SIGNALS:
        return 0
    apart = np.diff(np.array(times[-LAST_SIGNALS:], dtype=np.int64))
    period = int(np.median(apart))
    if not MIN_PERIOD_NS <= period <= MAX_PERIOD_NS:
        return 0
    regular = np.abs(apart - period) <= NEAR * period
    return period if regular.mean() >= MIN_REGULAR else 0


@dataclass(slots=True)
class _Loop:
    """One loop without a timer: its driver, and what of its signals was taken."""

    driver: Driver
    slept: list[int]  # when its last sleeps ran out
    taken: dict[int, int] = field(default_factory=dict)  # signals of an eventfd taken over so far
    written: set[int] = field(default_factory=set)  # eventfds signalled in the cycle under way

    def start(self, at_ns: int) -> None:
        """A cycle starts, and those without a signal before it."""
        for skipped in self._without_signal(at_ns):
            self.driver.start(skipped, 1)
        self.driver.start(at_ns, 1)
        self.written.clear()

    def _without_signal(self, before_ns: int) -> Iterator[int]:
        """Where its sleeps ran out a period after its last cycle, and another, until it signalled again.

        After the last one before that it signalled, however late.
        """
        period, starts = self.driver.period_ns, self.driver.starts
        last = bisect_left(self.slept, before_ns) - 1
        while period and starts and before_ns - starts[-1] > period * 3 // 2:
            due, near = starts[-1] + period, int(NEAR * period)
            low = bisect_left(self.slept, due - near)
            high = min(bisect_right(self.slept, due + near), last)
            if low >= last:
                return
            if low < high:
                yield min(self.slept[low:high], key=lambda at: abs(at - due))
                continue
            while low < last and self.slept[low + 1] - self.slept[low] < near:
                low += 1  # it overslept, and goes through what it should have waited for
            if low == last:
                return
            yield self.slept[low]


class Untimed:
    """Finds loops without a timer and starts their cycles.

    Args:
        loops: each thread's drivers, as drivers.py knows them.
        new_driver: makes a driver of (tid, fd) known.
    """

    def __init__(self, loops: dict[int, list[Driver]], new_driver: NewDriver) -> None:
        self._loops = loops
        self._new_driver = new_driver
        self._found: dict[int, _Loop] = {}
        self._slept: dict[int, list[int]] = {}  # by thread of a loop
        self._judged: dict[int, int] = {}  # signals of an eventfd when it was last asked

    def sleeps(self, step: Step) -> None:
        """Take over where, in this step, sleeps of threads that signal eventfds ran out."""
        for tid, slept in self._slept.items():
            calls = step.threads.calls(tid)
            poll = (calls["kind"] == int(Kind.EPOLL_WAIT)) & (view(calls, EPOLL_WAIT)["ret"] == 0)
            sleep = (calls["kind"] == int(Kind.SYSCALL)) & np.isin(calls["op"], SLEEPS)
            slept += end_ns(calls.take(np.flatnonzero(poll | sleep))).tolist()
            del slept[:-MOST_SLEEPS]

    def step(self, eventfds: Iterable[Eventfd]) -> None:
        """Take over the signals of these eventfds, each read by a VMM."""
        by_loop: dict[int, list[Eventfd]] = {}
        for eventfd in eventfds:
            if eventfd.signals.end and eventfd.read.end:
                by_loop.setdefault(eventfd.signals.tid[-1], []).append(eventfd)
        for tid, signalled in sorted(by_loop.items()):
            loop = self._found.get(tid)
            if loop is None and any(self._drives(tid, e) for e in signalled):
                slept = self._slept.setdefault(tid, [])
                loop = self._found[tid] = _Loop(self._new_driver(tid, NO_TIMER), slept)
            if loop is not None:
                self._start(loop, signalled)

    def _drives(self, tid: int, eventfd: Eventfd) -> bool:
        """Whether a thread signals an eventfd at a period, and not by a timer that it reads."""
        total, times = eventfd.signals.total, eventfd.signals.enter[-LAST_SIGNALS:]
        if total < self._judged.get(eventfd.id, 0) + MIN_SIGNALS:
            return False
        self._judged[eventfd.id] = total
        starts = sum(
            bisect_right(driver.starts, times[-1]) - bisect_left(driver.starts, times[0])
            for driver in self._loops.get(tid, ())
        )
        return starts < TIMER_SHARE * len(times) and period_of(times) > 0

    @staticmethod
    def _start(loop: _Loop, signalled: list[Eventfd]) -> None:
        driver, new = loop.driver, []
        for eventfd in signalled:
            signals = eventfd.signals
            n = min(signals.total - loop.taken.get(eventfd.id, 0), len(signals.enter))
            loop.taken[eventfd.id] = signals.total
            of_loop = zip(signals.enter[-n:], signals.tid[-n:], strict=True) if n else ()
            new += [(enter, eventfd.id) for enter, tid in of_loop if tid == driver.tid]
        for enter, number in sorted(new):
            late = driver.period_ns and driver.starts and enter - driver.starts[-1] > driver.period_ns // 2
            if number in loop.written or late or not driver.starts:
                loop.start(enter)
            loop.written.add(number)

    def forget(self, eventfd_id: int) -> None:
        """An eventfd ended."""
        self._judged.pop(eventfd_id, None)
        for loop in self._found.values():
            loop.taken.pop(eventfd_id, None)
            loop.written.discard(eventfd_id)

    def drop(self, driver: Driver) -> None:
        """A driver is no longer kept."""
        loop = self._found.get(driver.tid)
        if loop is not None and loop.driver is driver:
            del self._found[driver.tid], self._slept[driver.tid]
