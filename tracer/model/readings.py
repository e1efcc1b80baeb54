# SPDX-License-Identifier: Apache-2.0
"""W's and G's spans read as turns and commands, once for all windows that overlap.

Owns what does not depend on whose cycle is looked at: where W chose, interrupted and parked; when G slept
idle, and where its commands ended. Whose they are is worker.py's and commands.py's. A reading is good until
there are more records.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Set
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.spans import (
    END,
    ENTER,
    EVENTFD,
    EXPECTED,
    FLAGS,
    KIND,
    OFF_BY_ITSELF,
    OP,
    OUT,
    PREEMPTED,
    STATE,
    WOKEN,
    WORD,
    Call,
    Columns,
    Off,
    calls_of,
)
from tracer.model.track import Track
from tracer.schema import (
    FUTEX_CMD_MASK,
    FUTEX_WAIT,
    FUTEX_WAIT_BITSET,
    FUTEX_WAKE,
    FUTEX_WAKE_BITSET,
    Flag,
    Kind,
)

#: close on x86-64 and arm64: it ends a command that wrote to a dup.
CLOSE: Final = frozenset({3, 57})
#: What a G idles in: a blocking read of its queue (libkrun), or epoll_wait before the read (crosvm).
IDLE_CALLS: Final = (int(Kind.READ), int(Kind.EPOLL_WAIT))
#: poll, select, pselect6, ppoll on x86-64; pselect6, ppoll on arm64. In G they wait for a device, which is
#: work, unless it reads its queue next.
POLLS: Final = frozenset({7, 23, 270, 271, 72, 73})
#: Plain ints: enum look-ups cost more than the comparison.
_READ, _WRITE, _FD, _FUTEX = int(Kind.READ), int(Kind.WRITE), int(Kind.FD), int(Kind.FUTEX)
_EPOLL_WAIT, _RECVMSG, _EVENTFD = int(Kind.EPOLL_WAIT), int(Kind.RECVMSG), int(Flag.EVENTFD)
_EPOLL_CTL: Final = int(Kind.EPOLL_CTL)
_NEVER: Final = np.iinfo(np.int64).max
_NONE: Final = np.empty(0, dtype=np.int64)
#: Until it is back at its queue a G that has ended a command is still at it; longer, it was at another one.
TAIL_NS: Final = 50_000


def is_idle(call: Call) -> bool:
    """Whether a G may be idle in a call, as far as that alone tells."""
    return call.kind in IDLE_CALLS and (call.kind == _READ or call.op not in POLLS)


def calls_among(columns: Columns, kind: int, numbers: Set[int]) -> NDArray[np.bool_]:
    """Which of some calls are of a kind, and have one of these numbers."""
    found: NDArray[np.bool_] = columns[KIND] == kind
    at = np.flatnonzero(found)
    if len(at):
        found[at] = np.isin(columns[OP].take(at), sorted(numbers))
    return found


def waits_among(columns: Columns) -> NDArray[np.bool_]:
    """Which of some calls are futex waits."""
    command = columns[OP] & FUTEX_CMD_MASK
    found: NDArray[np.bool_] = columns[KIND] == _FUTEX
    found &= (command == FUTEX_WAIT) | (command == FUTEX_WAIT_BITSET)
    return found


def wakes_among(columns: Columns, is_lock: Callable[[int], bool]) -> NDArray[np.bool_]:
    """Which of some calls wake somebody who waits for no lock."""
    command = columns[OP] & FUTEX_CMD_MASK
    found: NDArray[np.bool_] = columns[KIND] == _FUTEX
    found &= (command == FUTEX_WAKE) | (command == FUTEX_WAKE_BITSET)
    at = np.flatnonzero(found)
    word, of = np.unique(columns[WORD].take(at), return_inverse=True)
    locks = np.array([is_lock(w) for w in word.tolist()], dtype=bool)
    found[at[locks[of]]] = False
    return found


def also_idle(columns: Columns, *, parks: bool) -> NDArray[np.int64]:
    """Calls of G in which it is idle by what follows, a read of its queue after a poll, or by habit."""
    kind = columns[KIND]
    polls = calls_among(columns, _EPOLL_WAIT, POLLS)
    polls[:-1] &= (kind[1:] == _READ) & ((columns[FLAGS, 1:] & _EVENTFD) != 0)
    polls[-1:] = False
    if parks:
        polls |= waits_among(columns) & (columns[EXPECTED] != 2)
    return np.flatnonzero(polls)


def idle_calls(columns: Columns, also: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those calls of G in which it may be idle, and those of them that are for its queue beyond doubt."""
    kind = columns[KIND]
    idle = (kind == _READ) | (kind == _EPOLL_WAIT)
    idle &= ~calls_among(columns, _EPOLL_WAIT, POLLS)
    idle[also] = True
    at = np.flatnonzero(idle)
    sure = (kind.take(at) != _READ) | ((columns[FLAGS].take(at) & _EVENTFD) != 0)
    return at, at[sure]


def wakings(columns: Columns, kicks: NDArray[np.int64], offs: Columns) -> NDArray[np.int64]:
    """When G was woken out of one of the calls for its queue, in order."""
    slept = np.flatnonzero((offs[WOKEN] > 0) & (offs[PREEMPTED] == 0) & ((offs[STATE] & OFF_BY_ITSELF) != 0))
    woken = offs[WOKEN].take(slept)
    at = columns[END].take(kicks).searchsorted(woken)
    begun = np.append(columns[ENTER].take(kicks), _NEVER)[at]
    found: NDArray[np.int64] = woken[begun <= offs[OUT].take(slept)]
    return found


class Rearm(NamedTuple):
    """Who ended a wait: the waking within it (None: not seen), where that is among W's off-CPU spans, and
    where those begin that come after the wait."""

    off: Off | None
    at: int
    after: int


class WorkerReading:
    """Where W chose, interrupted and waited for its re-arm, each with its place among W's syscalls.

    A turn goes from a choice over what W reads to its interrupt; then W waits for its re-arm. A wait before
    the interrupt, after which W goes on with that turn, is ``within`` its work: for what, is parking.py's.

    Args:
        track: W's; its syscalls [low, high) are read.
        is_lock: whether a word is a lock's: who waits for one is not parked.
        by_wake: W interrupts a vCPU thread by waking it, not by an eventfd.
        works: numbers of polls that are part of W's work.
    """

    __slots__ = (
        "_rearms",
        "_track",
        "choice_at",
        "choices",
        "first",
        "irq_at",
        "irqs",
        "parked",
        "parked_at",
        "within",
        "within_at",
    )

    def __init__(
        self,
        track: Track,
        low: int,
        high: int,
        is_lock: Callable[[int], bool],
        *,
        by_wake: bool = False,
        works: Set[int] = frozenset(),
    ) -> None:
        self.first = low
        self._track = track
        columns = track.calls.columns[:, low:high]
        kind = columns[KIND]
        at = np.flatnonzero((kind == _EPOLL_WAIT) & ~calls_among(columns, _EPOLL_WAIT, works))
        self.choice_at: list[int] = (at + low).tolist()
        self.choices: list[tuple[int, int]] = _pairs(columns[ENTER].take(at), columns[END].take(at))
        irqs = (kind == _WRITE) & ((columns[FLAGS] & _EVENTFD) != 0)
        if by_wake:
            irqs |= wakes_among(columns, is_lock)
        at = np.flatnonzero(irqs)
        self.irq_at: list[int] = (at + low).tolist()
        self.irqs: list[int] = columns[END].take(at).tolist()
        waits = waits_among(columns)
        self.parked: list[Call] = []
        self.parked_at: list[int] = []
        self.within: list[Call] = []
        self.within_at: list[int] = []
        waiting = np.flatnonzero(waits)
        for i, call, within in zip(
            (waiting + low).tolist(),
            calls_of(columns[:, waiting]),
            self._goes_on(kind, waiting).tolist(),
            strict=True,
        ):
            if call[6] != 2 or not is_lock(call[8]):
                (self.within if within else self.parked).append(call)
                (self.within_at if within else self.parked_at).append(i)
        self._rearms: dict[int, Rearm] = {}

    def _goes_on(self, kind: NDArray[np.int64], waits: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether W goes on with a turn after each of some waits, by place."""
        chose = np.array([0, *self.choice_at, _NEVER], dtype=np.int64) - self.first
        done = np.array([0, *self.irq_at], dtype=np.int64) - self.first
        works = np.flatnonzero((kind == _READ) | (kind == _RECVMSG))
        goes_on = np.append(np.union1d(works, done[1:]), _NEVER)
        chose[0] = done[0] = -1
        after = chose.searchsorted(waits)
        in_turn = chose[after - 1] > done[done.searchsorted(waits) - 1]
        found: NDArray[np.bool_] = in_turn & (goes_on[goes_on.searchsorted(waits)] < chose[after])
        return found

    def rearm(self, at: int) -> Rearm:
        """The last waking within one of the waits, by its place."""
        found = self._rearms.get(at)
        if found is None:
            track, wait = self._track, self._track.calls[at]
            after = bisect_right(track.offs.ends, wait[1] + 1)
            found = self._rearms[at] = Rearm(*track.wake_in(wait, 0, after), after)
        return found


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


def _pairs(one: NDArray[np.int64], other: NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(one.tolist(), other.tolist(), strict=True))
