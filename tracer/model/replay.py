# SPDX-License-Identifier: Apache-2.0
"""The replay of a cycle's critical path, with something taken out: W and G as serial servers.

Owns the case that is replayed. Never subtracts: taking time out
moves our own commands earlier, where they may meet a G that was busy in the recording. Judges nothing.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence, Set
from operator import sub

import numpy as np
from numpy.typing import NDArray

from tracer.model.candidates import GROUPS, Key
from tracer.model.columns import Leaves
from tracer.model.leaves import LOCK, NOT_SCHEDULED, Holder, Leaf, Word
from tracer.model.phases import CLOCK, GPU, HEAD_OF_LINE, NOT_REARMED, SERIALISED, Path, Phase

#: Share (0..1] of each leaf that is taken out, by index; leaves not named stay.
Removal = Mapping[int, float]


class Case:
    """A cycle's path with its leaves, ready for replay.

    Leaves are counted through the path's phases: ``members`` names them by such an index.

    Args:
        leaves: of the whole path, each with its phase; or as columns, an interval for each phase.
        same: a case of the same cycle, G's commands for others being the same.

    Attributes:
        columns: the leaves.
        relief: per candidate, when G's commands for others were held up by it themselves (sorted, disjoint).
    """

    __slots__ = (
        "_asleep",
        "_behind",
        "_end_ns",
        "_ends",
        "_first",
        "_flat_",
        "_lock_waits",
        "_members",
        "_own",
        "_sorts",
        "_spare",
        "_starts",
        "_tids",
        "_totals",
        "_waits",
        "columns",
        "path",
        "relief",
    )

    def __init__(self, path: Path, leaves: Iterable[Leaf] | Leaves = (), same: Case | None = None) -> None:
        self.path = path
        self.columns = leaves if isinstance(leaves, Leaves) else Leaves.of(leaves, len(path.phases))
        self._starts: list[int] = [a for a, _ in path.foreign] if same is None else same._starts
        self._ends: list[int] = [b for _, b in path.foreign] if same is None else same._ends
        self.relief: dict[Key, list[tuple[int, int]]] = {} if same is None else same.relief
        # A driver that looks for ours only when its own clock wakes it: what counts is when it could have.
        self._asleep = sum(phase.end_ns - phase.start_ns for phase in path.phases if phase.sub == CLOCK)
        self._end_ns = path.end_ns
        if self._asleep:
            self._end_ns = max(path.end_ns - self._asleep, path.deadline_ns + 1)
        self._flat_: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._lock_waits: list[Leaf] | None = None
        self._tids: set[int] | None = None
        self._members: dict[Key, list[int]] = {}
        #: Time per candidate; the first phase with it.
        self._totals: dict[Key, int] = {}
        self._first: dict[Key, int] = {}
        #: Leaves that are there only because G was busy with another command.
        self._behind: list[int] = []
        self._count()
        #: Phases that wait for G; how much of each is ours, and how much from each on is G's queue.
        self._waits: list[int] = []
        self._own: list[int] = []
        self._spare: list[int] = []
        self._measure_queue()

    def _count(self) -> None:
        """Count the leaves by sort, and the sorts by candidate."""
        columns, totals, first = self.columns, self._totals, self._first
        sorts, firsts = columns.sorts, columns.firsts
        everywhere, keys = columns.table.everywhere, columns.table.keys
        counts: dict[int, int] = {}
        since: dict[int, int] = {}
        long = list(map(sub, columns.ends, columns.starts))
        low = 0
        for index, phase in enumerate(self.path.phases):
            high, via = firsts[index + 1], phase.via
            if via and low < high:
                if (via,) not in totals:
                    totals[via,], first[via,] = 0, index
                totals[via,] += sum(long[low:high])
                for i in range(low, high):
                    sort = sorts[i]
                    if sort in everywhere:
                        if sort not in counts:
                            counts[sort], since[sort] = 0, index
                        counts[sort] += long[i]
            elif phase.sub != CLOCK:
                for i in range(low, high):
                    sort = sorts[i]
                    if sort not in counts:
                        counts[sort], since[sort] = 0, index
                    counts[sort] += long[i]
            low = high
        self._sorts = counts
        for sort, ns in counts.items():
            for key in keys[sort]:
                totals[key] = totals.get(key, 0) + ns
                first[key] = min(first.get(key, since[sort]), since[sort])
        if self._starts:
            self._count_behind()

    def _count_behind(self) -> None:
        """Count the leaves that there are only because G was busy with another command.

        That is G's own time in that command while our re-arm waited for it, and a wait for a
        lock that G held over it: without the lock G is as busy, so what makes the cycle late is
        the command (as a runnable holder's wait counts for its missing CPU).
        """
        columns, gpu = self.columns, self.path.gpu_tid
        like = columns.table.like
        by_gpu = {s for s in self._sorts if (holder := like[s].holder) is not None and holder.tid == gpu}
        for index, phase in enumerate(self.path.phases):
            theirs = _is_theirs(phase)
            if not theirs and not by_gpu:
                continue
            for leaf in range(columns.firsts[index], columns.firsts[index + 1]):
                if not theirs and columns.sorts[leaf] not in by_gpu:
                    continue
                i = bisect_right(self._starts, columns.starts[leaf]) - 1
                if i >= 0 and self._ends[i] >= columns.ends[leaf]:
                    self._behind.append(leaf)
        if self._behind:
            key, since = (HEAD_OF_LINE,), self.phase_of(self._behind[0])
            self._totals[key] = self._totals.get(key, 0) + self.ns_of(self._behind)
            self._first[key] = min(self._first.get(key, since), since)

    def _measure_queue(self) -> None:
        """What of the phases that wait for G is our own command, and what is its queue."""
        queue: list[int] = []
        for index, phase in enumerate(self.path.phases):
            if phase.queued or _is_theirs(phase):
                foreign = self._foreign_of(index, phase) if self._starts else 0
                self._waits.append(index)
                self._own.append(self.columns.ns_in(index) - foreign)
                queue.append(foreign)
        self._spare = list(itertools.accumulate(reversed(queue)))[::-1]

    def _foreign_of(self, index: int, phase: Phase) -> int:
        columns = self.columns
        if columns.ns_in(index) == phase.end_ns - phase.start_ns:
            return self._foreign_in(phase.start_ns, phase.end_ns)
        return sum(self._foreign_in(columns.starts[i], columns.ends[i]) for i in columns.of_interval(index))

    def _foreign_in(self, start: int, end: int) -> int:
        """How much of an interval G spent on commands that are not ours, ns."""
        low, high = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return sum(min(b, end) - max(a, start) for a, b in self.path.foreign[low:high])

    # --- leaves ---------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self.columns)

    @property
    def words(self) -> set[Word]:
        """Locks among the leaves."""
        like = self.columns.table.like
        return {word for s in self._sorts for word in (like[s].word, like[s].after) if word is not None}

    @property
    def tids(self) -> set[int]:
        """Threads among the leaves."""
        if self._tids is None:
            self._tids = found = set()
            for sort in set(self.columns.sorts):
                leaf = self.columns.table.like[sort]
                found.add(leaf.tid)
                if leaf.holder is not None:
                    found.add(leaf.holder.tid)
                if leaf.off_tid:
                    found.add(leaf.off_tid)
        return self._tids

    @property
    def leaves(self) -> list[Leaf]:
        """The leaves, in order, each with the index of its phase; made when asked for."""
        columns = self.columns
        return [
            columns.leaf(i, index)
            for index in range(len(self.path.phases))
            for i in columns.of_interval(index)
        ]

    def leaf(self, i: int) -> Leaf:
        """One leaf, by its index; what it says of its phase is nothing."""
        return self.columns.leaf(i)

    def like(self, i: int) -> Leaf:
        """A leaf of the same sort as one of them: says nothing of when, and in which call of its kind."""
        return self.columns.table.like[self.columns.sorts[i]]

    def ns(self, i: int) -> int:
        """How long a leaf is."""
        return self.columns.ends[i] - self.columns.starts[i]

    @property
    def _flat(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The phase of each leaf, and its ns."""
        if self._flat_ is None:
            columns = self.columns
            phase = np.repeat(np.arange(len(self.path.phases)), np.diff(columns.firsts))
            self._flat_ = phase, np.array(columns.ends, np.int64) - np.array(columns.starts, np.int64)
        return self._flat_

    def phase_of(self, i: int) -> int:
        """The index of a leaf's phase."""
        return bisect_right(self.columns.firsts, i) - 1

    def members_of(self, key: Key) -> list[int]:
        """The leaves that count for a candidate, by index, in order."""
        found = self._members.get(key)
        if found is None:
            found = self._members[key] = self._find(key)
        return found

    def _find(self, key: Key) -> list[int]:
        columns, phases = self.columns, self.path.phases
        sorts, firsts = columns.sorts, columns.firsts
        if key[0] in GROUPS:
            found = [i for n, p in enumerate(phases) if p.via == key[0] for i in columns.of_interval(n)]
            return sorted({*found, *self._behind}) if key[0] == HEAD_OF_LINE and self._behind else found
        keys = columns.table.keys
        wanted = {sort for sort in self._sorts if key in keys[sort]}
        anywhere = wanted <= columns.table.everywhere
        if anywhere and not self._asleep:
            return [i for i, sort in enumerate(sorts) if sort in wanted]
        counted = [n for n, p in enumerate(phases) if p.sub != CLOCK and (anywhere or not p.via)]
        return [i for n in counted for i in range(firsts[n], firsts[n + 1]) if sorts[i] in wanted]

    @property
    def members(self) -> dict[Key, list[int]]:
        """Leaves per candidate, by index."""
        return {key: self.members_of(key) for key in self._totals}

    def totals(self) -> dict[Key, int]:
        """Time per candidate, ns."""
        return self._totals

    def ns_of(self, at: Iterable[int]) -> int:
        """How long some leaves are together."""
        starts, ends = self.columns.starts, self.columns.ends
        return sum(ends[i] - starts[i] for i in at)

    def _by_phase(self, at: Iterable[int]) -> list[tuple[int, int]]:
        """How long some leaves (in order) are together, per phase with any: (index, ns)."""
        starts, ends, firsts = self.columns.starts, self.columns.ends, self.columns.firsts
        found: list[tuple[int, int]] = []
        index, until, ns = -1, 0, 0
        for i in at:
            if i >= until:
                if index >= 0:
                    found.append((index, ns))
                index = bisect_right(firsts, i, max(index, 0)) - 1
                until, ns = firsts[index + 1], 0
            ns += ends[i] - starts[i]
        if index >= 0:
            found.append((index, ns))
        return found

    def waited(self) -> dict[Word, int]:
        """How long the path's own threads waited for each lock, ns."""
        waits: dict[Word, int] = {}
        table = self.columns.table
        for sort in table.waits.intersection(self._sorts):
            word = table.like[sort].word
            if word is not None:
                waits[word] = waits.get(word, 0) + self._sorts[sort]
        return waits

    def lock_waits(self) -> list[Leaf]:
        """The leaves that wait for a lock, in order."""
        if self._lock_waits is None:
            self._lock_waits = self._of_sorts(self.columns.table.waits.intersection(self._sorts))
        return self._lock_waits

    def not_scheduled(self) -> list[Leaf]:
        """The leaves in which the path's own threads lacked a CPU, in order."""
        like = self.columns.table.like
        return self._of_sorts({s for s in set(self.columns.sorts) if like[s].kind == NOT_SCHEDULED})

    def _of_sorts(self, some: Set[int]) -> list[Leaf]:
        if not some:
            return []
        return [self.columns.leaf(i) for i, sort in enumerate(self.columns.sorts) if sort in some]

    # --- what G did for others -----------------------------------------------------------

    def relieve(self, leaves: Iterable[Leaf] | Leaves) -> None:
        """Take over what G's commands for others were held up by.

        Without a lock, or with the CPU, those would have been done sooner too. A lock that a thread of
        this path holds meanwhile is let go sooner without what that thread spends its time on.
        """
        columns = leaves if isinstance(leaves, Leaves) else Leaves.of(leaves, 1)
        table, starts, ends, relief = columns.table, columns.starts, columns.ends, self.relief
        for i, sort in enumerate(columns.sorts):
            if sort not in table.everywhere:
                continue
            when = starts[i], ends[i]
            for key in table.keys[sort]:
                relief.setdefault(key, []).append(when)
            holder = table.like[sort].holder
            if holder is not None:
                self._relieve_held(*when, holder)

    def _relieve_held(self, since: int, until: int, holder: Holder) -> None:
        """Take over what the holders that G waited for did meanwhile on this path."""
        phases, columns = self.path.phases, self.columns
        table = columns.table
        first = bisect_right(phases, since, key=_start) - 1
        for index in range(max(0, first), len(phases)):
            if phases[index].start_ns >= until:
                break
            for i in columns.of_interval(index):
                sort = columns.sorts[i]
                leaf = table.like[sort]
                if leaf.tid in holder.tids and leaf.kind not in (LOCK, NOT_SCHEDULED):
                    start, end = max(columns.starts[i], since), min(columns.ends[i], until)
                    self._relieve(table.own[sort], start, end)

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

    # --- replay ---------------------------------------------------------------------------

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
        phase, ns = self._flat
        at = np.fromiter(removed, np.int64, len(removed))
        taken = np.rint(ns[at] * np.fromiter(removed.values(), np.float64, len(removed)))
        there = np.flatnonzero(np.bincount(phase[at]))
        sums = np.bincount(phase[at], weights=taken).astype(np.int64)[there]
        lost = dict(zip(there.tolist(), sums.tolist(), strict=True))
        if unqueued:
            return self._unqueued(lost, removed)
        return self._replay(list(lost.items()), removed, freed)

    def _replay(
        self, lost: Sequence[tuple[int, int]], removed: Removal, freed: Sequence[tuple[int, int]]
    ) -> int:
        """Closing time with so much of some phases (index, ns) gone: what moves up, phase by phase.

        Only where something is taken out, or where ours waits for G, does that change.
        """
        if not lost:
            return self.path.end_ns
        phases, waits = self.path.phases, self._waits
        earlier = k = 0
        for at in range(bisect_left(waits, lost[0][0]), len(waits)):
            index = waits[at]
            while k < len(lost) and lost[k][0] < index:
                earlier += lost[k][1]
                k += 1
            taken = 0
            if k < len(lost) and lost[k][0] == index:
                taken = lost[k][1]
                k += 1
            if not earlier:
                if k == len(lost) and not taken:
                    break  # from here on as recorded
                earlier = taken
                continue
            start, end = phases[index].start_ns, phases[index].end_ns
            kept = end - start - taken
            now = start - earlier
            if kept or end == start:
                # What no known command of G explains (our own work, a queue nobody saw) stays.
                own = self._own[at]
                if taken:
                    own -= self._own_taken(index, removed)
                served = self._served(now, index if taken else -1, removed, freed)
                earlier = end - min(served + own, start + kept)
            else:  # taken out altogether, its queue too
                earlier = end - now
        for _, taken in lost[k:]:
            earlier += taken
        return self._end_ns - earlier

    def _unqueued(self, lost: Mapping[int, int], removed: Removal) -> int:
        """The closing time if G is never busy with other commands when ours come."""
        gone = sum(lost.values())
        for index, own in zip(self._waits, self._own, strict=True):
            taken = lost.get(index, 0)
            whole = self.columns.ns_in(index)
            if self.path.phases[index].queued:
                gone += whole - taken
            else:
                gone += whole - own - taken + (self._own_taken(index, removed) if taken else 0)
        return self._end_ns - gone

    def _own_taken(self, index: int, removed: Removal) -> int:
        """What is taken out of G's time on our own command in a phase."""
        ns = 0
        starts, ends = self.columns.starts, self.columns.ends
        for i in self.columns.of_interval(index):
            share = removed.get(i, 0.0)
            if share:
                own = ends[i] - starts[i] - self._foreign_in(starts[i], ends[i])
                ns += own if share == 1.0 else round(own * share)
        return ns

    def _served(self, now: int, index: int, removed: Removal, freed: Sequence[tuple[int, int]]) -> int:
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
        if index >= 0:
            starts, ends = self.columns.starts, self.columns.ends
            for j in self.columns.of_interval(index):
                share = removed.get(j, 0.0)
                if share:
                    less += round(share * max(0, min(ends[j], end) - max(starts[j], now)))
        return max(now, end - less)

    def meets(
        self, removed: Removal, *, unqueued: bool = False, freed: Sequence[tuple[int, int]] = ()
    ) -> bool:
        """Whether the deadline is met with that taken out."""
        return self.replay(removed, unqueued=unqueued, freed=freed) <= self.path.deadline_ns

    def avoided_without(self, shares: Mapping[Key, float]) -> bool:
        """Whether the deadline is met without some candidates (share of each that is excess)."""
        unqueued = (HEAD_OF_LINE,) in shares
        if len(shares) == 1 and not unqueued:
            ((key, share),) = shares.items()
            # No more can be gained than is taken out and what G's queue takes from there on.
            at = bisect_left(self._waits, self._first[key])
            most = self._totals[key] + (self._spare[at] if at < len(self._spare) else 0)
            if self._end_ns - most > self.path.deadline_ns:
                return False
            if share == 1.0:
                members = self.members_of(key)
                removed = dict.fromkeys(members, 1.0)
                lost = self._by_phase(members)
                return self._replay(lost, removed, self.freed(shares)) <= self.path.deadline_ns
        removal = _without(self, shares)
        return self.meets(removal, unqueued=unqueued, freed=self.freed(shares))


def _is_theirs(phase: Phase) -> bool:
    """Whether it is G's time while our turn or our re-arm waits for it."""
    return phase.who == GPU and phase.via in (SERIALISED, NOT_REARMED)


def _start(phase: Phase) -> int:
    return phase.start_ns


def _end(interval: tuple[int, int]) -> int:
    return interval[1]


def _without(case: Case, shares: Mapping[Key, float]) -> Removal:
    if len(shares) == 1:
        ((key, share),) = shares.items()
        return dict.fromkeys(case.members_of(key), share)
    removed: dict[int, float] = {}
    for key, share in shares.items():
        for i in case.members_of(key):
            removed[i] = max(removed.get(i, 0.0), share)
    return removed
