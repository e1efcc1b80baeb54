# SPDX-License-Identifier: Apache-2.0
"""How long guests and commands take, measured for many on-time cycles at once.

Owns the usual case only, on whole columns of records: W interrupts, the guest's kick wakes an idle G, G
writes the completion. It says exactly what path.py and commands.py say of such a cycle (a test holds it to
that), at a hundredth of the cost; of every other cycle it says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.commands import MEMORY_CALLS
from tracer.model.readings import CLOSE, also_idle, calls_among, idle_calls, wakings
from tracer.model.roles import Roles
from tracer.model.spans import END, ENTER, FLAGS, KIND, Columns
from tracer.model.streams import Cycle
from tracer.model.timeline import Timeline
from tracer.model.window import AFTER_NS
from tracer.schema import Flag, Kind

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

    def _calls(self, tid: int, start: int, stop: int) -> tuple[Columns, Columns]:
        track = self._timeline.track(tid, start)
        calls, offs = track.bounds(start, stop)
        return track.call_columns[:, slice(*calls)], track.off_columns[:, slice(*offs)]

    def _between(self, worker: int, gpu: int, cycles: Sequence[Cycle]) -> list[Answer | None]:
        start = min(c.nominal_ns for c in cycles) - BEFORE_NS
        stop = max(c.end_ns for c in cycles) + AFTER_NS
        read = np.array([c.read_ns for c in cycles], dtype=np.int64)
        first = np.array([c.write_enter_ns for c in cycles], dtype=np.int64)
        done = np.array([c.write_ns for c in cycles], dtype=np.int64)
        works = self._roles.other_waits(worker)
        irq = _interrupts(self._calls(worker, start, stop)[0], read, first, works)
        woken, foreign = _kicks(*self._calls(gpu, start, stop), parks=self._roles.parks(gpu))
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
    calls: Columns, read: NDArray[np.int64], first: NDArray[np.int64], works: Set[int]
) -> NDArray[np.int64]:
    """End of W's first eventfd write after each read, before its next choice and our write; 0 without one."""
    kind = calls[KIND]
    irqs = calls[END][(kind == Kind.WRITE) & ((calls[FLAGS] & Flag.EVENTFD) != 0)]
    waits = (kind == Kind.EPOLL_WAIT) & ~calls_among(calls, int(Kind.EPOLL_WAIT), works)
    chosen = calls[ENTER][waits]
    if not len(irqs):
        return np.zeros_like(read)
    irq = np.append(irqs, 0)[irqs.searchsorted(read, side="right")]
    bound = np.append(chosen, np.iinfo(np.int64).max)[chosen.searchsorted(read, side="left")]
    return np.where((irq <= first) & (irq <= bound), irq, 0)


def _kicks(
    calls: Columns, offs: Columns, *, parks: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """When G was woken out of its idle call, and the ends of what it did for somebody else."""
    idle, flagged = idle_calls(calls, also_idle(calls, parks=parks))
    own = calls[KIND] == Kind.FUTEX
    own[idle] = True
    own |= (calls[KIND] == Kind.FD) & ~calls_among(calls, int(Kind.FD), CLOSE)
    own |= calls_among(calls, int(Kind.SYSCALL), MEMORY_CALLS)
    return wakings(calls, flagged if len(flagged) else idle, offs), calls[END][~own]
