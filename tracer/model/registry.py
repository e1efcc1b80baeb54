# SPDX-License-Identifier: Apache-2.0
"""What is known of processes, threads and fds at the present step of record time.

Owns the tables that everybody in model/ looks names and owners up in. Decides
nothing: roles are decided in roles.py and stored here; learns from LIFE
records (in record time) and from what /proc said (in the batch).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.step import Step
from tracer.schema import CallSite, EpollEntry, Fd, Kind, Life, LockSymbol, Target, Thread

#: Threads that have exited are kept for their names, so many of them: a VMM may run for weeks.
KEEP_EXITED: Final = 512
_TID_MAX: Final = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h


@dataclass(slots=True)
class ThreadState:
    """A thread as known now. ``role``: G, W, D, vcpu, fence, task or "" (roles.py decides)."""

    tid: int
    tgid: int
    comm: str
    policy: str = ""
    priority: int = 0
    cpus: str = ""
    throttled_ns: int = -1
    role: str = ""
    role_by: str = ""
    exit_ns: int | None = None


@dataclass(slots=True)
class Registry:
    """Processes, threads, fds, call sites. Threads of untraced processes are kept for their names.

    Attributes:
        guestless: VMMs whose W's give G its commands themselves.
        guests: processes that run only a VMM's guest (its devices are elsewhere), and whose.
    """

    targets: dict[int, Target] = field(default_factory=dict)
    threads: dict[int, ThreadState] = field(default_factory=dict)
    fds: dict[tuple[int, int], Fd] = field(default_factory=dict)
    epolls: dict[tuple[int, int, int], EpollEntry] = field(default_factory=dict)
    sites: dict[tuple[int, int], CallSite] = field(default_factory=dict)
    lock_symbols: dict[tuple[int, int], LockSymbol] = field(default_factory=dict)
    guests: dict[int, int] = field(default_factory=dict)
    guestless: set[int] = field(default_factory=set)
    _exited: deque[ThreadState] = field(default_factory=deque)
    # tgid by tid, 0 where unknown; the last place is nobody's, and stands for all tids beyond it.
    _tgids: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(1 << 16, dtype=np.uint32))

    def learn(
        self,
        targets: Iterable[Target] = (),
        threads: Iterable[Thread] = (),
        fds: Iterable[Fd] = (),
        epolls: Iterable[EpollEntry] = (),
        sites: Iterable[CallSite] = (),
        lock_symbols: Iterable[LockSymbol] = (),
    ) -> None:
        """Take over what a batch carries beside its records."""
        for target in targets:
            self.targets[target.tgid] = target
        for row in threads:
            state = self.threads.get(row.tid)
            if state is None or state.tgid != row.tgid:
                state = self._enlist(ThreadState(row.tid, row.tgid, row.comm))
            state.comm, state.policy, state.priority = row.comm, row.policy, row.priority
            state.cpus, state.throttled_ns = row.cpus, row.throttled_ns
        for fd in fds:
            self.fds[fd.tgid, fd.fd] = fd
        for entry in epolls:
            self.epolls[entry.tgid, entry.epfd, entry.data] = entry
        for site in sites:
            self.sites[site.tgid, site.address] = site
        for symbol in lock_symbols:
            self.lock_symbols[symbol.tgid, symbol.address] = symbol

    def step(self, step: Step) -> None:
        """Take over the LIFE records of a step."""
        for row in step.of(Kind.LIFE):
            tid, tgid = int(row["tid"]), int(row["tgid"])
            comm = bytes(row["comm"]).split(b"\0", 1)[0].decode("utf-8", "replace")
            state = self.threads.get(tid)
            if row["op"] == Life.EXIT:
                if state is not None:
                    state.exit_ns = int(row["enter_ns"])
                    self._bury(state)
                continue
            if state is None or (tgid and state.tgid != tgid) or state.exit_ns is not None:
                state = self._enlist(ThreadState(tid, tgid, comm))
            if comm:
                state.comm = comm

    def _enlist(self, state: ThreadState) -> ThreadState:
        """Make a thread known."""
        tid, tgid = state.tid, state.tgid
        self.threads[tid] = state
        if 0 <= tid <= _TID_MAX and 0 <= tgid <= _TID_MAX:  # else a trace that lies: no record has such a tid
            if tid >= len(self._tgids) - 1:
                grown = np.zeros(2 * tid + 2, dtype=np.uint32)  # pages that nobody touches take no memory
                grown[: len(self._tgids)] = self._tgids
                self._tgids = grown
            self._tgids[tid] = tgid
        return state

    def _bury(self, state: ThreadState) -> None:
        """Forget the thread that exited longest ago, beyond those that are kept."""
        self._exited.append(state)
        if len(self._exited) > KEEP_EXITED:
            oldest = self._exited.popleft()
            if self.threads.get(oldest.tid) is oldest:
                del self.threads[oldest.tid]
                self._tgids[oldest.tid : oldest.tid + 1] = 0

    def tgid(self, tid: int) -> int:
        """The process of a thread, 0 where unknown."""
        state = self.threads.get(tid)
        return state.tgid if state is not None else 0

    def comm(self, tid: int) -> str:
        """The thread's name, or ``tid N`` where unknown."""
        state = self.threads.get(tid)
        return state.comm if state is not None and state.comm else f"tid {tid}"

    def role(self, tid: int) -> str:
        """The thread's role, "" where none was decided."""
        state = self.threads.get(tid)
        return state.role if state is not None else ""

    def with_role(self, role: str, tgid: int | None = None) -> list[int]:
        """Tids that have a role (in one process), ascending."""
        return sorted(
            t.tid for t in self.threads.values() if t.role == role and (tgid is None or t.tgid == tgid)
        )

    def is_vmm(self, tgid: int) -> bool:
        """Whether a process is traced as a VMM."""
        target = self.targets.get(tgid)
        return target is not None and target.role == "vmm"

    def tgids_of(self, tids: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The processes (n,) of threads (n,), 0 where unknown."""
        found: NDArray[np.uint32] = self._tgids.take(tids, mode="clip")
        return found
