# SPDX-License-Identifier: Apache-2.0
"""W's and G's spans read as turns and commands, once for all windows that overlap.

Owns what does not depend on whose cycle is looked at: where W chose, interrupted and parked; when G slept
idle, and where its commands ended. Whose they are is worker.py's and commands.py's. A reading is good until
there are more records.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, NamedTuple

from tracer.model.spans import Call, Off
from tracer.schema import FUTEX_CMD_MASK, FUTEX_WAIT, FUTEX_WAIT_BITSET, Flag, Kind

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
_WAITS: Final = (FUTEX_WAIT, FUTEX_WAIT_BITSET)
#: What W serves an event by.
_WORKS: Final = (_READ, _RECVMSG)
#: Syscalls that end a command of G.
_ENDS: Final = (_FD, _WRITE, int(Kind.EPOLL_CTL), _FUTEX)


#: What a NamedTuple's constructor does, without a call of Python's own.
_new: Final = tuple.__new__


def is_idle(call: Call) -> bool:
    """Whether a G may be idle in a call, as far as that alone tells."""
    return call.kind in IDLE_CALLS and (call.kind == _READ or call.op not in POLLS)


def is_parked(call: Call) -> bool:
    """Whether a thread waits in a call for something that is no mutex."""
    return call.kind == _FUTEX and call.op & FUTEX_CMD_MASK in _WAITS and call.expected != 2


def polls_of_queue(calls: Sequence[Call]) -> Iterator[int]:
    """Begins of the polls (not of epoll sets) that a read of an eventfd follows at once."""
    for call, after in itertools.pairwise(calls):
        if call[2] == _EPOLL_WAIT and after[2] == _READ and after[4] & _EVENTFD and call[3] in POLLS:
            yield call[0]


class WorkerReading:
    """Where W chose, interrupted and waited for its re-arm, each with its place among W's syscalls.

    A turn goes from a choice over what W reads to its interrupt; then W waits for its re-arm. A wait before
    the interrupt, after which W goes on with that turn, is ``within`` its work: for what, is parking.py's.

    Args:
        calls: W's syscalls from ``first`` on, by end.
        is_lock: whether a word is a lock's: who waits for one is not parked.
        by_wake: W interrupts a vCPU thread by waking it, not by an eventfd.
        works: numbers of polls that are part of W's work.
    """

    __slots__ = (
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
        calls: Sequence[Call],
        first: int,
        is_lock: Callable[[int], bool],
        *,
        by_wake: bool = False,
        works: Collection[int] = (),
    ) -> None:
        self.first = first
        self.choices: list[tuple[int, int]] = []
        self.choice_at: list[int] = []
        self.irqs: list[int] = []
        self.irq_at: list[int] = []
        self.parked: list[Call] = []
        self.parked_at: list[int] = []
        self.within: list[Call] = []
        self.within_at: list[int] = []
        in_turn = False
        open_: list[tuple[int, Call]] = []
        for i, call in enumerate(calls, first):
            kind = call[2]
            if kind == _EPOLL_WAIT and call[3] not in works:
                self.choices.append((call[0], call[1]))
                self.choice_at.append(i)
                self._file(open_, self.parked, self.parked_at)
                in_turn = True
            elif kind == _WRITE:
                if call[4] & _EVENTFD:
                    self.irqs.append(call[1])
                    self.irq_at.append(i)
                    self._file(open_, self.within, self.within_at)
                    in_turn = False
            elif kind in _WORKS:
                self._file(open_, self.within, self.within_at)
            elif by_wake and kind == _FUTEX and call.is_wake and not is_lock(call.word):
                self.irqs.append(call[1])
                self.irq_at.append(i)
                self._file(open_, self.within, self.within_at)
                in_turn = False
            elif (
                kind == _FUTEX
                and call[3] & FUTEX_CMD_MASK in _WAITS
                and not (call.expected == 2 and is_lock(call.word))
            ):
                open_.append((i, call))
                if not in_turn:
                    self._file(open_, self.parked, self.parked_at)
        self._file(open_, self.parked, self.parked_at)

    @staticmethod
    def _file(waits: list[tuple[int, Call]], into: list[Call], at: list[int]) -> None:
        for i, call in waits:
            into.append(call)
            at.append(i)
        waits.clear()


class Act(NamedTuple):
    """What may have ended a command of G.

    Attributes:
        at: its place among G's syscalls.
        begin: when the command began: where G was woken for it, or ended the one before.
        last_enter: when the last syscall up to it began.
        eventfd: what was written, -1 if it is no eventfd, None if nothing was written.
        wakes: it woke somebody who waits for no mutex.
    """

    at: int
    enter: int
    end: int
    begin: int
    last_enter: int
    eventfd: int | None
    wakes: bool


class GpuReading:
    """When G slept idle, and where its commands ended.

    Kicks come by eventfd, so a read of anything else is work. (Without BTF nothing is flagged, and every
    read may be one.)

    Args:
        calls: G's syscalls from ``first`` on, by end; offs: its off-CPU spans of that time.
        is_own: whether a syscall belongs to the command that follows.
        parks: this G takes commands from a list and waits in a condvar for them.
    """

    __slots__ = ("_acts", "_also", "_calls", "_flagged_at", "_is_own", "any_reads", "first", "kicks", "woken")

    def __init__(
        self,
        calls: Sequence[Call],
        first: int,
        offs: Sequence[Off],
        is_own: Callable[[Call], bool],
        *,
        parks: bool = False,
    ) -> None:
        self.first = first
        # What is idle by what follows or by habit, by its begin.
        self._also = {c.enter for c in calls if parks and is_parked(c)} | set(polls_of_queue(calls))
        reads = [(i, c) for i, c in enumerate(calls, first) if self._idle(c)]
        flagged = [(i, c) for i, c in reads if c[2] != _READ or c[4] & _EVENTFD]
        self._flagged_at = [i for i, _ in flagged]
        self.kicks: list[Call] = [c for _, c in flagged or reads]
        #: Any read may take a kick.
        self.any_reads = not self.kicks or (
            self.kicks[0].kind == _READ and not self.kicks[0].flags & _EVENTFD
        )
        #: When it was woken out of its idle call, in order.
        self.woken = self._wakings(offs)
        self._calls, self._is_own = calls, is_own
        self._acts: list[Act] | None = None

    def kicked(self, low: int, high: int) -> bool:
        """Whether one of some syscalls is a call for G's queue beyond doubt."""
        i = bisect_left(self._flagged_at, low)
        return i < len(self._flagged_at) and self._flagged_at[i] < high

    def takes_kick(self, call: Call) -> bool:
        """Whether G is at its queue in a call, not at work."""
        if call.kind != _READ or call.flags & _EVENTFD:
            return self._idle(call)
        return self.any_reads

    def _idle(self, call: Call) -> bool:
        return (call[2] in IDLE_CALLS and is_idle(call)) or call[0] in self._also

    def woken_before(self, before_ns: int) -> int:
        """When G was last woken out of its idle read, at or before a time; 0 where not seen."""
        i = bisect_right(self.woken, before_ns) - 1
        return self.woken[i] if i >= 0 else 0

    def acts_in(self, low: int, high: int) -> Sequence[Act]:
        """Those among some syscalls."""
        if self._acts is None:
            self._acts = self._found()
        first = bisect_left(self._acts, low, key=_at)
        return self._acts[first : bisect_left(self._acts, high, key=_at)]

    def _wakings(self, offs: Sequence[Off]) -> list[int]:
        reads = self.kicks
        ends = [c.end for c in reads]
        found = []
        i, n = 0, len(reads)
        for off in offs:
            woken = off.woken
            if not woken or not off.slept:
                continue
            if i and ends[i - 1] >= woken:
                i = bisect_left(ends, woken)  # spans that overlap: records are missing
            while i < n and ends[i] < woken:
                i += 1
            if i < n and reads[i].enter <= off.out:
                found.append(woken)
        return found

    def _found(self) -> list[Act]:
        acts: list[Act] = []
        begin = gap = last = 0
        woken, n = self.woken, len(self.woken)
        for at, call in enumerate(self._calls, self.first):
            enter, end, kind = call[0], call[1], call[2]
            if enter > last:
                last = enter
            while gap < n and woken[gap] <= enter:
                begin = max(begin, woken[gap])
                gap += 1
            if self._idle(call):
                if self.takes_kick(call):
                    # Woken by somebody's kick, G is that command's, even while it waits for a CPU.
                    wake = self.woken_before(end)
                    begin = max(begin, wake if wake > enter else end)
                continue
            if kind not in _ENDS:
                continue
            if kind == _FUTEX:
                if self._is_own(call):
                    continue
            elif kind == _FD and call.op not in CLOSE:
                continue
            written = call.eventfd if kind == _WRITE else None
            acts.append(_new(Act, (at, enter, end, begin, last, written, kind == _FUTEX)))
            if end > begin:
                begin = end
        return acts


def _at(act: Act) -> int:
    return act.at
