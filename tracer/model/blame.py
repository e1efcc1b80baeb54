# SPDX-License-Identifier: Apache-2.0
"""Who held a lock, doing what, while somebody waited for it.

Owns the recent syscalls by thread (a few seconds, references to the records of past steps)
and the blame cells: lock word x holder x its syscall x waiter, a bounded number of them.
Names are not known here: cells hold tids and addresses, views get names at summary time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer.model.registry import Registry
from tracer.model.step import Step, Threads
from tracer.model.words import join
from tracer.schema import FUTEX, RECORD, RW, Flag, Kind, Records, end_ns, view

RECENT_NS = 4_000_000_000
WINDOW_NS = 1_000_000_000  # how far back in a hold its longest syscall is looked for
AROUND_NS = 100_000_000
CELLS = 4096

_NAMES = {
    Kind.READ: "read",
    Kind.WRITE: "write",
    Kind.FUTEX: "futex",
    Kind.TIMER: "timerfd_settime",
    Kind.EPOLL_CTL: "epoll_ctl",
    Kind.EPOLL_WAIT: "epoll_wait",
    Kind.RECVMSG: "recvmsg",
    Kind.SENDMSG: "sendmsg",
}
# x86-64 numbers of FD and SYSCALL records that are met under locks.
_NUMBERS = {
    3: "close",
    5: "fstat",
    7: "poll",
    8: "lseek",
    9: "mmap",
    10: "mprotect",
    11: "munmap",
    16: "ioctl",
    17: "pread64",
    18: "pwrite64",
    24: "sched_yield",
    28: "madvise",
    20: "writev",
    23: "select",
    32: "dup",
    33: "dup2",
    35: "nanosleep",
    72: "fcntl",
    74: "fsync",
    75: "fdatasync",
    77: "ftruncate",
    89: "readlink",
    202: "futex",
    270: "pselect6",
    228: "clock_gettime",
    230: "clock_nanosleep",
    262: "newfstatat",
    267: "readlinkat",
    271: "ppoll",
    285: "fallocate",
    290: "eventfd2",
    292: "dup3",
    319: "memfd_create",
}


class Recent:
    """Syscalls of the last seconds, found by thread without copying what nobody asks for."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[int, int, Threads]] = deque()
        self._found: dict[tuple[int, int, int], Records] = {}  # of this step: asked for again and again

    def step(self, step: Step, now_ns: int) -> None:
        """Keep a step's spans and drop what is too old."""
        if len(step):
            first, last = end_ns(step.records[:1]), end_ns(step.records[-1:])
            self._chunks.append((int(first[0]), int(last[0]), step.threads))
        while self._chunks and self._chunks[0][1] + RECENT_NS < now_ns:
            self._chunks.popleft()
        self._found.clear()

    def of(self, tid: int, start_ns: int, until_ns: int) -> Records:
        """Closed syscall spans (n,) of a thread in the steps that have [start, until], in order, no wakes."""
        steps = [c for c in self._chunks if c[1] >= start_ns and c[0] <= until_ns]
        key = (tid, steps[0][0], len(steps)) if steps else (tid, 0, 0)
        rows = self._found.get(key)
        if rows is None:
            parts = [threads.calls(tid) for _, _, threads in steps if tid in threads.slices]
            rows = self._found[key] = join(parts, RECORD)
        return rows

    def longest(
        self, tid: int, starts: NDArray[np.uint64], ends: NDArray[np.uint64]
    ) -> tuple[Records, NDArray[np.int64]]:
        """The longest syscall of a thread within each interval.

        Args:
            starts, ends: (n,) ns; a syscall counts if it ends within.

        Returns:
            The thread's spans, and per interval (n,) the index of the longest or -1.
        """
        picked = np.full(len(starts), -1, dtype=np.int64)
        rows = self.of(tid, int(starts.min()), int(ends.max()))
        if not len(rows):
            return rows, picked
        stop = end_ns(rows)
        lo = np.searchsorted(stop, starts, side="right")
        hi = np.searchsorted(stop, ends, side="right")
        some = np.flatnonzero(hi > lo)
        if len(some):
            key = np.empty(len(rows) + 1, dtype=np.uint64)  # longest first, then latest
            key[:-1] = (np.minimum(rows["dur_ns"], np.uint64(1 << 39)) << np.uint64(24)) | np.arange(
                len(rows), dtype=np.uint64
            )
            key[-1] = 0
            pairs = np.column_stack((lo[some], hi[some])).ravel()
            best = np.maximum.reduceat(key, pairs)[::2]
            picked[some] = (best & np.uint64((1 << 24) - 1)).astype(np.int64)
        return rows, picked

    def calls_between(
        self, tid: int, starts: NDArray[np.uint64], ends: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """Whether a thread entered a syscall (no wake) within each open interval, (n,)."""
        rows = self.of(tid, int(starts.min()), int(ends.max()))
        enter = rows["enter_ns"] if len(rows) else np.empty(0, dtype=np.uint64)
        between: NDArray[np.bool_] = np.searchsorted(enter, ends, side="left") > np.searchsorted(
            enter, starts, side="left"
        )
        return between

    def around(self, tid: int, start_ns: int, end_ns_: int, until_ns: int) -> tuple[Records, Records]:
        """A thread's last call ended by ``start`` and its first entered after ``end`` and ended by ``until``.

        Each is a record array of shape (0,) or (1,); none further off than AROUND_NS.
        """
        rows = self.of(tid, max(0, start_ns - AROUND_NS), until_ns)
        stop = end_ns(rows)
        before = rows[(stop <= start_ns) & (stop + np.uint64(AROUND_NS) > start_ns)][-1:]
        after = rows[(rows["enter_ns"] >= end_ns_) & (stop <= until_ns)][:1]
        return before, after


def syscall_name(kind: Kind, number: int) -> str:
    """A syscall's name without its object."""
    if kind in (Kind.FD, Kind.SYSCALL) or (kind == Kind.EPOLL_WAIT and number in _NUMBERS):
        return _NUMBERS.get(number, f"syscall {number}")
    return _NAMES.get(kind, kind.name.lower())


def syscall_label(row: Records, tgid: int, registry: Registry) -> str:
    """A syscall with its object, e.g. ``write(pipe)``; ``row`` is one record, shape (1,)."""
    kind = Kind(int(row["kind"][0]))
    number = int(row["op"][0])
    flags = int(row["flags"][0])
    if kind in (Kind.READ, Kind.WRITE):
        if flags & Flag.EVENTFD:
            return f"{_NAMES[kind]}(eventfd)"
        if flags & Flag.TIMERFD:
            return f"{_NAMES[kind]}(timerfd)"
        known = registry.fds.get((tgid, int(view(row, RW)["fd"][0])))
        return f"{_NAMES[kind]}({known.type})" if known is not None else _NAMES[kind]
    if kind == Kind.FUTEX:
        two = int(view(row, FUTEX)["expected"][0]) == 2
        return "futex(lock)" if two else "futex(condvar)"
    return syscall_name(kind, number)


def label_key(row: Records) -> tuple[int, int, int]:
    """What ``syscall_label`` depends on, cheap to compare; ``row`` has shape (1,)."""
    kind = int(row["kind"][0])
    if kind in (Kind.READ, Kind.WRITE):
        flags = int(row["flags"][0]) & (Flag.EVENTFD | Flag.TIMERFD)
        return kind, flags, 0 if flags else int(view(row, RW)["fd"][0])
    if kind == Kind.FUTEX:
        return kind, 0, int(view(row, FUTEX)["expected"][0] == 2)
    return kind, int(row["op"][0]), 0


@dataclass(slots=True)
class Cell:
    """One blame cell: ns waited for a holder in a syscall, by a waiter (signs: signs.py)."""

    tgid: int
    word: int
    holder_tid: int
    holder_caller: int
    holder_sign: str
    syscall: str
    waiter_tid: int
    waiter_caller: int
    waiter_sign: str
    waits: int = 0
    total_ns: int = 0
    max_ns: int = 0
    last_ns: int = 0
    misses: int = 0

    def copy(self) -> Cell:
        """An independent one (a fifth of what ``dataclasses.replace`` costs: a summary copies all)."""
        return Cell(*_fields(self))


_fields: attrgetter[tuple[Any, ...]] = attrgetter(*(part.name for part in fields(Cell)))
CellKey = tuple[int, int, int, int, str, str, int, int, str]


@dataclass(slots=True)
class Cells:
    """All blame cells; past CELLS of them, further ones lose their call sites, then their tids."""

    cells: dict[CellKey, Cell] = field(default_factory=dict)

    def get(self, key: CellKey) -> Cell:
        """The cell of a key, made if need be."""
        tgid, word, holder, _, _, syscall, waiter, _, _ = key
        for attempt in (
            key,
            (tgid, word, holder, 0, "", syscall, waiter, 0, ""),
            (tgid, word, 0, 0, "", syscall, 0, 0, ""),
        ):
            cell = self.cells.get(attempt)
            if cell is not None:
                return cell
            if len(self.cells) < CELLS:
                break
        else:
            attempt = (0, 0, 0, 0, "", "", 0, 0, "")
            if attempt in self.cells:
                return self.cells[attempt]
        cell = self.cells[attempt] = Cell(*attempt)
        return cell

    def forget(self, words: set[tuple[int, int]]) -> None:
        """Drop the cells of words (tgid, address)."""
        for key in [k for k in self.cells if (k[0], k[1]) in words]:
            del self.cells[key]

    def find(self, tgid: int, word: int, holder_tid: int, waiter_tid: int) -> Cell | None:
        """The cell of a lock wait seen by attribution: the latest of those that fit."""
        fit = [
            c
            for c in self.cells.values()
            if c.tgid == tgid
            and c.word == word
            and c.waiter_tid == waiter_tid
            and (not holder_tid or c.holder_tid == holder_tid)
        ]
        return max(fit, key=lambda c: (c.last_ns, c.max_ns, c.holder_tid), default=None)
