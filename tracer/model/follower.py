# SPDX-License-Identifier: Apache-2.0
"""One inferred stream: its reads, put on the grid of its period, become cycles.

A read of value v answers exactly v wakeups. If W slept, the first came when it was woken;
else they are the next v slots of the grid, as far as the grid has them. What does not
fit is held until later reads say whether the period has changed. Owns that bookkeeping.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tracer.model.cadence import TOLERANCE, Cadence, Grid, find_cadence, fold
from tracer.model.choices import Choice
from tracer.model.cycles import Cycle, Stream
from tracer.model.eventfds import Eventfd
from tracer.schema import Records

#: Reads kept of an eventfd.
KEEP_READS: Final = 512
#: Reads looked at for a cadence.
CADENCE_OF: Final = 64
#: Reads after one that fits no slot, or time, before it is judged: it may be the first of a new period.
HOLD_READS: Final = 16
HOLD_NS: Final = 1_000_000_000
#: A gap of so many slots may bring another phase, or another stream.
GAP_SLOTS: Final = 4
#: Cycles at which confidence is half of the share of reads on the grid.
HALF_SURE: Final = 8
#: It is told again after so many reads.
SURE_AGAIN: Final = 8
#: A value beyond this is no count of wakeups.
MAX_VALUE: Final = 100_000


@dataclass(slots=True)
class Watch:
    """The last reads of one eventfd, by threads that had chosen it by epoll.

    ``woken``: when the reader was woken for it, 0 if it did not sleep; ``waker``: by whom.
    ``domestic``, ``foreign``: wakings by the VMM itself (or in an interrupt), and by others.
    """

    tgid: int
    eventfd: Eventfd
    enter: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    tid: list[int] = field(default_factory=list)
    value: list[int] = field(default_factory=list)
    woken: list[int] = field(default_factory=list)
    waker: list[int] = field(default_factory=list)
    domestic: int = 0
    foreign: int = 0
    judged: int = 0
    total: int = 0

    @property
    def last_ns(self) -> int:
        """End of the last read."""
        return self.end[-1] if self.end else 0

    def add(self, row: Records, choice: Choice) -> None:
        """Append one read (a row of dtype RW) and the choice before it."""
        enter = int(row["enter_ns"])
        self.enter.append(enter)
        self.end.append(enter + int(row["dur_ns"]))
        self.tid.append(int(row["tid"]))
        self.value.append(min(max(int(row["value"]), 1), MAX_VALUE))
        domestic = choice.woken_ns and (choice.in_irq or choice.waker_tgid == self.tgid)
        foreign = choice.woken_ns and not domestic
        self.domestic += bool(domestic)
        self.foreign += bool(foreign)
        self.woken.append(choice.woken_ns if foreign else 0)
        self.waker.append(choice.waker if foreign else 0)
        self.total += 1

    def loop(self) -> int:
        """The thread that usually wakes the reader, 0 where unseen: the server's data loop."""
        votes = Counter(w for w in self.waker[-CADENCE_OF:] if w)
        return min(votes, key=lambda t: (-votes[t], t)) if votes else 0

    def anchors(self, first: int) -> NDArray[np.int64]:
        """When each wakeup came: the waking, else the read; of the last reads, from index ``first`` on."""
        low = max(first, len(self.enter) - CADENCE_OF)
        woken: NDArray[np.int64] = np.array(self.woken[low:], dtype=np.int64)
        return np.where(woken > 0, woken, np.array(self.enter[low:], dtype=np.int64))

    def cadence(self, first: int, period: tuple[int, int] | None) -> Cadence | None:
        """The cadence of the last reads, of those from index ``first`` on; None if it is none of audio."""
        low = max(first, len(self.enter) - CADENCE_OF)
        return find_cadence(self.anchors(low), np.array(self.value[low:], dtype=np.int64), period)

    def forget(self, n: int) -> None:
        """Drop the first reads."""
        for column in (self.enter, self.end, self.tid, self.value, self.woken, self.waker):
            del column[:n]


@dataclass(slots=True)
class Follower:
    """An inferred stream on its grid.

    Confidence is the share of the last 64 reads that lie in one eighth of the period, times n / (n + 8)
    after n cycles.
    """

    watch: Watch
    stream: Stream
    grid: Grid
    next: int = 0  # index in watch of the first read not taken over
    slot: int | None = None  # of the last signal
    renewed: bool = False
    _sure_at: int = 0
    _gaps: deque[bool] = field(default_factory=lambda: deque(maxlen=HOLD_READS))
    _loop: int = 0

    def follow(self, now_ns: int, period: tuple[int, int] | None) -> Cadence | Literal["renewed"] | None:
        """Turn new reads into pending cycles.

        Returns:
            None: done. A cadence: from ``next`` on the stream has this one; ``switch`` and call again.
            "renewed": from ``next`` on the eventfd is another one.
        """
        watch = self.watch
        self._loop = watch.loop()
        while self.next < len(watch.enter):
            i = self.next
            first, count, surplus = self._slots(i)
            gap = self.slot is not None and first > self.slot + 1
            if self.renewed and self.slot is not None and first > self.slot + GAP_SLOTS:
                return "renewed"
            if surplus:
                later = len(watch.enter) - i
                if later < HOLD_READS and now_ns < watch.end[i] + HOLD_NS:
                    break
                found = watch.cadence(i, period) if later >= HOLD_READS else None
                if found is not None and self._differs(found):
                    return found
            self._take(i, first, count, surplus)
            self._gaps.append(gap)
            self.next += 1
        if sum(self._gaps) * 2 >= HOLD_READS and self.next == len(watch.enter) >= HOLD_READS:
            found = watch.cadence(len(watch.enter) - HOLD_READS, period)
            if found is not None and self._differs(found):
                self._gaps.clear()
                return found
        if self.next > KEEP_READS:
            watch.forget(self.next - CADENCE_OF)
            self.next = CADENCE_OF
        if watch.total > self._sure_at:
            self._sure_at = watch.total + SURE_AGAIN
            n = self.stream.taken_over
            share = fold(watch.anchors(0), self.grid.quantum * 1e9 / self.grid.rate)[0]
            self.stream.confidence = round(share * n / (n + HALF_SURE), 3)
        return None

    def _differs(self, found: Cadence) -> bool:
        return found.quantum * self.grid.rate != self.grid.quantum * found.rate

    def switch(self, grid: Grid) -> None:
        """Go on with another grid."""
        if not grid.total and self.slot is not None:
            grid.base = self.slot + 2
            grid.last = self.slot + 1
        self.slot = None
        self.grid = self.stream.driver = grid
        self._gaps.clear()

    def rest(self) -> Watch:
        """The reads that were not taken over, as of another eventfd."""
        watch = self.watch
        watch.forget(self.next)
        rest = Watch(watch.tgid, Eventfd(watch.eventfd.id, watch.enter[0] if watch.enter else 0))
        rest.enter, rest.end, rest.tid, rest.value = watch.enter, watch.end, watch.tid, watch.value
        rest.woken, rest.waker, rest.total = watch.woken, watch.waker, len(watch.enter)
        return rest

    def _woken(self, i: int) -> int:
        """When the data loop woke W for a read, 0 if W did not sleep (or for another reason)."""
        return self.watch.woken[i] if self.watch.waker[i] == self._loop else 0

    def _slots(self, i: int) -> tuple[int, int, int]:
        """(first slot, slots, surplus) that the wakeups of a read take; surplus ones have no slot left."""
        grid, enter, woken = self.grid, self.watch.enter[i], self._woken(i)
        value = self.watch.value[i] if self.slot is not None else 1
        high = grid.before(enter, TOLERANCE)
        if woken:
            at = grid.before(woken, TOLERANCE)  # a driver is late, hardly ever early
            if self.slot is not None and at > self.slot + GAP_SLOTS and not grid.on_grid(woken):
                grid.rephase(woken)
                at = grid.before(woken, TOLERANCE)
            first = at if self.slot is None else max(at, self.slot + 1)
            high = max(high, at)
        else:
            low = grid.before(enter, -TOLERANCE)
            first = high if self.slot is None else max(self.slot + 1, low - value + 1)
        surplus = max(0, first + value - 1 - high)
        return first, value - surplus, surplus

    def _take(self, i: int, first: int, count: int, surplus: int) -> None:
        """Make the cycles of one read."""
        watch, grid, stream = self.watch, self.grid, self.stream
        woken, enter = self._woken(i), watch.enter[i]
        if woken and count > 0 and grid.before(woken, TOLERANCE) == first:
            grid.mark(first, woken)
        for slot in range(first, first + max(count, 0)):
            signal = woken if woken and slot == first else min(grid.at(slot), enter)
            start = min(grid.start_of(slot), signal)
            self._append(Cycle(stream, grid, slot, min(grid.at(slot), start), start, signal, signal), i)
            grid.use(slot)
            self.slot = slot
        # Wakeups that no slot is left for: the driver caught up. Read one by one they are no misses.
        for _ in range(min(surplus, watch.value[i] - 1)):
            at = max(stream.last_signal_ns, min(grid.start_of(self.slot or first), enter))
            self._append(Cycle(stream, grid, self.slot or first, at, at, at, at, at + 1), i)
            grid.events["catch_up"] += 1
        if stream.taken_over > 1:
            stream.overruns += watch.value[i] - 1
        stream.context = watch.tid[i]

    def _append(self, cycle: Cycle, i: int) -> None:
        watch, stream = self.watch, self.stream
        cycle.read_enter_ns, cycle.read_ns, cycle.reader_tid = watch.enter[i], watch.end[i], watch.tid[i]
        stream.pending.append(cycle)
        stream.taken_over += 1
        stream.last_signal_ns = max(stream.last_signal_ns, cycle.signal_ns)
        stream.held_since_ns = stream.held_since_ns or cycle.signal_ns
