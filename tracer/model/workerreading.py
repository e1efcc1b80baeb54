# SPDX-License-Identifier: Apache-2.0
"""W's syscalls read as turns, once for all windows.

Owns what does not depend on whose cycle is looked at: where W chose, worked, interrupted and waited for its
re-arm, and who ended those waits. It goes on where it was when there are more records: all but the last turn
stays as it was read. Whose turn it is, is worker.py's.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Set
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.callkinds import NEVER, calls_among, waits_among, wakes_among
from tracer.model.spans import (
    BACK,
    END,
    ENTER,
    EVENTFD,
    EXPECTED,
    FLAGS,
    IN_IRQ,
    KIND,
    OUT,
    WAKER,
    WAKER_TGID,
    WOKEN,
    WORD,
    Columns,
)
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
MUTEX_CONTENDED: Final = 2  # the value that who waits for a lock expects


OTHER_STREAMS: Final = "other streams"


class Wait(NamedTuple):
    """A wait of W that is none for a lock.

    Attributes:
        off: place of the off-CPU span in which it was woken last, -1: not seen.
        woken, waker, waker_tgid: when that was, and by whom (0: an interrupt).
        after: place of the first off-CPU span after it.
    """

    enter: int
    end: int
    woken: int
    waker: int
    waker_tgid: int
    off: int
    after: int


class Marks:
    """Some of W's syscalls, by place (as ``Spans.gone`` counts): when each began and ended."""

    __slots__ = ("at", "begins", "ends")

    def __init__(self) -> None:
        self.at: list[int] = []
        self.begins: list[int] = []
        self.ends: list[int] = []

    def within(self, low: int, high: int) -> slice:
        """Those of the places [low, high)."""
        return slice(bisect_left(self.at, low), bisect_left(self.at, high))

    def add(self, columns: Columns, at: NDArray[np.int64], first: int) -> None:
        self.at += (at + first).tolist()
        self.begins += columns[ENTER].take(at).tolist()
        self.ends += columns[END].take(at).tolist()

    def only(self, low: int, high: int) -> None:
        """Forget all but the places [low, high)."""
        kept = self.within(low, high)
        for rows in (self.at, self.begins, self.ends):
            del rows[kept.stop :], rows[: kept.start]


class Waits(Marks):
    """Marks that are waits."""

    __slots__ = ("waits",)

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def only(self, low: int, high: int) -> None:
        kept = self.within(low, high)
        del self.waits[kept.stop :], self.waits[: kept.start]
        super().only(low, high)


class Works(Marks):
    """Marks that are reads of what W serves: what that is (its kind, and the eventfd-id or -1)."""

    __slots__ = ("what",)

    def __init__(self) -> None:
        super().__init__()
        self.what: list[tuple[str, int]] = []

    def only(self, low: int, high: int) -> None:
        kept = self.within(low, high)
        del self.what[kept.stop :], self.what[: kept.start]
        super().only(low, high)


class WorkerReading:
    """Where W chose, interrupted and waited for its re-arm.

    A turn goes from a choice over what W reads to its interrupt; then W waits for its re-arm. A wait before
    the interrupt, after which W goes on with that turn, is ``within`` its work: for what, is parking.py's.

    Args:
        track: W's.
        is_lock: whether a word is a lock's: who waits for one is not parked.
        by_wake: W interrupts a vCPU thread by waking it, not by an eventfd.
        works: numbers of polls that are part of W's work.
    """

    __slots__ = (
        "_by_wake",
        "_calls",
        "_is_lock",
        "_locks",
        "_offs",
        "_read_to",
        "_version",
        "_works",
        "choices",
        "irqs",
        "parked",
        "within",
        "works",
    )

    def __init__(
        self,
        track: Track,
        is_lock: Callable[[int], bool],
        *,
        by_wake: bool = False,
        works: Set[int] = frozenset(),
    ) -> None:
        # Not the track, which holds its reading: what is in a circle only the collector of garbage frees.
        self._calls, self._offs, self._version = track.calls, track.offs, track.version
        self._is_lock = is_lock
        self._by_wake, self._works = by_wake, works
        self._locks: dict[int, bool] = {}  # what was a lock, and what was not
        self._read_to = track.calls.gone
        self.choices, self.irqs, self.works = Marks(), Marks(), Works()
        self.parked, self.within = Waits(), Waits()
        self.read_on()

    def holds(self, track: Track, is_lock: Callable[[int], bool], *, by_wake: bool, works: Set[int]) -> bool:
        """Whether it would be read alike today."""
        return (
            self._version == track.version
            and self._by_wake == by_wake
            and self._works == works
            and all(is_lock(word) == known for word, known in self._locks.items())
        )

    def read_on(self) -> None:
        """Take over what is new; the last turn may have gone on."""
        calls = self._calls
        gone, last = calls.gone, calls.gone + len(calls)
        if last == self._read_to:
            return
        since = max(gone, self.choices.at[-1] if self.choices.at else self._read_to)
        for marks in (self.choices, self.irqs, self.works, self.parked, self.within):
            marks.only(gone, since)
        self._read(calls.columns[:, since - gone :], since)
        self._read_to = last

    def irq_of_turn(self, read_ns: int, before_ns: int) -> int:
        """End of the first interrupt after a read, if before a time and W's next choice; 0 where none."""
        irqs, chose = self.irqs.ends, self.choices.begins
        i = bisect_right(irqs, read_ns)
        if i >= len(irqs) or irqs[i] > before_ns:
            return 0
        later = bisect_left(chose, read_ns)
        return irqs[i] if later >= len(chose) or irqs[i] <= chose[later] else 0

    def _known(self, word: int) -> bool:
        known = self._locks.get(word)
        if known is None:
            known = self._locks[word] = self._is_lock(word)
        return known

    def _read(self, columns: Columns, first: int) -> None:
        kind = columns[KIND]
        chose = np.flatnonzero((kind == _EPOLL_WAIT) & ~calls_among(columns, _EPOLL_WAIT, self._works))
        self.choices.add(columns, chose, first)
        is_irq = (kind == _WRITE) & ((columns[FLAGS] & _EVENTFD) != 0)
        if self._by_wake:
            is_irq |= wakes_among(columns, self._known)
        irqs = np.flatnonzero(is_irq)
        self.irqs.add(columns, irqs, first)
        works = np.flatnonzero((kind == _READ) | (kind == _RECVMSG))
        self.works.add(columns, works, first)
        self.works.what += _what(columns, works)
        waits = np.flatnonzero(waits_among(columns))
        for_lock = columns[EXPECTED].take(waits) == MUTEX_CONTENDED
        if for_lock.any():
            words = columns[WORD].take(waits)
            locks = [word for word in set(words[for_lock].tolist()) if self._known(word)]
            for_lock &= np.isin(words, np.array(locks, dtype=np.int64))
            waits = waits[~for_lock]
        if not len(waits):
            return
        goes_on = _goes_on(waits, chose, irqs, works)
        found = self._ended(columns[ENTER].take(waits), columns[END].take(waits))
        for marks, some in ((self.within, goes_on), (self.parked, ~goes_on)):
            marks.add(columns, waits[some], first)
            marks.waits += [found[i] for i in np.flatnonzero(some).tolist()]

    def _ended(self, enter: NDArray[np.int64], end: NDArray[np.int64]) -> list[Wait]:
        """Waits with the last waking within each."""
        offs = self._offs
        first = bisect_left(offs.ends, int(enter[0]))
        columns = offs.columns[:, first:]
        woken = np.append(np.flatnonzero(columns[WOKEN]), -1)
        wakings = np.append(columns[:, woken[:-1]], np.zeros((len(columns), 1), dtype=np.int64), axis=1)
        at = wakings[BACK, :-1].searchsorted(end + 1, side="right") - 1  # none: the last one, which is empty
        seen = (at >= 0) & (wakings[OUT].take(at) >= enter)
        at = np.where(seen, at, -1)
        first += offs.gone
        return list(
            map(
                Wait,
                enter.tolist(),
                end.tolist(),
                wakings[WOKEN].take(at).tolist(),
                np.where(wakings[IN_IRQ].take(at), 0, wakings[WAKER].take(at)).tolist(),
                wakings[WAKER_TGID].take(at).tolist(),
                np.where(seen, woken.take(at) + first, -1).tolist(),
                (columns[BACK].searchsorted(end + 1, side="right") + first).tolist(),
            )
        )


def _what(columns: Columns, works: NDArray[np.int64]) -> list[tuple[str, int]]:
    return [
        ("channel", -1) if kind == _RECVMSG else (OTHER_STREAMS if flags & _EVENTFD else "pipes", eventfd)
        for kind, flags, eventfd in zip(
            columns[KIND].take(works).tolist(),
            columns[FLAGS].take(works).tolist(),
            columns[EVENTFD].take(works).tolist(),
            strict=True,
        )
    ]


def _goes_on(
    waits: NDArray[np.int64], choices: NDArray[np.int64], irqs: NDArray[np.int64], works: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether W goes on with a turn after each of some waits, all by place."""
    chose = np.concatenate(([-1], choices, [NEVER]))
    done = np.concatenate(([-1], irqs))
    goes_on = np.append(np.sort(np.concatenate((works, irqs))), NEVER)
    after = chose.searchsorted(waits)
    in_turn = chose[after - 1] > done[done.searchsorted(waits) - 1]
    found: NDArray[np.bool_] = in_turn & (goes_on[goes_on.searchsorted(waits)] < chose[after])
    return found
