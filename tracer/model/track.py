# SPDX-License-Identifier: Apache-2.0
"""One thread's spans as tuples, in order, from where a verdict first asked for them.

Owns the conversion of records that verdicts look at, once each, and the dropping of OPEN records whose
span was recorded again. A thread does one thing after another, so spans sorted by end are sorted by begin.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np

from tracer.model.spans import Call, Off, calls_of, offs_of
from tracer.schema import Flag, Kind, Records

#: Steal below this is noise of the clock's granularity and is not looked at.
MIN_STOLEN_NS: Final = 20_000
_OPEN: Final = int(Flag.OPEN)
_Span = TypeVar("_Span", Call, Off)


@dataclass(slots=True)
class Track:
    """A thread's spans that end in [since_ns, until_ns], syscalls and off-CPU spans apart.

    Attributes:
        stolen: when spans began that tell of steal before them.
    """

    since_ns: int
    until_ns: int = 0
    calls: list[Call] = field(default_factory=list)
    call_ends: list[int] = field(default_factory=list)
    offs: list[Off] = field(default_factory=list)
    off_ends: list[int] = field(default_factory=list)
    stolen: list[int] = field(default_factory=list)
    _opened: bool = False

    def add(self, records: Records) -> None:
        """Append spans (n,), by end, that end after all before."""
        off = records["kind"] == Kind.OFFCPU
        calls = calls_of(records.take(np.flatnonzero(~off)))
        offs = offs_of(records.take(np.flatnonzero(off)))
        self.calls += calls
        self.offs += offs
        self.stolen += [o.out for o in offs if o.stolen >= MIN_STOLEN_NS]
        if self._opened or bool(((records["flags"] & _OPEN) != 0).any()):
            self._drop_superseded()
            self.call_ends = [c.end for c in self.calls]
            self.off_ends = [o.back for o in self.offs]
        else:
            self.call_ends += [c.end for c in calls]
            self.off_ends += [o.back for o in offs]

    def _drop_superseded(self) -> None:
        last_call = {c.enter: i for i, c in enumerate(self.calls)}
        self.calls = [c for i, c in enumerate(self.calls) if not c.flags & _OPEN or last_call[c.enter] == i]
        last_off = {o.out: i for i, o in enumerate(self.offs)}
        self.offs = [o for i, o in enumerate(self.offs) if not o.open or last_off[o.out] == i]
        self._opened = any(c.flags & _OPEN for c in self.calls) or any(o.open for o in self.offs)

    def bounds(self, start_ns: int, stop_ns: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the syscalls that overlap [start_ns, stop_ns] begin and end, and the off-CPU spans."""
        return (
            _overlapping(self.calls, self.call_ends, start_ns, stop_ns),
            _overlapping(self.offs, self.off_ends, start_ns, stop_ns),
        )

    def forget(self, before_ns: int) -> bool:
        """Drop spans that ended up to a time; whether none is left."""
        n = bisect_right(self.call_ends, before_ns)
        del self.calls[:n], self.call_ends[:n]
        n = bisect_right(self.off_ends, before_ns)
        del self.offs[:n], self.off_ends[:n]
        if self.stolen:
            self.stolen = [o.out for o in self.offs if o.stolen >= MIN_STOLEN_NS]
        self.since_ns = max(self.since_ns, before_ns)
        return not self.calls and not self.offs


def _overlapping(spans: list[_Span], ends: list[int], start_ns: int, stop_ns: int) -> tuple[int, int]:
    low = bisect_left(ends, start_ns)
    high = bisect_right(ends, stop_ns)
    while high < len(spans) and spans[high][0] <= stop_ns:
        high += 1
    return low, high
