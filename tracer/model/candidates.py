# SPDX-License-Identifier: Apache-2.0
"""What a late cycle may be late for: the candidates that a leaf counts for.

Owns their keys, and the leaves of one phase counted by them. A phase's leaves depend on what its thread
did, not on whose cycle it belongs to: cycles that starve in one window share them. Replays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    Leaf,
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


class Cut:
    """The leaves of one phase, counted by candidate when first asked for.

    Attributes:
        leaves: in order; their ``phase`` says nothing, because phases of several paths share them.
        ns: how long they are together; in_the_way_ns: those that count everywhere (``EVERYWHERE``), and
            ``in_the_way`` which they are; elsewhere_ns: those of the guest or the host.
        words, tids: locks and threads among them; holders: who held what was waited for.
    """

    __slots__ = (
        "_by_via",
        "_relief",
        "elsewhere_ns",
        "holders",
        "in_the_way",
        "in_the_way_ns",
        "leaves",
        "ns",
        "tids",
        "words",
    )

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = leaves
        self.ns = self.in_the_way_ns = self.elsewhere_ns = 0
        self.in_the_way: list[int] = []
        self.words: set[Word] = set()
        self.tids: set[int] = set()
        self.holders: set[int] = set()
        self._by_via: dict[str, dict[Key, tuple[int, list[int]]]] = {}
        self._relief: list[tuple[Key, tuple[int, int]]] | None = None
        for i, (start, end, kind, tid, _, word, after, _, holder, off_tid, _) in enumerate(leaves):
            ns = end - start
            self.ns += ns
            self.tids.add(tid)
            if kind in EVERYWHERE:
                self.in_the_way.append(i)
                self.in_the_way_ns += ns
                if word is not None:
                    self.words.add(word)
                if after is not None:
                    self.words.add(after)
                if holder is not None:
                    self.holders.add(holder.tid)
                    self.tids.add(holder.tid)
                if off_tid:
                    self.tids.add(off_tid)
            elif kind in (GUEST_LEAF, HOST_LEAF):
                self.elsewhere_ns += ns

    def by_key(self, via: str) -> Mapping[Key, tuple[int, list[int]]]:
        """Time and leaves (by index) per candidate, in a phase with this via."""
        found = self._by_via.get(via)
        if found is None:
            found = self._by_via[via] = {}
            leaves = self.leaves
            if via and leaves:
                found[via,] = (self.ns, list(range(len(leaves))))
            for i in self.in_the_way if via else range(len(leaves)):
                leaf = leaves[i]
                start, end, _, _, _, _, after, _, holder, off_tid, _ = leaf
                ns = end - start
                alone = holder is None and after is None and not off_tid
                for key in (own_key(leaf),) if alone else keys_of(leaf, ""):
                    ns_before, at = found.get(key) or (0, [])
                    at.append(i)
                    found[key] = (ns_before + ns, at)
        return found

    @property
    def relief(self) -> list[tuple[Key, tuple[int, int]]]:
        """When each candidate that counts everywhere was in the way, by time."""
        if self._relief is None:
            self._relief = [
                (key, (leaf.start_ns, leaf.end_ns))
                for leaf in (self.leaves[i] for i in self.in_the_way)
                for key in keys_of(leaf, "")
                if key[0] in EVERYWHERE and leaf.end_ns > leaf.start_ns
            ]
        return self._relief
