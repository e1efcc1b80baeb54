# SPDX-License-Identifier: Apache-2.0
"""Cycles that were not late but broken: a wakeup that was not forwarded, a command that wrote nothing.

Owns the evidence for both. Judges no delay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.kickruns import KickRuns
from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.spans import OFF_BY_ITSELF
from tracer.model.streams import Cycle
from tracer.model.timeline import Timeline
from tracer.schema import OFFCPU, Kind, end_ns, view

#: On-time cycles needed to say what G does not do in them.
MIN_ON_TIME: Final = 8
#: A kick without a command is evidence where fewer than this share of on-time cycles have one as soon.
RARE: Final = 0.05
#: EINTR, EAGAIN: what was written is written next time.
_TRY_AGAIN: Final = (4, 11)
#: How far before a cycle's read G's sleeps are looked for.
BEFORE_NS: Final = 5_000_000


class Failures:
    """Looks for what failed in a cycle."""

    def __init__(self, registry: Registry, timeline: Timeline, locks: Locks, roles: Roles) -> None:
        self._registry = registry
        self._timeline = timeline
        self._roles = roles
        self._kicks = KickRuns(registry, timeline, locks, roles)

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
        # Ours only: to the stream's target, or (nothing having come) to an fd that is none any more.
        unnamed = cycle.write_ns is None or answered_later(cycle)
        failed = [
            (write.tid, write.errno)
            for write in self._timeline.failed_writes(start, cycle.end_ns)
            if write.tid in tids
            and write.errno not in _TRY_AGAIN
            and (write.eventfd == done or (unnamed and write.eventfd < 0))
        ]
        if failed:
            tid, errno = min(failed, key=lambda write: write[0])
            return f"a write by {self._registry.comm(tid)} failed with errno {errno}"
        return ""

    def unanswered(self, cycle: Cycle, on_time: Sequence[Cycle]) -> str:
        """Whether G took our command in time and wrote nothing, as a reason; "" if not, or not told.

        With the guest late no kick comes. So where the completion that closed a cycle answers a later
        one, and G had slept again before the deadline with more kicks taken than commands ended, one of
        them was ours; unless on-time cycles too have such kicks by then, of commands that leave no trace, or
        the kick is by a vCPU that hardly ever kicks for ours.
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
        runs = self._kicks.runs(gpu, cycle.stream.tgid, cycle.nominal_ns - BEFORE_NS, until)
        kick, end, kicker = runs.traceless(cycle.read_ns)
        if not kick:
            return ""
        begin = self._timeline.begin_ns
        reads = [c.read_ns for c in on_time if c.read_ns is not None and c.nominal_ns > begin]
        if len(reads) < MIN_ON_TIME:
            return ""
        edges = np.array(reads, dtype=np.int64)[:, None] + np.array([0, end - cycle.read_ns], dtype=np.int64)
        runs = self._kicks.runs(gpu, cycle.stream.tgid, int(edges[0, 0]), int(edges[-1, 1]))
        ours = runs.kickers([c.write_enter_ns for c in on_time if c.write_enter_ns and c.nominal_ns > begin])
        if kicker and ours.count(kicker) < RARE * len(ours):
            return ""
        for at in (runs.end[runs.spare > 0], *self._silent(gpu, cycle.stream.tgid, reads[0], kick)):
            within = np.diff(np.searchsorted(at, edges, side="right"), axis=1)
            if (within > 0).sum() >= RARE * len(reads):
                return ""
        return "no write: the guest kicked, G ran and wrote no completion"

    def _ran(self, gpu: int, cycle: Cycle) -> bool:
        """Whether G did anything but sleep and read its queue since W served the cycle."""
        since = cycle.read_ns or cycle.signal_ns
        kinds = self._timeline.spans(gpu, since, cycle.end_ns)["kind"]
        return bool(((kinds != Kind.READ) & (kinds != Kind.OFFCPU)).any())

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
