# SPDX-License-Identifier: Apache-2.0
"""Who is who in a VMM: W, G, the vCPUs, fence threads, forwarding tasks, the data loop.

Decided by what threads do (wakers, eventfds), with thread names as a hint where behaviour has
not shown itself yet. Several threads that read one kick eventfd and complete streams are all G.
Also owns which eventfds are interrupts and which are kicks: eventfds that W or G write are
interrupts; what a vCPU writes is a kick and is hidden from every verdict, because a real guest's
kick is no syscall.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tracer.model.callkinds import POLLS
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.streams import Streams
from tracer.schema import FUTEX, RW, Flag, Kind, Life, Records, view

_READ, _WRITE, _FUTEX = int(Kind.READ), int(Kind.WRITE), int(Kind.FUTEX)
_EVENTFD = int(Flag.EVENTFD)
_IS_POLL = np.isin(np.arange(1 << 10), sorted(POLLS))  # by syscall number
_EPOLL_WAIT = int(Kind.EPOLL_WAIT)
_NAMED = 65_536

#: Votes of behaviour before it overrules a name.
MIN_VOTES: Final = 3
#: Waits of a G for condvars before these are what it idles in.
MIN_PARKED: Final = 8
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
    kicked_from: dict[int, Counter[int]] = field(default_factory=dict)  # per VMM: whose threads woke its G
    #: Who woke a VMM's idle G, how often: one of its W's, or not.
    _handed: dict[int, Counter[bool]] = field(default_factory=dict)
    irq_ids: dict[int, set[int]] = field(default_factory=dict)
    _waits: dict[int, Counter[int]] = field(
        default_factory=dict
    )  # by what a W waits: a poll's number, 0 for epoll
    _served: Counter[int] = field(default_factory=Counter)  # signals that a W read
    _queues: dict[int, set[int]] = field(default_factory=dict)  # eventfds that the G's of a VMM read
    _pool: Counter[int] = field(default_factory=Counter)  # how often other threads read one of these
    _idles: dict[int, Counter[str]] = field(default_factory=dict)  # what a G waits in: "queue", "condvar"
    _named: set[tuple[int, str]] = field(default_factory=set)

    def step(self, step: Step, streams: Streams) -> None:
        """Take over one step's records, after ``streams`` took them."""
        for row in step.of(Kind.LIFE):
            if row["op"] == Life.START:  # a tid that comes again is another thread's
                self._forget(int(row["tid"]))
        for tid in sorted({s.driver.tid for s in streams.streams}):
            self._set(tid, "D", "behaviour")
        workers = {s.context for s in streams.streams if s.context}
        for tid in workers:
            self._set(tid, "W", "behaviour")
        self._by_name()
        workers |= set(self.registry.with_role("W"))
        for tid in sorted(workers):
            self._choosing(step, tid, streams)
            self._interrupts(step, tid, streams)
            self._rearms(step, tid, workers)
        for stream in streams.streams:
            if stream.completion is not None and stream.tgid not in self.gpu_votes:
                writer = stream.completion.written.main_tid()
                if writer:
                    self.gpu_votes[stream.tgid] = Counter({writer: 1})
        self._decide(streams)
        for tid in self.registry.with_role("G"):
            self._idling(step, tid, streams)
            kinds = step.threads.calls(tid)["kind"]
            self._kickers(step, tid, parked(step.threads.calls(tid)) if self.parks(tid) else kinds == _READ)
        seen = {s.context for s in streams.streams if s.exact}
        self.registry.guestless = {tgid for tgid in self._handed if self.hands_over(tgid)}
        for tid in self._lone(streams):
            self._kickers(step, tid, step.threads.calls(tid)["kind"] == _EPOLL_WAIT, served=tid in seen)
        self._pools(step)
        if (
            max(len(self._waits), len(self._served), len(self._idles), len(self._pool)) > _NAMED
        ):  # threads come and go for weeks
            for counts in (self._waits, self._served, self._idles, self._pool):
                for tid in [tid for tid in counts if tid not in self.registry.threads]:
                    del counts[tid]

    def _forget(self, tid: int) -> None:
        """What was counted of a thread that is no more."""
        for votes in (self.vcpu_votes, self._served, self._pool, *self.gpu_votes.values()):
            votes.pop(tid, None)
        self._waits.pop(tid, None)
        self._idles.pop(tid, None)

    def _lives(self, tid: int) -> bool:
        state = self.registry.threads.get(tid)
        return state is not None and state.exit_ns is None

    def _set(self, tid: int, role: str, by: str) -> None:
        state = self.registry.threads.get(tid)
        if state is not None and (state.role_by != "behaviour" or by == "behaviour"):
            state.role, state.role_by = role, by

    def _by_name(self) -> None:
        if self.profile is None:
            return
        if len(self._named) > _NAMED:  # threads come and go for weeks
            self._named = {(t.tid, t.comm) for t in self.registry.threads.values()} & self._named
        for state in self.registry.threads.values():
            if (state.tid, state.comm) in self._named or not self.registry.is_vmm(state.tgid):
                continue
            self._named.add((state.tid, state.comm))
            role = self.profile.role(state.comm)
            if role and not state.role:
                state.role, state.role_by = role, "name"

    def _interrupts(self, step: Step, tid: int, streams: Streams) -> None:
        """Eventfds that W writes are interrupts, but for completions (some workers write these too)."""
        rows = view(step.threads.calls(tid), RW)
        wrote = np.flatnonzero((rows["kind"] == _WRITE) & ((rows["flags"] & _EVENTFD) != 0))
        if len(wrote):
            known = self.irq_ids.setdefault(self.registry.tgid(tid), set())
            ids = rows["eventfd_id"][wrote].tolist()
            known.update(i for i in ids if streams.object_of(i) != "completion")

    def _choosing(self, step: Step, tid: int, streams: Streams) -> None:
        calls = step.threads.calls(tid)
        ops = calls["op"][calls["kind"] == _EPOLL_WAIT]
        votes = self._waits.setdefault(tid, Counter())
        rows = view(calls, RW)
        read = rows["eventfd_id"][(rows["kind"] == _READ) & (rows["ret"] == 8)]
        self._served[tid] += sum(streams.object_of(number) == "stream" for number in read.tolist())
        for op, n in Counter(ops.tolist()).items():
            votes[op if op in POLLS else 0] += n

    def other_waits(self, tid: int) -> frozenset[int]:
        """Numbers of the polls in which a W does not wait for its next event: such a call is work."""
        votes = self._waits.get(tid)
        if not votes:
            return frozenset()
        chosen, n = min(votes.items(), key=lambda item: (-item[1], item[0]))
        if n * 2 < self._served[tid]:
            return POLLS  # it waits in the read of its stream
        return POLLS - {chosen}

    def _rearms(self, step: Step, tid: int, workers: set[int]) -> None:
        """Who ends W's condvar waits re-arms it: that is G."""
        futex = view(step.threads.calls(tid), FUTEX)  # no wakes among them
        waits = parked(futex) & (futex["ret"] == 0)
        if not waits.any():
            return
        spans = step.sleeps(tid)
        at = np.searchsorted(spans["enter_ns"], futex["enter_ns"][waits])
        woken = spans.take(np.unique(at[at < len(spans)]))
        tgid = self.registry.tgid(tid)
        for waker, n in _wakers(woken.take(np.flatnonzero(woken["waker_tgid"] == tgid))):
            if waker not in workers:
                self.gpu_votes.setdefault(tgid, Counter())[waker] += n

    def _idling(self, step: Step, tid: int, streams: Streams) -> None:
        """What a G waits in for its next command, and which eventfds it reads there."""
        calls = step.threads.calls(tid)
        rows = view(calls, RW)
        reads = (rows["kind"] == _READ) & ((rows["flags"] & _EVENTFD) != 0)
        votes = self._idles.setdefault(tid, Counter())
        votes["queue"] += int(
            (reads | (calls["kind"] == _EPOLL_WAIT) & ~_IS_POLL.take(calls["op"], mode="clip")).sum()
        )
        votes["condvar"] += int(parked(calls).sum())
        ids = {i for i in set(rows["eventfd_id"][reads].tolist()) if not streams.object_of(i)}
        self._queues.setdefault(self.registry.tgid(tid), set()).update(ids)

    def parks(self, gpu: int) -> bool:
        """Whether a G idles in a condvar: it never was seen at an eventfd or an epoll set."""
        votes = self._idles.get(gpu)
        return votes is not None and not votes["queue"] and votes["condvar"] >= MIN_PARKED

    def interrupts_by_wake(self, tgid: int) -> bool:
        """Whether no W of a VMM was ever seen to write an interrupt's eventfd."""
        return not self.irq_ids.get(tgid)

    def _pools(self, step: Step) -> None:
        """Threads that take commands from the same eventfd as G."""
        rows = step.of(Kind.READ)
        for tgid, ids in self._queues.items():
            took = rows["tid"][np.isin(rows["eventfd_id"], sorted(ids)) & ((rows["flags"] & _EVENTFD) != 0)]
            for tid, n in sorted(Counter(took.tolist()).items()):
                if self.registry.tgid(tid) == tgid:
                    self._pool[tid] += n

    def _shares_queue(self, tid: int) -> bool:
        return self._pool[tid] >= MIN_VOTES

    def _lone(self, streams: Streams) -> set[int]:
        """Workers that are their VMM's G as well: they complete what they serve, and nobody re-arms them."""
        return {
            s.context
            for s in streams.streams
            if s.completion is not None
            and s.completion.written.main_tid() == s.context
            and not self.registry.with_role("G", s.tgid)
        }

    def _kickers(self, step: Step, tid: int, reads: NDArray[np.bool_], *, served: bool = True) -> None:
        """Who wakes an idle G is a vCPU (a real guest's kick is no syscall of its own).

        Args:
            reads: which of its calls (n,) it may idle in.
            served: whether the audio server that may wake it too is traced.
        """
        calls = step.threads.calls(tid)
        spans = step.sleeps(tid)
        spans = spans.take(np.flatnonzero(spans["woken_ns"] > 0))
        if not reads.any() or not len(spans):
            return
        enter = calls["enter_ns"][reads]
        # A read that a signal interrupts goes on: only its last waking is a kick.
        at = np.searchsorted(spans["enter_ns"], enter + calls["dur_ns"][reads]) - 1
        within = (at >= 0) & (spans["enter_ns"][np.maximum(at, 0)] >= enter)
        woken = spans.take(at[within])
        for waker, n in _wakers(woken):
            self.vcpu_votes[waker] += n
            by_worker = waker != tid and self.registry.role(waker) == "W"
            self._handed.setdefault(self.registry.tgid(tid), Counter())[by_worker] += n
        if served:  # else it may be an audio server that woke a worker that is G as well
            by = woken["waker_tgid"][woken["waker_in_irq"] == 0]
            self.kicked_from.setdefault(self.registry.tgid(tid), Counter()).update(by[by > 0].tolist())

    def hands_over(self, tgid: int) -> bool:
        """Whether the W's of a VMM give G its commands themselves: there is no guest in between."""
        votes = self._handed.get(tgid)
        return votes is not None and votes[True] >= MIN_VOTES and votes[True] > votes[False]

    def _decide(self, streams: Streams) -> None:
        for tgid, votes in self.gpu_votes.items():
            # A device that is reset has another G then; the votes of the one before are years of them.
            living = {tid: n for tid, n in votes.items() if n >= MIN_VOTES and self._lives(tid)}
            if not votes:
                continue
            best, n = min((living or votes).items(), key=lambda item: (-item[1], item[0]))
            held = self.registry.with_role("G", tgid)
            if n >= MIN_VOTES or not held:
                for tid in held:
                    if tid != best and not self._shares_queue(tid):
                        self.registry.threads[tid].role = ""
                self._set(best, "G", "behaviour" if n >= MIN_VOTES else "name")
        for stream in streams.streams:
            if stream.completion is None or not stream.completion_expected:
                continue
            for tid in set(stream.completion.written.tid[-64:]):
                if self._shares_queue(tid) and self.registry.role(tid) != "W":
                    self._set(tid, "G", "behaviour")
                elif self.registry.role(tid) == "":
                    self._set(tid, "task", "behaviour")
        for tid, n in self.vcpu_votes.items():
            state = self.registry.threads.get(tid)
            if state is not None and n >= MIN_VOTES and self.registry.is_vmm(state.tgid) and not state.role:
                self._set(tid, "vcpu", "behaviour")
        guests = self.registry.guests
        for process in [p for p, vmm in guests.items() if self.guest_process(vmm) != p]:
            del guests[process]  # the first few kicks were somebody else's
        for tgid in self.kicked_from:
            process = self.guest_process(tgid)
            known = self.registry.guests.get(process)
            devices = known is None and any(self.registry.with_role(role, process) for role in ("W", "G"))
            if process != tgid and self.registry.is_vmm(process) and known is None and not devices:
                self.registry.guests[process] = tgid

    def guest_process(self, tgid: int) -> int:
        """The process in which a VMM's guest runs, as far as its kicks tell: usually its own.

        Devices may have a process of their own (crosvm's sandbox, vhost-user): the vCPUs are elsewhere.
        """
        audio = {t.tgid for t in self.registry.targets.values() if t.role == "audio"}
        votes = [(n, process) for process, n in self.kicked_from[tgid].items() if process not in audio]
        n, process = max(votes, default=(0, tgid))
        return process if n >= MIN_VOTES else tgid

    def vcpus(self, tgid: int) -> list[int]:
        """The vCPU threads of a VMM's guest, ascending, in whatever traced process they are."""
        own = self.registry.with_role("vcpu", tgid)
        if own or tgid not in self.registry.guests.values():
            return own
        there = [process for process, vmm in self.registry.guests.items() if vmm == tgid]
        return sorted(tid for process in there for tid in self.registry.with_role("vcpu", process))

    def gpu_worker(self, tgid: int, writer: int | None = None) -> int:
        """G of a VMM, 0 while unknown; of several the one that wrote, else the one that re-arms most."""
        tids = self.registry.with_role("G", tgid)
        if writer in tids:
            return writer or 0
        votes = self.gpu_votes.get(tgid, Counter())
        return min(tids, key=lambda tid: (-votes[tid], tid), default=0)


def parked(calls: Records) -> NDArray[np.bool_]:
    """Which of a thread's calls (n,), no wakes among them, wait for something that is no mutex."""
    futex = view(calls, FUTEX)
    found: NDArray[np.bool_] = (futex["kind"] == _FUTEX) & (futex["expected"] != MUTEX_CONTENDED)
    return found


def _wakers(woken: Records) -> Iterator[tuple[int, int]]:
    """(tid, times) of those that woke a thread from these off-CPU spans (n,), by tid; no interrupts."""
    awake = (woken["waker_in_irq"] == 0) & (woken["woken_ns"] > 0)
    return iter(sorted(Counter(woken["waker_tid"][awake].tolist()).items()))
