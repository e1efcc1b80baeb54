# SPDX-License-Identifier: Apache-2.0
"""How long guests and commands take, measured for many on-time cycles at once.

Owns the usual case only, on whole columns of records: W interrupts, the guest's kick wakes an idle G, G
writes the completion. It says exactly what path.py and commands.py say of such a cycle (a test holds it to
that), at a hundredth of the cost; of every other cycle it says nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.commands import MEMORY_CALLS
from tracer.model.readings import CLOSE, IDLE_CALLS, POLLS
from tracer.model.roles import MUTEX_CONTENDED, Roles
from tracer.model.spans import OFF_BY_ITSELF
from tracer.model.streams import Cycle
from tracer.model.timeline import Timeline
from tracer.model.window import AFTER_NS
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

#: How far before a cycle spans are looked at.
BEFORE_NS: Final = 5_000_000


class Answer(NamedTuple):
    """From the interrupt to the kick, and from there to the end of the completion's write.

    ``exact``: the kick was seen, so the two are known.
    """

    exact: bool
    guest_ns: int = 0
    command_ns: int = 0


class Answers:
    """Measures on-time cycles of one stream."""

    def __init__(self, timeline: Timeline, roles: Roles) -> None:
        self._timeline = timeline
        self._roles = roles

    def measure(self, cycles: Sequence[Cycle]) -> list[Answer | None]:
        """An answer per cycle; None where it is not the usual case."""
        answers: list[Answer | None] = [None] * len(cycles)
        by_threads: dict[tuple[int, int], list[int]] = {}
        for i, cycle in enumerate(cycles):
            gpu = self._roles.gpu_worker(cycle.stream.tgid, cycle.writer_tid)
            if (
                cycle.write_enter_ns is not None
                and cycle.read_ns is not None
                and cycle.write_enter_ns > cycle.read_ns
                and gpu
                and cycle.writer_tid == gpu
            ):
                by_threads.setdefault((cycle.reader_tid or cycle.stream.context, gpu), []).append(i)
        for (worker, gpu), at in by_threads.items():
            for i, answer in zip(at, self._between(worker, gpu, [cycles[i] for i in at]), strict=True):
                answers[i] = answer
        return answers

    def _between(self, worker: int, gpu: int, cycles: Sequence[Cycle]) -> list[Answer | None]:
        start = min(c.nominal_ns for c in cycles) - BEFORE_NS
        stop = max(c.end_ns for c in cycles) + AFTER_NS
        read = np.array([c.read_ns for c in cycles], dtype=np.int64)
        first = np.array([c.write_enter_ns for c in cycles], dtype=np.int64)
        done = np.array([c.write_ns for c in cycles], dtype=np.int64)
        works = self._roles.other_waits(worker)
        irq = _interrupts(self._timeline.spans(worker, start, stop), read, first, works)
        woken, foreign = _kicks(self._timeline.spans(gpu, start, stop), parks=self._roles.parks(gpu))
        last = np.searchsorted(woken, first, side="right") - 1
        kick = np.where(last >= 0, woken[np.maximum(last, 0)], 0) if len(woken) else np.zeros_like(first)
        # G worked for somebody else between the kick and our write: when ours was kicked is not known.
        others = np.searchsorted(foreign, first, side="right") > np.searchsorted(foreign, kick, side="right")
        exact = (kick > irq) & ~others
        return [
            None if at <= 0 else Answer(True, k - at, end - k) if sure else Answer(False)
            for at, k, end, sure in zip(
                irq.tolist(), kick.tolist(), done.tolist(), exact.tolist(), strict=True
            )
        ]


def _interrupts(
    spans: Records, read: NDArray[np.int64], first: NDArray[np.int64], works: Collection[int]
) -> NDArray[np.int64]:
    """End of W's first eventfd write after each read, before its next choice and our write; 0 without one."""
    kind, ends = spans["kind"], end_ns(spans).astype(np.int64)
    irqs = ends[(kind == Kind.WRITE) & ((spans["flags"] & Flag.EVENTFD) != 0)]
    waits = (kind == Kind.EPOLL_WAIT) & ~np.isin(spans["op"], sorted(works))
    chosen = spans["enter_ns"][waits].astype(np.int64)
    if not len(irqs):
        return np.zeros_like(read)
    at = np.searchsorted(irqs, read, side="right")
    irq = np.where(at < len(irqs), irqs[np.minimum(at, len(irqs) - 1)], 0)
    later = np.searchsorted(chosen, read, side="left")
    bound = np.append(chosen, np.iinfo(np.int64).max)[later]
    return np.where((irq <= first) & (irq <= bound), irq, 0)


def _kicks(spans: Records, *, parks: bool = False) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """When G was woken out of its idle call, and the ends of what it did for somebody else."""
    kind, ends, enters = spans["kind"], end_ns(spans).astype(np.int64), spans["enter_ns"].astype(np.int64)
    idle = np.isin(kind, IDLE_CALLS) & ((kind == Kind.READ) | ~np.isin(spans["op"], sorted(POLLS)))
    if parks:
        futex = view(spans, FUTEX)
        waits = np.isin(spans["op"] & FUTEX_CMD_MASK, (FUTEX_WAIT, FUTEX_WAIT_BITSET))
        idle |= (kind == Kind.FUTEX) & waits & (futex["expected"] != MUTEX_CONTENDED)
    call = np.flatnonzero(kind != Kind.OFFCPU)
    polls = (kind == Kind.EPOLL_WAIT) & np.isin(spans["op"], sorted(POLLS))
    takes = (kind == Kind.READ) & ((spans["flags"] & Flag.EVENTFD) != 0)
    idle[call[:-1][polls[call[:-1]] & takes[call[1:]]]] = True
    flagged = idle & ((kind != Kind.READ) | ((spans["flags"] & Flag.EVENTFD) != 0))
    calls = flagged if flagged.any() else idle
    off = view(spans.take(np.flatnonzero(kind == Kind.OFFCPU)), OFFCPU)
    slept = (off["woken_ns"] > 0) & (off["preempted"] == 0) & ((off["op"] & OFF_BY_ITSELF) != 0)
    off = off.take(np.flatnonzero(slept))
    woken = off["woken_ns"].astype(np.int64)
    at = np.searchsorted(ends[calls], woken, side="left")
    begun = np.append(enters[calls], np.iinfo(np.int64).max)[at]
    woken = woken[begun <= off["enter_ns"].astype(np.int64)]
    rw = view(spans, RW)
    own = (kind == Kind.FD) & ~np.isin(rw["op"], sorted(CLOSE))
    own |= (kind == Kind.SYSCALL) & np.isin(rw["op"], sorted(MEMORY_CALLS))
    foreign = ~own & ~idle & (kind != Kind.OFFCPU) & (kind != Kind.FUTEX)
    return woken, ends[foreign]
