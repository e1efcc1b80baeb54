# SPDX-License-Identifier: Apache-2.0
"""The kicks that G read against the commands that it is seen to end, from one sleep to the next.

Owns that balance. A kick too many is a command that left no trace: one that wrote nothing, or somebody
else's that only computed. A guest that kicks once for several commands never shows one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.locks import Locks
from tracer.model.readings import CLOSE, POLLS
from tracer.model.roles import Roles
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


class Runs(NamedTuple):
    """G awake, run by run (n,): its first kick, asleep again (ns), kicks taken beyond commands ended."""

    kick: NDArray[np.int64]
    end: NDArray[np.int64]
    spare: NDArray[np.int64]

    def traceless(self, since_ns: int) -> tuple[int, int]:
        """The first kick since a time for which G ended no command, and when it slept again; 0, 0: none."""
        owed = 0  # a command may be taken before its kick is: the kick then comes alone
        for kick, end, spare in zip(self.kick.tolist(), self.end.tolist(), self.spare.tolist(), strict=True):
            owed += spare
            if owed > 0 and kick > since_ns:
                return int(kick), int(end)
            owed = min(owed, 0)
        return 0, 0


class KickRuns:
    """Counts kicks and commands of a G."""

    def __init__(self, timeline: Timeline, locks: Locks, roles: Roles) -> None:
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
