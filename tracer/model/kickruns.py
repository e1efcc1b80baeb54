# SPDX-License-Identifier: Apache-2.0
"""The kicks that G read against the commands that it is seen to end, from one sleep to the next.

Owns that balance. A kick too many is a command that left no trace: one that wrote nothing, or somebody
else's that only computed. A guest that kicks once for several commands never shows one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.callkinds import CLOSE, POLLS
from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.spans import OFF_BY_ITSELF
from tracer.model.timeline import Timeline
from tracer.schema import (
    EPOLL_CTL,
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


class Runs(NamedTuple):
    """G awake, run by run (n,): first kick, asleep again (ns), kicks of commands without a trace, its waker.

    ``alone``: it took one kick, so that was its waker's.
    """

    kick: NDArray[np.int64]
    end: NDArray[np.int64]
    spare: NDArray[np.int64]
    waker: NDArray[np.int64]
    alone: NDArray[np.bool_]

    def traceless(self, since_ns: int) -> tuple[int, int, int]:
        """The first kick since a time for which G ended no command, when it slept again, whose it was.

        Zeros: there is none, or nobody knows.
        """
        found = np.flatnonzero((self.spare > 0) & (self.kick > since_ns))[:1].tolist()
        for i in found:
            return int(self.kick[i]), int(self.end[i]), int(self.waker[i]) if self.alone[i] else 0
        return 0, 0, 0

    def kickers(self, done_ns: Sequence[int]) -> list[int]:
        """Who woke G for the commands that ended at these times, where that is known."""
        at = np.searchsorted(self.end, np.array(done_ns, dtype=np.int64))
        return [tid for tid in self.waker[at[at < len(self.end)]].tolist() if tid]


class KickRuns:
    """Counts kicks and commands of a G."""

    def __init__(self, registry: Registry, timeline: Timeline, locks: Locks, roles: Roles) -> None:
        self._registry = registry
        self._timeline = timeline
        self._locks = locks
        self._roles = roles

    def runs(self, gpu: int, tgid: int, start_ns: int, stop_ns: int) -> Runs:
        """What G did from one sleep on its queue to the next, of all sleeps in an interval, in order."""
        spans = self._timeline.spans(gpu, start_ns, stop_ns)
        kind, rw = spans["kind"], view(spans, RW)
        enters, ends = spans["enter_ns"].astype(np.int64), end_ns(spans).astype(np.int64)
        queue = (kind == Kind.READ) & ((spans["flags"] & Flag.EVENTFD) != 0)
        idle = queue | ((kind == Kind.EPOLL_WAIT) & ~np.isin(spans["op"], sorted(POLLS)))
        off = np.flatnonzero((kind == Kind.OFFCPU) & (enters <= stop_ns))  # the one over the start included
        at = np.searchsorted(ends[idle], enters[off], side="right")
        off = off[np.append(enters[idle], np.iinfo(np.int64).max)[at] <= enters[off]]
        asleep, woken = enters[off], view(spans, OFFCPU)["woken_ns"][off].astype(np.int64)
        kicks = queue & (rw["ret"] == 8)
        taken, values = ends[kicks], np.append(0, np.cumsum(rw["value"][kicks].astype(np.int64)))
        done = ends[self._ended(spans, tgid)]
        first = np.searchsorted(taken, asleep, side="right")
        beyond = np.diff(values[first]) - np.diff(np.searchsorted(done, asleep, side="right"))
        kick = np.append(taken, 0)[first[:-1]]
        spare, owed = (
            np.zeros_like(beyond),
            0,
        )  # a command may be taken before its kick: that then comes alone
        even = self._all_slept(tgid, asleep[:-1], woken[:-1]) if len(kick) else ()
        for i, (more, settled) in enumerate(zip(beyond.tolist(), even, strict=True)):
            owed = more + (0 if settled else owed)
            spare[i], owed = max(owed, 0), min(owed, 0)
        waker = view(spans, OFFCPU)["waker_tid"][off].astype(np.int64)
        return Runs(kick, asleep[1:], spare, waker[:-1], np.diff(values[first]) == 1)

    def _all_slept(self, tgid: int, since: NDArray[np.int64], until: NDArray[np.int64]) -> NDArray[np.bool_]:
        """In which of G's sleeps every vCPU slept at some time: none then still owes a kick of before."""
        every = np.ones(len(since), dtype=np.bool_)
        tids = self._roles.vcpus(tgid)
        for tid in tids:
            spans = self._timeline.spans(tid, int(since[0]), int(until.max()))
            off = view(spans[spans["kind"] == Kind.OFFCPU], OFFCPU)
            off = off[(off["preempted"] == 0) & ((off["op"] & OFF_BY_ITSELF) != 0)]
            begin = np.append(off["enter_ns"].astype(np.int64), np.iinfo(np.int64).max)
            back = np.where(off["woken_ns"] > 0, off["woken_ns"], end_ns(off)).astype(np.int64)
            every &= begin[np.searchsorted(back, since, side="right")] < until
        return every & bool(tids)

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
        before, fd = calls[:-1], np.where(kind == Kind.EPOLL_CTL, view(spans, EPOLL_CTL)["fd"], rw["fd"])
        same = np.isin(kind[before], (Kind.WRITE, Kind.EPOLL_CTL)) & (fd[before] == fd[calls[1:]])
        closes[calls[1:][same]] = False
        ended: NDArray[np.bool_] = writes | rearms | closes | (kind == Kind.EPOLL_CTL)
        return ended
