# SPDX-License-Identifier: Apache-2.0
"""W's spans read as turns, once for all windows that overlap.

Owns where W chose, interrupted and waited, whoever's cycle is looked at. Whose a turn is is worker.py's. A
reading is good until there are more records.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Set
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.callkinds import NEVER, calls_among, waits_among, wakes_among
from tracer.model.spans import END, ENTER, FLAGS, KIND, Call, Off, calls_of
from tracer.model.track import Track
from tracer.schema import Flag, Kind

#: Plain ints: enum look-ups cost more than the comparison.
_READ, _WRITE, _EPOLL_WAIT, _RECVMSG = (
    int(Kind.READ),
    int(Kind.WRITE),
    int(Kind.EPOLL_WAIT),
    int(Kind.RECVMSG),
)
_EVENTFD: Final = int(Flag.EVENTFD)


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
        chose = np.array([0, *self.choice_at, NEVER], dtype=np.int64) - self.first
        done = np.array([0, *self.irq_at], dtype=np.int64) - self.first
        works = np.flatnonzero((kind == _READ) | (kind == _RECVMSG))
        goes_on = np.append(np.union1d(works, done[1:]), NEVER)
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


def _pairs(one: NDArray[np.int64], other: NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(one.tolist(), other.tolist(), strict=True))
