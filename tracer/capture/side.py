# SPDX-License-Identifier: Apache-2.0
"""What travels beside records: threads and fds, read from /proc when a record mentions them.

Owns what is already known, so that each row travels once, and the limits that
keep /proc reads from costing more than the tracing. Never touches BPF.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tracer.capture import procfs
from tracer.capture.batches import ByKind
from tracer.schema import Fd, Flag, Kind, Life, Records, Thread

# An off-CPU span this long is worth the name of who ran instead, and of who woke the thread.
_HOG_NS = 200_000
_MAX_THREADS_PER_BATCH = 100
_MAX_FDS_PER_BATCH = 100
_MAX_KNOWN = 200_000
_REFRESH_NS = 2_000_000_000

_FD_FIELDS = (
    (Kind.READ, "fd"),
    (Kind.WRITE, "fd"),
    (Kind.EPOLL_CTL, "fd"),
    (Kind.EPOLL_WAIT, "epfd"),
    (Kind.RECVMSG, "fd"),
    (Kind.SENDMSG, "fd"),
    (Kind.TIMER, "fd"),
)


def one_fd(tgid: int, fd: int) -> Fd | None:
    """One fd of a process, None when it is closed. Eventfds and timerfds are known from records."""
    try:
        path = os.readlink(f"{procfs.PROC}/{tgid}/fd/{fd}")
    except (OSError, ValueError):
        return None
    kind = procfs.fd_type(path)
    info = procfs.read(f"{procfs.PROC}/{tgid}/fdinfo/{fd}") if kind in ("eventfd", "timerfd") else ""
    eventfd = procfs.parse_eventfd(info) if kind == "eventfd" else None
    value_ns, interval_ns = (procfs.parse_timerfd(info) if kind == "timerfd" else None) or (0, 0)
    path = procfs.text_of(os.fsencode(path))
    return Fd(tgid, fd, kind, eventfd[0] if eventfd else -1, path, value_ns, interval_ns)


def _keys(rows: Records, name: str, places: NDArray[np.intp]) -> NDArray[np.uint64]:
    """tid << 32 | a 4-byte column, of rows at places (n,): one integer is faster to find unique than two."""
    values = rows[name][places].astype(np.uint32, copy=False)
    return rows["tid"][places].astype(np.uint64) << np.uint64(32) | values


def _pairs(keys: list[NDArray[np.uint64]]) -> list[tuple[int, int]]:
    """The distinct (tid, signed value) of keys."""
    if not keys:
        return []
    found = np.unique(np.concatenate(keys) if len(keys) > 1 else keys[0])
    values = (found & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
    return list(zip((found >> np.uint64(32)).tolist(), values.tolist(), strict=True))


@dataclass(slots=True)
class Side:
    """Known threads and fds of one session.

    Attributes:
        tgid_of: tid to tgid, of the targets' threads.
    """

    tgid_of: dict[int, int] = field(default_factory=dict)
    _threads: dict[int, Thread] = field(default_factory=dict)
    _fds: set[tuple[int, int]] = field(default_factory=set)
    _refreshed_ns: int = 0

    def attach(self, tgid: int) -> tuple[tuple[Thread, ...], tuple[Fd, ...]]:
        """Everything of a target at attach or after exec: its threads and fds."""
        self._fds = {key for key in self._fds if key[0] != tgid}
        threads, fds = procfs.threads(tgid), procfs.fds(tgid)
        for thread in threads:
            self.tgid_of[thread.tid] = tgid
            self._threads[thread.tid] = thread
        self._fds.update((tgid, item.fd) for item in fds)
        return threads, fds

    def life(self, records: ByKind) -> list[Thread]:
        """Rows for threads that LIFE records announce."""
        rows: list[Thread] = []
        for life in records.rows(Kind.LIFE):
            tid, tgid, op = int(life["tid"]), int(life["tgid"]), int(life["op"])
            if op == Life.EXIT:
                self._threads.pop(tid, None)
            elif op == Life.START:
                self.tgid_of[tid] = tgid
                comm = procfs.text_of(bytes(life["comm"]))
                row = self._read(tid) if len(rows) < _MAX_THREADS_PER_BATCH else None
                rows.append(row or Thread(tid, tgid, comm))
                self._threads[tid] = rows[-1]
        return rows

    def refresh(self, tgids: Iterable[int], now_ns: int) -> list[Thread]:
        """Rows of targets' threads whose name, priority, CPUs or throttling changed; every two seconds."""
        if now_ns - self._refreshed_ns < _REFRESH_NS:
            return []
        first = not self._refreshed_ns
        self._refreshed_ns = now_ns
        if first:
            return []
        rows = []
        for tgid in tgids:
            for thread in procfs.threads(tgid):
                if self._threads.get(thread.tid) != thread:
                    self._threads[thread.tid] = thread
                    self.tgid_of[thread.tid] = tgid
                    rows.append(thread)
        return rows

    def others(self, records: ByKind) -> list[Thread]:
        """Rows for threads outside the targets that long off-CPU spans name."""
        if not records.count(Kind.OFFCPU):
            return []
        whole, places = records.whole(Kind.OFFCPU), records.places(Kind.OFFCPU)
        spans = whole[places[whole["dur_ns"][places] >= _HOG_NS]]
        rows: list[Thread] = []
        for tid in np.unique(np.concatenate([spans["instead_tid"], spans["waker_tid"]])).tolist():
            if tid == 0 or tid in self._threads or len(rows) >= _MAX_THREADS_PER_BATCH:
                continue
            row = self._read(tid)
            if row is not None:
                rows.append(row)
                if len(self._threads) < _MAX_KNOWN:
                    self._threads[tid] = row
        return rows

    def fds(self, records: ByKind) -> list[Fd]:
        """Rows for fds that records use and that are neither known nor eventfds nor timerfds."""
        keys = []
        for kind, name in _FD_FIELDS:
            if not records.count(kind):
                continue
            whole, places = records.whole(kind), records.places(kind)
            named = (whole["flags"][places] & (Flag.EVENTFD | Flag.TIMERFD)) != 0
            keys.append(_keys(whole, name, places[~named & (whole["ret"][places] >= 0)]))
        wanted = [
            (tgid, fd)
            for tid, fd in _pairs(keys)
            if (tgid := self.tgid_of.get(tid)) is not None and (tgid, fd) not in self._fds
        ]
        found: list[Fd] = []
        for tgid, fd in dict.fromkeys(wanted):
            if len(found) >= _MAX_FDS_PER_BATCH:
                break
            item = one_fd(tgid, fd)
            if item is not None:
                found.append(item)
            if len(self._fds) < _MAX_KNOWN:
                self._fds.add((tgid, fd))
        self._forget_closed(records)
        return found

    def _forget_closed(self, records: ByKind) -> None:
        if not self._fds or not records.count(Kind.FD):
            return
        whole, places = records.whole(Kind.FD), records.places(Kind.FD)
        places = places[whole["eventfd_id"][places] < 0]
        # Whatever a dup, close or eventfd2 touched may mean another file from now on.
        for tid, fd in _pairs([_keys(whole, name, places) for name in ("fd", "ret")]):
            if (tgid := self.tgid_of.get(tid)) is not None:
                self._fds.discard((tgid, fd))

    def _read(self, tid: int) -> Thread | None:
        return procfs.thread(tid)
