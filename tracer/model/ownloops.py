# SPDX-License-Identifier: Apache-2.0
"""Data loops inside a VMM's own process: threads that a timer wakes to signal another one.

In the circle of eventfds (driver, worker, guest, command thread, driver) everybody writes at the
audio period, and everybody is woken by the one before; only the driver is by a timer. Owns
telling it by that, and by its being answered: other timers of a process signal too (a display's,
a runtime's), but wait for nothing in return. Streams and cycles are not its business.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.untimed import LAST_SIGNALS, period_of
from tracer.schema import OFFCPU, Flag, Kind, Records, end_ns, view

#: Signals from which on they are asked whether they are a driver's, and how often again.
MIN_SIGNALS: Final = 24
#: Share of the signals that a timer's waking must precede.
MIN_TIMED: Final = 0.7
#: Answers (reads of eventfds that other threads write) that a driver has, by its signals.
MIN_ANSWERED: Final = 0.5
_MAX_WRITERS: Final = 4096


@dataclass(slots=True)
class _Signals:
    """What one thread did with one eventfd: when it wrote, and whether a timer had woken it for that."""

    times: deque[int] = field(default_factory=lambda: deque(maxlen=LAST_SIGNALS))
    timed: deque[bool] = field(default_factory=lambda: deque(maxlen=LAST_SIGNALS))
    judged: int = 0
    total: int = 0


class OwnLoops:
    """Finds them.

    Attributes:
        tids: those found so far.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.tids: set[int] = set()
        self._signals: dict[tuple[int, int], _Signals] = {}
        self._readers: dict[int, set[int]] = {}
        self._writers: dict[int, set[int]] = {}
        self._answers: Counter[int] = Counter()  # by thread
        self._pollers: set[int] = set()

    def step(self, step: Step, rw: Records, tgids: NDArray[np.uint32], vmms: Collection[int]) -> None:
        """Take over one step.

        Args:
            rw: its eventfd reads and writes (dtype RW); tgids: (n,) of their threads.
            vmms: those without a stream so far; others are not looked at.
        """
        self.tids &= self._registry.threads.keys()
        if not vmms:
            self._signals.clear()
            self._readers.clear()
            self._writers.clear()
            self._answers.clear()
            return
        self._pollers.update(np.unique(step.of(Kind.EPOLL_WAIT)["tid"]).tolist())
        self._pollers &= self._registry.threads.keys()
        rows = rw.take(np.flatnonzero(np.isin(tgids, list(vmms))))
        is_write = rows["kind"] == Kind.WRITE
        writes, reads = rows.take(np.flatnonzero(is_write)), rows.take(np.flatnonzero(~is_write))
        for users, part in ((self._readers, reads), (self._writers, writes)):
            for number, tid in set(zip(part["eventfd_id"].tolist(), part["tid"].tolist(), strict=True)):
                users.setdefault(number, set()).add(tid)
        for number, tid in zip(reads["eventfd_id"].tolist(), reads["tid"].tolist(), strict=True):
            self._answers[tid] += bool(self._writers.get(number, set()) - {tid})
        for tid in np.unique(writes["tid"]).tolist():
            if self._registry.role(tid) in ("", "D"):
                self._take(step, tid, writes.take(np.flatnonzero(writes["tid"] == tid)))
        while len(self._signals) > _MAX_WRITERS:
            del self._signals[next(iter(self._signals))]
        for users in (self._readers, self._writers):
            while len(users) > _MAX_WRITERS:
                del users[next(iter(users))]

    def _take(self, step: Step, tid: int, writes: Records) -> None:
        by_timer = _by_timer(step.threads.of(tid))
        last = np.searchsorted(by_timer, writes["enter_ns"], side="right") - 1
        for row, at in zip(writes, last.tolist(), strict=True):
            key, enter = (tid, int(row["eventfd_id"])), int(row["enter_ns"])
            signals = self._signals.setdefault(key, _Signals())
            since = signals.times[-1] if signals.times else 0
            signals.times.append(enter)
            signals.timed.append(at >= 0 and int(by_timer[at]) > since)
            signals.total += 1
            if signals.total >= max(MIN_SIGNALS, signals.judged + MIN_SIGNALS // 2):
                signals.judged = signals.total
                if self._drives(tid, key[1], signals):
                    self.tids.add(tid)

    def _drives(self, tid: int, number: int, signals: _Signals) -> bool:
        """Whether they are a driver's: at a period, by a timer, to a thread that polls, and answered."""
        waiting = (self._readers.get(number, set()) & self._pollers) - {tid}
        timed = sum(signals.timed) >= MIN_TIMED * len(signals.timed)
        answered = self._answers[tid] >= MIN_ANSWERED * signals.total
        return bool(waiting) and timed and answered and period_of(list(signals.times)) > 0


def _by_timer(spans: Records) -> NDArray[np.uint64]:
    """When a timer had woken a thread, or it read one: times (n,), ascending, from its spans."""
    off = view(spans.take(np.flatnonzero(spans["kind"] == Kind.OFFCPU)), OFFCPU)
    off = off.take(np.flatnonzero((off["woken_ns"] > 0) & (off["waker_in_irq"] != 0)))
    is_tick = (spans["kind"] == Kind.READ) & ((spans["flags"] & Flag.TIMERFD) != 0)
    return np.sort(np.concatenate([end_ns(off), end_ns(spans.take(np.flatnonzero(is_tick)))]))
