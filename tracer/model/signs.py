# SPDX-License-Identifier: Apache-2.0
"""Signs of waits and holds: which calls a thread made before, under and after one.

Owns the words a sign is made of. What a sign means is operations.py's.

A contended acquisition leaves the word at 2, so its release always wakes: the calls under the lock are
exactly those between the last wait's end and that wake. Of a holder that never waited only the calls that
ended while somebody waited for it are surely under the lock.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.acquire import CONTENDED, PTHREAD_WAIT, STD_WAIT
from tracer.model.callkinds import CLOSE
from tracer.model.uses import Uses
from tracer.schema import FUTEX, RW, Flag, Kind, Records, end_ns, view

Times = NDArray[np.uint64]

#: A call that ended longer ago than this before a wait, or a hold's begin, is not told of it.
AROUND_NS: Final = 100_000_000
#: System call numbers of x86-64.
_FCNTL: Final = 72
_DUPS: Final = frozenset((32, 33, 72, 292))
#: lseek, readlink, readlinkat: what W does for an fd that has just arrived.
_LOOKS_AT_FD: Final = frozenset((8, 89, 267))
_PLAIN: Final[dict[int, str]] = {
    Kind.EPOLL_CTL: "epoll_ctl",
    Kind.EPOLL_WAIT: "epoll_wait",
    Kind.FUTEX: "condvar",
}


class Signs:
    """Signs of the waits and holds of one thread, over its calls of the last seconds.

    Args:
        calls: (n,) closed syscall spans of the thread but wakes, by end.

    Attributes:
        of: those calls.
    """

    def __init__(self, uses: Uses, tgid: int, calls: Records) -> None:
        self.of = calls
        if len(calls):
            futex = calls.view(FUTEX)
            lock = (calls["kind"] == int(Kind.FUTEX)) & (futex["expected"] == CONTENDED)
            lock &= (calls["op"] == STD_WAIT) | (calls["op"] == PTHREAD_WAIT)
            calls = calls.take(np.flatnonzero(~lock))
        self._uses, self._tgid, self._calls = uses, tgid, calls
        self._ends = end_ns(calls)
        self._enters = calls["enter_ns"]

    def of_waits(self, start_ns: Times, end_ns_: Times, hold_ns: NDArray[np.int64]) -> list[str]:
        """``before|under|after``: calls around waits (n,); under ``?`` where the release was not seen."""
        before = np.searchsorted(self._ends, start_ns, side="right") - 1
        first = np.searchsorted(self._enters, end_ns_, side="left")
        released = np.searchsorted(
            self._enters, end_ns_ + np.maximum(hold_ns, 0).astype(np.uint64), side="left"
        )
        early = np.zeros(len(before), dtype=bool)
        if len(self._ends):
            early = (before >= 0) & (self._ends[np.maximum(before, 0)] + np.uint64(AROUND_NS) < start_ns)
        before[early] = -1
        seen = hold_ns >= 0
        after = np.where(seen, released, first)
        name = self._names(before, first, after)
        under = np.where(seen & (first < after), first, -1)
        columns = (column.tolist() for column in (before, under, after, seen))
        return [
            f"{name.get(b, '')}|{name.get(u, '') if known else '?'}|{name.get(a, '')}"
            for b, u, a, known in zip(*columns, strict=True)
        ]

    def of_holds(self, begin_ns: Times, stop_ns: Times) -> list[str]:
        """``in:`` or ``old:`` and the last call before each ``stop`` (n,); in: it ended since ``begin``."""
        if not len(self._ends):
            return [""] * len(begin_ns)
        last = np.searchsorted(self._ends, stop_ns, side="right") - 1
        ended = self._ends[np.maximum(last, 0)]
        known = (last >= 0) & (ended + np.uint64(AROUND_NS) >= begin_ns)
        name = self._names(last)
        columns = (column.tolist() for column in (last, known, ended > begin_ns))
        return [
            (("in:" if inside else "old:") + name[at]) if there else ""
            for at, there, inside in zip(*columns, strict=True)
        ]

    def _names(self, *places: NDArray[np.intp]) -> dict[int, str]:
        """What is at each of these places among the calls, nothing at places where there is no call."""
        at = np.unique(np.concatenate(places))
        at = at[(at >= 0) & (at < len(self._calls))]
        rows = self._calls.take(at)
        flags = rows["flags"] & Flag.EVENTFD
        columns = (rows["kind"], rows["op"], flags, view(rows, RW)["eventfd_id"])
        return dict(zip(at.tolist(), map(self._name, *(column.tolist() for column in columns)), strict=True))

    def _name(self, kind: int, number: int, eventfd: int, eventfd_id: int) -> str:
        if kind == Kind.READ:
            return f"read.{self._uses.read(self._tgid, eventfd_id) if eventfd else 'item'}"
        if kind == Kind.WRITE:
            return f"write.{self._uses.write(self._tgid, eventfd_id) if eventfd else 'item'}"
        if kind == Kind.RECVMSG or (kind == Kind.SYSCALL and number in _LOOKS_AT_FD):
            return "receive"
        if kind == Kind.SYSCALL:
            return "fcntl" if number == _FCNTL else "other"
        if kind == Kind.FD:
            return "close" if number in CLOSE else "dup" if number in _DUPS else "other"
        return _PLAIN.get(kind, "other")
