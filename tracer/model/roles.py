# SPDX-License-Identifier: Apache-2.0
"""Who is who in a VMM: W, G, the vCPUs, fence threads, forwarding tasks, the data loop.

Decided by what threads do (wakers, eventfds), with thread names as a hint where
behaviour has not shown itself yet. Also owns which eventfds are interrupts and
which are kicks: eventfds that W or G write are interrupts; what a vCPU writes is a
kick and is hidden from every verdict, because a real guest's kick is no syscall.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from tracer.model.registry import Registry
from tracer.model.streams import Streams
from tracer.schema import (
    FUTEX,
    FUTEX_CMD_MASK,
    FUTEX_WAIT,
    FUTEX_WAIT_BITSET,
    OFFCPU,
    RW,
    Flag,
    Kind,
    Records,
    end_ns,
    view,
)

#: Votes of behaviour before it overrules a name.
MIN_VOTES: Final = 3
MUTEX_CONTENDED: Final = 2  # the value a std mutex waiter expects


class NamesRoles(Protocol):
    """A profile, as far as roles need it."""

    def role(self, comm: str) -> str:
        """Role that a thread's name suggests, "" for none."""


@dataclass(slots=True)
class Roles:
    """Votes for roles, per VMM."""

    registry: Registry
    profile: NamesRoles | None = None
    gpu_votes: dict[int, Counter[int]] = field(default_factory=dict)
    vcpu_votes: Counter[int] = field(default_factory=Counter)
    irq_ids: dict[int, set[int]] = field(default_factory=dict)
    _named: set[tuple[int, str]] = field(default_factory=set)

    def step(self, records: Records, streams: Streams) -> None:
        """Take over one step's records (sorted), after ``streams`` took them."""
        for driver in streams.drivers.values():
            if any(s.driver is driver for s in streams.streams):
                self._set(driver.tid, "D", "behaviour")
        workers = {s.context for s in streams.streams if s.context}
        for tid in workers:
            self._set(tid, "W", "behaviour")
        self._by_name()
        workers |= set(self.registry.with_role("W"))
        if len(records) and workers:
            closed = records[(records["flags"] & Flag.OPEN) == 0]
            self._interrupts(closed, workers)
            self._rearms(closed, workers)
        for stream in streams.streams:
            if stream.completion is not None and stream.tgid not in self.gpu_votes:
                writer = stream.completion.written.main_tid()
                if writer:
                    self.gpu_votes[stream.tgid] = Counter({writer: 1})
        self._decide(streams)
        gpus = set(self.registry.with_role("G"))
        if len(records) and gpus:
            self._kickers(records, gpus)

    def _set(self, tid: int, role: str, by: str) -> None:
        state = self.registry.threads.get(tid)
        if state is not None and (state.role_by != "behaviour" or by == "behaviour"):
            state.role, state.role_by = role, by

    def _by_name(self) -> None:
        if self.profile is None:
            return
        for state in self.registry.threads.values():
            if (state.tid, state.comm) in self._named or not self.registry.is_vmm(state.tgid):
                continue
            self._named.add((state.tid, state.comm))
            role = self.profile.role(state.comm)
            if role and not state.role:
                state.role, state.role_by = role, "name"

    def _interrupts(self, records: Records, workers: set[int]) -> None:
        rows = view(records[(records["kind"] == Kind.WRITE) & ((records["flags"] & Flag.EVENTFD) != 0)], RW)
        rows = rows[np.isin(rows["tid"], list(workers))]
        for number, tid in {(int(r["eventfd_id"]), int(r["tid"])) for r in rows}:
            self.irq_ids.setdefault(self.registry.tgid(tid), set()).add(number)

    def _rearms(self, records: Records, workers: set[int]) -> None:
        """Who ends W's condvar waits re-arms it: that is G."""
        mine = records[np.isin(records["tid"], list(workers))]
        futex = view(mine[mine["kind"] == Kind.FUTEX], FUTEX)
        command = futex["op"] & FUTEX_CMD_MASK
        parked = futex[
            ((command == FUTEX_WAIT) | (command == FUTEX_WAIT_BITSET))
            & (futex["expected"] != MUTEX_CONTENDED)
            & (futex["ret"] == 0)
        ]
        off = view(mine[mine["kind"] == Kind.OFFCPU], OFFCPU)
        for tid in np.unique(parked["tid"]).tolist():
            waits, spans = parked[parked["tid"] == tid], off[off["tid"] == tid]
            if not len(spans):
                continue
            at = np.searchsorted(spans["enter_ns"], waits["enter_ns"])
            at = at[at < len(spans)]
            woken = spans[np.unique(at)]
            tgid = self.registry.tgid(tid)
            woken = woken[
                (woken["waker_in_irq"] == 0) & (woken["waker_tgid"] == tgid) & (woken["woken_ns"] > 0)
            ]
            for waker, n in zip(*np.unique(woken["waker_tid"], return_counts=True), strict=True):
                if int(waker) not in workers:
                    self.gpu_votes.setdefault(tgid, Counter())[int(waker)] += int(n)

    def _kickers(self, records: Records, gpus: set[int]) -> None:
        """Who wakes an idle G is a vCPU (a real guest's kick is no syscall of its own)."""
        mine = records[np.isin(records["tid"], list(gpus)) & ((records["flags"] & Flag.OPEN) == 0)]
        reads = mine[mine["kind"] == Kind.READ]
        off = view(mine[mine["kind"] == Kind.OFFCPU], OFFCPU)
        for tid in gpus:
            waits, spans = reads[reads["tid"] == tid], off[off["tid"] == tid]
            if not len(waits) or not len(spans):
                continue
            at = np.searchsorted(spans["enter_ns"], waits["enter_ns"])
            inside = at < len(spans)
            at, waits = at[inside], waits[inside]
            woken = spans[at[spans["enter_ns"][at] < end_ns(waits)]]
            woken = woken[(woken["waker_in_irq"] == 0) & (woken["woken_ns"] > 0)]
            for waker, n in zip(*np.unique(woken["waker_tid"], return_counts=True), strict=True):
                self.vcpu_votes[int(waker)] += int(n)

    def _decide(self, streams: Streams) -> None:
        for tgid, votes in self.gpu_votes.items():
            best, n = min(votes.items(), key=lambda item: (-item[1], item[0]))
            held = self.registry.with_role("G", tgid)
            if n >= MIN_VOTES or not held:
                for tid in held:
                    if tid != best:
                        self.registry.threads[tid].role = ""
                self._set(best, "G", "behaviour" if n >= MIN_VOTES else "name")
        for stream in streams.streams:
            if stream.completion is None or not stream.completion_expected:
                continue
            for tid in set(stream.completion.written.tid[-64:]):
                if self.registry.role(tid) == "":
                    self._set(tid, "task", "behaviour")
        for tid, n in self.vcpu_votes.items():
            state = self.registry.threads.get(tid)
            if state is not None and n >= MIN_VOTES and self.registry.is_vmm(state.tgid) and not state.role:
                self._set(tid, "vcpu", "behaviour")

    def gpu_worker(self, tgid: int) -> int:
        """G of a VMM, 0 while unknown."""
        tids = self.registry.with_role("G", tgid)
        return tids[0] if tids else 0
