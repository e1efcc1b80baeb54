# SPDX-License-Identifier: Apache-2.0
"""But for: would the cycle have met its deadline without this? Decided by replay.

Owns the replay of a cycle's critical path (W and G as serial servers), the
candidates for a cause, the label and the remedies. Never subtracts: taking time out
moves our own commands earlier, where they may meet a G that was busy in the recording.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
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
from tracer.schema import Kind

#: The largest excess is the label if it is at least this much the next one's (docs/how-it-works.md).
DOMINANCE: Final = 1.25
#: Two candidates are "the same milliseconds" if they share this part of the larger one.
SAME_SHARE: Final = 0.8
#: At most this many candidates are tried jointly.
MAX_JOINT: Final = 8

#: A candidate: ("lock", tgid, word), ("not_scheduled", tid), ("slow_syscall", tid, kind, number),
#: ("serialised",) ...
Key = tuple[str | int, ...]
#: Share (0..1] of each leaf that is taken out, by index; leaves not named stay.
Removal = Mapping[int, float]

CAUSE_OF: Final[Mapping[str, str]] = {GUEST_LEAF: "guest_late", HOST_LEAF: "host_late"}
GROUPS: Final = (SERIALISED, HEAD_OF_LINE, NOT_REARMED)
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


@dataclass(slots=True)
class Case:
    """A cycle's path with its leaves, ready for replay."""

    path: Path
    leaves: list[Leaf]
    keys: list[tuple[Key, ...]] = field(default_factory=list)
    members: dict[Key, list[int]] = field(default_factory=dict)
    _plan: list[tuple[int, int, bool, bool, int, int]] = field(default_factory=list)
    _own: dict[int, int] = field(default_factory=dict)
    _starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        phases = self.path.phases
        self._starts = [a for a, _ in self.path.foreign]
        ends = [b for _, b in self.path.foreign]
        lengths, own = [0] * len(phases), [0] * len(phases)
        waits = [p.queued or (p.who == GPU and p.via in (SERIALISED, NOT_REARMED)) for p in phases]
        for i, leaf in enumerate(self.leaves):
            phase, ns = phases[leaf.phase], leaf.end_ns - leaf.start_ns
            lengths[leaf.phase] += ns
            if waits[leaf.phase]:
                self._own[i] = ns - self._foreign_in(leaf.start_ns, leaf.end_ns, ends)
                own[leaf.phase] += self._own[i]
            keys = keys_of(leaf, phase.via)
            if (leaf.kind == LOCK or phase.who == GPU) and self._for_others(leaf):
                keys = (*keys, (HEAD_OF_LINE,))
            self.keys.append(keys)
            for key in keys:
                members = self.members.get(key)
                if members is None:
                    self.members[key] = [i]
                else:
                    members.append(i)
        for phase, wait, length, ours in zip(phases, waits, lengths, own, strict=True):
            self._plan.append((phase.start_ns, phase.end_ns, wait, phase.queued, length, ours))

    def _foreign_in(self, start: int, end: int, ends: list[int]) -> int:
        """How much of an interval G spent on commands that are not ours, ns."""
        low, high = bisect_right(ends, start), bisect_left(self._starts, end)
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
        return i >= 0 and self.path.foreign[i][1] >= leaf.end_ns

    def totals(self) -> dict[Key, int]:
        """Time per candidate, ns."""
        return {key: sum(self.leaves[i].ns for i in at) for key, at in self.members.items()}

    def replay(self, removed: Removal, *, unqueued: bool = False) -> int:
        """The closing time in ns with a share of some leaves taken out.

        Monotone: whatever else is taken out, nothing ends later for it. Each phase ends no later
        if it begins earlier, or if more of it is gone: a command of ours that comes to G before its
        recorded time waits for the command that G was executing then, and needs what is left of G's
        time on *ours*; if it had come at its recorded time, it would have been done no earlier.

        Args:
            unqueued: G is not busy with other commands when ours come (head of line taken out).
        """
        gone: dict[int, list[int]] = {}
        for i in removed:
            gone.setdefault(self.leaves[i].phase, []).append(i)
        now = self.path.start_ns
        for index, (start, end, waits, queued, kept, own) in enumerate(self._plan):
            taken = gone.get(index)
            if taken is not None:
                kept -= sum(round(self.leaves[i].ns * removed[i]) for i in taken)
                if waits:
                    own -= sum(round(self._own[i] * removed[i]) for i in taken)
            if not waits:
                now += kept
            elif unqueued:
                now += 0 if queued else own
            elif now >= start:
                now += kept
            elif kept == 0 and end > start:
                continue  # taken out altogether, its queue too
            else:
                # What no known command of G explains (our own work, a queue nobody saw) stays.
                now = min(self._served(now, taken or (), removed) + own, start + kept)
        return now

    def _served(self, now: int, taken: Iterable[int], removed: Removal) -> int:
        """When G takes a command kicked at ``now``: after the command it was executing then."""
        i = bisect_right(self._starts, now) - 1
        if i < 0 or self.path.foreign[i][1] <= now:
            return now
        end, less = self.path.foreign[i][1], 0
        for j in taken:
            leaf = self.leaves[j]
            less += round(removed[j] * max(0, min(leaf.end_ns, end) - max(leaf.start_ns, now)))
        return max(now, end - less)

    def meets(self, removed: Removal, *, unqueued: bool = False) -> bool:
        """Whether the deadline is met with that taken out."""
        return self.replay(removed, unqueued=unqueued) <= self.path.deadline_ns

    def avoided_without(self, shares: Mapping[Key, float]) -> bool:
        """Whether the deadline is met without some candidates (share of each that is excess)."""
        return self.meets(_without(self, shares), unqueued=(HEAD_OF_LINE,) in shares)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Outcome for one origin.

    Attributes:
        cause: a name of summary.CAUSES; key: the candidate behind it, None for mixed and unknown.
        excess: ns above baseline per candidate.
    """

    cause: str
    key: Key | None
    sufficient: tuple[Key, ...]
    jointly: tuple[Key, ...]
    excess: Mapping[Key, int]


def judge(case: Case, baseline: Mapping[Key, int]) -> Judgement:
    """Sufficient candidates and the label of one late cycle.

    Args:
        baseline: usual ns per candidate (0 for those that have none).
    """
    totals = case.totals()
    excess: dict[Key, int] = {}
    for key, total in totals.items():
        usual = 0 if key[0] in EVERYWHERE or key[0] in GROUPS else baseline.get(key, 0)
        if total - usual > 0:
            excess[key] = total - usual
    share = {key: excess[key] / totals[key] for key in excess}
    order = sorted(excess, key=lambda k: (-excess[k], k[0], str(k)))
    sufficient = [key for key in order if case.avoided_without({key: share[key]})]
    if not sufficient:
        for kind in (NOT_SCHEDULED, LOCK):
            alike = [key for key in order if key[0] == kind]
            if len(alike) > 1 and case.avoided_without({key: share[key] for key in alike}):
                # No thread's missing CPU (no single lock) suffices, but all of them together do.
                whole: Key = (kind,)
                excess[whole] = sum(excess[key] for key in alike)
                return Judgement(kind, whole, (whole,), tuple(alike), excess)
        jointly = _jointly(case, order[:MAX_JOINT], share)
        return Judgement("mixed", None, (), jointly, excess)
    label = _label(case, sufficient, excess)
    if label is None:
        return Judgement("mixed", None, tuple(sufficient), (), excess)
    cause = CAUSE_OF.get(str(label[0]), str(label[0]))
    return Judgement(cause, label, tuple(sufficient), (), excess)


def _without(case: Case, shares: Mapping[Key, float]) -> Removal:
    removed: dict[int, float] = {}
    for key, share in shares.items():
        for i in case.members[key]:
            removed[i] = max(removed.get(i, 0.0), share)
    return removed


def _jointly(case: Case, order: list[Key], share: Mapping[Key, float]) -> tuple[Key, ...]:
    """The smallest sufficient set, of the largest excess among equals; empty if there is none."""
    for size in (2, 3):
        for keys in combinations(order, size):
            if case.avoided_without({k: share[k] for k in keys}):
                return keys
    return tuple(order) if order and case.avoided_without({k: share[k] for k in order}) else ()


def _overlap(case: Case, one: Key, other: Key) -> int:
    both = set(case.members[one]).intersection(case.members[other])
    return sum(case.leaves[i].ns for i in both)


def _label(case: Case, sufficient: list[Key], excess: Mapping[Key, int]) -> Key | None:
    """The label among sufficient candidates (largest excess first), None if mixed."""
    best = sufficient[0]
    for other in sufficient[1:]:
        same = _overlap(case, best, other) >= SAME_SHARE * max(excess[best], excess[other])
        if same:
            best = _more_specific(case, best, other)
        elif excess[best] < DOMINANCE * excess[other]:
            if best[0] == LOCK and other[0] == NOT_SCHEDULED and _is_holder(case, best, other):
                best = other
                continue
            return None
        elif best[0] == LOCK and other[0] == NOT_SCHEDULED and _is_holder(case, best, other):
            best = other
    return best


def _is_holder(case: Case, lock: Key, missing: Key) -> bool:
    """Whether a not_scheduled candidate is the missing CPU of a lock's holder."""
    return any(
        leaf.kind == LOCK and leaf.off_tid == missing[1] and own_key(leaf) == lock for leaf in case.leaves
    )


def _more_specific(case: Case, one: Key, other: Key) -> Key:
    """Of two candidates that are the same milliseconds: leaf before group, a holder's CPU before its lock."""
    if {one[0], other[0]} == {HEAD_OF_LINE, LOCK}:
        group, lock = (one, other) if one[0] == HEAD_OF_LINE else (other, one)
        if all(case.leaves[i].tid == case.path.gpu_tid for i in case.members[lock]):
            return lock  # G itself waited for it
        return group  # the lock's holder was busy for others
    if one[0] in GROUPS and other[0] not in GROUPS:
        return other
    if other[0] in GROUPS:
        return one
    if one[0] == LOCK and other[0] == NOT_SCHEDULED:
        return other
    if one[0] == LOCK and other[0] == LOCK and not _waited_for(case, one):
        return other  # the lock that was waited for names the cause, the chain says what is behind it
    return one


def _waited_for(case: Case, lock: Key) -> bool:
    """Whether the path's own thread waited for a lock (not only the lock's holder)."""
    return any(own_key(case.leaves[i]) == lock for i in case.members[lock])


# --- remedies ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Names:
    """What remedies need to know beyond leaves.

    Attributes:
        item_state: lock words known by that name.
        movable: W, G, forwarding tasks and vCPUs, which real-time priority would move.
        gpu: G's of the VMMs.
        is_pipe: whether (tgid, fd) is no eventfd, for writes under the lock.
    """

    item_state: frozenset[Word]
    movable: frozenset[int]
    gpu: frozenset[int]


def remedy_removal(case: Case, remedy: str, names: Names) -> Removal:
    """What a remedy takes out of a path, as a removal for ``Case.replay``."""
    phases = case.path.phases

    def is_item_state(leaf: Leaf) -> bool:
        return leaf.word in names.item_state if leaf.kind == LOCK else leaf.after in names.item_state

    def writes(leaf: Leaf, *, pipes: bool) -> bool:
        held = leaf.holder
        if held is None or held.call is None or held.tid not in names.gpu:
            return False
        kind, _, _, eventfd = held.call
        return kind == Kind.WRITE and (pipes or eventfd >= 0)

    def removed(leaf: Leaf) -> bool:
        phase = phases[leaf.phase]
        gone = False
        if remedy == "item_state":
            gone = is_item_state(leaf)
        elif remedy in ("dup", "refcount"):
            gone = leaf.kind == LOCK and is_item_state(leaf) and writes(leaf, pipes=remedy == "dup")
        elif remedy == "task":
            gone = is_item_state(leaf) and (writes(leaf, pipes=True) or leaf.tid in names.gpu)
            gone = gone or (
                leaf.tid in names.gpu
                and leaf.call is not None
                and leaf.call[0] == Kind.WRITE
                and leaf.call[3] < 0
            )
        elif remedy == "fair":
            gone = phase.via == SERIALISED and phase.sub == "chosen"
        elif remedy == "own_context":
            gone = phase.via == SERIALISED or (phase.via == NOT_REARMED and phase.sub != "own")
        elif remedy == "realtime":
            gone = (leaf.kind == NOT_SCHEDULED and leaf.tid in names.movable) or (
                leaf.kind == LOCK and leaf.off_tid in names.movable
            )
        elif remedy == "no_steal":
            gone = leaf.kind == STOLEN
        return gone

    taken = {i: 1.0 for i, leaf in enumerate(case.leaves) if removed(leaf)}
    if remedy in ("dup", "refcount", "task"):
        for i, leaf in enumerate(case.leaves):
            if leaf.after is not None and i - 1 in taken and case.leaves[i - 1].word == leaf.after:
                taken[i] = 1.0  # woken by an unlock that it would not have waited for
    return taken
