# SPDX-License-Identifier: Apache-2.0
"""Cycles that were not late but broken: a wakeup that was not forwarded, a command that wrote nothing.

Owns the evidence for both. Judges no delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
    RW,
    Flag,
    Kind,
    Records,
    end_ns,
    view,
)

#: On-time cycles needed to say what G does not do in them.
MIN_ON_TIME: Final = 8
#: Kicks without a command are evidence where fewer than this are expected in such a cycle.
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
        one, and when G went idle in between it had read more kicks than it had ended commands, one of
        them was ours; unless that happens in this VM by itself, with commands that leave no trace.
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
        idle = self._idle_before(gpu, cycle.read_ns, following)
        if not idle or self._spare(gpu, cycle.stream.tgid, [(cycle.read_ns, idle)])[0] <= 0:
            return ""
        begin = self._timeline.begin_ns
        served = [c for c in on_time if c.read_ns is not None and c.nominal_ns > begin]
        if len(served) < MIN_ON_TIME:
            return ""
        known = [(c.read_ns or 0, c.deadline_ns) for c in served]
        odd = sum(spare > 0 for spare in self._spare(gpu, cycle.stream.tgid, known))
        expected = odd / sum(high - low for low, high in known) * (idle - cycle.read_ns)
        return "no write: the guest kicked, G ran and wrote no completion" if expected < RARE else ""

    def _ran(self, gpu: int, cycle: Cycle) -> bool:
        """Whether G did anything but sleep and read its queue since W served the cycle."""
        since = cycle.read_ns or cycle.signal_ns
        kinds = self._timeline.spans(gpu, since, cycle.end_ns)["kind"]
        return bool(((kinds != Kind.READ) & (kinds != Kind.OFFCPU)).any())

    def _idle_before(self, gpu: int, start_ns: int, stop_ns: int) -> int:
        """When G last went to sleep on its queue in an interval, 0 if it did not."""
        spans = self._timeline.spans(gpu, start_ns, stop_ns)
        kind, enters, ends = spans["kind"], spans["enter_ns"].astype(np.int64), end_ns(spans).astype(np.int64)
        queue = (kind == Kind.READ) & ((spans["flags"] & Flag.EVENTFD) != 0)
        queue |= kind == Kind.EPOLL_WAIT
        out = enters[(kind == Kind.OFFCPU) & (enters > start_ns) & (enters <= stop_ns)]
        at = np.searchsorted(ends[queue], out, side="right")
        asleep = out[np.append(enters[queue], np.iinfo(np.int64).max)[at] <= out]
        return int(asleep[-1]) if len(asleep) else 0

    def _spare(self, gpu: int, tgid: int, windows: Sequence[tuple[int, int]]) -> list[int]:
        """Kicks that G read beyond the commands that it ended, per window (in order)."""
        spans = self._timeline.spans(gpu, windows[0][0], windows[-1][1])
        kind, rw, ends = spans["kind"], view(spans, RW), end_ns(spans).astype(np.int64)
        kicks = (kind == Kind.READ) & ((spans["flags"] & Flag.EVENTFD) != 0) & (rw["ret"] == 8)
        at, values = ends[kicks], np.append(0, np.cumsum(rw["value"][kicks].astype(np.int64)))
        done = ends[self._ended(spans, tgid)]
        edges = np.array(windows, dtype=np.int64)
        read = np.diff(values[np.searchsorted(at, edges, side="right")], axis=1)
        ended = np.diff(np.searchsorted(done, edges, side="right"), axis=1)
        spare: list[int] = (read - ended)[:, 0].tolist()
        return spare

    def _ended(self, spans: Records, tgid: int) -> NDArray[np.bool_]:
        """What ends a command: a write that is no interrupt, an epoll_ctl, the waking of a condvar."""
        kind, rw, futex = spans["kind"], view(spans, RW), view(spans, FUTEX)
        irqs = sorted(self._roles.irq_ids.get(tgid, set()))
        writes = (kind == Kind.WRITE) & ~np.isin(rw["eventfd_id"], irqs)
        wakes = (kind == Kind.FUTEX) & np.isin(spans["op"] & FUTEX_CMD_MASK, (FUTEX_WAKE, FUTEX_WAKE_BITSET))
        words = [w for w in np.unique(futex["word"][wakes]).tolist() if not self._locks.is_mutex(tgid, w)]
        rearms = wakes & np.isin(futex["word"], np.array(words, dtype=np.uint64))
        ended: NDArray[np.bool_] = writes | rearms | (kind == Kind.EPOLL_CTL)
        return ended


def answered_later(cycle: Cycle) -> bool:
    """Whether the closing completion answers a later cycle: W read e_n again before it was written."""
    read = cycle.stream.wake.read
    if cycle.read_ns is None or cycle.write_enter_ns is None:
        return False
    i = read.after(cycle.read_ns)
    return i < len(read.end) and read.end[i] < cycle.write_enter_ns
