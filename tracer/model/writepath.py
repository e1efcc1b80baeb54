# SPDX-License-Identifier: Apache-2.0
"""Which of the four write paths a VMM runs, told from what its threads do.

Owns the completion writes and what surrounds them: a fresh dup before, a close after, the
writer's wakes of locks just before and just after, and the words held at its entry. Decides
by behaviour, so a stripped binary is told as well. Only where behaviour leaves it open (nobody
ever waited for item_state) does the version of the device's crate decide, if it is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tracer.model.held import MIN_SAMPLES, Held
from tracer.model.histogram import LogHistogram
from tracer.model.locks import Locks
from tracer.model.probecost import correction_ns
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summary import CostStats, WritePath
from tracer.model.words import join
from tracer.schema import FD, FUTEX, RECORD, RW, Flag, Kind, Records, end_ns, view

Told = tuple[str, str, str]  # kind, evidence, why

_AROUND = 3  # calls before and after a write that are looked at
_LATER_NS = 50_000_000  # a write is judged this much later, when its close is known
_NOT_DUP = np.array((3, 19, 57, 284, 290))  # close, eventfd, eventfd2 on x86-64 and arm64
_CLOSE = np.array((3, 57))
_WAKE = 1
_MAX_IDS = 256
_SURE = 0.9  # of all completion writes
_RARE = 0.05
# Of what surely is item_state: held at 100 % of locked's writes, at 0.2 % of the others' (measured).
_FEW = 8


class ItemStates(Protocol):
    """What names.py knows of item_state."""

    def item_states(self, tgid: int, /) -> set[int]:
        """Words of a process that surely are item_state."""

    def lock(self, tgid: int, word: int, /) -> tuple[str, str, str, str]:
        """(name, instance, named_by, evidence) of a lock word."""


@dataclass(slots=True)
class _Seen:
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


class WritePaths:
    """The write path of each VMM.

    Args:
        registry, held, locks: of the same analysis, stepped before this.
        names: which words are item_state; None: all that W and G alone use.
        known: the write path of a crate and version of the device, "" where that is not known.
    """

    def __init__(
        self,
        registry: Registry,
        held: Held,
        locks: Locks,
        names: ItemStates | None = None,
        known: Callable[[str, str], str] | None = None,
    ) -> None:
        self.registry = registry
        self.held = held
        self.locks = locks
        self.names = names
        self.known = known
        self._seen: dict[int, _Seen] = {}
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
            rw = step.of(Kind.WRITE)
            writers.update(rw["tid"][_among(rw["eventfd_id"], ids)].tolist())
        for tid in sorted(writers):
            tgid = self.registry.tgid(tid)
            if not self.registry.is_vmm(tgid) or self.registry.role(tid) == "vcpu":
                continue
            parts = [rows for step in self._recent if len(rows := step.threads.of(tid))]
            rows = join(parts, RECORD)
            ended = (rows["kind"] == Kind.OFFCPU) & (rows["flags"] & Flag.OPEN == 0)
            off = rows.take(np.flatnonzero(ended))
            rows = rows.take(np.flatnonzero(rows["kind"] <= int(Kind.SYSCALL)))
            if self._writer(tgid, tid, rows, off, ids, after_ns, until_ns):
                contexts = self._seen[tgid].contexts
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
        rw, fdop, futex, stop = view(rows, RW), view(rows, FD), view(rows, FUTEX), end_ns(rows)
        kind = rows["kind"]
        wrote = (kind == Kind.WRITE) & _among(rw["eventfd_id"], ids) & (rw["ret"] > 0)
        at = np.flatnonzero(wrote & (stop > after_ns) & (stop <= until_ns))
        if not len(at):
            return False
        seen = self._seen.setdefault(tgid, _Seen())
        fd = rw["fd"][at]
        is_dup = (kind == Kind.FD) & ~_among(fdop["op"], _NOT_DUP) & (fdop["ret"] >= 0)
        is_close = (kind == Kind.FD) & _among(fdop["op"], _CLOSE)
        is_wake = (kind == Kind.FUTEX) & ((futex["op"] & 0x7F) == _WAKE)
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
        cost, alone = _on_cpu(off, begin, finish), _on_cpu(off, enter[at], stop[at])
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
        seen: _Seen,
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

    # ---- the answer

    def rows(self, host: Mapping[str, str | int | float]) -> dict[str, WritePath]:
        """One WritePath per VMM, by str(tgid); also for a VMM whose completions were never seen.

        Args:
            host: facts of the run, with what its session calibrated.
        """
        out: dict[str, WritePath] = {}
        for tgid, target in sorted(self.registry.targets.items()):
            if target.role != "vmm":
                continue
            seen = self._seen.get(tgid)
            if seen is None or not seen.writes:
                kind, evidence, why = "unknown", "", "no write to a completion eventfd was seen"
                seen = _Seen()
            else:
                kind, evidence, why = self._judge(tgid, seen)
            if kind == "unknown" and self.known is not None:
                by_version = self.known(target.crate, target.version)
                seen_otherwise = seen.writes and (by_version == "dup" or seen.dupped > _RARE * seen.writes)
                if by_version and not seen_otherwise:
                    kind, evidence = by_version, "symbols"
                    why = f"{target.crate} {target.version} is known to be so; by behaviour {why}"
            cost = CostStats(seen.cost.quantile(0.5), seen.cost.quantile(0.99))
            alone = CostStats(seen.alone.quantile(0.5), seen.alone.quantile(0.99))
            correction = corrected = None
            if seen.writes and cost.p50 is not None:
                correction = correction_ns(host, seen.dupped / seen.writes, seen.words / seen.writes)
                corrected = None if correction is None else max(0, cost.p50 - correction)
            out[str(tgid)] = WritePath(
                kind,
                evidence,
                target.crate,
                target.version,
                cost,
                seen.writes,
                why,
                alone,
                correction,
                corrected,
                CostStats(seen.extra.quantile(0.5), seen.extra.quantile(0.99)),
            )
        return out

    def _judge(self, tgid: int, seen: _Seen) -> Told:
        """(kind, evidence, why)."""
        n = seen.writes
        if seen.dupped >= _SURE * n:
            return "dup", "dup_calls", f"{seen.dupped} of {n} completion writes went to a fresh dup"
        if seen.dupped > _RARE * n:
            return "unknown", "", f"only {seen.dupped} of {n} completion writes went to a fresh dup"
        tasks = self._tasks(tgid, seen)
        if tasks:
            return "task", "wake_order", f"{tasks} threads besides the command thread write one target each"
        core = set(self.locks.core_words(tgid))
        sure = core if self.names is None else self.names.item_states(tgid)
        likely = sure | {w for w in core if self.names is None or self.names.lock(tgid, w)[2] == "none"}
        return (
            self._by_held(tgid, seen, sure, likely)
            or self._by_wakes(seen, sure, likely)
            or self._open(tgid, seen, sure, likely)
        )

    def _tasks(self, tgid: int, seen: _Seen) -> int:
        """Number of forwarding threads if those, and not G, write the completions; else 0."""
        commanders = set(self.registry.with_role("G", tgid))
        writers = {tid: ids for tid, ids in seen.by_writer.items() if ids}
        others = {tid: ids for tid, ids in writers.items() if tid not in commanders}
        by_others = sum(sum(ids.values()) for ids in others.values())
        by_all = sum(sum(ids.values()) for ids in writers.values())
        if not commanders or not others or by_others < _SURE * by_all:
            return 0
        if any(self.registry.role(tid) == "W" for tid in others):
            return 0
        return len(others) if all(len(ids) == 1 for ids in others.values()) else 0

    def _by_held(self, tgid: int, seen: _Seen, sure: set[int], likely: set[int]) -> Told | None:
        """From the words held at the write.

        One word held at (nearly) all writes to a target says ``locked``. That none was held says
        ``refcount`` only of words that surely are item_state of the very contexts of that target:
        the item_state of another context, or another lock, is free at these writes in any case.
        """
        held, asked = self._held_at_writes(tgid, seen, likely)
        enough = [key for key, n in asked.items() if n >= (_FEW if key[1] in sure else MIN_SAMPLES)]
        under = [key for key in enough if held[key] >= _SURE * asked[key]]
        if under:
            name = "item_state" if any(word in sure for _, word in under) else "a lock of W and G alone"
            h, n = sum(held[key] for key in under), sum(asked[key] for key in under)
            return "locked", "held_words", f"{name} was held at {h} of {n} completion writes"
        free: list[tuple[int, int]] = []
        for target in {target for target, _ in enough}:
            words = self._words_of_contexts(tgid, seen.contexts.get(target, ()), sure)
            if words and all((target, word) in enough for word in words):
                free += [(target, word) for word in words]
        if free and all(held[key] <= _RARE * asked[key] for key in free):
            h, n = sum(held[key] for key in free), sum(asked[key] for key in free)
            return "refcount", "held_words", f"item_state was held at {h} of {n} completion writes"
        return None

    def _held_at_writes(
        self, tgid: int, seen: _Seen, words: set[int]
    ) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
        """By (target, word): at how many writes it was held, and at how many it could be read."""
        held: dict[tuple[int, int], int] = {}
        asked: dict[tuple[int, int], int] = {}
        for (target, generation, mask, readable), count in seen.masks.items():
            for bit, word in enumerate(self.held.words_of(tgid, generation)):
                if readable >> bit & 1 and word in words:
                    key = target, word
                    asked[key] = asked.get(key, 0) + count
                    held[key] = held.get(key, 0) + (count if mask >> bit & 1 else 0)
        return held, asked

    def _words_of_contexts(self, tgid: int, contexts: tuple[int, ...], sure: set[int]) -> set[int]:
        """The item_state of each of these contexts; empty if that of one of them is not known."""
        found: set[int] = set()
        for context in contexts:
            users = {
                word
                for word in sure
                if (known := self.locks.words.get((tgid, word))) is not None and context in known.participants
            }
            if not users:
                return set()
            found |= users
        return found

    def _by_wakes(self, seen: _Seen, sure: set[int], likely: set[int]) -> Told | None:
        """From the order of write and wake where the unlock had somebody to wake."""
        for words, kind in ((likely, "locked"), (sure, "refcount")):
            before = sum(seen.wake_before.get(word, 0) for word in words)
            after = sum(seen.wake_after.get(word, 0) for word in words)
            more, less = (after, before) if kind == "locked" else (before, after)
            if more >= 3 and more >= 5 * less:
                name = "item_state" if words <= sure else "a lock of W and G alone"
                said = f"the writer woke waiters of {name} {after} times after its write, {before} before"
                return kind, "wake_order", said
        return None

    def _open(self, tgid: int, seen: _Seen, sure: set[int], likely: set[int]) -> Told:
        """Why it cannot be told: each time, what was not there to see."""
        own = {w for ids in seen.contexts.values() for w in self._words_of_contexts(tgid, ids, sure)}
        held, asked = self._held_at_writes(tgid, seen, own or likely)
        most = max(asked.values(), default=0)
        if not likely:
            why = "no lock that W and G share was ever contended"
        elif sure and not own:
            why = "nobody waited for the item_state of the stream's own context"
        elif most < (_FEW if own else MIN_SAMPLES):
            name = "item_state" if own else "a lock without a name"
            why = f"only {most} of {seen.writes} completion writes came after the first wait for {name}"
        else:
            name = "item_state" if own else "a lock without a name"
            why = f"{name} was held at {sum(held.values())} of {sum(asked.values())} completion writes"
        return "unknown", "", f"locked or refcount: {why}"


def _on_cpu(off: Records, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How much of each stretch [begin, end] (n,) a thread was not off the CPU, ns.

    The audio server is woken by the write and often takes the writer's CPU before its close: time
    that a write alone does not have in its span, and that is not the cost of the dup.
    """
    length = end.astype(np.int64) - begin.astype(np.int64)
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


def _among(values: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Which of values (n,) are among a handful, as a mask (n,)."""
    if not len(few):
        return np.zeros(len(values), dtype=bool)
    few = np.sort(few)
    found: np.ndarray = few[np.minimum(np.searchsorted(few, values), len(few) - 1)] == values
    return found
