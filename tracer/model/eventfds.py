# SPDX-License-Identifier: Apache-2.0
"""Eventfds and what was done with them: events in order, per lifetime of an eventfd-id.

Owns the keeping and forgetting of events. Knows no stream and no driver.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.schema import Flag, Records

#: Events that decide who usually writes or reads an eventfd.
RECENT: Final = 64


@dataclass(slots=True)
class Series:
    """Events of one sort on one eventfd or timerfd, in order of their end.

    ``unread``: of a write, whether the one before had not been read yet.
    """

    enter: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    tid: list[int] = field(default_factory=list)
    value: list[int] = field(default_factory=list)
    unread: list[bool] = field(default_factory=list)
    total: int = 0

    def extend(self, rows: Records) -> None:
        """Append rows of dtype RW, sorted by end."""
        enter = rows["enter_ns"].tolist()
        end = [a + b for a, b in zip(enter, rows["dur_ns"].tolist(), strict=True)]
        unread = (rows["flags"] & Flag.PENDING) != 0
        self.append(enter, end, rows["tid"].tolist(), rows["value"].tolist(), unread.tolist())

    def append(
        self, enter: list[int], end: list[int], tid: list[int], value: list[int], unread: list[bool]
    ) -> None:
        """Append events given by column, sorted by end."""
        self.enter += enter
        self.end += end
        self.tid += tid
        self.value += value
        self.unread += unread
        self.total += len(enter)

    def trim(self, before_ns: int) -> None:
        """Forget what ended before a time."""
        if self.end and self.end[0] < before_ns:
            n = bisect_left(self.end, before_ns)
            del self.enter[:n], self.end[:n], self.tid[:n], self.value[:n], self.unread[:n]

    def after(self, time_ns: int) -> int:
        """Index of the first event that ended after a time."""
        return bisect_right(self.end, time_ns)

    def main_tid(self) -> int:
        """The thread that did most of the last ``RECENT`` events, 0 without any."""
        last = self.tid[-RECENT:]
        return max(set(last), key=lambda t: (last.count(t), -t)) if last else 0


@dataclass(slots=True)
class Eventfd:
    """One lifetime of an eventfd-id that the audio server and a VMM may share."""

    id: int
    born_ns: int
    signals: Series = field(default_factory=Series)  # written by the audio server
    taken: Series = field(default_factory=Series)  # read by the audio server
    written: dict[int, Series] = field(default_factory=dict)  # written by VMMs, per tgid
    read: Series = field(default_factory=Series)  # read by a VMM

    def add_written(self, rows: Records, tgids: NDArray[np.uint32]) -> None:
        """Append a VMM's (or several VMMs') writes: rows of dtype RW, sorted by end, and their processes."""
        for tgid in np.unique(tgids).tolist():
            series = self.written.setdefault(tgid, Series())
            series.extend(rows.take(np.flatnonzero(tgids == tgid)))

    def trim(self, before_ns: int) -> bool:
        """Forget what ended before a time; whether nothing is left."""
        empty = True
        for series in (self.signals, self.taken, self.read, *self.written.values()):
            series.trim(before_ns)
            empty = empty and not series.end
        return empty


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion eventfd as one VMM writes it: several VMMs may share a target, and with it the eventfd.

    Attributes:
        taken: reads by the audio server, whoever wrote; written: writes by this VMM.
    """

    id: int
    tgid: int
    taken: Series
    written: Series

    @classmethod
    def of(cls, eventfd: Eventfd, tgid: int) -> Completion:
        """The pair of an eventfd and a VMM that writes it."""
        return cls(eventfd.id, tgid, eventfd.taken, eventfd.written[tgid])
