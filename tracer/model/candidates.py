# SPDX-License-Identifier: Apache-2.0
"""What a late cycle may be late for: the candidates that a leaf counts for.

Owns their keys, and the sorts of leaves: a path has a thousand leaves, but of a few dozen sorts, and what a
sort counts for is told once. Replays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tracer.model.leaves import (
    BLOCKED,
    GUEST_LEAF,
    HOST_LEAF,
    LOCK,
    NOT_SCHEDULED,
    ON_CPU,
    SLOW_SYSCALL,
    STOLEN,
    Holder,
    Leaf,
    Syscall,
    Word,
)
from tracer.model.phases import HEAD_OF_LINE, NOT_REARMED, SERIALISED

#: A candidate: ("lock", tgid, word), ("not_scheduled", tid), ("slow_syscall", tid, kind, number),
#: ("serialised",) ...
Key = tuple[str | int, ...]

CAUSE_OF: Final[Mapping[str, str]] = {GUEST_LEAF: "guest_late", HOST_LEAF: "host_late"}
GROUPS: Final = (SERIALISED, HEAD_OF_LINE, NOT_REARMED)
#: Candidates of which some time is usual.
MEASURED: Final = (GUEST_LEAF, HOST_LEAF, ON_CPU, SLOW_SYSCALL)
EVERYWHERE: Final = (LOCK, NOT_SCHEDULED, STOLEN, BLOCKED)


def own_key(leaf: Leaf) -> Key:
    """The candidate that a leaf belongs to by its kind and object."""
    if leaf.kind == LOCK and leaf.word is not None:
        return (LOCK, *leaf.word)
    if leaf.kind in (NOT_SCHEDULED, BLOCKED, ON_CPU):
        return (leaf.kind, leaf.tid)
    if leaf.kind == SLOW_SYSCALL and leaf.call is not None:
        return (SLOW_SYSCALL, leaf.tid, leaf.call[0], leaf.call[1])
    return (leaf.kind,)


def keys_of(leaf: Leaf, via: str) -> tuple[Key, ...]:
    """All candidates that a leaf counts for."""
    keys: list[Key] = []
    if leaf.kind in EVERYWHERE or not via:
        keys.append(own_key(leaf))
    if leaf.kind == LOCK and leaf.off_tid:
        keys.append((NOT_SCHEDULED, leaf.off_tid))
    if leaf.kind == LOCK and leaf.holder is not None:
        # What the holder waits for itself, down the chain, is as much in the way.
        keys += [(LOCK, *word) for word in leaf.holder.chain[1:]]
    if leaf.kind == NOT_SCHEDULED and leaf.after is not None:
        keys.append((LOCK, *leaf.after))
    if via:
        keys.append((via,))
    return tuple(dict.fromkeys(keys))  # a lock may come twice in a chain


class Sorts:
    """The sorts of leaves met so far, by number; leaves of one sort count for the same candidates.

    Attributes:
        like: a leaf of each sort; what it says of its time, its phase and its call's fd is nothing.
        own: the candidate of each sort by its kind and object; keys: all that it counts for in a phase
            without a via.
        everywhere: the sorts that count everywhere (``EVERYWHERE``); waits: those that wait for a lock.
    """

    __slots__ = ("_of", "everywhere", "keys", "like", "own", "waits")

    def __init__(self) -> None:
        self.like: list[Leaf] = []
        self.own: list[Key] = []
        self.keys: list[tuple[Key, ...]] = []
        self.everywhere: set[int] = set()
        self.waits: set[int] = set()
        self._of: dict[tuple[object, ...], int] = {}

    def of(
        self,
        kind: str,
        tid: int,
        word: Word | None = None,
        after: Word | None = None,
        call: Syscall | None = None,
        holder: Holder | None = None,
        off_tid: int = 0,
    ) -> int:
        """The sort of a leaf of which that is known."""
        what = (kind, tid, word, after, call, holder, off_tid)
        found = self._of.get(what)
        if found is None:
            found = self._of[what] = len(self.like)
            leaf = Leaf(0, 0, kind, tid, 0, word, after, call, holder, off_tid)
            self.like.append(leaf)
            self.own.append(own_key(leaf))
            self.keys.append(keys_of(leaf, ""))
            if kind in EVERYWHERE:
                self.everywhere.add(found)
            if kind == LOCK:
                self.waits.add(found)
        return found
