# SPDX-License-Identifier: Apache-2.0
"""What is kept of lock words: a word's counters for ever, and rows of the last seconds.

Owns the shapes and their bounds; fills none of them.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tracer.model.histogram import LogHistogram
from tracer.schema import Records

RETAIN_ROWS = 1_000_000


def join(parts: Sequence[Records], dtype: np.dtype[np.void]) -> Records:
    """Arrays (n,) of one structured dtype behind each other.

    np.concatenate promotes the fields of structured dtypes one by one (60 us a call); bytes it just copies.
    """
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.empty(0, dtype=dtype)
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts]).view(dtype)


# What a word was seen waited on with.
SEEN_STD, SEEN_STD_OTHER, SEEN_PTHREAD, SEEN_PRIVATE_OTHER, SEEN_SHARED = 1, 2, 4, 8, 16


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a wait; ``holder_tid``: who held the lock to its end, 0 where unknown."""

    start_ns: int
    end_ns: int
    holder_tid: int


@dataclass(frozen=True, slots=True)
class Acquisition:
    """One contended acquisition, from the first wait to the return of the last.

    ``barged``: wakes that found the lock taken again. ``caller``: address of the call site, 0 unknown.
    ``cond``: the condvar word if this is the re-lock inside a condvar wait. ``open``: not known to
    have ended (it may be waiting still, or again). ``hold_ns``: -1 where the release was not seen.
    """

    tgid: int
    word: int
    tid: int
    start_ns: int
    end_ns: int
    waits: int
    barged: int
    caller: int = 0
    cond: int = 0
    open: bool = False
    hold_ns: int = -1

    @property
    def wait_ns(self) -> int:
        """How long it took."""
        return self.end_ns - self.start_ns


@dataclass(slots=True)
class Word:
    """What is known of a futex word for ever; counters are capped at a few dozen keys each."""

    tgid: int
    word: int
    seen: int = 0
    first_ns: int = 0
    last_ns: int = 0
    contended: int = 0
    barged: int = 0
    relocks: int = 0
    misses: int = 0
    around_seen: int = 0
    waits: LogHistogram = field(default_factory=LogHistogram)
    holds: LogHistogram = field(default_factory=LogHistogram)
    waiters: dict[int, int] = field(default_factory=dict)
    wakers: dict[int, int] = field(default_factory=dict)
    callers: dict[tuple[int, int], int] = field(default_factory=dict)
    conds: dict[tuple[int, int], int] = field(default_factory=dict)
    around: dict[tuple[int, str, str], int] = field(default_factory=dict)  # waiter, call before, call after

    @property
    def kind(self) -> str:
        """``mutex``, ``pthread``, ``condvar``, ``shared`` or ``other``, by what was seen so far."""
        if self.seen & SEEN_SHARED:
            return "shared"
        if self.seen == SEEN_STD:
            return "mutex"
        if self.seen == SEEN_PTHREAD:
            return "pthread"
        if self.seen & SEEN_STD_OTHER:
            return "condvar"
        return "other"

    @property
    def is_relock(self) -> bool:
        """Whether most acquisitions were the re-lock after a condvar wait."""
        return self.relocks > 0 and 2 * self.relocks >= self.contended

    @property
    def participants(self) -> set[int]:
        """Threads that waited for it or woke it."""
        return set(self.waiters) | set(self.wakers)


_K = TypeVar("_K")


def bump(counts: dict[_K, int], key: _K, by: int = 1, limit: int = 32) -> None:
    """Count, within a bounded number of keys (the rarest gives way)."""
    if key not in counts and len(counts) >= limit:
        del counts[min(counts, key=counts.__getitem__)]
    counts[key] = counts.get(key, 0) + by


WAKES = np.dtype([("tgid", "<u4"), ("tid", "<u4"), ("word", "<u8"), ("enter_ns", "<u8"), ("end_ns", "<u8")])


class Rows:
    """Rows of the last seconds with an index per key, built only for keys that are asked for."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self._dtype = dtype
        self._chunks: deque[Records] = deque()
        self._count = 0
        self._all: Records | None = None
        self._index: dict[tuple[int, ...], Records] = {}

    def add(self, rows: Records) -> None:
        """Keep rows; ``end_ns`` never goes back by more than one step."""
        if len(rows):
            self._chunks.append(rows)
            self._count += len(rows)
            self._all = None
            self._index.clear()

    def expire(self, before_ns: int) -> None:
        """Drop what ended before a time, and what is over the cap."""
        while self._chunks and (
            int(self._chunks[0]["end_ns"].max()) < before_ns or self._count > RETAIN_ROWS
        ):
            self._count -= len(self._chunks.popleft())
            self._all = None
            self._index.clear()

    def where(self, order: str, **keys: int) -> Records:
        """Rows whose fields equal ``keys``, sorted by ``order``."""
        key = tuple(keys.values())
        found = self._index.get(key)
        if found is None:
            if self._all is None:
                self._all = join(list(self._chunks), self._dtype)
            mask = np.ones(len(self._all), dtype=bool)
            for name, value in keys.items():
                mask &= self._all[name] == value
            rows = self._all.take(np.flatnonzero(mask))
            found = self._index[key] = rows.take(np.argsort(rows[order], kind="stable"))
        return found


def copy_word(word: Word) -> Word:
    """An independent copy of what acquisitions change."""
    return dataclasses.replace(
        word,
        waits=word.waits.copy(),
        holds=word.holds.copy(),
        waiters=dict(word.waiters),
        callers=dict(word.callers),
        conds=dict(word.conds),
    )
