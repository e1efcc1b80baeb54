# SPDX-License-Identifier: Apache-2.0
"""Leaves as columns: when each begins and ends, its sort, and what else is known of it.

Owns two shapes of them. A ``Strip`` is one thread's over a stretch of time, cut once; ``Leaves`` are those of
some intervals one after another (a path's phases), which are slices of strips. So a leaf costs a few list
entries, and only who asks for it gets a ``Leaf``. Cuts nothing (cutter.py does), judges nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tracer.model.candidates import Key, Sorts
from tracer.model.leaves import NOT_SCHEDULED, Leaf, Syscall
from tracer.model.spans import Call
from tracer.schema import Kind

_WITHOUT_FD: Final = (int(Kind.FUTEX), int(Kind.SYSCALL))
#: What a NamedTuple's constructor does, without a call of Python's own.
_new: Final = tuple.__new__

#: What else is known of a leaf: its syscall, or who ran on the CPU instead (not_scheduled).
More = Call | int | None


def call_of(call: Call | None) -> Syscall | None:
    """(kind, syscall number, fd, eventfd_id) of a syscall span, None outside any."""
    if call is None:
        return None
    _, _, kind, op, _, _, fd, eventfd, _ = call
    return kind, op, -1 if kind in _WITHOUT_FD else fd, eventfd


@dataclass(slots=True)
class Strip:
    """What one thread did over [start_ns, stop_ns), without gaps: each leaf ends where the next begins."""

    start_ns: int
    stop_ns: int
    starts: list[int] = field(default_factory=list)
    sorts: list[int] = field(default_factory=list)
    more: list[More] = field(default_factory=list)


class Leaves:
    """The leaves of some intervals, one interval after another.

    Attributes:
        table: what the sorts are.
        starts, ends: ns; sorts; more.
        firsts: the index of each interval's first leaf, and at last how many there are.
    """

    __slots__ = ("ends", "firsts", "more", "sorts", "starts", "table")

    def __init__(self, table: Sorts) -> None:
        self.table = table
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.sorts: list[int] = []
        self.more: list[More] = []
        self.firsts: list[int] = [0]

    @classmethod
    def of(cls, leaves: Iterable[Leaf], intervals: int) -> Leaves:
        """Given leaves, each with the index of its interval (``phase``), in order."""
        found = cls(Sorts())
        for leaf in leaves:
            found.firsts += [len(found.starts)] * (leaf.phase + 1 - len(found.firsts))
            found.starts.append(leaf.start_ns)
            found.ends.append(leaf.end_ns)
            found.sorts.append(found.table.of(leaf.kind, leaf.tid, *leaf[5:10]))
            found.more.append(leaf.instead if leaf.kind == NOT_SCHEDULED else None)
        found.firsts += [len(found.starts)] * (intervals + 1 - len(found.firsts))
        return found

    def upto(self, intervals: int) -> Leaves:
        """Those of the first intervals."""
        found, n = Leaves(self.table), self.firsts[intervals]
        found.starts, found.ends = self.starts[:n], self.ends[:n]
        found.sorts, found.more = self.sorts[:n], self.more[:n]
        found.firsts = self.firsts[: intervals + 1]
        return found

    def take(self, strip: Strip, start: int, end: int) -> bool:
        """Append a strip's leaves of [start, end) as an interval; False where that must be cut by itself.

        That is where only a part of a lock wait is wanted: the wakes within it tell who held the lock.
        """
        begins, sorts, waits = strip.starts, strip.sorts, self.table.waits
        low = bisect_right(begins, start) - 1
        high = bisect_left(begins, end, low + 1)
        if waits and (
            (sorts[low] in waits and (begins[low] < start or (low and sorts[low - 1] in waits)))
            or (
                sorts[high - 1] in waits
                and (
                    begins[high] > end or sorts[high] in waits if high < len(begins) else end < strip.stop_ns
                )
            )
        ):
            return False
        self.starts.append(start)
        if high > low + 1:
            between = begins[low + 1 : high]
            self.starts += between
            self.ends += between
            self.sorts += sorts[low:high]
            self.more += strip.more[low:high]
        else:
            self.sorts.append(sorts[low])
            self.more.append(strip.more[low])
        self.ends.append(end)
        self.firsts.append(len(self.starts))
        return True

    def close(self, end: int) -> None:
        """What was appended to ``starts``, ``sorts`` and ``more`` meanwhile is an interval up to ``end``."""
        first = self.firsts[-1]
        if len(self.starts) > first:
            self.ends += self.starts[first + 1 :]
            self.ends.append(end)
        self.firsts.append(len(self.starts))

    def __len__(self) -> int:
        return len(self.starts)

    def of_interval(self, index: int) -> range:
        """The indices of an interval's leaves."""
        return range(self.firsts[index], self.firsts[index + 1])

    def ns_in(self, index: int) -> int:
        """How long the leaves of an interval are together."""
        low, high = self.firsts[index], self.firsts[index + 1]
        return sum(self.ends[low:high]) - sum(self.starts[low:high])

    def totals(self) -> dict[Key, int]:
        """Time per candidate outside of all via groups, ns."""
        found: dict[Key, int] = {}
        for start, end, sort in zip(self.starts, self.ends, self.sorts, strict=True):
            for key in self.table.keys[sort]:
                found[key] = found.get(key, 0) + end - start
        return found

    def alike(self, i: int) -> tuple[int, Syscall | int | None]:
        """Equal for leaves that differ only in when they were."""
        more = self.more[i]
        return self.sorts[i], more if isinstance(more, int) else call_of(more)

    def leaf(self, i: int, interval: int = 0) -> Leaf:
        """A leaf by its index."""
        like, more = self.table.like[self.sorts[i]], self.more[i]
        instead, call = 0, like[7]
        if isinstance(more, int):
            instead = more
        elif more is not None:
            call = call_of(more)
        _, _, kind, tid, _, word, after, _, holder, off_tid, _ = like
        return _new(
            Leaf,
            (self.starts[i], self.ends[i], kind, tid, interval, word, after, call, holder, off_tid, instead),
        )
