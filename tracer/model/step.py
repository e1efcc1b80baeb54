# SPDX-License-Identifier: Apache-2.0
"""One step's records, split by kind and by thread once, for all of model/.

Owns how the split is made and what it costs: two sorts and two copies for a step, nothing per
reader. Interprets nothing. Always ``take``: indexing a structured array by an array copies field
by field and is thirty times slower.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.schema import FAMILY, OFFCPU, Kind, Records, end_ns

_KINDS: Final = 256
_LAST_SPAN: Final = int(Kind.OFFCPU)
_LAST_CALL: Final = int(Kind.SYSCALL)
_OPEN: Final = 1
_FUTEX: Final = int(Kind.FUTEX)
_IS_WAIT: Final = np.array([cmd in (0, 9) for cmd in range(128)])  # FUTEX_WAIT, FUTEX_WAIT_BITSET


class Threads:
    """A step's spans by thread, OPEN ones included: (n,) sorted by (tid, end)."""

    __slots__ = ("_calls", "_closed", "ends", "records", "slices")

    def __init__(self, spans: Records) -> None:
        tids = spans["tid"]
        order = np.argsort(tids, kind="stable")
        tids = tids.take(order)
        self.records: Records = spans.take(order)
        self.ends: NDArray[np.uint64] = end_ns(self.records)
        cuts = (np.flatnonzero(tids[1:] != tids[:-1]) + 1).tolist()
        starts = [0, *cuts] if len(tids) else []
        stops = [*cuts, len(tids)][: len(starts)]
        who = tids.take(np.array(starts, dtype=np.intp)).tolist()
        self.slices: dict[int, tuple[int, int]] = {
            tid: (a, b) for tid, a, b in zip(who, starts, stops, strict=True)
        }
        self._closed: dict[int, Records] = {}
        self._calls: dict[int, Records] = {}

    def of(self, tid: int) -> Records:
        """A thread's closed spans (n,), by end."""
        rows = self._closed.get(tid)
        if rows is None:
            start, stop = self.slices.get(tid, (0, 0))
            rows = self.records[start:stop]
            opened = rows["flags"] & _OPEN
            if opened.any():
                rows = rows.take(np.flatnonzero(opened == 0))
            self._closed[tid] = rows
        return rows

    def calls(self, tid: int) -> Records:
        """A thread's closed syscall spans (n,) but futex wakes, by end."""
        rows = self._calls.get(tid)
        if rows is None:
            rows = self.of(tid)
            kind = rows["kind"]
            wanted = (kind <= _LAST_CALL) & ((kind != _FUTEX) | _IS_WAIT[rows["op"] & 0x7F])
            rows = self._calls[tid] = rows.take(np.flatnonzero(wanted))
        return rows


class Step:
    """The records of one step of record time.

    Args:
        records: dtype RECORD, shape (n,), sorted by (end, tid, kind, enter) as ``Sequencer`` yields them.
        end_ns: end of the step; no record ends after it.
    """

    __slots__ = ("_bounds", "_by_kind", "_sleeps", "_syscalls", "_threads", "end_ns", "records")

    def __init__(self, records: Records, end_ns: int) -> None:
        self.records = records
        self.end_ns = end_ns
        kind = records["kind"].copy()
        # Flags of the session's own records mean other things; a span that is OPEN sorts as kind 0.
        kind[((records["flags"] & _OPEN) != 0) & (kind <= _LAST_SPAN)] = 0
        self._by_kind: Records = records.take(np.argsort(kind, kind="stable"))
        self._bounds: list[int] = [0, *np.cumsum(np.bincount(kind, minlength=_KINDS)).tolist()]
        self._threads: Threads | None = None
        self._sleeps: dict[int, Records] = {}
        self._syscalls: dict[int, Records] = {}

    def __len__(self) -> int:
        return len(self.records)

    def of(self, first: Kind, last: Kind | None = None) -> Records:
        """Closed records (n,) of a kind in order of their end, in that kind's dtype.

        With ``last``: of all kinds from ``first`` to it (one family), one kind after the other.
        """
        rows = self._by_kind[self._bounds[first] : self._bounds[(last or first) + 1]]
        return rows.view(FAMILY[first])

    def opened(self, kind: Kind) -> Records:
        """OPEN records (n,) of a kind in order of their end, in that kind's dtype."""
        rows = self._by_kind[: self._bounds[1]]
        if len(rows):
            rows = rows.take(np.flatnonzero(rows["kind"] == int(kind)))
        return rows.view(FAMILY[kind])

    def sleeps(self, tid: int) -> Records:
        """A thread's closed off-CPU spans (n,), by end, of dtype OFFCPU."""
        rows = self._sleeps.get(tid)
        if rows is None:
            rows = self.threads.of(tid)
            rows = self._sleeps[tid] = rows.take(np.flatnonzero(rows["kind"] == _LAST_SPAN)).view(OFFCPU)
        return rows

    def syscalls(self, tid: int) -> Records:
        """A thread's closed syscall spans (n,), futex wakes included, by end."""
        rows = self._syscalls.get(tid)
        if rows is None:
            rows = self.threads.of(tid)
            rows = self._syscalls[tid] = rows.take(np.flatnonzero(rows["kind"] <= _LAST_CALL))
        return rows

    @property
    def threads(self) -> Threads:
        """The spans by thread, OPEN ones included."""
        if self._threads is None:
            # Spans are the first kinds, so what is none lies behind them.
            spans = self._bounds[_LAST_SPAN + 1]
            rows = self.records
            if spans < len(rows):
                rows = rows.take(np.flatnonzero(rows["kind"] <= _LAST_SPAN))
            self._threads = Threads(rows)
        return self._threads
