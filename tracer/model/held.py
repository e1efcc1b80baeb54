# SPDX-License-Identifier: Apache-2.0
"""Which syscalls run under which lock: counts from the masks of watched words.

Owns the generations of watched words and the counts per (word, thread, syscall, object). A
mask bit says that the *word* was held when the syscall was entered, not that this thread held
it: hence the base rate, over threads that never wait for the word or wake it.

``inside`` (this syscall runs under this lock) needs 20 samples and, at the lower 99 % Wilson
bound of the fraction, to be found free at most a third as often as bystanders find it. A lock
that is busy half the time thus needs more than 83 %; chance does not get there, and a syscall
that is under the lock only on some of its ways shows as its fraction without the mark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from tracer.model.blame import syscall_name
from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summary import HeldRow
from tracer.schema import EPOLL_CTL, EPOLL_WAIT, FD, MSG, RW, SYSCALL, Kind, Records

#: (tgid, kind, fd, eventfd_id or -1) -> what the fd is: completion, stream, irq, kick, pipe ...
ObjectOf = Callable[[int, Kind, int, int], str]

MIN_SAMPLES = 20
_WILSON_Z = 2.576  # 99 %
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

Key = tuple[int, int, int, int, int, str]  # tgid, word, tid, kind, number, object


def wilson_low(held: int, n: int, z: float = _WILSON_Z) -> float:
    """Lower bound of a fraction held/n (Wilson score interval, one tail at z)."""
    if n <= 0:
        return 0.0
    p, zz = held / n, z * z
    return max(0.0, (p + zz / (2 * n) - z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))) / (1 + zz / n))


def is_inside(held: int, n: int, base: float | None) -> bool:
    """The rule in this module's docstring; ``base`` None (no bystander seen) counts as 0."""
    return n >= MIN_SAMPLES and 1 - wilson_low(held, n) <= (1 - (base or 0.0)) / 3


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
        self._cache: dict[int, NDArray[np.int64]] = {}
        self._places: dict[tuple[int, int, int, int, str], NDArray[np.int64]] = {}
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
            self._cache.clear()
            self._places.clear()
            self._cache_until = (step.end_ns // _REFRESH_NS + 1) * _REFRESH_NS
        if not self._generations:
            return
        for first, last, family in _FAMILIES:
            rows = step.of(first, last)
            readable = rows["readable_in"] != 0
            if readable.any():
                rows = rows if readable.all() else rows.take(np.flatnonzero(readable))
                self._count(rows, family, step.end_ns)

    def _learn(self, tgid: int, generation: int, chunk: int, words: list[int]) -> None:
        known = self._generations.setdefault((tgid, generation), [0] * _BITS)
        known[4 * chunk : 4 * chunk + 4] = words[: max(0, _BITS - 4 * chunk)]
        if len(self._generations) > _MAX_GENERATIONS:
            del self._generations[next(iter(self._generations))]

    def words_of(self, tgid: int, generation: int) -> list[int]:
        """The watched words of a generation by mask bit (0: none)."""
        return self._generations.get((tgid, generation), [])

    def _count(self, rows: Records, family: np.dtype[np.void], now_ns: int) -> None:
        names = family.names or ()
        fd = np.zeros(len(rows), dtype=np.int64)
        if "fd" in names:
            fd = rows["fd"].astype(np.int64) & 0xFFFFFFFF
            if family == FD:  # dup and close meet a new number each time: only their class counts
                fd = np.where(rows["eventfd_id"] >= 0, _EVENTFD_KEY, 0)
            elif "eventfd_id" in names:
                ids = rows["eventfd_id"]
                fd = np.where(ids >= 0, ids.astype(np.int64) | _EVENTFD_KEY, fd)
        number = rows["op"].astype(np.int64) if family in (FD, SYSCALL) else 0
        # One 63-bit key each: tid 22, generation 16 and object 33 do not fit, so mix (collisions: ~1e-13).
        key = rows["tid"].astype(np.int64) * np.int64(0x9E3779B97F4A7C1) + fd * np.int64(0x2545F4914F6CDD1)
        key ^= (
            rows["generation"].astype(np.int64) | (rows["kind"].astype(np.int64) << 16) | (number << 24)
        ) * np.int64(0x1B873593CC9E2D5)
        unique, first, group = np.unique(key, return_index=True, return_inverse=True)
        table = np.zeros((len(unique), _BITS), dtype=np.int64)
        for i, value in enumerate(unique.tolist()):
            at = self._cache.get(value)
            if at is None:
                at = self._cache[value] = self._place(
                    rows[first[i] : first[i] + 1], family, int(fd[first[i]])
                )
            table[i] = at
        readable, held = rows["readable_in"], rows["held_in"] & rows["readable_in"]
        used = int(np.bitwise_or.reduce(readable))
        for bit in range(_BITS):
            if used >> bit & 1:
                at = table[:, bit]
                mask = np.uint16(1 << bit)
                np.add.at(
                    self._samples, at, np.bincount(group[(readable & mask) != 0], minlength=len(unique))
                )
                np.add.at(self._held, at, np.bincount(group[(held & mask) != 0], minlength=len(unique)))
                self._last[at] = now_ns

    def _place(self, row: Records, family: np.dtype[np.void], fd_key: int) -> NDArray[np.int64]:
        """Counter indices (16,) by mask bit of the group that a record (1,) belongs to; 0: nowhere."""
        tid, kind = int(row["tid"][0]), Kind(int(row["kind"][0]))
        tgid = self.registry.tgid(tid)
        generation = int(row["generation"][0])
        number = int(row["op"][0]) if family in (FD, SYSCALL) else 0
        if family == FD:
            obj = "eventfd" if fd_key else ""
        else:
            fd = int(row["fd"][0]) if "fd" in (family.names or ()) else -1
            obj = self._object(tgid, kind, fd, fd_key & 0xFFFFFFFF if fd_key & _EVENTFD_KEY else -1)
        place = tid, generation, int(kind), number, obj
        at = self._places.get(place)
        if at is None:
            at = self._places[place] = np.zeros(_BITS, dtype=np.int64)
            for bit, word in enumerate(self.words_of(tgid, generation)):
                if word:
                    at[bit] = self._index((tgid, word, tid, int(kind), number, obj))
        return at

    def _object(self, tgid: int, kind: Kind, fd: int, eventfd_id: int) -> str:
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
        self._cache.clear()
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

    def watched(self, tgid: int) -> set[int]:
        """Words of a process that have samples."""
        return {key[1] for key in self._keys if key[0] == tgid}

    def rows(self, limit: int = 100) -> tuple[HeldRow, ...]:
        """The Held table: inside first, then by times found held."""
        bases: dict[tuple[int, int], float | None] = {}
        rows: list[tuple[int, HeldRow]] = []
        for i, (tgid, word, tid, kind, number, obj) in enumerate(self._keys, start=1):
            held, n = int(self._held[i]), int(self._samples[i])
            if not n:
                continue
            if (tgid, word) not in bases:
                bases[tgid, word] = self.base(tgid, word)
            base = bases[tgid, word]
            row = HeldRow(
                lock=self.locks.label(tgid, word) if self.locks is not None else f"lock@{word:#x}",
                tid=tid,
                role=self.registry.role(tid),
                syscall=syscall_name(Kind(kind), number),
                object=obj,
                samples=n,
                held_fraction=held / n,
                base=base,
                inside=is_inside(held, n, base),
            )
            rows.append((held, row))
        rows.sort(
            key=lambda hr: (not hr[1].inside, -hr[0], -hr[1].samples, hr[1].lock, hr[1].tid, hr[1].syscall)
        )
        return tuple(row for _, row in rows[:limit])
