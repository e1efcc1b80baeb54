# SPDX-License-Identifier: Apache-2.0
"""Which syscalls run under which lock: counts from the masks of watched words.

Owns the generations of watched words and the counts per (word, thread, syscall, object). A
mask bit says that the *word* was held when the syscall was entered, not that this thread held
it: hence the base rate, over threads that never wait for the word or wake it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.schema import EPOLL_CTL, EPOLL_WAIT, FD, MSG, RW, SYSCALL, Kind, Records

#: (tgid, kind, fd, eventfd_id or -1) -> what the fd is: completion, stream, irq, kick, pipe ...
ObjectOf = Callable[[int, int, int, int], str]

#: Entries of a kind from which on a held fraction tells anything.
MIN_SAMPLES = 20
_BITS = 16
_MAX_ROWS = 16384
_MAX_GENERATIONS = 1024
_REFRESH_NS = 1_000_000_000  # what an object is may be learned later: asked again this often

_FAMILIES = (
    (Kind.READ, Kind.WRITE, RW),
    (Kind.FD, Kind.FD, FD),
    (Kind.EPOLL_WAIT, Kind.EPOLL_WAIT, EPOLL_WAIT),
    (Kind.EPOLL_CTL, Kind.EPOLL_CTL, EPOLL_CTL),
    (Kind.RECVMSG, Kind.SENDMSG, MSG),
    (Kind.SYSCALL, Kind.SYSCALL, SYSCALL),
)
_EVENTFD_KEY = 1 << 32
_FD_KIND = int(Kind.FD)
_MIX = np.array((0x9E3779B97F4A7C1, 0x2545F4914F6CDD1, 0x1B873593CC9E2D5), dtype=np.int64)

Key = tuple[int, int, int, int, int, str]  # tgid, word, tid, kind, number, object


def _columns(rows: Records, family: np.dtype[np.void]) -> Iterator[NDArray[np.int64]]:
    """Columns (7, n) as ``Held`` counts them of the records in which a word could be read, if any."""
    readable = rows["readable_in"]
    if not readable.any():
        return
    if not readable.all():
        rows = rows.take(np.flatnonzero(readable))
    out = np.zeros((7, len(rows)), dtype=np.int64)
    out[0], out[1], out[3] = rows["tid"], rows["kind"], rows["generation"]
    out[5] = rows["readable_in"]
    out[6] = rows["held_in"] & rows["readable_in"]
    if family is FD or family is SYSCALL:
        out[2] = rows["op"]
    if family is FD:  # dup and close meet a new number each time: only their class counts
        out[4] = (rows["eventfd_id"] >= 0) * _EVENTFD_KEY
    elif family is RW or family is EPOLL_CTL:
        ids = rows["eventfd_id"]
        out[4] = np.where(ids >= 0, ids + np.int64(_EVENTFD_KEY), rows["fd"])
    elif family is MSG:
        out[4] = rows["fd"]
    else:
        out[4] = -1
    yield out


class Held:
    """Counts of held words at syscall entry.

    Args:
        registry: threads and fds.
        locks: who waits on a word (for base rates) and names; None in tests without locks.
        object_of: what an fd is; None: ``eventfd`` or the fd's type.
    """

    def __init__(
        self, registry: Registry, locks: Locks | None = None, object_of: ObjectOf | None = None
    ) -> None:
        self.registry = registry
        self.locks = locks
        self.object_of = object_of
        self._generations: dict[tuple[int, int], list[int]] = {}
        self._rows: dict[Key, int] = {}
        self._keys: list[Key] = []
        self._samples = np.zeros(64, dtype=np.int64)
        self._held = np.zeros(64, dtype=np.int64)
        self._last = np.zeros(64, dtype=np.int64)
        # Combinations of columns met since the last refresh: found by their mixed keys (m,), sorted; each has
        # one of the rows (p, 16) of counter indices by mask bit.
        self._known = np.zeros(0, dtype=np.int64)
        self._row_of = np.zeros(0, dtype=np.intp)
        self._table = np.zeros((0, _BITS), dtype=np.int64)
        self._places: dict[tuple[int, int, int, int, str], int] = {}
        self._cache_until = 0
        self.eventfds: set[str] = set()  # what eventfds were called so far

    # ---- feeding

    def step(self, step: Step) -> None:
        """Count one step's records."""
        for row in step.of(Kind.WORDS):
            self._learn(int(row["tid"]), int(row["op"]), int(row["flags"]), row["words"].tolist())
        if len(self._keys) > _MAX_ROWS:
            self._prune()
        if step.end_ns >= self._cache_until:
            self._forget_places()
            self._cache_until = (step.end_ns // _REFRESH_NS + 1) * _REFRESH_NS
        if not self._generations:
            return
        parts = [part for first, last, family in _FAMILIES for part in _columns(step.of(first, last), family)]
        if parts:
            columns = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            self._count(columns, step.end_ns)

    def _learn(self, tgid: int, generation: int, chunk: int, words: list[int]) -> None:
        known = self._generations.setdefault((tgid, generation), [0] * _BITS)
        known[4 * chunk : 4 * chunk + 4] = words[: max(0, _BITS - 4 * chunk)]
        if len(self._generations) > _MAX_GENERATIONS:
            del self._generations[next(iter(self._generations))]

    def words_of(self, tgid: int, generation: int) -> list[int]:
        """The watched words of a generation by mask bit (0: none)."""
        return self._generations.get((tgid, generation), [])

    def _count(self, columns: NDArray[np.int64], now_ns: int) -> None:
        """Count columns (7, n): tid, kind, number, generation, fd key, readable, held."""
        tid, kind, number, generation, fd, readable, held = columns
        # One 64-bit key each: they do not fit side by side, so mix (collisions: ~1e-13).
        key = tid * _MIX[0] + fd * _MIX[1]
        key ^= (generation | (kind << 16) | (number << 24)) * _MIX[2]
        group, known = self._find(key)
        if not known.all():
            fresh = np.flatnonzero(~known)
            self._enlist(key[fresh], columns[:5, fresh])
            group, _ = self._find(key)
        row = self._row_of[group]
        places = len(self._table)
        some = np.flatnonzero(held)
        for mask, counts in ((readable, self._samples), (held.take(some), self._held)):
            of = row if counts is self._samples else row.take(some)
            used = int(np.bitwise_or.reduce(mask))
            same = len(mask) and int(np.bitwise_and.reduce(mask)) == used
            n = np.bincount(of, minlength=places)
            for bit in range(_BITS):
                if used >> bit & 1:
                    if not same:
                        n = np.bincount(of.take(np.flatnonzero(mask >> bit & 1)), minlength=places)
                    at = self._table[:, bit]
                    np.add.at(counts, at, n)
                    if counts is self._samples:
                        self._last[at[n > 0]] = now_ns

    def _find(self, key: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where keys (n,) are among the known ones, and whether they are."""
        if not len(self._known):
            return np.zeros(len(key), dtype=np.intp), np.zeros(len(key), dtype=bool)
        at = np.minimum(np.searchsorted(self._known, key), len(self._known) - 1)
        return at, self._known[at] == key

    def _enlist(self, key: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        """Make keys (n,) known that are not yet."""
        new, first = np.unique(key, return_index=True)
        rows = [self._place(*row) for row in columns[:, first].T.tolist()]
        known, row_of = np.concatenate((self._known, new)), np.concatenate((self._row_of, rows))
        order = np.argsort(known)
        self._known, self._row_of = known[order], row_of[order].astype(np.intp)

    def _place(self, tid: int, kind: int, number: int, generation: int, fd: int) -> int:
        """The row of counter indices of one combination of columns; index 0: nowhere."""
        tgid = self.registry.tgid(tid)
        if kind == _FD_KIND:
            obj = "eventfd" if fd else ""
        else:
            eventfd_id = fd - _EVENTFD_KEY if fd >= _EVENTFD_KEY else -1
            obj = self._object(tgid, kind, fd if eventfd_id < 0 else 0, eventfd_id)
        place = tid, generation, kind, number, obj
        row = self._places.get(place)
        if row is None:
            row = self._places[place] = len(self._table)
            at = np.zeros((1, _BITS), dtype=np.int64)
            for bit, word in enumerate(self.words_of(tgid, generation)):
                if word:
                    at[0, bit] = self._index((tgid, word, tid, kind, number, obj))
            self._table = np.concatenate((self._table, at))
        return row

    def _object(self, tgid: int, kind: int, fd: int, eventfd_id: int) -> str:
        if fd < 0 and eventfd_id < 0:
            return ""
        if self.object_of is not None:
            name = self.object_of(tgid, kind, fd, eventfd_id)
            if eventfd_id >= 0:
                self.eventfds.add(name)
            return name
        if eventfd_id >= 0:
            self.eventfds.add("eventfd")
            return "eventfd"
        known = self.registry.fds.get((tgid, fd))
        return known.type if known is not None else ""

    def _index(self, key: Key) -> int:
        at = self._rows.get(key)
        if at is None:
            at = self._rows[key] = len(self._keys) + 1  # 0 takes what belongs nowhere
            self._keys.append(key)
            if at >= len(self._samples):
                self._samples, self._held, self._last = (
                    np.concatenate((a, np.zeros_like(a))) for a in (self._samples, self._held, self._last)
                )
        return at

    def _prune(self) -> None:
        """Keep the half of the rows counted last."""
        n = len(self._keys)
        keep = np.sort(np.argsort(-self._last[1 : n + 1], kind="stable")[: n // 2])
        for array in (self._samples, self._held, self._last):
            array[1 : len(keep) + 1] = array[1 : n + 1][keep]
            array[len(keep) + 1 :] = 0
        self._keys = [self._keys[i] for i in keep.tolist()]
        self._rows = {key: i + 1 for i, key in enumerate(self._keys)}
        self._forget_places()

    def _forget_places(self) -> None:
        self._known, self._row_of, self._table = self._known[:0], self._row_of[:0], self._table[:0]
        self._places.clear()

    def adopt(self, other: Held) -> None:
        """Take over which words are watched (not the counts): a reset finds no WORDS record again."""
        self._generations = dict(other._generations)

    # ---- queries

    def count(
        self,
        tgid: int,
        word: int,
        tids: Iterable[int] | None = None,
        kind: Kind | None = None,
        objects: Iterable[str] | None = None,
    ) -> tuple[int, int]:
        """(held, samples) over threads, a syscall kind and objects; None: all."""
        who = None if tids is None else set(tids)
        what = None if objects is None else set(objects)
        held = samples = 0
        for i, key in enumerate(self._keys, start=1):
            if (
                key[0] == tgid
                and key[1] == word
                and (who is None or key[2] in who)
                and (kind is None or key[3] == kind)
                and (what is None or key[5] in what)
            ):
                held += int(self._held[i])
                samples += int(self._samples[i])
        return held, samples

    def fraction(
        self, tgid: int, word: int, tids: Iterable[int] | None, kind: Kind | None, obj: str | None
    ) -> tuple[float | None, int]:
        """(fraction of entries that found the word held, samples); the fraction is None without samples."""
        held, n = self.count(tgid, word, tids, kind, None if obj is None else (obj,))
        return (held / n if n else None), n

    def base(self, tgid: int, word: int) -> float | None:
        """Held fraction over threads that never wait for the word nor wake it; None below 20 samples."""
        known = self.locks.words.get((tgid, word)) if self.locks is not None else None
        users = known.participants if known is not None else set()
        others = {key[2] for key in self._keys if key[0] == tgid and key[1] == word} - users
        held, n = self.count(tgid, word, others)
        return held / n if n >= MIN_SAMPLES else None

    def all(self) -> Iterator[tuple[Key, int, int]]:
        """(key, times held, samples) of whatever has samples."""
        end = len(self._keys) + 1
        held, samples = self._held[1:end].tolist(), self._samples[1:end].tolist()
        yield from (row for row in zip(self._keys, held, samples, strict=True) if row[2])

    def watched(self, tgid: int) -> set[int]:
        """Words of a process that have samples."""
        return {key[1] for key in self._keys if key[0] == tgid}
