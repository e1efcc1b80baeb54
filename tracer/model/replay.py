# SPDX-License-Identifier: Apache-2.0
"""The replay of a cycle's critical path, with something taken out: W and G as serial servers.

Owns the case that is replayed. Never subtracts: taking time out
moves our own commands earlier, where they may meet a G that was busy in the recording. Judges nothing.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.candidates import EVERYWHERE, Cut, Key, keys_of, own_key
from tracer.model.leaves import LOCK, NOT_SCHEDULED, ON_CPU, SLOW_SYSCALL, Holder, Leaf, Word
from tracer.model.phases import CLOCK, GPU, HEAD_OF_LINE, NOT_REARMED, SERIALISED, Path, Phase

#: Share (0..1] of each leaf that is taken out, by index; leaves not named stay.
Removal = Mapping[int, float]

#: What of a phase is a candidate's: (index of the phase, ns, its leaves by index in the phase).
_Touched = tuple[int, int, list[int]]

#: What can hold up G's commands for others.
_CAN_HOLD_UP: Final = (*EVERYWHERE, ON_CPU, SLOW_SYSCALL)
#: What a NamedTuple's constructor does, without a call of Python's own.
_new: Final = tuple.__new__


class Case:
    """A cycle's path with its leaves, ready for replay.

    Leaves are counted through the path's phases: ``members`` names them by such an index.

    Args:
        leaves: of the whole path, each with its phase; or ``cuts``: the leaves of each phase.
        same: a case of the same cycle, G's commands for others being the same.

    Attributes:
        words, tids: locks and threads among the leaves; size: how many leaves there are.
        relief: per candidate, when G's commands for others were held up by it themselves (sorted, disjoint).
    """

    __slots__ = (
        "_columns",
        "_end_ns",
        "_ends",
        "_firsts",
        "_members",
        "_own",
        "_spare",
        "_starts",
        "_touched",
        "_waits",
        "cuts",
        "path",
        "relief",
        "size",
        "tids",
        "words",
    )

    def __init__(
        self,
        path: Path,
        leaves: Iterable[Leaf] = (),
        same: Case | None = None,
        *,
        cuts: Sequence[Cut] | None = None,
    ) -> None:
        self.path = path
        self.cuts = _by_phase(path, leaves) if cuts is None else cuts
        self._starts: list[int] = [a for a, _ in path.foreign] if same is None else same._starts
        self._ends: list[int] = [b for _, b in path.foreign] if same is None else same._ends
        self.relief: dict[Key, list[tuple[int, int]]] = {} if same is None else same.relief
        self.words: set[Word] = set()
        self.tids: set[int] = set()
        self._members: dict[Key, list[int]] = {}
        # A driver that looks for ours only when its own clock wakes it: what counts is when it could have.
        asleep = sum(phase.end_ns - phase.start_ns for phase in path.phases if phase.sub == CLOCK)
        self._end_ns = max(path.end_ns - asleep, path.deadline_ns + 1) if asleep else path.end_ns
        self._columns: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._touched: dict[Key, list[_Touched]] = {}
        #: The first leaf of each phase; phases that wait for G; how much from each on is G's queue.
        self._firsts: list[int] = []
        self._waits: list[int] = []
        self._spare: list[int] = []
        self._own: list[int] = []
        self._add()

    def _add(self) -> None:
        """Count the leaves of each phase."""
        phases, touched = self.path.phases, self._touched
        gpu, first = self.path.gpu_tid, 0
        for index, cut in enumerate(self.cuts):
            phase = phases[index]
            via = phase.via
            self._firsts.append(first)
            first += len(cut.leaves)
            self.words |= cut.words
            self.tids |= cut.tids
            for key, (ns, at) in cut.by_key(via).items() if phase.sub != CLOCK else ():
                there = touched.get(key)
                if there is None:
                    touched[key] = [(index, ns, at)]
                else:
                    there.append((index, ns, at))
            theirs = phase.who == GPU and via in (SERIALISED, NOT_REARMED)
            if theirs or gpu in cut.holders:
                at = [i for i, leaf in enumerate(cut.leaves) if self._for_others(leaf, theirs)]
                if at:
                    ns = sum(cut.leaves[i].ns for i in at)
                    touched.setdefault((HEAD_OF_LINE,), []).append((index, ns, at))
            if phase.queued or theirs:
                self._waits.append(index)
                self._own.append(cut.ns - self._foreign_of(phase, cut))
        self.size = first
        spare = 0
        for index, own in zip(reversed(self._waits), reversed(self._own), strict=True):
            spare += self.cuts[index].ns - own
            self._spare.append(spare)
        self._spare.reverse()

    def _foreign_of(self, phase: Phase, cut: Cut) -> int:
        if cut.ns == phase.end_ns - phase.start_ns:
            return self._foreign_in(phase.start_ns, phase.end_ns)
        return sum(self._foreign_in(leaf.start_ns, leaf.end_ns) for leaf in cut.leaves)

    def _foreign_in(self, start: int, end: int) -> int:
        """How much of an interval G spent on commands that are not ours, ns."""
        low, high = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return sum(min(b, end) - max(a, start) for a, b in self.path.foreign[low:high])

    def _for_others(self, leaf: Leaf, theirs: bool) -> bool:
        """Whether a leaf exists only because G was busy with another command.

        That is G's own time in that command while our re-arm waited for it, and a wait for a
        lock that G held over it: without the lock G is as busy, so what makes the cycle late is
        the command (as a runnable holder's wait counts for its missing CPU).
        """
        if not theirs and (leaf.holder is None or leaf.holder.tid != self.path.gpu_tid):
            return False
        i = bisect_right(self._starts, leaf.start_ns) - 1
        return i >= 0 and self._ends[i] >= leaf.end_ns

    # --- leaves ---------------------------------------------------------------------

    @property
    def leaves(self) -> list[Leaf]:
        """The leaves, in order, each with the index of its phase; made when asked for."""
        return [
            leaf if leaf[4] == index else _new(Leaf, (*leaf[:4], index, *leaf[5:]))
            for index, cut in enumerate(self.cuts)
            for leaf in cut.leaves
        ]

    def leaf(self, i: int) -> Leaf:
        """One leaf, by its index; what it says of its phase is nothing."""
        index = self.phase_of(i)
        return self.cuts[index].leaves[i - self._firsts[index]]

    @property
    def _flat(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The phase of each leaf, and its ns."""
        if self._columns is None:
            counts = [len(cut.leaves) for cut in self.cuts]
            ns = [leaf[1] - leaf[0] for cut in self.cuts for leaf in cut.leaves]
            phase = np.repeat(np.arange(len(counts)), counts)
            self._columns = phase, np.array(ns, dtype=np.int64)
        return self._columns

    def phase_of(self, i: int) -> int:
        """The index of a leaf's phase."""
        return bisect_right(self._firsts, i) - 1

    def members_of(self, key: Key) -> list[int]:
        """The leaves that count for a candidate, by index, in order."""
        found = self._members.get(key)
        if found is None:
            firsts = self._firsts
            found = [firsts[index] + i for index, _, at in self._touched.get(key, ()) for i in at]
            self._members[key] = found
        return found

    @property
    def members(self) -> dict[Key, list[int]]:
        """Leaves per candidate, by index."""
        return {key: self.members_of(key) for key in self._touched}

    def totals(self) -> dict[Key, int]:
        """Time per candidate, ns."""
        return {key: sum(ns for _, ns, _ in there) for key, there in self._touched.items()}

    def ns_of(self, at: Iterable[int]) -> int:
        """How long some leaves are together."""
        return sum(self.leaf(i).ns for i in at)

    def waited(self) -> dict[Word, int]:
        """How long the path's own threads waited for each lock, ns."""
        waits: dict[Word, int] = {}
        for leaf in self.lock_waits():
            if leaf.word is not None:
                waits[leaf.word] = waits.get(leaf.word, 0) + leaf.ns
        return waits

    def lock_waits(self) -> Iterator[Leaf]:
        """The leaves that wait for a lock, in order."""
        for cut in self.cuts:
            if cut.words:
                for i in cut.in_the_way:
                    if cut.leaves[i].kind == LOCK:
                        yield cut.leaves[i]

    # --- what G did for others -----------------------------------------------------------

    def hopeless(self) -> bool:
        """Whether the deadline is missed even without G's other commands and all that can hold those up."""
        gone = 0
        own = dict(zip(self._waits, self._own, strict=True))
        for index, cut in enumerate(self.cuts):
            phase = self.path.phases[index]
            kinds = EVERYWHERE if phase.via else _CAN_HOLD_UP
            if phase.queued:
                gone += cut.ns
            elif index in own:
                mine = [leaf for leaf in cut.leaves if leaf.kind in kinds]
                taken = sum(leaf.ns - self._foreign_in(leaf.start_ns, leaf.end_ns) for leaf in mine)
                gone += cut.ns - own[index] + taken
            else:
                gone += cut.in_the_way_ns if phase.via else cut.ns - cut.elsewhere_ns
        return self._end_ns - gone > self.path.deadline_ns

    def relieve(self, leaves: Iterable[Leaf]) -> None:
        """Take over what G's commands for others were held up by.

        Without a lock, or with the CPU, those would have been done sooner too. A lock that a thread of
        this path holds meanwhile is let go sooner without what that thread spends its time on.
        """
        self.relieve_by((Cut(list(leaves)),))

    def relieve_by(self, cuts: Iterable[Cut]) -> None:
        """The same, as cut by command."""
        relief = self.relief
        for cut in cuts:
            if not cut.holders:
                for key, when in cut.relief:
                    relief.setdefault(key, []).append(when)
                continue
            for leaf in cut.leaves:
                for key in keys_of(leaf, ""):
                    if key[0] in EVERYWHERE:
                        self._relieve(key, leaf.start_ns, leaf.end_ns)
                if leaf.kind == LOCK and leaf.holder is not None:
                    self._relieve_held(leaf, leaf.holder)

    def _relieve_held(self, wait: Leaf, holder: Holder) -> None:
        """Take over what the holders that G waited for did meanwhile on this path."""
        phases = self.path.phases
        first = bisect_right(phases, wait.start_ns, key=_start) - 1
        for index in range(max(0, first), len(phases)):
            if phases[index].start_ns >= wait.end_ns:
                break
            for ours in self.cuts[index].leaves:
                if ours.tid in holder.tids and ours.kind not in (LOCK, NOT_SCHEDULED):
                    start, end = max(ours.start_ns, wait.start_ns), min(ours.end_ns, wait.end_ns)
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
            whole = self.cuts[index].ns
            if self.path.phases[index].queued:
                gone += whole - taken
            else:
                gone += whole - own - taken + (self._own_taken(index, removed) if taken else 0)
        return self._end_ns - gone

    def _own_taken(self, index: int, removed: Removal) -> int:
        """What is taken out of G's time on our own command in a phase."""
        ns = 0
        for i, leaf in enumerate(self.cuts[index].leaves, self._firsts[index]):
            share = removed.get(i, 0.0)
            if share:
                own = leaf.ns - self._foreign_in(leaf.start_ns, leaf.end_ns)
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
            for j, leaf in enumerate(self.cuts[index].leaves, self._firsts[index]):
                share = removed.get(j, 0.0)
                if share:
                    less += round(share * max(0, min(leaf.end_ns, end) - max(leaf.start_ns, now)))
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
            there = self._touched[key]
            # No more can be gained than is taken out and what G's queue takes from there on.
            at = bisect_left(self._waits, there[0][0])
            most = sum(ns for _, ns, _ in there) + (self._spare[at] if at < len(self._spare) else 0)
            if self._end_ns - most > self.path.deadline_ns:
                return False
            if share == 1.0:
                removed = _Whole(self, key)
                lost = [(index, ns) for index, ns, _ in there]
                return self._replay(lost, removed, self.freed(shares)) <= self.path.deadline_ns
        removal = _without(self, shares)
        return self.meets(removal, unqueued=unqueued, freed=self.freed(shares))


class _Whole(dict[int, float]):
    """All leaves of a candidate as a removal, looked up only where a command of ours comes sooner to G."""

    def __init__(self, case: Case, key: Key) -> None:
        super().__init__()
        self._of: tuple[Case, Key] | None = (case, key)

    def get(self, i: int, default: float = 0.0) -> float:  # type: ignore[override]
        if self._of is not None:
            case, key = self._of
            self.update(dict.fromkeys(case.members_of(key), 1.0))
            self._of = None
        return super().get(i, default)


def _by_phase(path: Path, leaves: Iterable[Leaf]) -> list[Cut]:
    parts: list[list[Leaf]] = [[] for _ in path.phases]
    for leaf in leaves:
        parts[leaf.phase].append(leaf)
    return [Cut(part) for part in parts]


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
