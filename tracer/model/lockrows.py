# SPDX-License-Identifier: Apache-2.0
"""The Locks and Blame tables: words and blame cells with the names they have now.

Owns ranking, merging and naming of rows; counts nothing and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from tracer.model.blame import Cell
from tracer.model.registry import Registry
from tracer.model.summaryrows import BlameRow, HolderRow, HoldStats, LockRow, WaitBin, WaitStats
from tracer.model.words import Word


class Namer(Protocol):
    """What names.py offers: names asked for at summary time only."""

    def lock(self, tgid: int, word: int) -> tuple[str, str, str, str]:
        """(name, instance, named_by, evidence) of a lock word."""

    def operation(self, tgid: int, word: int, caller: int, tid: int, sign: str) -> tuple[str, str]:
        """What a thread did with a lock ("" unknown), and by whom it is named."""


@dataclass(slots=True)
class _Sums:
    """Figures of cells that are one row, and who named its operations."""

    total_ns: int = 0
    max_ns: int = 0
    misses: int = 0
    waits: int = 0
    named: set[tuple[str, str]] = field(default_factory=set)

    def add(self, cell: Cell, holder_by: str, victim_by: str = "none") -> None:
        self.total_ns += cell.total_ns
        self.max_ns = max(self.max_ns, cell.max_ns)
        self.misses += cell.misses
        self.waits += cell.waits
        self.named |= {("holder", holder_by), ("victim", victim_by)}

    def figures(self) -> tuple[int, int, int, int]:
        return self.total_ns, self.max_ns, self.misses, self.waits

    def by(self, whose: str) -> str:
        """The weakest evidence among the cells."""
        return next(by for by in ("none", "behaviour", "symbols") if (whose, by) in self.named)


def _others(word: Word) -> dict[int, int]:
    """Wakes by thread without the top waiter's own, which wakes too when it lets go of what it waited for."""
    waiter = min(word.waiters, key=lambda tid: (-word.waiters[tid], tid), default=0)
    return {tid: n for tid, n in word.wakers.items() if tid != waiter}


class LockRows:
    """Rows for views.

    Args:
        registry: names of threads; namer: names of locks and operations, None: addresses only.
    """

    def __init__(self, registry: Registry, namer: Namer | None) -> None:
        self.registry = registry
        self.namer = namer

    def locks(self, words: Iterable[Word], limit: int, *, bins: bool = False) -> tuple[LockRow, ...]:
        """The locks, ranked by misses caused, then by time waited; ``bins``: with ``wait_bins``.

        Of locks whose waiters park on words of their own (parking.py) only those that a period was late for,
        without their waits: what else threads waited for on those words nobody can tell.
        """
        locks = [w for w in words if (w.contended if w.kind in ("mutex", "pthread") else w.misses)]
        locks.sort(key=lambda w: (-w.misses, -w.waits.total, w.tgid, w.word))
        return tuple(self._row(w, bins) for w in locks[:limit])

    def _row(self, word: Word, bins: bool) -> LockRow:
        name, instance, named_by, evidence = self._name(word.tgid, word.word)
        kind = word.kind if word.kind in ("mutex", "pthread") else "parked"
        if kind != "parked" and word.is_relock:
            kind = "condvar_relock"
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
            top_holder=self._top(_others(word)),
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

    def operation(self, tgid: int, word: int, caller: int, tid: int, sign: str) -> tuple[str, str]:
        """What a thread did with a lock, and who says so; where nobody does, the thread's name."""
        if self.namer is not None and tid:
            name, named_by = self.namer.operation(tgid, word, caller, tid, sign)
            if name:
                return name, named_by
        return (self.registry.comm(tid) if tid else "unknown"), "none"

    def blame(self, cells: Iterable[Cell], limit: int) -> tuple[BlameRow, ...]:
        """Blame cells with names, those of equal names together; ranked by misses, then total wait."""
        merged: dict[tuple[str, str, str, str], _Sums] = {}
        operation = cache(self.operation)  # cells share holders and waiters
        label = cache(self.label)
        for cell in cells:
            tgid, word = cell.tgid, cell.word
            holder, holder_by = operation(tgid, word, cell.holder_caller, cell.holder_tid, cell.holder_sign)
            victim, victim_by = operation(tgid, word, cell.waiter_caller, cell.waiter_tid, cell.waiter_sign)
            key = label(tgid, word), holder, cell.syscall, victim
            merged.setdefault(key, _Sums()).add(cell, holder_by, victim_by)
        rows = [
            BlameRow(*key, *sums.figures(), sums.by("holder"), sums.by("victim"))
            for key, sums in merged.items()
        ]
        rows.sort(key=lambda r: (-r.misses, -r.wait_ns_total, r.lock, r.holder_operation, r.victim_operation))
        return tuple(rows[:limit])

    def holders(self, cells: Iterable[Cell], limit: int) -> tuple[HolderRow, ...]:
        """Blame by lock and holder's operation; ranked like blame."""
        merged: dict[tuple[str, str], _Sums] = {}
        for cell in cells:
            operation, named_by = self.operation(
                cell.tgid, cell.word, cell.holder_caller, cell.holder_tid, cell.holder_sign
            )
            merged.setdefault((self.label(cell.tgid, cell.word), operation), _Sums()).add(cell, named_by)
        rows = [HolderRow(*key, *sums.figures(), sums.by("holder")) for key, sums in merged.items()]
        rows.sort(key=lambda r: (-r.misses, -r.wait_ns_total, r.lock, r.operation))
        return tuple(rows[:limit])
