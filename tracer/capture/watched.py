# SPDX-License-Identifier: Apache-2.0
"""The watched words of a session: brought into the kernel, announced by WORDS records.

Owns the order in which a generation becomes valid, the turns of words, and what was told by another
thread. Which words are chosen is words.py's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from tracer.capture.maps import Maps
from tracer.capture.words import Words, words_records
from tracer.schema import Records

_VERIFY_EVERY_NS = 1_000_000_000
# Long enough for the samples that a verdict on a lock needs, short enough for eight locks in ten seconds.
_ROTATE_EVERY_NS = 3_000_000_000


class Watched:
    """Words of all targets; every method but ``tell`` belongs to the session's thread.

    Args:
        limit: words per target, 0 to 16.
    """

    def __init__(self, limit: int) -> None:
        self._words = Words(limit)
        self._told: list[tuple[int, tuple[int, ...]]] = []
        self._lock = threading.Lock()
        self._changed: set[int] = set()
        self._verified_ns = 0
        self._rotated_ns = time.monotonic_ns()

    def tell(self, tgid: int, words: Sequence[int]) -> None:
        """Watch these from the next push on. Safe in any thread."""
        with self._lock:
            self._told.append((tgid, tuple(words)))

    def prefer(self, tgid: int, words: Iterable[int]) -> None:
        """Watch words known by name."""
        self._note(tgid, self._words.prefer(tgid, words))

    def learn(self, tgid: int, futexes: Records) -> None:
        """Choose from one target's FUTEX records (n,)."""
        self._note(tgid, self._words.learn(tgid, futexes))

    def forget(self, tgid: int) -> None:
        """The target called exec."""
        self._words.forget(tgid)
        self._note(tgid, True)

    def _note(self, tgid: int, changed: bool) -> None:
        if changed:
            self._changed.add(tgid)

    def keep(self, alive: Sequence[int], now_ns: int) -> None:
        """Drop what is no word any more, and give others their turn, where it is time to."""
        if now_ns - self._verified_ns >= _VERIFY_EVERY_NS:
            self._verified_ns = now_ns
            self._changed.update(tgid for tgid in alive if self._words.verify(tgid))
        if now_ns - self._rotated_ns >= _ROTATE_EVERY_NS:
            self._rotated_ns = now_ns
            self._changed.update(tgid for tgid in alive if self._words.rotate(tgid))

    def push(self, maps: Maps, known: Callable[[int], bool], alive: Callable[[int], bool]) -> list[Records]:
        """Bring what changed into the kernel; WORDS records say from when on it holds.

        Args:
            known, alive: whether a tgid is traced, and whether it still runs.
        """
        with self._lock:
            told, self._told = self._told, []
        for tgid, words in told:
            if known(tgid):
                self._words.tell(tgid, words)
                self._changed.add(tgid)
        found = []
        changed, self._changed = self._changed, set()
        for tgid in sorted(changed):
            if not alive(tgid):
                continue
            generation = self._words.next_generation()
            words = self._words.of(tgid) if generation else ()
            # First the generation alone, then the time, then the words: a record that entered
            # before the time has the old words or none, one after it the new ones or none.
            maps.set_target(tgid, generation)
            now_ns = time.monotonic_ns()
            if words:
                maps.set_target(tgid, generation, words)
            found.append(words_records(tgid, generation, words, now_ns))
        return found
