# SPDX-License-Identifier: Apache-2.0
"""What threads did in one window of record time, as plain tuples.

Owns the view of a window that path.py and leaves.py work on: each thread's syscall
and off-CPU spans are taken from the timeline once, and its pieces (pieces.py), out of which stolen
time is cut. Plain tuples, because a verdict looks at each span a few times, one by one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final, TypeVar

from tracer.model.pieces import Piece, State, cut
from tracer.model.spans import Call, Off
from tracer.model.timeline import Timeline
from tracer.model.track import MIN_STOLEN_NS, Spans, Track
from tracer.schema import Flag, Kind

_Span = TypeVar("_Span", Call, Off)
_WRITE: Final = int(Kind.WRITE)
_EVENTFD: Final = int(Flag.EVENTFD)
#: How far around a window spans are taken: a turn before it, and the steal told after it.
BEFORE_NS: Final = 50_000_000
AFTER_NS: Final = 20_000_000
#: A window this old is read by itself: what is read for others too goes on to the newest record.
RECENT_NS: Final = 600_000_000


class Window:
    """Spans and states of threads over [start_ns, stop_ns].

    Args:
        before_ns: how far before it spans are looked at.
        alone: nothing that is read in it is kept for other windows.
    """

    def __init__(
        self,
        timeline: Timeline,
        start_ns: int,
        stop_ns: int,
        before_ns: int = BEFORE_NS,
        *,
        alone: bool = False,
    ) -> None:
        self._before_ns = before_ns
        self._timeline = timeline
        self.start_ns = start_ns
        self.stop_ns = stop_ns
        self._tracks: dict[int, Track] = {}
        self._bounds: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        self._calls: dict[int, list[Call]] = {}
        self._offs: dict[int, list[Off]] = {}
        self._pieces: dict[tuple[int, bool], tuple[list[int], list[Piece]]] = {}
        self.alone = alone
        #: Whether what was cut in it holds for other windows too: where steal lay is told per window.
        self.shared = not alone and not timeline.stolen(start_ns, stop_ns + AFTER_NS)

    def _load(self, tid: int) -> None:
        begin = self.start_ns - self._before_ns
        track = self._tracks[tid] = self._timeline.track(tid, begin)
        self._bounds[tid] = track.bounds(begin, self.stop_ns + AFTER_NS)

    def track(self, tid: int) -> Track:
        """All that is known of a thread, also beyond the window."""
        if tid not in self._tracks:
            self._load(tid)
        return self._tracks[tid]

    def bounds(self, tid: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where in its track the window's syscalls and off-CPU spans of a thread begin and end."""
        if tid not in self._bounds:
            self._load(tid)
        return self._bounds[tid]

    def calls(self, tid: int) -> list[Call]:
        """Syscall spans of a thread around the window, by end."""
        if tid not in self._calls:
            self._calls[tid] = _some(self.track(tid).calls, self.bounds(tid)[0])
        return self._calls[tid]

    def offs(self, tid: int) -> list[Off]:
        """Off-CPU spans of a thread around the window, by end."""
        if tid not in self._offs:
            self._offs[tid] = _some(self.track(tid).offs, self.bounds(tid)[1])
        return self._offs[tid]

    def wake_of(self, tid: int, wait: Call) -> Off | None:
        """The last waking inside a wait, None where none was seen."""
        return self.track(tid).wake_in(wait, *self.bounds(tid)[1])[0]

    def pieces(self, tid: int, start_ns: int, stop_ns: int) -> list[Piece]:
        """Cut [start_ns, stop_ns) of a thread into pieces, in order, without gaps.

        A thread with no span at all is on a CPU in user space as far as records can say.
        """
        if stop_ns <= start_ns:
            return []
        track = self.track(tid)
        before = start_ns < self.start_ns  # apart: what steal there is is looked for in all that is asked for
        known = self._pieces.get((tid, before))
        if known is None or start_ns < known[0][0] or stop_ns > known[1][-1].end:
            last = self.stop_ns + AFTER_NS
            if not any(self.start_ns - self._before_ns < out <= last for out in track.stolen):
                return cut(track, start_ns, stop_ns)
            begin = min(self.start_ns - self._before_ns, start_ns) if before else self.start_ns
            whole = self._with_steal(tid, begin, max(self.stop_ns, stop_ns))
            known = self._pieces[tid, before] = ([p.start for p in whole], whole)
        starts, whole = known
        low = max(0, bisect_right(starts, start_ns) - 1)
        high = bisect_left(starts, stop_ns)
        found = whole[low:high]
        if found:
            if found[0].start < start_ns:
                found[0] = found[0]._replace(start=start_ns)
            if found[-1].end > stop_ns:
                found[-1] = found[-1]._replace(end=stop_ns)
        return found

    def _with_steal(self, tid: int, start: int, stop: int) -> list[Piece]:
        """Pieces of [start, stop) of a thread, with what the hypervisor took cut out of on-CPU pieces.

        An off-CPU span says how much steal time its CPU gained while the thread was on it
        before; where in that time it lay is not recorded, so the longest pieces give it up first.
        """
        pieces, offs = cut(self._tracks[tid], start, stop), self.offs(tid)
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
        parts: list[Piece] = []
        for i, p in enumerate(pieces):
            take = taken.get(i, 0)
            if take:
                parts.append(Piece(p.start, p.start + take, State.STOLEN, p.call, None))
            if p.start + take < p.end:
                parts.append(p._replace(start=p.start + take))
        return parts


def _some(spans: Spans[_Span], bounds: tuple[int, int]) -> list[_Span]:
    return spans.between(*bounds)[slice(*bounds)]


def _out(off: Off) -> int:
    return off.out


def is_eventfd_write(call: Call) -> bool:
    """Whether a span wrote an eventfd."""
    return call.kind == _WRITE and bool(call.flags & _EVENTFD)
