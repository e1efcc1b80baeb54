# SPDX-License-Identifier: Apache-2.0
"""W in one window: its choices, interrupts and waits for re-arm, in order.

Owns the reading of one worker's spans as turns. Decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

from tracer.model.spans import Call
from tracer.model.streams import Cycle
from tracer.model.window import Window
from tracer.model.workerreading import WorkerReading
from tracer.schema import Flag, Kind

#: Plain ints: enum look-ups cost more than the comparison.
_READ, _RECVMSG = int(Kind.READ), int(Kind.RECVMSG)
_EVENTFD: Final = int(Flag.EVENTFD)
_NEVER: Final = 1 << 62


class Worker:
    """W in one window: its choices, interrupts and waits for re-arm, in order."""

    def __init__(self, window: Window, tid: int, reading: WorkerReading) -> None:
        self.tid = tid
        self.window = window
        self._track = window.track(tid)
        self._calls, self._offs = window.bounds(tid)
        low, high = self._calls
        self.choices = reading.choices[_within(reading.choice_at, low, high)]
        self.choice_ends = [end for _, end in self.choices]
        self.irqs = reading.irqs[_within(reading.irq_at, low, high)]
        self._reading = reading
        self.parked, self._parked_at = _some(reading.parked, reading.parked_at, low, high)
        within, at = _some(reading.within, reading.within_at, low, high)
        if len(within) > len(self.parked):
            # A worker that waits there in most turns is re-armed there.
            both = sorted(zip([*self._parked_at, *at], [*self.parked, *within], strict=True))
            self._parked_at, self.parked = [i for i, _ in both], [wait for _, wait in both]
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

    def answers_itself(self, cycle: Cycle) -> bool:
        """Whether W wrote a cycle's completion in the turn in which it read the signal, with nothing asked
        of anybody in between: neither another choice, nor a wait that is no lock's, nor a kick's read."""
        read, write = cycle.read_ns, cycle.write_enter_ns
        if read is None or write is None or cycle.writer_tid != self.tid or self.turn_end(read) < write:
            return False
        return not any(call.kind == _READ and call.flags & _EVENTFD for call in self._between(read, write))

    def turn_end(self, read_ns: int) -> int:
        """When W next chose or waited for somebody after a read; a far time where it did not."""
        later = bisect_left(self.choices, (read_ns, 0))
        chosen = self.choices[later][0] if later < len(self.choices) else _NEVER
        parked = bisect_left(self.parked, read_ns, key=_enter)
        return min(chosen, self.parked[parked].enter if parked < len(self.parked) else _NEVER)

    def goes_on(self, at_ns: int) -> bool:
        """Whether W served something else before it next waited for anybody."""
        return any(call.kind in (_READ, _RECVMSG) for call in self._between(at_ns, self.turn_end(at_ns)))

    def _between(self, after_ns: int, before_ns: int) -> Iterator[Call]:
        """W's syscalls that ended after a time and began before another."""
        calls, (first, last) = self._track.calls, self._calls
        for i in range(bisect_right(calls.ends, after_ns, first, last), last):
            if calls.begins[i] >= before_ns:
                return
            yield calls[i]

    def parked_in(self, start_ns: int, stop_ns: int) -> list[int]:
        """Waits for re-arm that overlap an interval, as indices of ``parked``."""
        parked = self.parked
        first = last = bisect_right(parked, start_ns, key=_end)
        while last < len(parked) and parked[last][0] < stop_ns:
            last += 1
        return list(range(first, last))

    def rearmed(self, i: int) -> tuple[int, int, int]:
        """When and by whom (tid, tgid) a wait was ended; its end and 0 where no waking was seen."""
        off, at, after = self._reading.rearm(self._parked_at[i])
        low, high = self._offs
        if after > high:
            off, at = self._track.wake_in(self.parked[i], low, high)
        if off is None or at < low:
            return self.parked[i][1], 0, 0
        return off.woken, (0 if off.in_irq else off.waker), off.waker_tgid

    def rearms(self) -> list[int]:
        """When each wait was ended, sorted."""
        return sorted(self.rearmed(i)[0] for i in range(len(self.parked)))

    def served(self, low: int, high: int) -> tuple[str, int]:
        """What W served in a turn that began at ``low``: (name, eventfd-id or -1)."""
        calls, (first, last) = self._track.calls, self._calls
        first = bisect_left(calls.ends, low, first, last)
        for i in range(first, last):
            if calls.begins[i] >= high:
                break
            if calls.begins[i] < low:
                continue
            call = calls[i]
            if call.kind == _RECVMSG:
                return "channel", -1
            if call.kind == _READ:
                return ("other streams" if call.flags & _EVENTFD else "pipes"), call.eventfd
        return "jobs", -1


def _within(at: list[int], low: int, high: int) -> slice:
    return slice(bisect_left(at, low), bisect_left(at, high))


def _some(calls: list[Call], at: list[int], low: int, high: int) -> tuple[list[Call], list[int]]:
    some = _within(at, low, high)
    return calls[some], at[some]


def _enter(call: Call) -> int:
    return call.enter


def _end(call: Call) -> int:
    return call.end
