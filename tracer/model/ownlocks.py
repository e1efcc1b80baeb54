# SPDX-License-Identifier: Apache-2.0
"""A program's own mutexes, the likeliest item_state first, told by which roles use each.

Owns that order, which is a guess for what to look at: names are given by names.py.
"""

from __future__ import annotations

from typing import Final

from tracer.model.locks import Locks
from tracer.model.words import Word

#: A lock unused for so long gives up its place among the watched words.
STALE_NS: Final = 60_000_000_000


def watch_order(locks: Locks, tgid: int) -> list[int]:
    """Live words of a process's own mutexes, the likeliest item_state first."""
    kind = locks.own_kind(tgid)
    live = [
        w
        for w in locks.with_pending().values()
        if w.tgid == tgid
        and w.kind == kind
        and w.contended
        and (w.last_ns + STALE_NS >= locks.now_ns or w.misses)
    ]
    return [w.word for w in sorted(live, key=lambda w: _watch_rank(locks, w))]


def core_words(locks: Locks, tgid: int) -> list[int]:
    """Live mutex words that W and G alone use and that are no condvar's: item_state or like it."""
    words = locks.with_pending()
    return [w for w in watch_order(locks, tgid) if _watch_rank(locks, words[tgid, w])[0] == 0]


def _watch_rank(locks: Locks, word: Word) -> tuple[int, int, int, int]:
    roles = {locks.registry.role(tid) for tid in word.participants}
    both, alone = {"W", "G"} <= roles, roles <= {"W", "G"}
    if word.is_relock:
        rank = 3
    elif both:
        rank = 0 if alone else 1
    elif not roles & {"W", "G"} and len(word.participants) == 2:
        rank = 1
    else:
        rank = 2
    return rank, -word.misses, -word.contended, word.word
