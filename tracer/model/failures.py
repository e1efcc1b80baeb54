# SPDX-License-Identifier: Apache-2.0
"""Cycles that were not late but broken: a wakeup that was not forwarded, a command that wrote nothing.

Owns the evidence for both. Judges no delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.commands import IDLE_CALLS
from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.roles import Roles
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
#: Runs of G without any act are evidence where fewer than this are expected in a cycle.
RARE: Final = 0.05


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
        """Whether G took our command and wrote nothing, as a reason; "" if not (as far as can be told).

        With the guest late no kick comes. So where the completion that closed a cycle answers a later
        one, and in between a vCPU woke G, which did nothing at all and slept again, that was our command;
        unless such runs come by themselves in this VM.
        """
        if cycle.read_ns is None:
            return ""
        gpu = self._roles.gpu_worker(cycle.stream.tgid)
        if cycle.closing_ns is None:
            return "no write: G ran and wrote no completion" if gpu and self._ran(gpu, cycle) else ""
        if not gpu or not answered_later(cycle):
            return ""
        read = cycle.stream.wake.read
        following = read.end[read.after(cycle.read_ns)]
        if not len(self._blank_runs(gpu, cycle.stream.tgid, cycle.read_ns, following)):
            return ""
        known = [
            (c.read_ns, c.deadline_ns)
            for c in on_time
            if c.read_ns is not None and c.nominal_ns > self._timeline.begin_ns
        ]
        if len(known) < MIN_ON_TIME:
            return ""
        blank = self._blank_runs(gpu, cycle.stream.tgid, known[0][0], known[-1][1])
        within = sum(int(((blank > low) & (blank < high)).sum()) for low, high in known)
        usual = within / sum(high - low for low, high in known) * (following - cycle.read_ns)
        return "no write: the guest kicked, G ran and wrote no completion" if usual < RARE else ""

    def _ran(self, gpu: int, cycle: Cycle) -> bool:
        """Whether G did anything but sleep and read its queue since W served the cycle."""
        since = cycle.read_ns or cycle.signal_ns
        kinds = self._timeline.spans(gpu, since, cycle.end_ns)["kind"]
        return bool(((kinds != Kind.READ) & (kinds != Kind.OFFCPU)).any())

    def _blank_runs(self, gpu: int, tgid: int, start_ns: int, stop_ns: int) -> NDArray[np.int64]:
        """When in [start, stop) a vCPU woke an idle G that then did nothing but interrupt and slept again."""
        spans = self._timeline.spans(gpu, start_ns, stop_ns)
        kind, ends = spans["kind"], end_ns(spans).astype(np.int64)
        queue = np.isin(kind, IDLE_CALLS) & ((kind != Kind.READ) | ((spans["flags"] & Flag.EVENTFD) != 0))
        calls = np.flatnonzero(queue)
        off = view(spans.take(np.flatnonzero(kind == Kind.OFFCPU)), OFFCPU)
        woken = off["woken_ns"].astype(np.int64)
        at = np.searchsorted(ends[calls], woken, side="left")
        begun = np.append(spans["enter_ns"][calls].astype(np.int64), np.iinfo(np.int64).max)[at]
        idle = (woken > 0) & (begun <= off["enter_ns"].astype(np.int64))
        woken, off = woken[idle], off.take(np.flatnonzero(idle))
        by_vcpu = np.isin(off["waker_tid"], self._registry.with_role("vcpu", tgid)) & (
            off["waker_in_irq"] == 0
        )
        acts = ends[self._acts(spans, tgid) & ~queue]
        done = np.searchsorted(acts, woken, side="right")
        blank = np.append(done[1:] == done[:-1], False) if len(done) else np.zeros(0, dtype=bool)
        found: NDArray[np.int64] = woken[blank & by_vcpu & (woken >= start_ns)]
        return found

    def _acts(self, spans: Records, tgid: int) -> NDArray[np.bool_]:
        """Spans that do something for somebody: no sleeping, interrupting, or taking and leaving of locks."""
        kind, rw, futex = spans["kind"], view(spans, RW), view(spans, FUTEX)
        irqs = sorted(self._roles.irq_ids.get(tgid, set()))
        irq = (kind == Kind.WRITE) & np.isin(rw["eventfd_id"], irqs)
        wakes = (kind == Kind.FUTEX) & np.isin(spans["op"] & FUTEX_CMD_MASK, (FUTEX_WAKE, FUTEX_WAKE_BITSET))
        words = [w for w in np.unique(futex["word"][wakes]).tolist() if not self._locks.is_mutex(tgid, w)]
        rearms = wakes & np.isin(futex["word"], np.array(words, dtype=np.uint64))
        acts: NDArray[np.bool_] = (kind != Kind.OFFCPU) & ~irq & ((kind != Kind.FUTEX) | rearms)
        return acts


def answered_later(cycle: Cycle) -> bool:
    """Whether the closing completion answers a later cycle: W read e_n again before it was written."""
    read = cycle.stream.wake.read
    if cycle.read_ns is None or cycle.write_enter_ns is None:
        return False
    i = read.after(cycle.read_ns)
    return i < len(read.end) and read.end[i] < cycle.write_enter_ns
