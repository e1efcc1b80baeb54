# SPDX-License-Identifier: Apache-2.0
"""Futex waits that are no lock: parked threads, semaphores, condition variables.

Owns their counts and what each is called, by operation and expected value alone. A Go program, whose
goroutines wait for a sync.Mutex in user space, and a Python program, whose locks are semaphores, show
nothing else; they are listed as what they are. In a VMM whose worker is known they are
its idling and are not counted: what matters of them is on the path of a period (path.py). A
wait that is a lock's is locks.py's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.acquire import OTHER_WAIT, WAKE, classify
from tracer.model.histogram import LogHistogram
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summaryrows import HoldStats, LockRow, WaitStats
from tracer.model.words import bump
from tracer.schema import FUTEX_CMD_MASK, FUTEX_PRIVATE, FUTEX_WAIT, Kind, Records

_MAX_WORDS: Final = 1024
_PARKED: Final = 0xFFFFFFFF  # Rust's std::thread::park: the word is -1 while the thread is parked

# What was seen of a word, the first that applies names it.
_SHARED, _CONDVAR, _SEMAPHORE, _PARK, _OTHER = 1, 2, 4, 8, 16
_NAMES: Final = (
    (_SHARED, "shared", "futex", "shared between processes, or a join: no lock of this process"),
    (_CONDVAR, "condvar", "condvar", "waits for a counter to change: a condition variable"),
    (
        _SEMAPHORE,
        "semaphore_or_condvar",
        "sem/cond",
        "waits while 0: glibc's semaphore or condition variable",
    ),
    (_PARK, "park", "park", "a thread parked until another wakes it: no lock"),
    (_OTHER, "other", "futex", "a futex wait that is no known lock's"),
)


@dataclass(slots=True)
class _Waited:
    """What is known of one word."""

    seen: int = 0
    last_ns: int = 0
    waits: LogHistogram = field(default_factory=LogHistogram)
    waiters: dict[int, int] = field(default_factory=dict)
    wakers: dict[int, int] = field(default_factory=dict)


class Waits:
    """Counts per futex word, for processes without a worker of the cross-domain device."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._words: dict[tuple[int, int], _Waited] = {}

    def step(self, step: Step) -> None:
        """Count one step's waits and wakes."""
        tgids = {tgid for tgid in self.registry.targets if self._counts_for(tgid)}
        futex = step.of(Kind.FUTEX)
        if not tgids or not len(futex):
            return
        owner = self.registry.tgids_of(futex["tid"])
        cls = classify(futex["op"], futex["expected"])
        at = np.flatnonzero(((cls == OTHER_WAIT) | (cls == WAKE)) & np.isin(owner, list(tgids)))
        if len(at):
            self._count(futex.take(at), owner[at], cls[at])
        if len(self._words) > _MAX_WORDS:
            newest = sorted(self._words, key=lambda key: self._words[key].last_ns)
            for key in newest[: len(newest) - _MAX_WORDS * 7 // 8]:
                del self._words[key]

    def _counts_for(self, tgid: int) -> bool:
        return self.registry.targets[tgid].role == "vmm" and not self.registry.with_role("W", tgid)

    def _count(self, futex: Records, owner: NDArray[np.uint32], cls: NDArray[np.uint8]) -> None:
        order = np.lexsort((futex["word"], owner))
        futex, owner, cls = futex.take(order), owner[order], cls[order]
        cut = (futex["word"][1:] != futex["word"][:-1]) | (owner[1:] != owner[:-1])
        starts = np.concatenate(([0], np.flatnonzero(cut) + 1, [len(futex)])).tolist()
        seen = np.where(cls == OTHER_WAIT, _what(futex), 0)
        for lo, hi in pairwise(starts):
            key = int(owner[lo]), int(futex["word"][lo])
            bits = int(np.bitwise_or.reduce(seen[lo:hi]))
            known = self._words.get(key)
            if known is None:
                if not bits:  # a wake alone makes no word known: it may be a lock's
                    continue
                known = self._words[key] = _Waited()
            waits = cls[lo:hi] == OTHER_WAIT
            known.seen |= bits
            known.last_ns = int((futex["enter_ns"][lo:hi] + futex["dur_ns"][lo:hi]).max())
            known.waits.add(futex["dur_ns"][lo:hi][waits].astype(np.int64))
            for chosen, into in ((waits, known.waiters), (~waits, known.wakers)):
                who, times = np.unique(futex["tid"][lo:hi][chosen], return_counts=True)
                for tid, n in zip(who.tolist(), times.tolist(), strict=True):
                    bump(into, tid, n)

    def rows(self, locks: set[tuple[int, int]], limit: int) -> tuple[LockRow, ...]:
        """Rows by time waited, but for words (tgid, address) that are listed as locks."""
        found = [
            (key, word) for key, word in self._words.items() if key not in locks and self._counts_for(key[0])
        ]
        found.sort(key=lambda item: (-item[1].waits.total, item[0]))
        return tuple(self._row(*key, word) for key, word in found[:limit])

    def _row(self, tgid: int, address: int, word: _Waited) -> LockRow:
        kind, name, why = next(row for bit, *row in _NAMES if word.seen & bit)
        waits = word.waits
        return LockRow(
            name=f"{name}@{address:#x}",
            instance="",
            address=address,
            tgid=tgid,
            named_by="none",
            contended=waits.n,
            barged=0,
            wait_ns=WaitStats(waits.quantile(0.5) or 0, waits.quantile(0.99) or 0, waits.max, waits.total),
            hold_ns=HoldStats(0, "none", None, None),
            misses_caused=0,
            kind=kind,
            evidence=why,
            top_waiter=self._top(word.waiters),
            top_holder=self._top(word.wakers),
        )

    def _top(self, counts: dict[int, int]) -> str:
        return self.registry.comm(min(counts, key=lambda tid: (-counts[tid], tid))) if counts else ""


def _what(futex: Records) -> NDArray[np.uint8]:
    """What kind of wait each FUTEX record (n,) is, as one bit."""
    op, expected = futex["op"], futex["expected"]
    plain = (op & FUTEX_CMD_MASK) == FUTEX_WAIT
    kinds: NDArray[np.uint8] = np.select(
        [
            (op & FUTEX_PRIVATE) == 0,
            expected == _PARKED,
            plain & (expected == 0),
            plain,
            expected == 0,
        ],
        [_SHARED, _PARK, _PARK, _OTHER, _SEMAPHORE],
        _CONDVAR,
    ).astype(np.uint8)
    return kinds
