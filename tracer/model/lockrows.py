# SPDX-License-Identifier: Apache-2.0
"""The Locks and Blame tables: words and blame cells with the names they have now.

Owns ranking, merging and naming of rows; counts nothing and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tracer.model.blame import Cell
from tracer.model.registry import Registry
from tracer.model.summary import BlameRow, HolderRow, HoldStats, LockRow, WaitBin, WaitStats
from tracer.model.words import Word


class Namer(Protocol):
    """What names.py offers: names asked for at summary time only."""

    def lock(self, tgid: int, word: int) -> tuple[str, str, str, str]:
        """(name, instance, named_by, evidence) of a lock word."""

    def operation(self, tgid: int, caller: int, tid: int) -> str:
        """What a thread was doing at a call site, "" where unknown."""


class LockRows:
    """Rows for views.

    Args:
        registry: names of threads; namer: names of locks and operations, None: addresses only.
    """

    def __init__(self, registry: Registry, namer: Namer | None) -> None:
        self.registry = registry
        self.namer = namer

    def locks(self, words: Iterable[Word], limit: int, *, bins: bool = False) -> tuple[LockRow, ...]:
        """The locks, ranked by misses caused, then by time waited; ``bins``: with ``wait_bins``."""
        locks = [w for w in words if w.kind in ("mutex", "pthread") and w.contended]
        locks.sort(key=lambda w: (-w.misses, -w.waits.total, w.tgid, w.word))
        return tuple(self._row(w, bins) for w in locks[:limit])

    def _row(self, word: Word, bins: bool) -> LockRow:
        name, instance, named_by, evidence = self._name(word.tgid, word.word)
        kind = "condvar_relock" if word.kind == "mutex" and word.is_relock else word.kind
        return LockRow(
            name=name,
            instance=instance,
            address=word.word,
            tgid=word.tgid,
            named_by=named_by,
            contended=word.contended,
            barged=word.barged,
            wait_ns=WaitStats(
                word.waits.quantile(0.5) or 0,
                word.waits.quantile(0.99) or 0,
                word.waits.max,
                word.waits.total,
            ),
            hold_ns=HoldStats(
                word.holds.n,
                "wakes" if word.holds.n else "none",
                word.holds.quantile(0.5),
                word.holds.quantile(0.99),
            ),
            misses_caused=word.misses,
            kind=kind,
            evidence=evidence,
            top_waiter=self._top(word.waiters),
            top_holder=self._top(word.wakers),
            wait_bins=tuple(WaitBin(*row) for row in word.waits.bins()) if bins else (),
        )

    def _top(self, counts: dict[int, int]) -> str:
        if not counts:
            return ""
        return self.registry.comm(min(counts, key=lambda tid: (-counts[tid], tid)))

    def _name(self, tgid: int, word: int) -> tuple[str, str, str, str]:
        if self.namer is not None:
            return self.namer.lock(tgid, word)
        return f"lock@{word:#x}", "", "none", ""

    def label(self, tgid: int, word: int) -> str:
        """A lock's name with its instance, as tables show it."""
        name, instance, _, _ = self._name(tgid, word)
        return f"{name} [{instance}]" if instance else name

    def operation(self, tgid: int, caller: int, tid: int) -> str:
        """What a thread was doing at a call site, its name where that is not known."""
        named = self.namer.operation(tgid, caller, tid) if self.namer is not None and caller else ""
        return named or (self.registry.comm(tid) if tid else "unknown")

    def blame(self, cells: Iterable[Cell], limit: int) -> tuple[BlameRow, ...]:
        """Blame cells with names, those of equal names together; ranked by misses, then total wait."""
        merged: dict[tuple[str, str, str, str], list[int]] = {}
        for cell in cells:
            key = (
                self.label(cell.tgid, cell.word),
                self.operation(cell.tgid, cell.holder_caller, cell.holder_tid),
                cell.syscall,
                self.operation(cell.tgid, cell.waiter_caller, cell.waiter_tid),
            )
            sums = merged.setdefault(key, [0, 0, 0, 0])
            sums[0] += cell.total_ns
            sums[1] = max(sums[1], cell.max_ns)
            sums[2] += cell.misses
            sums[3] += cell.waits
        rows = [
            BlameRow(*key, total, longest, misses, waits)
            for key, (total, longest, misses, waits) in merged.items()
        ]
        rows.sort(key=lambda r: (-r.misses, -r.wait_ns_total, r.lock, r.holder_operation, r.victim_operation))
        return tuple(rows[:limit])

    def holders(self, cells: Iterable[Cell], limit: int) -> tuple[HolderRow, ...]:
        """Blame by lock and holder's operation; ranked like blame."""
        merged: dict[tuple[str, str], list[int]] = {}
        for cell in cells:
            operation = self.operation(cell.tgid, cell.holder_caller, cell.holder_tid)
            sums = merged.setdefault((self.label(cell.tgid, cell.word), operation), [0, 0, 0, 0])
            sums[0] += cell.total_ns
            sums[1] = max(sums[1], cell.max_ns)
            sums[2] += cell.misses
            sums[3] += cell.waits
        rows = [HolderRow(*key, *sums) for key, sums in merged.items()]
        rows.sort(key=lambda r: (-r.misses, -r.wait_ns_total, r.lock, r.operation))
        return tuple(rows[:limit])
