# SPDX-License-Identifier: Apache-2.0
"""Drivers: when cycles start, and when they should have.

Owns the starts of one timer's cycles and the driver's own faults, and which timers a data loop has.
Knows no stream.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from tracer.model.registry import Registry
from tracer.schema import Flag, Kind, Records

#: Distances of starts whose median is the period where the timer does not tell it.
MEDIAN_OF: Final = 64


@dataclass(slots=True)
class Driver:
    """One timer of one data loop: the starts of its cycles and their nominal times."""

    id: str
    tgid: int
    tid: int
    fd: int
    starts: list[int] = field(default_factory=list)
    nominal: list[int] = field(default_factory=list)
    dropped: int = 0  # starts trimmed off the front: cycle number of starts[0]
    interval_ns: int = 0
    expiry_ns: int = 0
    phase_known: bool = False  # the expiry was set while we watched, not guessed from starts
    period_ns: int = 0
    total: int = 0
    events: dict[str, int] = field(default_factory=lambda: {"late_start": 0, "skipped": 0, "catch_up": 0})

    def settime(self, at_ns: int, value_ns: int, interval_ns: int, absolute: bool) -> None:
        """The timer was set: the expiry in force from now on."""
        self.interval_ns = interval_ns
        self.expiry_ns = (value_ns if absolute else at_ns + value_ns) if value_ns else 0
        self.phase_known = bool(value_ns)

    def start(self, at_ns: int, expirations: int) -> None:
        """A cycle starts; its nominal start is the first expiry not served yet, never later than now."""
        period = self.interval_ns or self.period_ns
        nominal = at_ns
        if self.interval_ns:
            latest = self.expiry_ns = self._expiry_before(at_ns)
            nominal = latest - max(0, expirations - 1) * self.interval_ns
        elif self.expiry_ns and self.expiry_ns <= at_ns:
            nominal = self.expiry_ns
            self.expiry_ns = 0
        if self.starts:
            delta = at_ns - self.starts[-1]
            if period and delta < period // 2:
                self.events["catch_up"] += 1
            elif period and delta > period * 3 // 2:
                self.events["late_start"] += 1
            nominal = max(nominal, self.starts[-1])
        if expirations > 1:
            self.events["skipped"] += expirations - 1
        self.starts.append(at_ns)
        self.nominal.append(nominal)
        self.total += 1

    def _expiry_before(self, at_ns: int) -> int:
        """The latest expiry of a periodic timer at or before a start.

        Where the phase was not seen being set it is the lower envelope of the starts: one that comes a
        little before the grid moves the grid; one that comes much before it is only very late.
        """
        if not self.expiry_ns or (self.phase_known and self.expiry_ns > at_ns):
            return at_ns
        since, period = at_ns - self.expiry_ns, self.interval_ns
        if not self.phase_known and -since % period < period // 4:
            return at_ns
        return self.expiry_ns + since // period * period

    def update_period(self) -> None:
        """Period from the timer's interval, else the median of the last 64 distances of starts."""
        if self.interval_ns:
            self.period_ns = self.interval_ns
        elif len(self.starts) >= 3:
            last = self.starts[-MEDIAN_OF - 1 :]
            apart = sorted(b - a for a, b in pairwise(last))
            self.period_ns = (apart[(len(apart) - 1) // 2] + apart[len(apart) // 2]) // 2

    def cycle_at(self, time_ns: int) -> tuple[int, int, int] | None:
        """(number, nominal start, start) of the cycle under way at a time, None before the first."""
        at = bisect_right(self.starts, time_ns) - 1
        return (self.dropped + at, self.nominal[at], self.starts[at]) if at >= 0 else None

    def deadline(self, number: int, now_ns: int, final: bool = False) -> int | None:
        """Start of the cycle after ``number``, None if not seen up to now (final: nothing follows)."""
        at = number - self.dropped + 1
        return self.starts[at] if 1 <= at < len(self.starts) else None

    def windows(self, last: int) -> list[tuple[int, int]]:
        """The last cycles, as (start, next start)."""
        starts = self.starts[-last - 1 :]
        return list(pairwise(starts))

    def trim(self, before_ns: int) -> None:
        """Forget cycles that started before a time."""
        n = bisect_left(self.starts, before_ns)
        if n:
            del self.starts[:n], self.nominal[:n]
            self.dropped += n


class Loops:
    """The drivers of all data loops.

    Attributes:
        drivers: by (thread, timerfd), -1 where it has none (untimed.py).
        of_thread: each thread's drivers.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.drivers: dict[tuple[int, int], Driver] = {}
        self.of_thread: dict[int, list[Driver]] = {}

    def step(self, settimes: Records, rw: Records, own: Collection[int]) -> None:
        """Take a step's settings of timers and its reads.

        Args:
            settimes: dtype TIMER, (n,); rw: dtype RW, (m,), the reads among them.
            own: tids of data loops inside VMMs; others are an audio server's.
        """
        is_read = (rw["kind"] == Kind.READ) & ((rw["flags"] & Flag.TIMERFD) != 0) & (rw["ret"] == 8)
        reads = rw.take(np.flatnonzero(is_read))
        sets = settimes.take(np.flatnonzero(settimes["ret"] == 0))
        at, set_at = reads["enter_ns"] + reads["dur_ns"], sets["enter_ns"] + sets["dur_ns"]
        events = [
            (ns, 1, tid, fd, value, 0, 0)
            for ns, tid, fd, value in zip(
                at.tolist(), reads["tid"].tolist(), reads["fd"].tolist(), reads["value"].tolist(), strict=True
            )
        ]
        events += zip(
            set_at.tolist(),
            [0] * len(sets),
            *(sets[name].tolist() for name in ("tid", "fd", "value_ns", "interval_ns", "timer_flags")),
            strict=True,
        )
        for ns, read, tid, fd, value, interval, flags in sorted(events):
            target = self._registry.targets.get(self._registry.tgid(tid))
            if target is None or (target.role != "audio" and tid not in own):
                continue
            driver = self.drivers.get((tid, fd)) or self.new(tid, fd)
            if read:
                driver.start(ns, value)
            else:
                driver.settime(ns, value, interval, bool(flags & 1))

    def new(self, tid: int, fd: int) -> Driver:
        """Make a driver known."""
        tgid, name = self._registry.tgid(tid), f"{self._registry.comm(tid)}/{tid}"
        driver = self.drivers[tid, fd] = Driver(name if fd < 0 else f"{name}:{fd}", tgid, tid, fd)
        self.of_thread.setdefault(tid, []).append(driver)
        known = self._registry.fds.get((tgid, fd))
        if known is not None and known.type == "timerfd":
            driver.interval_ns = known.interval_ns
        return driver

    def update_periods(self) -> None:
        """Of all drivers, at the end of a step."""
        for driver in self.drivers.values():
            driver.update_period()

    def driver_of(self, tid: int, at_ns: int) -> Driver | None:
        """The driver of a thread whose start most recently precedes a time."""
        found = [(c[2], d.fd, d) for d in self.of_thread.get(tid, ()) if (c := d.cycle_at(at_ns)) is not None]
        return max(found, key=lambda f: f[:2])[2] if found else None

    def forget(self, before_ns: int, used: set[int]) -> list[Driver]:
        """Forget starts before a time, and drivers without any but those ``used`` (by ``id()``); which."""
        gone = []
        for key, driver in list(self.drivers.items()):
            driver.trim(before_ns)
            if not driver.starts and id(driver) not in used:
                gone.append(self.drivers.pop(key))
                self.of_thread[driver.tid].remove(driver)
        return gone
