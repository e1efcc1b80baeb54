# SPDX-License-Identifier: Apache-2.0
"""Which lock words are watched: chosen by their contended waits, or told.

Owns the choice and the generations. A Rust mutex's word shows itself by a wait
with op 137 and expected value 2, and holds 0, 1 or 2; a word that is ever
waited on with another expected value is a condvar's. glibc's mutex holds the same
three values and shows itself by op 128, but so does malloc's lock: its words are
watched only in a program that has shown no Rust mutex. Whoever tells the choice
needs a step or two to see a word's first wait: until then a fresh word is
watched all the same, in place of the told one waited for longest ago. Never
touches a BPF map: the session does, when it is told that words changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tracer import schema
from tracer.schema import Kind, Records

_MUTEX_WAIT = schema.FUTEX_WAIT_BITSET | schema.FUTEX_PRIVATE
_GLIBC_WAIT = schema.FUTEX_WAIT | schema.FUTEX_PRIVATE
_MUTEX_CONTENDED = 2
_MAX_GENERATION = 0xFFFF
# More lock words than are watched at a time take turns; so many are remembered.
_MAX_CANDIDATES = 64
# A process that makes condvars for ever must not fill memory with what it is not.
_MAX_BANNED = 65_536
# A fresh word is watched beside what was told until it has been through so many verify(), one a second.
_FRESH_ROUNDS = 2


def read_word(tgid: int, address: int) -> int | None:
    """The 4-byte word at a user address of a process, None where it cannot be read."""
    try:
        with open(f"/proc/{tgid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            raw = memory.read(4)
    except (OSError, ValueError, OverflowError):
        return None
    return int.from_bytes(raw, "little") if len(raw) == 4 else None


@dataclass(slots=True)
class _Target:
    words: tuple[int, ...] = ()
    told: tuple[int, ...] | None = None
    fresh: dict[int, int] = field(default_factory=dict)  # word: rounds left
    waited: dict[int, None] = field(default_factory=dict)  # in order of their latest waits
    named: tuple[int, ...] = ()
    candidates: list[int] = field(default_factory=list)
    glibc: set[int] = field(default_factory=set)  # of the candidates
    turn: int = 0
    banned: set[int] = field(default_factory=set)


class Words:
    """The watched words of all targets.

    Args:
        limit: words per target, 0 to 16.
        read: how a word of a process is read; for tests.
    """

    def __init__(self, limit: int, read: Callable[[int, int], int | None] = read_word) -> None:
        self._limit = limit
        self._read = read
        self._targets: dict[int, _Target] = {}
        self._generation = 0

    def of(self, tgid: int) -> tuple[int, ...]:
        """The words watched in a target now, in the order of the mask's bits."""
        return self._targets[tgid].words if tgid in self._targets else ()

    def next_generation(self) -> int:
        """A generation that this trace has not used; 0 when all are used up."""
        if self._generation >= _MAX_GENERATION:
            return 0
        self._generation += 1
        return self._generation

    def tell(self, tgid: int, words: Sequence[int]) -> None:
        """Watch these: of the choice by behaviour only fresh words remain for this target."""
        target = self._targets.setdefault(tgid, _Target())
        target.told = tuple(words)[: self._limit]
        self._choose(target)

    def prefer(self, tgid: int, words: Iterable[int]) -> bool:
        """Watch words known by name all the time, before those found. Returns whether any changed."""
        target = self._targets.setdefault(tgid, _Target())
        fresh = [word for word in words if word not in target.named and self._is_mutex(tgid, word)]
        target.named = (*target.named, *fresh)[: self._limit]
        return self._choose(target)

    def forget(self, tgid: int) -> None:
        """The target called exec: its addresses mean nothing any more."""
        self._targets[tgid] = _Target()

    def learn(self, tgid: int, futexes: Records) -> bool:
        """Choose from one target's FUTEX records (n,). Returns whether the words changed."""
        target = self._targets.setdefault(tgid, _Target())
        if not self._limit or not len(futexes):
            return False
        command = futexes["op"] & schema.FUTEX_CMD_MASK
        waits = futexes[(command == schema.FUTEX_WAIT) | (command == schema.FUTEX_WAIT_BITSET)]
        mutex = np.isin(waits["op"], (_MUTEX_WAIT, _GLIBC_WAIT)) & (waits["expected"] == _MUTEX_CONTENDED)
        glibc = set(waits["word"][mutex & (waits["op"] == _GLIBC_WAIT)].tolist())
        if len(target.banned) < _MAX_BANNED:
            target.banned.update(np.unique(waits["word"][~mutex]).tolist())
        _unique, first = np.unique(waits["word"][mutex], return_index=True)
        for word in waits["word"][mutex][np.sort(first)].tolist():
            target.waited.pop(word, None)
            target.waited[word] = None
            known = word in target.candidates or word in target.named or word in target.banned
            if not known and self._is_mutex(tgid, word):
                if len(target.candidates) >= _MAX_CANDIDATES:
                    del target.candidates[0]
                target.candidates.append(word)
                target.fresh[word] = _FRESH_ROUNDS
                target.glibc |= {word} & glibc
        while len(target.waited) > _MAX_CANDIDATES:
            del target.waited[next(iter(target.waited))]
        target.candidates = [word for word in target.candidates if word not in target.banned]
        target.glibc &= set(target.candidates)
        return self._choose(target)

    def rotate(self, tgid: int) -> bool:
        """Give the next words their turn, where there are more than can be watched at a time."""
        target = self._targets.get(tgid)
        if target is None or target.told is not None:
            return False
        room = self._limit - len(target.named)
        candidates = _own(target)
        if len(candidates) > room:
            target.turn = (target.turn + room) % len(candidates)
        return self._choose(target)

    def _choose(self, target: _Target) -> bool:
        if target.told is not None:
            return self._beside_told(target, target.told)
        room = self._limit - len(target.named)
        candidates = _own(target)
        if len(candidates) <= room:
            target.turn = 0
        turned = candidates[target.turn :] + candidates[: target.turn]
        chosen = (*target.named, *turned[: max(room, 0)])
        changed = set(chosen) != set(target.words)
        if changed:
            target.words = chosen
        return changed

    def _beside_told(self, target: _Target, told: tuple[int, ...]) -> bool:
        """What was told, with fresh words behind it or in place of those waited for longest ago."""
        fresh = [word for word in target.fresh if word not in told and word in _own(target)]
        fresh = fresh[-max(self._limit - len(told), self._limit // 2, 1) :]
        age = {word: i for i, word in enumerate(target.waited, 1)}
        displaced = len(told) + len(fresh) - self._limit
        gone = set(sorted(told, key=lambda word: age.get(word, 0))[: max(displaced, 0)])
        chosen = (*(word for word in told if word not in gone), *fresh)
        changed = chosen != target.words
        target.words = chosen
        return changed

    def verify(self, tgid: int) -> bool:
        """Drop words whose memory is gone or that hold more than 2, and fresh ones that are so no longer.

        To be called once a second. Returns whether the words changed.
        """
        target = self._targets.get(tgid)
        if target is None:
            return False
        target.fresh = {word: left - 1 for word, left in target.fresh.items() if left > 1}
        if target.told is not None:
            return self._choose(target)
        gone = {word for word in target.words if not self._is_mutex(tgid, word)}
        target.banned.update(gone)
        target.named = tuple(word for word in target.named if word not in gone)
        target.candidates = [word for word in target.candidates if word not in gone]
        return self._choose(target)

    def _is_mutex(self, tgid: int, word: int) -> bool:
        value = self._read(tgid, word)
        return value is not None and value <= _MUTEX_CONTENDED


def _own(target: _Target) -> list[int]:
    """The candidates that are the program's own locks: glibc's only where there are no others."""
    return [word for word in target.candidates if word not in target.glibc] or target.candidates


def words_records(tgid: int, generation: int, words: Sequence[int], now_ns: int) -> Records:
    """WORDS records, dtype RECORD, that announce a generation: one per four words, at least one."""
    count = max((len(words) + 3) // 4, 1)
    rows = np.zeros(count, schema.WORDS)
    rows["kind"] = Kind.WORDS
    rows["flags"] = np.arange(count)
    rows["op"] = generation
    rows["tid"] = tgid
    rows["enter_ns"] = now_ns
    padded = np.zeros(count * 4, "<u8")
    padded[: len(words)] = words
    rows["words"] = padded.reshape(count, 4)
    return rows.view(schema.RECORD)
