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

from tracer.model.spans import Call, Columns, Off, call_columns, calls_of, off_columns, offs_of
from tracer.schema import Flag, Kind, Records

#: Steal below this is noise of the clock's granularity and is not looked at.
MIN_STOLEN_NS: Final = 20_000
_OPEN: Final = int(Flag.OPEN)
_Span = TypeVar("_Span", Call, Off)


class _Rows:
    """Columns that grow at the end and shrink at the begin."""

    __slots__ = ("_all", "_begin", "_end")

    def __init__(self, columns: int) -> None:
        self._all: Columns = np.empty((columns, 0), dtype=np.int64)
        self._begin = self._end = 0

    @property
    def columns(self) -> Columns:
        return self._all[:, self._begin : self._end]

    def append(self, more: Columns) -> None:
        end = self._end + more.shape[1]
        if end > self._all.shape[1]:
            kept = self.columns
            self._all = np.empty((len(kept), 2 * (end - self._begin)), dtype=np.int64)
            self._all[:, : kept.shape[1]] = kept
            self._begin, self._end, end = 0, kept.shape[1], end - self._begin
        self._all[:, self._end : end] = more
        self._end = end

    def keep(self, at: list[int]) -> None:
        self._all = self.columns[:, at]
        self._begin, self._end = 0, len(at)

    def drop(self, first: int) -> None:
        self._begin += first


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
    _call_rows: _Rows = field(default_factory=lambda: _Rows(len(Call._fields)))
    _off_rows: _Rows = field(default_factory=lambda: _Rows(len(Off._fields)))

    @property
    def call_columns(self) -> Columns:
        """The syscalls as columns (``spans.call_columns``), as in ``calls``."""
        return self._call_rows.columns

    @property
    def off_columns(self) -> Columns:
        """The off-CPU spans as columns (``spans.off_columns``), as in ``offs``."""
        return self._off_rows.columns

    def add(self, records: Records) -> None:
        """Append spans (n,), by end, that end after all before."""
        off = records["kind"] == Kind.OFFCPU
        more_calls = call_columns(records.take(np.flatnonzero(~off)))
        more_offs = off_columns(records.take(np.flatnonzero(off)))
        self._call_rows.append(more_calls)
        self._off_rows.append(more_offs)
        calls, offs = calls_of(more_calls), offs_of(more_offs)
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
        kept = [i for i, c in enumerate(self.calls) if not c.flags & _OPEN or last_call[c.enter] == i]
        self.calls = [self.calls[i] for i in kept]
        self._call_rows.keep(kept)
        last_off = {o.out: i for i, o in enumerate(self.offs)}
        kept = [i for i, o in enumerate(self.offs) if not o.open or last_off[o.out] == i]
        self.offs = [self.offs[i] for i in kept]
        self._off_rows.keep(kept)
        self._opened = any(c.flags & _OPEN for c in self.calls) or any(o.open for o in self.offs)

    def bounds(self, start_ns: int, stop_ns: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the syscalls that overlap [start_ns, stop_ns] begin and end, and the off-CPU spans."""
        return (
            _overlapping(self.calls, self.call_ends, start_ns, stop_ns),
            _overlapping(self.offs, self.off_ends, start_ns, stop_ns),
        )

    def wake_in(self, wait: Call, low: int, high: int) -> tuple[Off | None, int]:
        """The last waking inside a wait, of the off-CPU spans [low, high), and its place; None, -1: none."""
        offs, enter = self.offs, wait[0]
        for i in range(bisect_right(self.off_ends, wait[1] + 1, low, high) - 1, low - 1, -1):
            off = offs[i]
            if off[0] < enter:
                break
            if off[2]:
                return off, i
        return None, -1

    def forget(self, before_ns: int) -> bool:
        """Drop spans that ended up to a time; whether none is left."""
        n = bisect_right(self.call_ends, before_ns)
        del self.calls[:n], self.call_ends[:n]
        self._call_rows.drop(n)
        n = bisect_right(self.off_ends, before_ns)
        del self.offs[:n], self.off_ends[:n]
        self._off_rows.drop(n)
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
