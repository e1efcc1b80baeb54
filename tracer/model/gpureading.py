# SPDX-License-Identifier: Apache-2.0
"""G's spans read as commands, once for all windows that overlap.

Owns when G slept idle, and where its commands ended, whoever's they are: that is commands.py's. A reading is
good until there are more records.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.callkinds import CLOSE, also_idle, calls_among, idle_calls, is_idle, wakes_among, wakings
from tracer.model.spans import END, ENTER, EVENTFD, KIND, Call, Columns
from tracer.model.track import Track
from tracer.schema import Flag, Kind

#: Plain ints: enum look-ups cost more than the comparison.
_READ, _WRITE, _FD, _FUTEX, _EPOLL_CTL = (
    int(Kind.READ),
    int(Kind.WRITE),
    int(Kind.FD),
    int(Kind.FUTEX),
    int(Kind.EPOLL_CTL),
)
_EVENTFD: Final = int(Flag.EVENTFD)
_NONE: Final = np.empty(0, dtype=np.int64)
#: Until it is back at its queue a G that has ended a command is still at it; longer, it was at another one.
TAIL_NS: Final = 50_000


class Acts:
    """What may have ended commands of G (n,).

    Attributes:
        at: places among G's syscalls.
        begin: when each command began: where G was woken for it, or ended the one before.
        last_enter: when the last syscall up to it began.
        writes, wakes: it wrote (``eventfd``: -1 if that is none), or woke somebody who waits for no lock.
    """

    __slots__ = ("at", "begin", "end", "enter", "eventfd", "last_enter", "wakes", "writes")

    def __init__(self, columns: Columns, first: int, acts: NDArray[np.int64]) -> None:
        self.at = acts + first
        self.enter, self.end = columns[ENTER].take(acts), columns[END].take(acts)
        kind = columns[KIND].take(acts)
        self.writes, self.wakes = kind == _WRITE, kind == _FUTEX
        self.eventfd = columns[EVENTFD].take(acts)
        self.last_enter = self.begin = acts


class GpuReading:
    """When G slept idle, and where its commands ended.

    Kicks come by eventfd, so a read of anything else is work. (Without BTF nothing is flagged, and every
    read may be one.)

    Args:
        track: G's; its syscalls [low, high) are read, and off-CPU spans ``offs``.
        is_lock: whether a word is a lock's: waking who waits for it ends no command.
        parks: this G takes commands from a list and waits in a condvar for them.
    """

    __slots__ = (
        "_acts",
        "_also",
        "_columns",
        "_flagged_at",
        "_is_lock",
        "_kicks",
        "any_reads",
        "first",
        "unended",
        "woken",
        "worked",
    )

    def __init__(
        self,
        track: Track,
        low: int,
        high: int,
        offs: slice,
        is_lock: Callable[[int], bool],
        *,
        parks: bool = False,
    ) -> None:
        self.first = low
        self._columns = columns = track.calls.columns[:, low:high]
        also = also_idle(columns, parks=parks)
        #: What is idle by what follows or by habit, by its begin.
        self._also = set(columns[ENTER].take(also).tolist())
        idle, flagged = idle_calls(columns, also)
        self._flagged_at: list[int] = (flagged + low).tolist()
        #: Any read may take a kick.
        self.any_reads = not len(flagged)
        self._kicks = idle if self.any_reads else flagged
        #: When it was woken out of its idle call, in order.
        self.woken: list[int] = wakings(columns, self._kicks, track.offs.columns[:, offs]).tolist()
        #: How long it worked within some intervals, as far as that was asked.
        self.worked: dict[tuple[int, int], int] = {}
        self._is_lock = is_lock
        self._acts: Acts | None = None
        #: With ``acts``: (begins, ends) of commands that ended with G back at its queue and nothing else.
        self.unended: tuple[NDArray[np.int64], NDArray[np.int64]] = (_NONE, _NONE)

    def kicked(self, low: int, high: int) -> bool:
        """Whether one of some syscalls is a call for G's queue beyond doubt."""
        i = bisect_left(self._flagged_at, low)
        return i < len(self._flagged_at) and self._flagged_at[i] < high

    def takes_kick(self, call: Call) -> bool:
        """Whether G is at its queue in a call, not at work."""
        if call.kind != _READ or call.flags & _EVENTFD:
            return is_idle(call) or call.enter in self._also
        return self.any_reads

    def woken_before(self, before_ns: int) -> int:
        """When G was last woken out of its idle read, at or before a time; 0 where not seen."""
        i = bisect_right(self.woken, before_ns) - 1
        return self.woken[i] if i >= 0 else 0

    @property
    def acts(self) -> Acts:
        """What may have ended its commands."""
        if self._acts is None:
            self._acts = self._found()
        return self._acts

    def _found(self) -> Acts:
        columns, kind = self._columns, self._columns[KIND]
        enter, end = columns[ENTER], columns[END]
        wakes = wakes_among(columns, self._is_lock)
        closes = calls_among(columns, _FD, CLOSE)
        ended = np.flatnonzero(wakes | closes | (kind == _WRITE) | (kind == _EPOLL_CTL))
        acts = Acts(columns, self.first, ended)
        # Woken by somebody's kick, G is that command's, even while it waits for a CPU.
        over = np.zeros(len(kind), dtype=np.int64)
        over[ended] = acts.end
        woken = np.append(0, np.maximum.accumulate(np.array(self.woken, dtype=np.int64)))
        kicked = end.take(self._kicks)
        wake = woken[np.searchsorted(woken[1:], kicked, side="right")]
        over[self._kicks] = np.where(wake > enter.take(self._kicks), wake, kicked)
        before = np.append(0, np.maximum.accumulate(over))
        acts.last_enter = np.maximum.accumulate(enter).take(ended)
        last = woken[np.searchsorted(woken[1:], acts.last_enter, side="right")]
        acts.begin = np.maximum(before.take(ended), last)
        if not self.any_reads:
            back = enter.take(self._kicks)
            since = np.maximum(
                before.take(self._kicks), woken[np.searchsorted(woken[1:], back, side="right")]
            )
            long = back - since > TAIL_NS
            self.unended = (since[long], back[long])
        return acts
