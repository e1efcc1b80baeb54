# SPDX-License-Identifier: Apache-2.0
"""W in one window: its choices, interrupts and waits for re-arm, in order.

Owns the reading of one worker's spans as turns. Decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from tracer.model.readings import WorkerReading
from tracer.model.spans import Call
from tracer.model.window import Window
from tracer.schema import Flag, Kind

#: Plain ints: enum look-ups cost more than the comparison.
_READ, _RECVMSG = int(Kind.READ), int(Kind.RECVMSG)
_EVENTFD: Final = int(Flag.EVENTFD)


class Worker:
    """W in one window: its choices, interrupts and waits for re-arm, in order."""

    def __init__(self, window: Window, tid: int, reading: WorkerReading) -> None:
        self.tid = tid
        self.window = window
        self.calls = window.calls(tid)
        low, high = window.bounds(tid)[0]
        self.choices = reading.choices[_within(reading.choice_at, low, high)]
        self.choice_ends = [end for _, end in self.choices]
        self.irqs = reading.irqs[_within(reading.irq_at, low, high)]
        self.parked = reading.parked[_within(reading.parked_at, low, high)]
        within = reading.within[_within(reading.within_at, low, high)]
        if len(within) > len(self.parked):
            # A worker that waits there in most turns is re-armed there.
            self.parked = sorted((*self.parked, *within), key=_end)
            within = []
        #: When its waits within its turns began.
        self.within = frozenset(wait.enter for wait in within)

    def irq_before(self, after_ns: int, before_ns: int) -> int:
        """End of the last interrupt write in (after, before], 0 where none."""
        i = bisect_right(self.irqs, before_ns) - 1
        return self.irqs[i] if i >= 0 and self.irqs[i] > after_ns else 0

    def irq_of_turn(self, read_ns: int, before_ns: int) -> int:
        """End of the first interrupt write after a read and before W's next choice, 0 where none."""
        i = bisect_right(self.irqs, read_ns)
        if i >= len(self.irqs) or self.irqs[i] > before_ns:
            return 0
        later = bisect_left(self.choices, (read_ns, 0))
        chosen = self.choices[later][0] if later < len(self.choices) else self.irqs[i]
        return self.irqs[i] if self.irqs[i] <= chosen else 0

    def parked_in(self, start_ns: int, stop_ns: int) -> list[Call]:
        """Waits for re-arm that overlap an interval."""
        first = last = bisect_right(self.parked, start_ns, key=_end)
        while last < len(self.parked) and self.parked[last].enter < stop_ns:
            last += 1
        return self.parked[first:last]

    def rearmed(self, wait: Call) -> tuple[int, int, int]:
        """When and by whom (tid, tgid) a wait was ended; its end and 0 where no waking was seen."""
        off = self.window.wake_of(self.tid, wait)
        if off is None:
            return wait.end, 0, 0
        return off.woken, (0 if off.in_irq else off.waker), off.waker_tgid

    def served(self, low: int, high: int) -> tuple[str, int]:
        """What W served in a turn that began at ``low``: (name, eventfd-id or -1)."""
        for i in range(bisect_left(self.calls, low, key=_end), len(self.calls)):
            call = self.calls[i]
            if call.enter >= high:
                break
            if call.enter < low:
                continue
            if call.kind == _RECVMSG:
                return "channel", -1
            if call.kind == _READ:
                return ("other streams" if call.flags & _EVENTFD else "pipes"), call.eventfd
        return "jobs", -1


def _within(at: list[int], low: int, high: int) -> slice:
    return slice(bisect_left(at, low), bisect_left(at, high))


def _end(call: Call) -> int:
    return call.end
