# SPDX-License-Identifier: Apache-2.0
"""But for: would the cycle have met its deadline without this? Decided by replay.

Owns the replay of a cycle's critical path (W and G as serial servers), the
candidates for a cause, the label and the remedies. Never subtracts: taking time out
moves our own commands earlier, where they may meet a G that was busy in the recording.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
        """Whether the deadline is missed even without G's other commands and all that has no baseline."""
        gone = {i: 1.0 for key, at in self.members.items() if key[0] in EVERYWHERE for i in at}
        return not self.meets(gone, unqueued=True)

    def relieve(self, leaves: list[Leaf]) -> None:
        """Take over what G's commands for others were held up by.

        Without a lock, or with the CPU, those would have been done sooner too.
        """
        for leaf in leaves:
            for key in keys_of(leaf, ""):
                if key[0] in EVERYWHERE:
                    self.relief.setdefault(key, []).append((leaf.start_ns, leaf.end_ns))

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


@dataclass(frozen=True, slots=True)
class Judgement:
    """Outcome for one origin.

    Attributes:
        cause: a name of summary.CAUSES; key: the candidate behind it, None for mixed and unknown.
        excess: ns above baseline per candidate; of the sufficient ones, of all where none is.
    """

    cause: str
    key: Key | None
    sufficient: tuple[Key, ...]
    jointly: tuple[Key, ...]
    excess: Mapping[Key, int]


def judge(case: Case, usual: Callable[[Key], int]) -> Judgement:
    """Sufficient candidates and the label of one late cycle.

    Args:
        usual: gives a candidate's usual ns; asked only where the candidate's whole time would be enough
            (the replay is monotone: less of it cannot be), and of those without baseline never.
    """
    totals = case.totals()
    excess: dict[Key, int] = {}
    for key, total in totals.items():
        if total > 0 and case.avoided_without({key: 1.0}):
            above = total - _baseline(key, usual)
            if above == total or (above > 0 and case.avoided_without({key: above / total})):
                excess[key] = above
    sufficient = sorted(excess, key=_by_excess(excess))
    if not sufficient:
        return _nothing_alone(case, totals, usual)
    label = _label(case, sufficient, excess)
    if label is None:
        return Judgement("mixed", None, tuple(sufficient), (), excess)
    cause = CAUSE_OF.get(str(label[0]), str(label[0]))
    return Judgement(cause, label, tuple(sufficient), (), excess)


def _nothing_alone(case: Case, totals: Mapping[Key, int], usual: Callable[[Key], int]) -> Judgement:
    """No candidate suffices: all threads' missing CPU or all locks together, else the smallest set."""
    excess = {key: above for key, total in totals.items() if (above := total - _baseline(key, usual)) > 0}
    share = {key: above / totals[key] for key, above in excess.items()}
    order = sorted(excess, key=_by_excess(excess))
    for kind in (NOT_SCHEDULED, LOCK):
        alike = [key for key in order if key[0] == kind]
        if len(alike) > 1 and case.avoided_without({key: share[key] for key in alike}):
            # No thread's missing CPU (no single lock) suffices, but all of them together do.
            whole: Key = (kind,)
            excess[whole] = sum(excess[key] for key in alike)
            return Judgement(kind, whole, (whole,), tuple(alike), excess)
    order = order[:MAX_JOINT]
    if case.path.foreign and (HEAD_OF_LINE,) not in share:
        # Our command came when G was free; had it come sooner, it might have had to wait.
        order, share = [*order, (HEAD_OF_LINE,)], {**share, (HEAD_OF_LINE,): 1.0}
    return Judgement("mixed", None, (), _jointly(case, order, share), excess)


def _baseline(key: Key, usual: Callable[[Key], int]) -> int:
    return 0 if key[0] in EVERYWHERE or key[0] in GROUPS else usual(key)


def _by_excess(excess: Mapping[Key, int]) -> Callable[[Key], tuple[int, str | int, str]]:
    return lambda key: (-excess[key], key[0], str(key))


def _without(case: Case, shares: Mapping[Key, float]) -> Removal:
    if len(shares) == 1:
        ((key, share),) = shares.items()
        return dict.fromkeys(case.members[key], share)
    removed: dict[int, float] = {}
    for key, share in shares.items():
        for i in case.members.get(key, ()):
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
        if same or _only_with(case, best, other):
            best = _more_specific(case, best, other)
        elif excess[best] < DOMINANCE * excess[other]:
            if best[0] == LOCK and other[0] == NOT_SCHEDULED and _is_holder(case, best, other):
                best = other
                continue
            return None
        elif best[0] == LOCK and other[0] == NOT_SCHEDULED and _is_holder(case, best, other):
            best = other
    return best


def _only_with(case: Case, group: Key, leaf: Key) -> bool:
    """Whether a group of turns is enough only because it holds what is enough by itself."""
    if group[0] not in (SERIALISED, NOT_REARMED) or leaf[0] in GROUPS:
        return False
    parts = set(case.members[leaf])
    rest = [i for i in case.members[group] if i not in parts]
    return len(rest) < len(case.members[group]) and not case.meets(dict.fromkeys(rest, 1.0))


def _is_holder(case: Case, lock: Key, missing: Key) -> bool:
    """Whether a not_scheduled candidate is the missing CPU of a lock's holder, and that part is enough."""
    held = [
        i
        for i in set(case.members[lock]).intersection(case.members[missing])
        if case.leaves[i].off_tid == missing[1]
    ]
    return bool(held) and case.meets(dict.fromkeys(held, 1.0), freed=case.freed([missing]))


def _more_specific(case: Case, one: Key, other: Key) -> Key:
    """Of two candidates that are the same milliseconds: leaf before group, a holder's CPU before its lock."""
    if {one[0], other[0]} == {HEAD_OF_LINE, LOCK}:
        group, lock = (one, other) if one[0] == HEAD_OF_LINE else (other, one)
        both = [case.leaves[i] for i in set(case.members[group]).intersection(case.members[lock])]
        for_gpu = sum(leaf.ns for leaf in both if leaf.holder and leaf.holder.tid == case.path.gpu_tid)
        # The lock's holder was busy for others; or G, and whoever else, waited for a lock of somebody else's.
        return group if 2 * for_gpu > sum(leaf.ns for leaf in both) else lock
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


def remedied(case: Case, remedy: str, names: Names) -> int:
    """When a cycle would have closed under a remedy."""
    freed = case.freed(remedy_keys(remedy, names))
    return case.replay(remedy_removal(case, remedy, names), freed=freed)


def remedy_keys(remedy: str, names: Names) -> list[Key]:
    """Candidates that a remedy takes out wherever they are, also where G works for others."""
    if remedy == "item_state":
        return [(LOCK, *word) for word in sorted(names.item_state)]
    if remedy == "realtime":
        return [(NOT_SCHEDULED, tid) for tid in sorted(names.movable)]
    return [(STOLEN,)] if remedy == "no_steal" else []


def remedy_removal(case: Case, remedy: str, names: Names) -> Removal:
    """What a remedy takes out of a path, as a removal for ``Case.replay``."""
    taken = dict.fromkeys(_remedied(case, remedy, names), 1.0)
    if remedy in ("dup", "refcount", "task"):
        leaves = case.leaves
        for i in _under(case, names.item_state):
            if leaves[i].after is not None and i - 1 in taken and leaves[i - 1].word == leaves[i].after:
                taken[i] = 1.0  # woken by an unlock that it would not have waited for
    return taken


def _under(case: Case, words: frozenset[Word]) -> list[int]:
    """Leaves that wait for one of these locks themselves, or for a CPU after it; in order."""
    leaves = case.leaves
    found = {i for word in words & case.words for i in case.members.get((LOCK, *word), ())}
    return sorted(
        i for i in found if (leaves[i].word if leaves[i].kind == LOCK else leaves[i].after) in words
    )


def _remedied(case: Case, remedy: str, names: Names) -> Iterable[int]:
    leaves, phases, members = case.leaves, case.path.phases, case.members

    def writes(i: int, *, pipes: bool) -> bool:
        held = leaves[i].holder
        if held is None or held.call is None or held.tid not in names.gpu:
            return False
        kind, _, _, eventfd = held.call
        return kind == Kind.WRITE and (pipes or eventfd >= 0)

    if remedy == "item_state":
        return _under(case, names.item_state)
    if remedy in ("dup", "refcount"):
        return [i for i in _under(case, names.item_state) if writes(i, pipes=remedy == "dup")]
    if remedy == "task":
        gone = _under(case, names.item_state)
        gone = [i for i in gone if writes(i, pipes=True) or leaves[i].tid in names.gpu]
        if names.gpu & case.tids:
            gone += [
                i
                for i, leaf in enumerate(leaves)
                if leaf.tid in names.gpu
                and leaf.call is not None
                and leaf.call[0] == Kind.WRITE
                and leaf.call[3] < 0
            ]
        return gone
    if remedy == "fair":
        return [i for i in members.get((SERIALISED,), ()) if phases[leaves[i].phase].sub == "chosen"]
    if remedy == "own_context":
        kept = [i for i in members.get((NOT_REARMED,), ()) if phases[leaves[i].phase].sub != "own"]
        return [*members.get((SERIALISED,), ()), *kept]
    if remedy == "realtime":
        movable = names.movable & case.tids
        return [i for tid in sorted(movable) for i in members.get((NOT_SCHEDULED, tid), ())]
    if remedy == "no_steal":
        return members.get((STOLEN,), ())
    return ()
