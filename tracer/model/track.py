# SPDX-License-Identifier: Apache-2.0
"""One thread's spans in order, from where a verdict first asked for them.

Owns the conversion of records that verdicts look at: into columns once each, into tuples only where somebody
looks at them one by one; and the dropping of OPEN records whose span was recorded again. A thread does one
thing after another, so spans sorted by end are sorted by begin.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracer.model.spans import (
    BACK,
    END,
    ENTER,
    FLAGS,
    IS_OPEN,
    OUT,
    STOLEN,
    Call,
    Columns,
    Off,
    call_columns,
    calls_of,
    off_columns,
    offs_of,
)
from tracer.schema import Flag, Kind, Records

if TYPE_CHECKING:
    from tracer.model.gpureading import GpuReading
    from tracer.model.workerreading import WorkerReading

#: Steal below this is noise of the clock's granularity and is not looked at.
MIN_STOLEN_NS: Final = 20_000
_OPEN: Final = int(Flag.OPEN)
#: Tuples are made for so many spans (a power of two) at once: less is dearer each, more is in vain.
_BLOCK: Final = 5
_IN_BLOCK: Final = (1 << _BLOCK) - 1
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

    def drop(self, first: int) -> None:
        self._begin += first


class Spans(Generic[_Span]):
    """A thread's spans of one family, by end.

    Args:
        fields: of such a span; ``begin`` and ``end`` are the places of its two times.
        made: makes tuples of columns.

    Attributes:
        begins, ends: of each.
        gone: how many there were before the first.
    """

    __slots__ = ("_begin", "_end", "_made", "_missing", "_rows", "_skew", "_spans", "begins", "ends", "gone")

    def __init__(self, fields: int, begin: int, end: int, made: Callable[[Columns], list[_Span]]) -> None:
        self._begin, self._end = begin, end
        self._made: Callable[[Columns], list[_Span]] = made
        self._rows = _Rows(fields)
        self.begins: list[int] = []
        self.ends: list[int] = []
        self._spans: list[Any] = []  # None where no tuple was made
        self._missing = bytearray()  # by block: 1 if not all of its tuples were
        self._skew = 0  # how many of the first block are gone
        self.gone = 0

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def columns(self) -> Columns:
        """All spans as columns."""
        return self._rows.columns

    def __getitem__(self, at: int) -> _Span:
        return self.between(at, at + 1)[at]

    def between(self, low: int, high: int) -> list[_Span]:
        """The spans by place, those of [low, high) at any rate; not to be changed."""
        skew = self._skew
        first = self._missing.find(1, (low + skew) >> _BLOCK, (high + skew + _IN_BLOCK) >> _BLOCK)
        if first >= 0:
            self._make(first, (high + skew + _IN_BLOCK) >> _BLOCK)
        return self._spans

    def _make(self, first: int, stop: int) -> None:
        stop = self._missing.rfind(1, first, stop) + 1
        low, high = max(0, (first << _BLOCK) - self._skew), (stop << _BLOCK) - self._skew
        self._spans[low:high] = self._made(self.columns[:, low:high])
        self._missing[first:stop] = bytes(stop - first)

    def overlapping(self, start_ns: int, stop_ns: int) -> tuple[int, int]:
        """Where those that overlap [start_ns, stop_ns] begin and end."""
        begins, low, high = self.begins, bisect_left(self.ends, start_ns), bisect_right(self.ends, stop_ns)
        while high < len(begins) and begins[high] <= stop_ns:
            high += 1
        return low, high

    def append(self, more: Columns) -> None:
        """Add spans that end after all before."""
        if not more.shape[1]:
            return
        self._rows.append(more)
        block = (len(self.ends) + self._skew) >> _BLOCK
        self.begins += more[self._begin].tolist()
        self.ends += more[self._end].tolist()
        self._spans += [None] * more.shape[1]
        blocks = (len(self.ends) + self._skew + _IN_BLOCK) >> _BLOCK
        self._missing[block:] = b"\1" * (blocks - block)

    def drop_superseded(self, opened: NDArray[np.bool_]) -> bool:
        """Drop spans that were recorded again, of those that were open (n,); whether any still is."""
        last = {begin: i for i, begin in enumerate(self.begins)}
        keep = np.array([last[begin] for begin in self.begins], dtype=np.intp) == np.arange(len(self))
        at = np.flatnonzero(keep | ~opened)
        if len(at) < len(self):
            kept, self.begins, self.ends, self._spans = self.columns[:, at], [], [], []
            self._rows = _Rows(len(kept))
            self._missing, self._skew = bytearray(), 0
            self.append(kept)
        return bool(opened[at].any())

    def forget(self, before_ns: int) -> None:
        """Drop spans that ended up to a time."""
        n = bisect_right(self.ends, before_ns)
        self.gone += n
        del self.begins[:n], self.ends[:n], self._spans[:n]
        self._rows.drop(n)
        del self._missing[: (self._skew + n) >> _BLOCK]
        self._skew = (self._skew + n) & _IN_BLOCK


class Track:
    """A thread's spans that end in [since_ns, until_ns], syscalls and off-CPU spans apart.

    Attributes:
        stolen: when spans began that tell of steal before them.
        version: changes where spans that were there before are others now.
        worker, gpu: what was read out of it (readers.py), as long as it lives.
    """

    __slots__ = ("_opened", "calls", "gpu", "offs", "since_ns", "stolen", "until_ns", "version", "worker")

    def __init__(self, since_ns: int) -> None:
        self.since_ns = since_ns
        self.until_ns = 0
        self.calls = Spans(len(Call._fields), ENTER, END, calls_of)
        self.offs = Spans(len(Off._fields), OUT, BACK, offs_of)
        self.stolen: list[int] = []
        self._opened = False
        self.version = 0
        self.worker: WorkerReading | None = None
        self.gpu: GpuReading | None = None

    def add(self, records: Records) -> None:
        """Append spans (n,), by end, that end after all before."""
        off = records["kind"] == Kind.OFFCPU
        self.calls.append(call_columns(records.take(np.flatnonzero(~off))))
        more = off_columns(records.take(np.flatnonzero(off)))
        self.offs.append(more)
        self.stolen += _stolen(more)
        if self._opened or bool(((records["flags"] & _OPEN) != 0).any()):
            calls, offs, n = self.calls, self.offs, len(self.calls) + len(self.offs)
            open_calls = calls.drop_superseded((calls.columns[FLAGS] & _OPEN) != 0)
            open_offs = offs.drop_superseded(offs.columns[IS_OPEN] != 0)
            self._opened = open_calls or open_offs
            self.version += len(calls) + len(offs) < n

    def bounds(self, start_ns: int, stop_ns: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the syscalls that overlap [start_ns, stop_ns] begin and end, and the off-CPU spans."""
        return self.calls.overlapping(start_ns, stop_ns), self.offs.overlapping(start_ns, stop_ns)

    def wake_in(self, wait: tuple[int, ...], low: int, high: int) -> tuple[Off | None, int]:
        """The last waking inside a wait, of the off-CPU spans [low, high), and its place; None, -1: none."""
        offs, enter = self.offs, wait[0]
        for i in range(bisect_right(offs.ends, wait[1] + 1, low, high) - 1, low - 1, -1):
            if offs.begins[i] < enter:
                break
            off = offs[i]
            if off[2]:
                return off, i
        return None, -1

    def forget(self, before_ns: int) -> bool:
        """Drop spans that ended up to a time; whether none is left."""
        self.calls.forget(before_ns)
        self.offs.forget(before_ns)
        if self.stolen:
            self.stolen = _stolen(self.offs.columns)
        self.since_ns = max(self.since_ns, before_ns)
        return not len(self.calls) and not len(self.offs)


def _stolen(offs: Columns) -> list[int]:
    stolen: list[int] = offs[OUT][offs[STOLEN] >= MIN_STOLEN_NS].tolist()
    return stolen
