# SPDX-License-Identifier: Apache-2.0
"""The replay of a cycle's critical path, with something taken out: W and G as serial servers.

Owns the candidates that a leaf counts for and the case that is replayed. Never subtracts: taking time out
moves our own commands earlier, where they may meet a G that was busy in the recording. Judges nothing.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
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
from tracer.model.phases import GPU, HEAD_OF_LINE, NOT_REARMED, SERIALISED, Path

#: A candidate: ("lock", tgid, word), ("not_scheduled", tid), ("slow_syscall", tid, kind, number),
#: ("serialised",) ...
Key = tuple[str | int, ...]
#: Share (0..1] of each leaf that is taken out, by index; leaves not named stay.
Removal = Mapping[int, float]

#: A phase in a replay: (start, end, waits for G, queued, length, ns of it that are ours alone, first leaf).
_Planned = tuple[int, int, bool, bool, int, int, int]

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


class Case:
    """A cycle's path with its leaves, ready for replay.

    Args:
        same: a case of the same cycle whose first ``path.fixed`` phases, and their leaves, are the same.

    Attributes:
        members: leaves per candidate, by index; words, tids: locks and threads among them.
        relief: per candidate, when G's commands for others were held up by it themselves (sorted, disjoint).
    """

    __slots__ = (
        "_ends",
        "_own",
        "_phase_of",
        "_plan",
        "_starts",
        "leaves",
        "members",
        "path",
        "relief",
        "tids",
        "words",
    )

    def __init__(self, path: Path, leaves: list[Leaf], same: Case | None = None) -> None:
        self.path = path
        self.leaves = leaves
        self._starts: list[int] = [a for a, _ in path.foreign] if same is None else same._starts
        self._ends: list[int] = [b for _, b in path.foreign] if same is None else same._ends
        self.members: dict[Key, list[int]] = {}
        self.relief: dict[Key, list[tuple[int, int]]] = {} if same is None else same.relief
        self.words: set[Word] = set() if same is None else set(same.words)
        self.tids: set[int] = set() if same is None else set(same.tids)
        self._own: dict[int, int] = {}
        self._phase_of: list[int] = []
        self._plan: list[_Planned] = []
        known = 0
        if same is not None:
            known = bisect_left(same._phase_of, path.fixed)
            self._phase_of = same._phase_of[:known]
            self._plan = same._plan[: path.fixed]
            self._own = {i: ns for i, ns in same._own.items() if i < known}
            for key, at in same.members.items():
                if at[0] < known:
                    self.members[key] = at[: bisect_left(at, known)]
        self._add(known)

    def _add(self, known: int) -> None:
        """Take over the leaves from an index on, and the phases that are theirs."""
        phases, planned = self.path.phases, len(self._plan)
        waits = [p.queued or (p.who == GPU and p.via in (SERIALISED, NOT_REARMED)) for p in phases]
        lengths, own, firsts = [0] * len(phases), [0] * len(phases), [0] * len(phases)
        seen: dict[tuple[object, ...], tuple[Key, ...]] = {}
        for i in range(known, len(self.leaves)):
            leaf = self.leaves[i]
            index = leaf.phase
            phase, ns = phases[index], leaf.end_ns - leaf.start_ns
            if not lengths[index]:
                firsts[index] = i
            lengths[index] += ns
            self._phase_of.append(index)
            if waits[index]:
                self._own[i] = ours = ns - self._foreign_in(leaf.start_ns, leaf.end_ns)
                own[index] += ours
            _, _, kind, tid, _, word, after, call, holder, off_tid, _ = leaf
            held = None if holder is None else (holder.tid, holder.chain)
            alike = (kind, tid, word, after, call, off_tid, held, phase.via)
            keys = seen.get(alike)
            if keys is None:
                keys = seen[alike] = keys_of(leaf, phase.via)
                self.words |= {w for w in (word, after) if w is not None}
                self.tids |= {tid, off_tid, 0 if holder is None else holder.tid}
            if (leaf.kind == LOCK or phase.who == GPU) and self._for_others(leaf):
                keys = (*keys, (HEAD_OF_LINE,))
            for key in keys:
                members = self.members.get(key)
                if members is None:
                    self.members[key] = [i]
                else:
                    members.append(i)
        for index in range(planned, len(phases)):
            p = phases[index]
            plan = (p.start_ns, p.end_ns, waits[index], p.queued, lengths[index], own[index], firsts[index])
            self._plan.append(plan)

    def _foreign_in(self, start: int, end: int) -> int:
        """How much of an interval G spent on commands that are not ours, ns."""
        low, high = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return sum(min(b, end) - max(a, start) for a, b in self.path.foreign[low:high])

    def _for_others(self, leaf: Leaf) -> bool:
        """Whether a leaf exists only because G was busy with another command.

        That is G's own time in that command while our re-arm waited for it, and a wait for a
        lock that G held over it: without the lock G is as busy, so what makes the cycle late is
        the command (as a runnable holder's wait counts for its missing CPU).
        """
        phase = self.path.phases[leaf.phase]
        waits_for_gpu = leaf.kind == LOCK and leaf.holder is not None and leaf.holder.tid == self.path.gpu_tid
        if not waits_for_gpu and not (phase.who == GPU and phase.via in (SERIALISED, NOT_REARMED)):
            return False
        i = bisect_right(self._starts, leaf.start_ns) - 1
        return i >= 0 and self._ends[i] >= leaf.end_ns

    def totals(self) -> dict[Key, int]:
        """Time per candidate, ns."""
        return {key: sum(self.leaves[i].ns for i in at) for key, at in self.members.items()}

    def hopeless(self) -> bool:
        """Whether the deadline is missed even without G's other commands and all that can hold those up."""
        kinds = (*EVERYWHERE, ON_CPU, SLOW_SYSCALL)
        gone = {i: 1.0 for key, at in self.members.items() if key[0] in kinds for i in at}
        return not self.meets(gone, unqueued=True)

    def relieve(self, leaves: list[Leaf]) -> None:
        """Take over what G's commands for others were held up by.

        Without a lock, or with the CPU, those would have been done sooner too. A lock that a thread of
        this path holds meanwhile is let go sooner without what that thread spends its time on.
        """
        starts = [leaf.start_ns for leaf in self.leaves]
        for leaf in leaves:
            for key in keys_of(leaf, ""):
                if key[0] in EVERYWHERE:
                    self._relieve(key, leaf.start_ns, leaf.end_ns)
            if leaf.kind != LOCK or leaf.holder is None:
                continue
            for i in range(max(0, bisect_right(starts, leaf.start_ns) - 1), len(starts)):
                ours = self.leaves[i]
                if ours.start_ns >= leaf.end_ns:
                    break
                if ours.tid in leaf.holder.tids and ours.kind not in (LOCK, NOT_SCHEDULED):
                    start, end = max(ours.start_ns, leaf.start_ns), min(ours.end_ns, leaf.end_ns)
                    self._relieve(own_key(ours), start, end)

    def _relieve(self, key: Key, start_ns: int, end_ns: int) -> None:
        if end_ns > start_ns:
            self.relief.setdefault(key, []).append((start_ns, end_ns))

    def freed(self, keys: Iterable[Key]) -> Sequence[tuple[int, int]]:
        """When G's commands for others would not have been held up without some candidates."""
        found = [self.relief[key] for key in keys if key in self.relief]
        if len(found) <= 1:
            return found[0] if found else ()
        merged: list[tuple[int, int]] = []
        for start, end in sorted(itertools.chain(*found)):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def replay(
        self, removed: Removal, *, unqueued: bool = False, freed: Sequence[tuple[int, int]] = ()
    ) -> int:
        """The closing time in ns with a share of some leaves taken out.

        Monotone: whatever else is taken out, nothing ends later for it. Each phase ends no later
        if it begins earlier, or if more of it is gone: a command of ours that comes to G before its
        recorded time waits for the command that G was executing then, and needs what is left of G's
        time on *ours*; if it had come at its recorded time, it would have been done no earlier.

        Args:
            unqueued: G is not busy with other commands when ours come (head of line taken out).
            freed: when G's commands for others are not held up (``freed``), of what is taken out.
        """
        leaves, phase_of, plan = self.leaves, self._phase_of, self._plan
        lost: dict[int, int] = {}
        for i, share in removed.items():
            leaf, index = leaves[i], phase_of[i]
            ns = leaf.end_ns - leaf.start_ns
            lost[index] = lost.get(index, 0) + (ns if share == 1.0 else round(ns * share))
        first = 0 if unqueued else min(lost, default=len(plan))
        last = len(plan) if unqueued else max(lost, default=0)
        if first == len(plan):
            return self.path.end_ns
        now = plan[first][0]
        for index in range(first, len(plan)):
            start, end, waits, queued, kept, own, at = plan[index]
            taken = lost.get(index, 0)
            kept -= taken
            if not waits:
                now += kept
            elif now >= start and not unqueued:
                if index > last:
                    return self.path.end_ns  # from here on as recorded
                now += kept
            else:
                if taken:
                    own -= self._own_taken(at, index, removed)
                if unqueued:
                    now += 0 if queued else own
                elif kept or end == start:
                    # What no known command of G explains (our own work, a queue nobody saw) stays.
                    served = self._served(now, at, index if taken else -1, removed, freed)
                    now = min(served + own, start + kept)
                # else: taken out altogether, its queue too
        return now

    def _own_taken(self, at: int, index: int, removed: Removal) -> int:
        """What is taken out of G's time on our own command in a phase."""
        ns = 0
        for i in range(at, len(self.leaves)):
            if self._phase_of[i] != index:
                break
            share = removed.get(i, 0.0)
            if share:
                ns += self._own[i] if share == 1.0 else round(self._own[i] * share)
        return ns

    def _served(
        self, now: int, at: int, index: int, removed: Removal, freed: Sequence[tuple[int, int]]
    ) -> int:
        """When G takes a command kicked at ``now``: after the command it was executing then."""
        i = bisect_right(self._starts, now) - 1
        if i < 0 or self._ends[i] <= now:
            return now
        end, less = self._ends[i], 0
        if freed:  # all of G's time, that in this phase too
            for k in range(bisect_right(freed, now, key=_end), len(freed)):
                if freed[k][0] >= end:
                    break
                less += min(freed[k][1], end) - max(freed[k][0], now)
            return max(now, end - less)
        for j in range(at, len(self.leaves)):
            if self._phase_of[j] != index:
                break
            share = removed.get(j, 0.0)
            if share:
                leaf = self.leaves[j]
                less += round(share * max(0, min(leaf.end_ns, end) - max(leaf.start_ns, now)))
        return max(now, end - less)

    def meets(
        self, removed: Removal, *, unqueued: bool = False, freed: Sequence[tuple[int, int]] = ()
    ) -> bool:
        """Whether the deadline is met with that taken out."""
        return self.replay(removed, unqueued=unqueued, freed=freed) <= self.path.deadline_ns

    def avoided_without(self, shares: Mapping[Key, float]) -> bool:
        """Whether the deadline is met without some candidates (share of each that is excess)."""
        removed = _without(self, shares)
        return self.meets(removed, unqueued=(HEAD_OF_LINE,) in shares, freed=self.freed(shares))


def _end(interval: tuple[int, int]) -> int:
    return interval[1]


def _without(case: Case, shares: Mapping[Key, float]) -> Removal:
    if len(shares) == 1:
        ((key, share),) = shares.items()
        return dict.fromkeys(case.members[key], share)
    removed: dict[int, float] = {}
    for key, share in shares.items():
        for i in case.members.get(key, ()):
            removed[i] = max(removed.get(i, 0.0), share)
    return removed
