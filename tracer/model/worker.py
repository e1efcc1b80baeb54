# SPDX-License-Identifier: Apache-2.0
"""W in one window: its choices, interrupts and waits for re-arm, in order.

Owns the reading of one worker's spans as turns. Decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from tracer.model.streams import Cycle
from tracer.model.window import Window
from tracer.model.workerreading import OTHER_STREAMS, Wait, WorkerReading

_NEVER: Final = 1 << 62


class Worker:
    """W in one window: its choices, interrupts and waits for re-arm, in order."""

    def __init__(self, window: Window, tid: int, reading: WorkerReading) -> None:
        self.tid = tid
        self.window = window
        self._track = track = window.track(tid)
        (low, high), (off_low, off_high) = window.bounds(tid)
        low, high = low + track.calls.gone, high + track.calls.gone
        self._first_off, self._last_off = off_low + track.offs.gone, off_high + track.offs.gone
        some = reading.choices.within(low, high)
        self.choice_ends = reading.choices.ends[some]
        self._choice_begins = reading.choices.begins[some]
        self.irqs = reading.irqs.ends[reading.irqs.within(low, high)]
        self._reading, self._works = reading, reading.works.within(low, high)
        some = reading.parked.within(low, high)
        self.parked: list[Wait] = reading.parked.waits[some]
        self._parked_ends = reading.parked.ends[some]
        some = reading.within.within(low, high)
        within = reading.within.waits[some]
        if len(within) > len(self.parked):
            # A worker that waits there in most turns is re-armed there.
            self.parked = sorted([*self.parked, *within])
            self._parked_ends = [wait.end for wait in self.parked]
            within = []
        #: When its waits within its turns began.
        self.within = frozenset([wait.enter for wait in within])

    def chose_after(self, i: int, at_ns: int) -> bool:
        """Whether the choice at some place among those of the window began after a time."""
        return i < len(self._choice_begins) and self._choice_begins[i] > at_ns

    def irq_before(self, after_ns: int, before_ns: int) -> int:
        """End of the last interrupt write in (after, before], 0 where none."""
        i = bisect_right(self.irqs, before_ns) - 1
        return self.irqs[i] if i >= 0 and self.irqs[i] > after_ns else 0

    def irq_of_turn(self, read_ns: int, before_ns: int) -> int:
        """End of the first interrupt write after a read and before W's next choice, 0 where none."""
        return self._reading.irq_of_turn(read_ns, before_ns)

    def answers_itself(self, cycle: Cycle) -> bool:
        """Whether W wrote a cycle's completion in the turn in which it read the signal, with nothing asked
        of anybody in between: neither another choice, nor a wait that is no lock's, nor a kick's read."""
        read, write = cycle.read_ns, cycle.write_enter_ns
        if read is None or write is None or cycle.writer_tid != self.tid or self.turn_end(read) < write:
            return False
        return not any(what[0] == OTHER_STREAMS for what in self._served_in(read, write))

    def turn_end(self, read_ns: int) -> int:
        """When W next chose or waited for somebody after a read; a far time where it did not."""
        later = bisect_left(self._choice_begins, read_ns)
        chosen = self._choice_begins[later] if later < len(self._choice_begins) else _NEVER
        parked = bisect_left(self.parked, (read_ns,))
        return min(chosen, self.parked[parked].enter if parked < len(self.parked) else _NEVER)

    def goes_on(self, at_ns: int) -> bool:
        """Whether W served something else before it next waited for anybody."""
        return bool(self._served_in(at_ns, self.turn_end(at_ns)))

    def _served_in(self, after_ns: int, before_ns: int) -> list[tuple[str, int]]:
        """What W read by syscalls that ended after a time and began before another."""
        works = self._reading.works
        low = bisect_right(works.ends, after_ns, self._works.start, self._works.stop)
        return works.what[low : bisect_left(works.begins, before_ns, low, self._works.stop)]

    def parked_in(self, start_ns: int, stop_ns: int) -> list[int]:
        """Waits for re-arm that overlap an interval, as indices of ``parked``."""
        parked = self.parked
        first = last = bisect_right(self._parked_ends, start_ns)
        while last < len(parked) and parked[last][0] < stop_ns:
            last += 1
        return list(range(first, last))

    def rearmed(self, i: int) -> tuple[int, int, int]:
        """When and by whom (tid, tgid) a wait was ended; its end and 0 where no waking was seen."""
        _, end, woken, waker, waker_tgid, off, after = self.parked[i]
        if after > self._last_off:
            return self._rearmed_here(i)
        return (woken, waker, waker_tgid) if off >= self._first_off else (end, 0, 0)

    def _rearmed_here(self, i: int) -> tuple[int, int, int]:
        """The same of a wait that goes on beyond what the window looks at."""
        wait, gone = self.parked[i], self._track.offs.gone
        off, _ = self._track.wake_in(wait, self._first_off - gone, self._last_off - gone)
        if off is None:
            return wait.end, 0, 0
        return off.woken, (0 if off.in_irq else off.waker), off.waker_tgid

    def rearmed_in(self, start_ns: int, stop_ns: int) -> bool:
        """Whether a wait was ended in [start, stop]."""
        # Who is woken is back a moment before its wait ends.
        for i in range(bisect_left(self._parked_ends, start_ns - 1), len(self.parked)):
            if self.parked[i].enter > stop_ns:
                break
            if start_ns <= self.rearmed(i)[0] <= stop_ns:
                return True
        return False

    def served(self, low: int, high: int) -> tuple[str, int]:
        """What W served in a turn that began at ``low``: (name, eventfd-id or -1)."""
        works = self._reading.works
        i = bisect_left(works.begins, low, self._works.start, self._works.stop)
        return works.what[i] if i < self._works.stop and works.begins[i] < high else ("jobs", -1)
