# SPDX-License-Identifier: Apache-2.0
"""Completion writes and what surrounds them.

Owns what is counted of each VMM: a fresh dup before a write, a close after it, the writer's wakes of
locks just before and just after, the words held at its entry, and what it cost. Which write path
that means is writepath.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from tracer.model.callkinds import closes
from tracer.model.histogram import LogHistogram
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.words import join
from tracer.schema import FD, FUTEX, OFFCPU, RECORD, RW, Kind, Records, end_ns, view

_AROUND = 3  # calls before and after a write that are looked at
_LATER_NS = 50_000_000  # a write is judged this much later, when its close is known
_NOT_DUP = np.array((3, 19, 57, 284, 290))  # close, eventfd, eventfd2 on x86-64 and arm64
_WAKE = 1
_WRITE, _FD, _FUTEX = int(Kind.WRITE), int(Kind.FD), int(Kind.FUTEX)
_MAX_IDS = 256


@dataclass(slots=True)
class Seen:
    """What was seen of one VMM's completion writes."""

    writes: int = 0
    dupped: int = 0
    cost: LogHistogram = field(default_factory=LogHistogram)
    alone: LogHistogram = field(default_factory=LogHistogram)  # write(2) itself
    extra: LogHistogram = field(default_factory=LogHistogram)  # what else a write took, write by write
    words: int = 0  # watched at these writes, summed
    by_writer: dict[int, dict[int, int]] = field(default_factory=dict)
    contexts: dict[int, tuple[int, ...]] = field(default_factory=dict)  # by id: workers it completes for
    masks: dict[tuple[int, int, int, int], int] = field(
        default_factory=dict
    )  # id, generation, held, readable
    wake_before: dict[int, int] = field(default_factory=dict)  # word: WAKE then write
    wake_after: dict[int, int] = field(default_factory=dict)  # word: write then WAKE


class Writes:
    """The completion writes of each VMM; ``registry``: of the same analysis, stepped before this."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.of: dict[int, Seen] = {}
        self._recent: deque[Step] = deque()
        self._done_ns = 0

    def step(self, step: Step, completions: Mapping[int, Collection[int]]) -> None:
        """Look at the completion writes that ended 50 ms before this step's end.

        Args:
            completions: eventfd-id of each completion -> the contexts (tids of W) whose streams it ends.
        """
        if len(step):
            self._recent.append(step)
        until = max(self._done_ns, step.end_ns - _LATER_NS)
        if completions and self._recent:
            self._look(self._done_ns, until, completions)
        self._done_ns = until
        while self._recent and int(end_ns(self._recent[0].records[-1:])[0]) + _LATER_NS < until:
            self._recent.popleft()

    def _look(self, after_ns: int, until_ns: int, completions: Mapping[int, Collection[int]]) -> None:
        ids = np.array(sorted(completions), dtype=np.int32)
        writers: set[int] = set()
        for step in self._recent:
            if step.end_ns <= after_ns:
                continue
            rw = step.of(Kind.WRITE)
            stop = end_ns(rw)
            lo, hi = np.searchsorted(stop, np.array((after_ns, until_ns), dtype=np.uint64), side="right")
            rw = rw[lo:hi]
            writers.update(rw["tid"][_among(rw["eventfd_id"], ids)].tolist())
        for tid in sorted(writers):
            tgid = self.registry.tgid(tid)
            if not self.registry.is_vmm(tgid) or self.registry.role(tid) == "vcpu":
                continue
            rows = join([step.syscalls(tid) for step in self._recent], RECORD)
            off = join([step.sleeps(tid) for step in self._recent], OFFCPU)
            if self._writer(tgid, tid, rows, off, ids, after_ns, until_ns):
                contexts = self.of[tgid].contexts
                for number, workers in completions.items():
                    contexts[number] = tuple(sorted(workers))
                while len(contexts) > _MAX_IDS:
                    del contexts[next(iter(contexts))]

    def _writer(
        self,
        tgid: int,
        tid: int,
        rows: Records,
        off: Records,
        ids: np.ndarray,
        after_ns: int,
        until_ns: int,
    ) -> bool:
        """Take a writer's calls (n,) and its spans off the CPU (m,); whether it wrote a completion."""
        stop = end_ns(rows)
        lo, hi = np.searchsorted(stop, np.array((after_ns, until_ns), dtype=np.uint64), side="right")
        rw = view(rows[lo:hi], RW)
        wrote = (rw["kind"] == _WRITE) & _among(rw["eventfd_id"], ids) & (rw["ret"] > 0)
        at = np.flatnonzero(wrote) + lo
        if not len(at):
            return False
        seen = self.of.setdefault(tgid, Seen())
        first = max(0, int(at[0]) - _AROUND - 1)
        rows, at = rows[first : int(at[-1]) + _AROUND + 2], at - first
        rw, fdop, futex = view(rows, RW), view(rows, FD), view(rows, FUTEX)
        stop, kind = end_ns(rows), rows["kind"]
        fd = rw["fd"][at]
        is_dup = (kind == _FD) & ~_among(fdop["op"], _NOT_DUP) & (fdop["ret"] >= 0)
        is_close = (kind == _FD) & closes(fdop["op"])
        is_wake = (kind == _FUTEX) & ((futex["op"] & 0x7F) == _WAKE)
        enter = rows["enter_ns"]
        begin, finish = enter[at].copy(), stop[at].copy()
        dupped = np.zeros(len(at), dtype=bool)
        alive = np.ones(len(at), dtype=bool)  # nothing but wakes between
        for k in range(1, _AROUND + 1):
            before = at - k
            ok = alive & (before >= 0)
            before = np.maximum(before, 0)
            ok &= enter[before] + np.uint64(_LATER_NS) >= enter[at]
            hit = ok & is_dup[before] & (fdop["ret"][before] == fd)
            begin[hit] = enter[before[hit]]
            dupped |= hit
            alive = ok & is_wake[before]
        alive = np.ones(len(at), dtype=bool)
        for k in range(1, _AROUND + 1):
            after = at + k
            ok = alive & (after < len(rows))
            after = np.minimum(after, len(rows) - 1)
            ok &= stop[after] <= stop[at] + np.uint64(_LATER_NS)
            hit = ok & dupped & is_close[after] & (fdop["fd"][after] == fd)
            finish[hit] = stop[after[hit]]
            alive = ok & is_wake[after]
        seen.writes += len(at)
        seen.dupped += int(dupped.sum())
        begin, finish = np.concatenate((begin, enter[at])), np.concatenate((finish, stop[at]))
        cost, alone = np.split(_on_cpu(off, begin, finish), 2)
        seen.cost.add(cost)
        seen.alone.add(alone)
        seen.extra.add(cost - alone)
        seen.words += int(np.bitwise_count(rw["readable_in"][at]).sum())
        self._wake_order(seen, at, is_wake, is_close, futex["word"], enter, stop)
        targets = seen.by_writer.setdefault(tid, {})
        keys = zip(
            rw["eventfd_id"][at].tolist(),
            rw["generation"][at].tolist(),
            rw["held_in"][at].tolist(),
            rw["readable_in"][at].tolist(),
            strict=True,
        )
        for key in keys:
            targets[key[0]] = targets.pop(key[0], 0) + 1
            if key[3]:
                seen.masks[key] = seen.masks.pop(key, 0) + 1
        while len(targets) > _MAX_IDS:
            del targets[next(iter(targets))]
        while len(seen.masks) > _MAX_IDS:
            del seen.masks[next(iter(seen.masks))]
        return True

    @staticmethod
    def _wake_order(
        seen: Seen,
        at: np.ndarray,
        is_wake: np.ndarray,
        is_close: np.ndarray,
        word: np.ndarray,
        enter: np.ndarray,
        stop: np.ndarray,
    ) -> None:
        """Count the writer's wakes before and after each write (a close may lie between).

        A wake between two calls belongs to the nearer one: an unlock follows what it guarded at once.
        """
        last = len(is_wake) - 1
        gap = np.append(enter[1:].astype(np.int64) - stop[:-1].astype(np.int64), _LATER_NS)
        for i in at.tolist():
            j = i - 1
            if j >= 0 and is_wake[j] and gap[j] < (gap[j - 1] if j else _LATER_NS):
                seen.wake_before[int(word[j])] = seen.wake_before.get(int(word[j]), 0) + 1
            j = i + 1
            if j <= last and is_close[j]:
                j += 1
            if j <= last and is_wake[j] and gap[j - 1] <= gap[j] and gap[j - 1] < _LATER_NS:
                seen.wake_after[int(word[j])] = seen.wake_after.get(int(word[j]), 0) + 1
        for table in (seen.wake_before, seen.wake_after):
            while len(table) > _MAX_IDS:
                del table[min(table, key=table.__getitem__)]


def _among(values: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Which of values (n,) are among a handful, as a mask (n,)."""
    if not len(few):
        return np.zeros(len(values), dtype=bool)
    few = np.sort(few)
    found: np.ndarray = few[np.minimum(np.searchsorted(few, values), len(few) - 1)] == values
    return found


def _on_cpu(off: Records, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How much of each stretch [begin, end] (n,) a thread was not off the CPU, ns.

    The audio server is woken by the write and often takes the writer's CPU before its close: time
    that a write alone does not have in its span, and that is not the cost of the dup.
    """
    length = end.astype(np.int64) - begin.astype(np.int64)
    # Those that ended before shift both ends alike.
    off = off[np.searchsorted(end_ns(off), begin.min()) :]
    if not len(off):
        return length
    order = np.argsort(off["enter_ns"], kind="stable")
    start, dur = off["enter_ns"][order].astype(np.int64), off["dur_ns"][order].astype(np.int64)
    before = np.concatenate(([0], np.cumsum(dur)))

    def gone(at: np.ndarray) -> np.ndarray:
        i = np.searchsorted(start, at, side="right")
        inside = np.minimum(at - start[np.maximum(i - 1, 0)], dur[np.maximum(i - 1, 0)])
        passed: np.ndarray = before[np.maximum(i - 1, 0)] + np.where(i > 0, inside, 0)
        return passed

    away = gone(end.astype(np.int64)) - gone(begin.astype(np.int64))
    left: np.ndarray = np.maximum(0, length - away)
    return left
