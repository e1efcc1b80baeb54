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

from tracer.model.callkinds import CLOSE, also_idle, calls_among, idle_calls, wakings
from tracer.model.commands import MEMORY_CALLS
from tracer.model.roles import Roles
from tracer.model.spans import END, ENTER, FLAGS, KIND, Columns
from tracer.model.streams import Cycle
from tracer.model.timeline import Timeline
from tracer.model.track import Track
from tracer.model.window import AFTER_NS, RECENT_NS
from tracer.schema import Flag, Kind

_WRITE, _EPOLL_WAIT, _EVENTFD = int(Kind.WRITE), int(Kind.EPOLL_WAIT), int(Flag.EVENTFD)
_FUTEX, _FD, _SYSCALL = int(Kind.FUTEX), int(Kind.FD), int(Kind.SYSCALL)

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
        self._workers: dict[int, tuple[Track, _Interrupts]] = {}
        self._gpus: dict[int, tuple[Track, _Kicks]] = {}

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

    def forget(self) -> None:
        """There are more records: what was read may be read otherwise now."""
        self._workers.clear()
        self._gpus.clear()

    def _interrupts(self, tid: int, start: int, stop: int) -> _Interrupts:
        track = self._timeline.track(tid, start)
        (low, high), _ = track.bounds(start, stop)
        works = self._roles.other_waits(tid)
        if track.until_ns - stop > RECENT_NS:
            return _interrupts(track.calls.columns[:, low:high], low, works)
        known = self._workers.get(tid)
        if known is None or known[0] is not track or known[1].low > low:
            known = self._workers[tid] = (track, _interrupts(track.calls.columns[:, low:], low, works))
        return known[1]

    def _kicks(self, tid: int, start: int, stop: int) -> _Kicks:
        track = self._timeline.track(tid, start)
        (low, high), (first, last) = track.bounds(start, stop)
        calls, offs, parks = track.calls.columns, track.offs.columns, self._roles.parks(tid)
        if track.until_ns - stop <= RECENT_NS:
            known = self._gpus.get(tid)
            if known is None or known[0] is not track or known[1].low > low:
                known = self._gpus[tid] = (track, _kicks(calls[:, low:], offs[:, first:], low, parks=parks))
            i = known[1].sure.searchsorted(low)
            if i < len(known[1].sure) and known[1].sure[i] < high:
                return known[1]
        return _kicks(calls[:, low:high], offs[:, first:last], low, parks=parks)

    def _between(self, worker: int, gpu: int, cycles: Sequence[Cycle]) -> list[Answer | None]:
        start = min(c.nominal_ns for c in cycles) - BEFORE_NS
        stop = max(c.end_ns for c in cycles) + AFTER_NS
        read = np.array([c.read_ns for c in cycles], dtype=np.int64)
        first = np.array([c.write_enter_ns for c in cycles], dtype=np.int64)
        done = np.array([c.write_ns for c in cycles], dtype=np.int64)
        irq = self._interrupts(worker, start, stop).of(read, first)
        _, woken, foreign, _ = self._kicks(gpu, start, stop)
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


class _Interrupts(NamedTuple):
    """What W's syscalls from one (``low``) on say: ends of its eventfd writes, begins of its choices."""

    low: int
    irqs: NDArray[np.int64]
    chosen: NDArray[np.int64]

    def of(self, read: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
        """End of the first interrupt after each read, before the next choice and our write; 0 without one."""
        irq = np.append(self.irqs, 0)[self.irqs.searchsorted(read, side="right")]
        bound = np.append(self.chosen, np.iinfo(np.int64).max)[self.chosen.searchsorted(read, side="left")]
        return np.where((irq <= first) & (irq <= bound), irq, 0)


class _Kicks(NamedTuple):
    """What G's syscalls from one (``low``) on say.

    Attributes:
        woken: when it was woken out of its idle call; foreign: ends of what it did for somebody else.
        sure: places of the calls that are for its queue beyond doubt.
    """

    low: int
    woken: NDArray[np.int64]
    foreign: NDArray[np.int64]
    sure: NDArray[np.int64]


def _interrupts(calls: Columns, low: int, works: Set[int]) -> _Interrupts:
    irqs = calls[END][(calls[KIND] == _WRITE) & ((calls[FLAGS] & _EVENTFD) != 0)]
    waits = (calls[KIND] == _EPOLL_WAIT) & ~calls_among(calls, _EPOLL_WAIT, works)
    return _Interrupts(low, irqs, calls[ENTER][waits])


def _kicks(calls: Columns, offs: Columns, low: int = 0, *, parks: bool = False) -> _Kicks:
    idle, flagged = idle_calls(calls, also_idle(calls, parks=parks))
    own = calls[KIND] == _FUTEX
    own[idle] = True
    own |= (calls[KIND] == _FD) & ~calls_among(calls, _FD, CLOSE)
    own |= calls_among(calls, _SYSCALL, MEMORY_CALLS)
    woken = wakings(calls, flagged if len(flagged) else idle, offs)
    return _Kicks(low, woken, calls[END][~own], flagged + low)
