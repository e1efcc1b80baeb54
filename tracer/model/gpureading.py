# SPDX-License-Identifier: Apache-2.0
"""G's spans read as commands, once for all windows.

Owns what does not depend on whose cycle is looked at: when G slept idle, and where its commands ended. It
goes on where it was when there are more records: what lies before G's last call for its queue stays as it was
read. Whose commands they are is commands.py's.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.callkinds import (
    CLOSE,
    MEMORY_CALLS,
    also_idle,
    calls_among,
    idle_calls,
    is_idle,
    wakes_among,
    wakings,
)
from tracer.model.spans import BACK, END, ENTER, EVENTFD, KIND, Call, Columns
from tracer.model.track import Track
from tracer.schema import Flag, Kind

#: Plain ints: enum look-ups cost more than the comparison.
_READ, _WRITE, _FD, _FUTEX = int(Kind.READ), int(Kind.WRITE), int(Kind.FD), int(Kind.FUTEX)
_EPOLL_CTL, _SYSCALL, _EVENTFD = int(Kind.EPOLL_CTL), int(Kind.SYSCALL), int(Flag.EVENTFD)
#: Until it is back at its queue a G that has ended a command is still at it; longer, it was at another one.
TAIL_NS: Final = 50_000
NO_WRITE: Final = -2


class Act(NamedTuple):
    """A syscall of G that may have ended a command.

    Attributes:
        begin: when the command began: where G was woken for it, or ended the one before.
        last_enter: when the last syscall up to it began.
        wakes: it woke somebody who waits for no lock.
        written: the eventfd that it wrote, -1: something else; NO_WRITE.
    """

    begin: int
    enter: int
    end: int
    last_enter: int
    wakes: bool
    written: int


class _Seen(NamedTuple):
    """How far a reading is settled: lengths of its lists, and the latest of some times so far."""

    place: int
    offs: int
    sure: int
    woken: int
    busy: int
    acts: int
    unended: int
    over: int
    enter: int


class GpuReading:
    """When G slept idle, and where its commands ended.

    Kicks come by eventfd, so a read of anything else is work. (Without BTF nothing is flagged, and every
    read may be one.)

    Args:
        track: G's; all that it has is read, or its syscalls and off-CPU spans of ``only``.
        is_lock: whether a word is a lock's: waking who waits for it ends no command.
        parks: this G takes commands from a list and waits in a condvar for them.

    Attributes:
        any_reads: any read may take a kick.
        woken: when it was woken out of its idle call, in order.
        busy: when syscalls ended that are no part of a command of ours, and none in which it may be idle.
        acts, act_ends: what may have ended its commands.
        unended, unended_backs: (begin, end) of commands that ended with G back at its queue and nothing else.
        worked: how long it worked within some intervals, as far as that was asked.
    """

    __slots__ = (
        "_also",
        "_calls",
        "_is_lock",
        "_locks",
        "_looked_to",
        "_offs",
        "_parks",
        "_seen",
        "_sure",
        "_version",
        "act_ends",
        "acts",
        "any_reads",
        "busy",
        "unended",
        "unended_backs",
        "woken",
        "worked",
    )

    def __init__(
        self,
        track: Track,
        is_lock: Callable[[int], bool],
        *,
        parks: bool = False,
        only: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> None:
        # Not the track, which holds its reading: what is in a circle only the collector of garbage frees.
        self._calls, self._offs, self._version = track.calls, track.offs, track.version
        self._is_lock, self._parks = is_lock, parks
        self._locks: dict[int, bool] = {}  # what was a lock, and what was not
        self._sure: list[int] = []  # places of calls that are for its queue beyond doubt
        self._also: set[int] = set()  # what is idle by what follows or by habit, by its begin
        self.any_reads = True
        self.woken: list[int] = []
        self.busy: list[int] = []
        self.acts: list[Act] = []
        self.act_ends: list[int] = []
        self.unended: list[tuple[int, int]] = []
        self.unended_backs: list[int] = []
        self.worked: dict[tuple[int, int], int] = {}
        calls, offs = track.calls, track.offs
        self._looked_to = calls.gone
        self._seen = _Seen(calls.gone, offs.gone, 0, 0, 0, 0, 0, 0, 0)
        if only is None:
            self.read_on()
        else:
            (low, high), (first, last) = only
            self._read(calls.columns[:, low:high], offs.columns[:, first:last], low, first)

    def holds(self, track: Track, is_lock: Callable[[int], bool], *, parks: bool) -> bool:
        """Whether it would be read alike today."""
        return (
            self._version == track.version
            and self._parks == parks
            and all(is_lock(word) == known for word, known in self._locks.items())
        )

    def read_on(self) -> None:
        """Take over what is new, and again what comes after G's last call for its queue."""
        calls, offs, seen = self._calls, self._offs, self._seen
        self.worked.clear()
        if not seen.sure and not self._any_sure():
            return
        del self._sure[seen.sure :], self.woken[seen.woken :], self.busy[seen.busy :]
        del self.acts[seen.acts :], self.act_ends[seen.acts :]
        del self.unended[seen.unended :], self.unended_backs[seen.unended :]
        self._forget()
        low, first = max(0, seen.place - calls.gone), max(0, seen.offs - offs.gone)
        self._read(calls.columns[:, low:], offs.columns[:, first:], low, first)

    def _forget(self) -> None:
        """Drop what lies before the first span that is kept; the last call for its queue and waking stay."""
        calls = self._calls
        before = calls.begins[0] if len(calls) else 0
        sure = max(0, min(bisect_left(self._sure, calls.gone), len(self._sure) - 1))
        woken = max(0, bisect_left(self.woken, before) - 1)
        busy, acts = bisect_left(self.busy, before), bisect_left(self.act_ends, before)
        unended = bisect_left(self.unended_backs, before)
        del self._sure[:sure], self.woken[:woken], self.busy[:busy]
        del self.acts[:acts], self.act_ends[:acts]
        del self.unended[:unended], self.unended_backs[:unended]
        if len(self._also) > 2 * len(calls):
            self._also = {begin for begin in self._also if begin >= before}
        self._seen = self._seen._replace(
            sure=len(self._sure),
            woken=len(self.woken),
            busy=len(self.busy),
            acts=len(self.acts),
            unended=len(self.unended),
        )

    def _any_sure(self) -> bool:
        """Whether what is new shows G's queue; until then each window reads what it needs."""
        calls = self._calls
        since = max(0, self._looked_to - calls.gone)
        columns = calls.columns[:, since:]
        self._looked_to = calls.gone + max(since, len(calls) - 1)  # what the last one is, the next may tell
        return len(idle_calls(columns, also_idle(columns, parks=self._parks))[1]) > 0

    def _known(self, word: int) -> bool:
        known = self._locks.get(word)
        if known is None:
            known = self._locks[word] = self._is_lock(word)
        return known

    def _read(self, columns: Columns, offs: Columns, low: int, first: int) -> None:
        """Take over syscalls and off-CPU spans, from the places ``low`` and ``first`` on."""
        also = also_idle(columns, parks=self._parks)
        self._also.update(columns[ENTER].take(also).tolist())
        idle, sure = idle_calls(columns, also)
        self.any_reads = not self._sure and not len(sure)
        kicks = idle if self.any_reads else sure
        woken = wakings(columns, kicks, offs)
        own = columns[KIND] == _FUTEX
        own[idle] = True
        own |= (columns[KIND] == _FD) & ~calls_among(columns, _FD, CLOSE)
        own |= calls_among(columns, _SYSCALL, MEMORY_CALLS)
        before = len(self._sure), len(self.woken), len(self.busy), len(self.acts), len(self.unended)
        over, enter, acts = self._find_acts(columns, kicks, woken)
        busy = np.flatnonzero(~own)
        self._sure += (sure + low + self._calls.gone).tolist()
        self.woken += woken.tolist()
        self.busy += columns[END].take(busy).tolist()
        if not len(sure):
            return  # nothing is settled
        last, end = int(sure[-1]), int(columns[END, sure[-1]])
        self._seen = _Seen(
            low + self._calls.gone + last + 1,
            first + self._offs.gone + int(offs[BACK].searchsorted(end, side="right")),
            len(self._sure),
            before[1] + int(woken.searchsorted(end, side="right")),
            before[2] + int(busy.searchsorted(last + 1)),
            before[3] + int(acts.searchsorted(last + 1)),
            len(self.unended),
            int(over[last]),
            int(enter[last]),
        )

    def _find_acts(
        self, columns: Columns, kicks: NDArray[np.int64], wakings: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Add what may have ended commands.

        Returns:
            until when each syscall (n,) and those before it kept G; when the last up to it began; the acts.
        """
        kind, enter, end = columns[KIND], columns[ENTER], columns[END]
        wakes = wakes_among(columns, self._known)
        closes = calls_among(columns, _FD, CLOSE)
        acts = np.flatnonzero(wakes | closes | (kind == _WRITE) | (kind == _EPOLL_CTL))
        # Woken by somebody's kick, G is that command's, even while it waits for a CPU.
        over = np.zeros(len(kind), dtype=np.int64)
        over[acts] = end.take(acts)
        woken = np.maximum.accumulate(np.append(self.woken[-1:] or [0], wakings))
        begun, back = enter.take(kicks), end.take(kicks)
        wake = woken[woken[1:].searchsorted(back, side="right")]
        over[kicks] = np.where(wake > begun, wake, back)
        over = np.maximum.accumulate(np.append(self._seen.over, over))
        last_enter = np.maximum.accumulate(np.append(self._seen.enter, enter))[1:]
        entered = last_enter.take(acts)
        begin = np.maximum(over.take(acts), woken[woken[1:].searchsorted(entered, side="right")])
        written = np.where(kind.take(acts) == _WRITE, columns[EVENTFD].take(acts), NO_WRITE)
        ends = end.take(acts).tolist()
        self.acts += map(
            Act,
            begin.tolist(),
            enter.take(acts).tolist(),
            ends,
            entered.tolist(),
            (kind.take(acts) == _FUTEX).tolist(),
            written.tolist(),
        )
        self.act_ends += ends
        if not self.any_reads:
            since = np.maximum(over.take(kicks), woken[woken[1:].searchsorted(begun, side="right")])
            long = np.flatnonzero(begun - since > TAIL_NS)
            backs = begun.take(long).tolist()
            self.unended += zip(since.take(long).tolist(), backs, strict=True)
            self.unended_backs += backs
        return over[1:], last_enter, acts

    def kicked(self, low: int, high: int) -> bool:
        """Whether one of some syscalls is a call for G's queue beyond doubt."""
        gone = self._calls.gone
        i = bisect_left(self._sure, low + gone)
        return i < len(self._sure) and self._sure[i] < high + gone

    def takes_kick(self, call: Call) -> bool:
        """Whether G is at its queue in a call, not at work."""
        if call.kind != _READ or call.flags & _EVENTFD:
            return is_idle(call) or call.enter in self._also
        return self.any_reads

    def woken_before(self, before_ns: int) -> int:
        """When G was last woken out of its idle read, at or before a time; 0 where not seen."""
        i = bisect_right(self.woken, before_ns) - 1
        return self.woken[i] if i >= 0 else 0

    def busy_in(self, after_ns: int, upto_ns: int) -> bool:
        """Whether a syscall ended in (after, upto] that is no part of a command of ours."""
        return bisect_right(self.busy, upto_ns) > bisect_right(self.busy, after_ns)
