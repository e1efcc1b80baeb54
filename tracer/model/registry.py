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
    """Processes, threads, fds, call sites. Threads of untraced processes are kept for their names."""

    targets: dict[int, Target] = field(default_factory=dict)
    threads: dict[int, ThreadState] = field(default_factory=dict)
    fds: dict[tuple[int, int], Fd] = field(default_factory=dict)
    epolls: dict[tuple[int, int, int], EpollEntry] = field(default_factory=dict)
    sites: dict[tuple[int, int], CallSite] = field(default_factory=dict)
    lock_symbols: dict[tuple[int, int], LockSymbol] = field(default_factory=dict)
    _exited: deque[ThreadState] = field(default_factory=deque)
    _tid_keys: NDArray[np.uint32] | None = None
    _tid_tgids: NDArray[np.uint32] | None = None

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
                state = self.threads[row.tid] = ThreadState(row.tid, row.tgid, row.comm)
                self._tid_keys = None
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
                state = self.threads[tid] = ThreadState(tid, tgid, comm)
                self._tid_keys = None
            if comm:
                state.comm = comm

    def _bury(self, state: ThreadState) -> None:
        """Forget the thread that exited longest ago, beyond those that are kept."""
        self._exited.append(state)
        if len(self._exited) > KEEP_EXITED:
            oldest = self._exited.popleft()
            if self.threads.get(oldest.tid) is oldest:
                del self.threads[oldest.tid]
                self._tid_keys = None

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
        if self._tid_keys is None or self._tid_tgids is None:
            keys = sorted(self.threads)
            self._tid_keys = np.array(keys, dtype=np.uint32)
            self._tid_tgids = np.array([self.threads[k].tgid for k in keys], dtype=np.uint32)
        if not len(self._tid_keys):
            return np.zeros(len(tids), dtype=np.uint32)
        at = np.minimum(np.searchsorted(self._tid_keys, tids), len(self._tid_keys) - 1)
        found: NDArray[np.uint32] = np.where(self._tid_keys[at] == tids, self._tid_tgids[at], 0).astype(
            np.uint32
        )
        return found
