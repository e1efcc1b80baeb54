# SPDX-License-Identifier: Apache-2.0
"""Which of the four write paths a VMM runs, told from what its threads do.

Owns the judgement, from what writes.py counts: by behaviour, so a stripped binary is told as well. Only where
behaviour leaves it open (nobody ever waited for item_state) does the version of the device's crate
decide, if it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from tracer.model.held import MIN_SAMPLES, Held
from tracer.model.locks import Locks
from tracer.model.ownlocks import core_words
from tracer.model.probecost import correction_ns
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summaryrows import CostStats, WritePath
from tracer.model.writes import Seen, Writes

Told = tuple[str, str, str]  # kind, evidence, why

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
        self._writes = Writes(registry)

    def step(self, step: Step, completions: Mapping[int, Collection[int]]) -> None:
        """Take one step; ``completions``: eventfd-id -> the contexts (tids of W) whose streams it ends."""
        self._writes.step(step, completions)

    # ---- the answer

    def rows(self, host: Mapping[str, str | int | float]) -> dict[str, WritePath]:
        """One WritePath per VMM, by str(tgid); also for a VMM whose completions were never seen.

        Args:
            host: facts of the run, with what its session calibrated.
        """
        out: dict[str, WritePath] = {}
        for tgid, target in sorted(self.registry.targets.items()):
            if target.role != "vmm" or tgid in self.registry.guests:
                continue
            seen = self._writes.of.get(tgid)
            if seen is None or not seen.writes:
                kind, evidence, why = "unknown", "", "no write to a completion eventfd was seen"
                seen = Seen()
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

    def _judge(self, tgid: int, seen: Seen) -> Told:
        """(kind, evidence, why)."""
        n = seen.writes
        if seen.dupped >= _SURE * n:
            return "dup", "dup_calls", f"{seen.dupped} of {n} completion writes went to a fresh dup"
        if seen.dupped > _RARE * n:
            return "unknown", "", f"only {seen.dupped} of {n} completion writes went to a fresh dup"
        tasks = self._tasks(tgid, seen)
        if tasks:
            return "task", "wake_order", f"{tasks} threads besides the command thread write one target each"
        core = set(core_words(self.locks, tgid))
        sure = core if self.names is None else self.names.item_states(tgid)
        likely = sure | {w for w in core if self.names is None or self.names.lock(tgid, w)[2] == "none"}
        return (
            self._by_held(tgid, seen, sure, likely)
            or self._by_wakes(seen, sure, likely)
            or self._open(tgid, seen, sure, likely)
        )

    def _tasks(self, tgid: int, seen: Seen) -> int:
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

    def _by_held(self, tgid: int, seen: Seen, sure: set[int], likely: set[int]) -> Told | None:
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
        self, tgid: int, seen: Seen, words: set[int]
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

    def _by_wakes(self, seen: Seen, sure: set[int], likely: set[int]) -> Told | None:
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

    def _open(self, tgid: int, seen: Seen, sure: set[int], likely: set[int]) -> Told:
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
