# SPDX-License-Identifier: Apache-2.0
"""What threads did in one window of record time, as plain tuples.

Owns the view of a window that path.py and leaves.py work on: each thread's syscall
and off-CPU spans are taken from the timeline once, and cut into pieces with one state
each. Plain tuples, because a verdict looks at each span a few times, one by one.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from typing import Final, NamedTuple

from tracer.model.spans import Call, Off
from tracer.model.timeline import Timeline
from tracer.schema import Flag, Kind

_WRITE: Final = int(Kind.WRITE)
_EVENTFD: Final = int(Flag.EVENTFD)
#: Steal below this is noise of the clock's granularity and is not cut out.
MIN_STOLEN_NS: Final = 20_000
#: How far around a window spans are taken: a turn before it, and the steal told after it.
BEFORE_NS: Final = 50_000_000
AFTER_NS: Final = 20_000_000


_new: Final = tuple.__new__


class State(enum.Enum):
    """What a thread does at an instant."""

    ON_CPU = "on_cpu"
    SYSCALL = "syscall"
    SYSCALL_BLOCKED = "syscall_blocked"
    RUNNABLE = "runnable"
    BLOCKED = "blocked"
    STOLEN = "stolen"


# Bound once: looking members up in their class costs more than their use.
_ON_CPU, _BLOCKED, _RUNNABLE = State.ON_CPU, State.BLOCKED, State.RUNNABLE
_IN_SYSCALL, _IN_SYSCALL_BLOCKED = State.SYSCALL, State.SYSCALL_BLOCKED


class Piece(NamedTuple):
    """A thread's state over [start, end); the syscall it is inside of, the off-CPU span it belongs to."""

    start: int
    end: int
    state: State
    call: Call | None
    off: Off | None


class Window:
    """Spans and states of threads over [start_ns, stop_ns]."""

    def __init__(self, timeline: Timeline, start_ns: int, stop_ns: int, before_ns: int = BEFORE_NS) -> None:
        self._before_ns = before_ns
        self._timeline = timeline
        self.start_ns = start_ns
        self.stop_ns = stop_ns
        self._calls: dict[int, list[Call]] = {}
        self._offs: dict[int, list[Off]] = {}
        self._pieces: dict[int, tuple[list[int], list[Piece]]] = {}

    def _load(self, tid: int) -> None:
        self._calls[tid], self._offs[tid] = self._timeline.tuples(
            tid, self.start_ns - self._before_ns, self.stop_ns + AFTER_NS
        )

    def calls(self, tid: int) -> list[Call]:
        """Syscall spans of a thread around the window, by end."""
        if tid not in self._calls:
            self._load(tid)
        return self._calls[tid]

    def offs(self, tid: int) -> list[Off]:
        """Off-CPU spans of a thread around the window, by end."""
        if tid not in self._offs:
            self._load(tid)
        return self._offs[tid]

    def wake_of(self, tid: int, wait: Call) -> Off | None:
        """The last waking inside a wait, None where none was seen."""
        offs = self.offs(tid)
        for i in range(bisect_right(offs, wait.end + 1, key=_back) - 1, -1, -1):
            off = offs[i]
            if off.out < wait.enter:
                return None
            if off.woken:
                return off
        return None

    def pieces(self, tid: int, start_ns: int, stop_ns: int) -> list[Piece]:
        """Cut [start_ns, stop_ns) of a thread into pieces, in order, without gaps.

        A thread with no span at all is on a CPU in user space as far as records can say.
        """
        if stop_ns <= start_ns:
            return []
        if tid not in self._pieces:
            whole = self._cut(tid, min(self.start_ns, start_ns), max(self.stop_ns, stop_ns))
            self._pieces[tid] = ([p.start for p in whole], whole)
        starts, whole = self._pieces[tid]
        low = max(0, bisect_right(starts, start_ns) - 1)
        high = bisect_left(starts, stop_ns)
        found = whole[low:high]
        if found:
            if found[0].start < start_ns:
                _, end, state, call, off = found[0]
                found[0] = Piece(start_ns, end, state, call, off)
            if found[-1].end > stop_ns:
                start, _, state, call, off = found[-1]
                found[-1] = Piece(start, stop_ns, state, call, off)
        return found

    def _cut(self, tid: int, start: int, stop: int) -> list[Piece]:
        calls, pieces, cursor = self.calls(tid), list[Piece](), start
        at, n = bisect_right(calls, start, key=_end), len(calls)
        for until, inside, outside, off in self._runs(tid, start, stop):
            while cursor < until:
                while at < n and calls[at].end <= cursor:
                    at += 1
                if at >= n or calls[at].enter >= until:
                    pieces.append(_new(Piece, (cursor, until, outside, None, off)))
                    cursor = until
                    break
                call = calls[at]
                if call.enter > cursor:
                    pieces.append(_new(Piece, (cursor, call.enter, outside, None, off)))
                    cursor = call.enter
                end = min(call.end, until)
                pieces.append(_new(Piece, (cursor, end, inside, call, off)))
                cursor = end
        return self._with_steal(tid, pieces, start)

    def _runs(self, tid: int, start: int, stop: int) -> list[tuple[int, State, State, Off | None]]:
        """What a thread was from one end to the next, as (end, state in a syscall, outside of it, span)."""
        runs: list[tuple[int, State, State, Off | None]] = []
        cursor, offs = start, self.offs(tid)
        for i in range(bisect_right(offs, start, key=_back), len(offs)):
            off = offs[i]
            if off.out >= stop:
                break
            if off.back <= cursor:
                continue
            if off.out > cursor:
                cursor = off.out
                runs.append((cursor, _IN_SYSCALL, _ON_CPU, None))
            if off.slept:
                slept_until = (
                    min(max(off.woken, off.out), off.back, stop) if off.woken else min(off.back, stop)
                )
                inside = _BLOCKED if off.stopped else _IN_SYSCALL_BLOCKED
                runs.append((slept_until, inside, _BLOCKED, off))
            cursor = min(off.back, stop)
            runs.append((cursor, _RUNNABLE, _RUNNABLE, off))
        runs.append((stop, _IN_SYSCALL, _ON_CPU, None))
        return runs

    def _with_steal(self, tid: int, pieces: list[Piece], start: int) -> list[Piece]:
        """Cut out of on-CPU pieces what the hypervisor took.

        An off-CPU span says how much steal time its CPU gained while the thread was on it
        before; where in that time it lay is not recorded, so the longest pieces give it up first.
        """
        offs = self.offs(tid)
        starts = [p.start for p in pieces]
        taken: dict[int, int] = {}
        previous = start
        for off in offs[bisect_right(offs, start, key=_out) :]:
            stolen = off.stolen
            if stolen >= MIN_STOLEN_NS:
                low, high = bisect_left(starts, previous), bisect_left(starts, off.out)
                run = [i for i in range(low, high) if pieces[i].off is None and pieces[i].end <= off.out]
                for i in sorted(run, key=lambda i: pieces[i].start - pieces[i].end):
                    take = min(stolen, pieces[i].end - pieces[i].start)
                    if take < MIN_STOLEN_NS:
                        break
                    taken[i] = take
                    stolen -= take
            previous = max(off.back, start)
            if off.out >= pieces[-1].end:
                break
        if not taken:
            return pieces
        cut: list[Piece] = []
        for i, p in enumerate(pieces):
            take = taken.get(i, 0)
            if take:
                cut.append(Piece(p.start, p.start + take, State.STOLEN, p.call, None))
            if p.start + take < p.end:
                cut.append(p._replace(start=p.start + take))
        return cut


def _end(call: Call) -> int:
    return call.end


def _back(off: Off) -> int:
    return off.back


def _out(off: Off) -> int:
    return off.out


def is_eventfd_write(call: Call) -> bool:
    """Whether a span wrote an eventfd."""
    return call.kind == _WRITE and bool(call.flags & _EVENTFD)
