# SPDX-License-Identifier: Apache-2.0
"""Cycles that were not late but broken: a wakeup that was not forwarded, a command that wrote nothing.

Owns the evidence for both. Judges no delay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.locks import Locks
from tracer.model.readings import CLOSE, POLLS
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.spans import OFF_BY_ITSELF
from tracer.model.streams import Cycle
from tracer.model.timeline import Timeline
from tracer.schema import (
    FUTEX,
    FUTEX_CMD_MASK,
    FUTEX_WAKE,
    FUTEX_WAKE_BITSET,
    OFFCPU,
    RW,
    Flag,
    Kind,
    Records,
    end_ns,
    view,
)

#: On-time cycles needed to say what G does not do in them.
MIN_ON_TIME: Final = 8
#: A kick without a command is evidence where fewer than this share of on-time cycles have one as soon.
RARE: Final = 0.05
#: How far before a cycle's read G's sleeps are looked for.
BEFORE_NS: Final = 5_000_000


class Runs(NamedTuple):
    """G awake, run by run (n,): its first kick, asleep again (ns), kicks taken beyond commands ended."""

    kick: NDArray[np.int64]
    end: NDArray[np.int64]
    spare: NDArray[np.int64]


class Failures:
    """Looks for what failed in a cycle."""

    def __init__(self, registry: Registry, timeline: Timeline, locks: Locks, roles: Roles) -> None:
        self._registry = registry
        self._timeline = timeline
        self._locks = locks
        self._roles = roles

    def forwarding(self, cycle: Cycle) -> str:
        """Why the wakeup could not be forwarded, "" if nothing failed."""
        worker = self._registry.threads.get(cycle.reader_tid or cycle.stream.context)
        if worker is not None and worker.exit_ns is not None and worker.exit_ns <= cycle.end_ns:
            return f"the worker thread {worker.comm} exited"
        if cycle.closing_ns is not None and cycle.write_ns is not None and cycle.late_ns is not None:
            start = cycle.read_ns or cycle.signal_ns
        else:
            start = cycle.signal_ns
        gpu = self._roles.gpu_worker(cycle.stream.tgid)
        tids = {gpu, *(self._registry.with_role("task", cycle.stream.tgid))} - {0}
        done = cycle.stream.completion.id if cycle.stream.completion is not None else -1
        for tid in sorted(tids):
            rows = view(self._timeline.spans(tid, start, cycle.end_ns), RW)
            bad = rows[(rows["kind"] == Kind.WRITE) & (rows["ret"] < 0) & (rows["len"] == 8)]
            bad = bad[(bad["enter_ns"] >= start) & (end_ns(bad) <= cycle.end_ns)]
            bad = bad[~np.isin(bad["ret"], (-4, -11))]
            # Ours only: to the stream's target, or (nothing having come) to an fd that is none any more.
            unnamed = (bad["eventfd_id"] < 0) & (cycle.write_ns is None or answered_later(cycle))
            bad = bad[unnamed | (bad["eventfd_id"] == done)]
            if len(bad):
                return f"a write by {self._registry.comm(tid)} failed with errno {-int(bad['ret'][0])}"
        return ""

    def unanswered(self, cycle: Cycle, on_time: Sequence[Cycle]) -> str:
        """Whether G took our command in time and wrote nothing, as a reason; "" if not, or not told.

        With the guest late no kick comes. So where the completion that closed a cycle answers a later
        one, and G had slept again before the deadline with more kicks taken than commands ended, one of
        them was ours; unless on-time cycles too have such kicks by then, of commands that leave no trace.
        """
        if cycle.read_ns is None:
            return ""
        gpu = self._roles.gpu_worker(cycle.stream.tgid)
        if cycle.closing_ns is None:
            return "no write: G ran and wrote no completion" if gpu and self._ran(gpu, cycle) else ""
        if not gpu or cycle.read_ns >= cycle.deadline_ns or not answered_later(cycle):
            return ""
        read = cycle.stream.wake.read
        until = min(read.end[read.after(cycle.read_ns)], cycle.deadline_ns)
        runs = self._runs(gpu, cycle.stream.tgid, cycle.nominal_ns - BEFORE_NS, until)
        kick, end = self._traceless(runs, cycle.read_ns)
        if not kick:
            return ""
        begin = self._timeline.begin_ns
        reads = [c.read_ns for c in on_time if c.read_ns is not None and c.nominal_ns > begin]
        if len(reads) < MIN_ON_TIME:
            return ""
        edges = np.array(reads, dtype=np.int64)[:, None] + np.array([0, end - cycle.read_ns], dtype=np.int64)
        runs = self._runs(gpu, cycle.stream.tgid, int(edges[0, 0]), int(edges[-1, 1]))
        for at in (runs.end[runs.spare > 0], *self._silent(gpu, cycle.stream.tgid, reads[0], kick)):
            within = np.diff(np.searchsorted(at, edges, side="right"), axis=1)
            if (within > 0).sum() >= RARE * len(reads):
                return ""
        return "no write: the guest kicked, G ran and wrote no completion"

    @staticmethod
    def _traceless(runs: Runs, since_ns: int) -> tuple[int, int]:
        """The first kick since a time for which G ended no command, and when it slept again; 0, 0: none."""
        owed = 0  # a command may be taken before its kick is: the kick then comes alone
        for kick, end, spare in zip(runs.kick.tolist(), runs.end.tolist(), runs.spare.tolist(), strict=True):
            owed += spare
            if owed > 0 and kick > since_ns:
                return int(kick), int(end)
            owed = min(owed, 0)
        return 0, 0

    def _ran(self, gpu: int, cycle: Cycle) -> bool:
        """Whether G did anything but sleep and read its queue since W served the cycle."""
        since = cycle.read_ns or cycle.signal_ns
        kinds = self._timeline.spans(gpu, since, cycle.end_ns)["kind"]
        return bool(((kinds != Kind.READ) & (kinds != Kind.OFFCPU)).any())

    def _runs(self, gpu: int, tgid: int, start_ns: int, stop_ns: int) -> Runs:
        """What G did from one sleep on its queue to the next, of all sleeps in an interval, in order."""
        spans = self._timeline.spans(gpu, start_ns, stop_ns)
        kind, rw = spans["kind"], view(spans, RW)
        enters, ends = spans["enter_ns"].astype(np.int64), end_ns(spans).astype(np.int64)
        queue = (kind == Kind.READ) & ((spans["flags"] & Flag.EVENTFD) != 0)
        idle = queue | ((kind == Kind.EPOLL_WAIT) & ~np.isin(spans["op"], sorted(POLLS)))
        out = enters[(kind == Kind.OFFCPU) & (enters > start_ns) & (enters <= stop_ns)]
        at = np.searchsorted(ends[idle], out, side="right")
        asleep = out[np.append(enters[idle], np.iinfo(np.int64).max)[at] <= out]
        kicks = queue & (rw["ret"] == 8)
        taken, values = ends[kicks], np.append(0, np.cumsum(rw["value"][kicks].astype(np.int64)))
        done = ends[self._ended(spans, tgid)]
        first = np.searchsorted(taken, asleep, side="right")
        spare = np.diff(values[first]) - np.diff(np.searchsorted(done, asleep, side="right"))
        kick = np.append(taken, 0)[first[:-1]]
        return Runs(kick, asleep[1:], spare)

    def _ended(self, spans: Records, tgid: int) -> NDArray[np.bool_]:
        """What ends a command: a write that is no interrupt, an epoll_ctl, the waking of a condvar."""
        kind, rw, futex = spans["kind"], view(spans, RW), view(spans, FUTEX)
        irqs = sorted(self._roles.irq_ids.get(tgid, set()))
        writes = (kind == Kind.WRITE) & ~np.isin(rw["eventfd_id"], irqs)
        wakes = (kind == Kind.FUTEX) & np.isin(spans["op"] & FUTEX_CMD_MASK, (FUTEX_WAKE, FUTEX_WAKE_BITSET))
        words = [w for w in np.unique(futex["word"][wakes]).tolist() if not self._locks.is_lock(tgid, w)]
        rearms = wakes & np.isin(futex["word"], np.array(words, dtype=np.uint64))
        # A close is a command (a hang-up), but not of what was just written to or taken off epoll.
        closes = (kind == Kind.FD) & np.isin(spans["op"], sorted(CLOSE))
        calls = np.flatnonzero((kind != Kind.OFFCPU) & (kind != Kind.FUTEX))
        after = calls[1:][np.isin(kind[calls[:-1]], (Kind.WRITE, Kind.EPOLL_CTL))]
        closes[after] = False
        ended: NDArray[np.bool_] = writes | rearms | closes | (kind == Kind.EPOLL_CTL)
        return ended

    def _silent(self, gpu: int, tgid: int, since_ns: int, at_ns: int) -> Iterator[NDArray[np.int64]]:
        """When G woke each thread that was awake at a time: a command that wakes it left no trace then.

        Not W: Rust's condvar is woken by a system call whether or not anybody waits.
        """
        for tid in sorted(t.tid for t in self._registry.threads.values() if t.tgid == tgid):
            if tid == gpu or self._registry.role(tid) in ("vcpu", "W"):
                continue
            spans = self._timeline.spans(tid, since_ns, at_ns)
            off = view(spans[spans["kind"] == Kind.OFFCPU], OFFCPU)
            slept = off[(off["preempted"] == 0) & ((off["op"] & OFF_BY_ITSELF) != 0)]
            woken = np.where(slept["woken_ns"] > 0, slept["woken_ns"], end_ns(slept)).astype(np.int64)
            if not ((slept["enter_ns"] <= at_ns) & (woken > at_ns)).any():
                yield woken[slept["waker_tid"] == gpu]


def answered_later(cycle: Cycle) -> bool:
    """Whether the closing completion answers a later cycle: W read e_n again before it was written."""
    read = cycle.stream.wake.read
    if cycle.read_ns is None or cycle.write_enter_ns is None:
        return False
    i = read.after(cycle.read_ns)
    return i < len(read.end) and read.end[i] < cycle.write_enter_ns
