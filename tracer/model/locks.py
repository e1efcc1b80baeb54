# SPDX-License-Identifier: Apache-2.0
"""Lock words: what each is, who waited how long for whom, and what the holder did.

Owns the order in which records tell of words, and the questions about them. Words are filled in by
learning.py, blame is holders.py's, tables are lockrows.py's; this is the face of all. Verdicts store
(tgid, word); names come at summary time. Memory is bounded: per word counters and histograms of
fixed size for ever (at most learning.MAX_WORDS words, the longest unused go first).

No owner is stored in a std mutex: the thread that wakes a word was its last holder. That is
an inference, and everything called holder here is inferred (docs/how-it-works.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from tracer.model import learning
from tracer.model.acquire import (
    LOCK_WAIT,
    WAKE,
    Acquirer,
    classify,
)
from tracer.model.blame import Cell
from tracer.model.holders import Holders
from tracer.model.lockrows import LockRows, Namer
from tracer.model.operations import Sites
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summaryrows import BlameRow, HolderRow, LockRow
from tracer.model.tap import Tap
from tracer.model.uses import Uses
from tracer.model.words import (
    WAKES,
    Acquisition,
    Piece,
    Word,
    copy_word,
)
from tracer.schema import Kind, Life, Records


class Locks:
    """Everything about lock words of all targets.

    Args:
        registry: whose threads, roles, fds are looked up; written by its owner before each step.
        namer: names of locks and operations (names.py); None: addresses only.
        tap: is given acquisitions and waits before they are forgotten.
        is_target: whether an eventfd-id is known to be a stream's completion.
    """

    def __init__(
        self,
        registry: Registry,
        namer: Namer | None = None,
        tap: Tap | None = None,
        is_target: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.registry = registry
        self.words: dict[tuple[int, int], Word] = {}
        self.evicted = 0
        self.now_ns = 0
        self._tap = tap
        self.uses, self.sites = Uses(registry, is_target), Sites()
        self.holders = Holders(registry, self.words, self.uses, self.sites, self._tap)
        self._rows = LockRows(registry, namer)
        self._acquirer = Acquirer()
        self._open: dict[int, Records] = {}
        self._own_kinds: dict[int, str] = {}
        self._own_at = -1

    # ---- feeding

    def step(self, step: Step) -> None:
        """Take one step of record time."""
        self.now_ns = max(self.now_ns, step.end_ns)
        self.holders.recent.step(step, self.now_ns)
        self.uses.step(step)
        opened = step.opened(Kind.FUTEX)
        for i, tid in enumerate(opened["tid"].tolist()):
            self._open[tid] = opened[i : i + 1]
        futex = step.of(Kind.FUTEX)
        if len(futex):
            self._feed(futex)
        for row in step.of(Kind.LIFE):
            if row["op"] == Life.EXIT:
                self._open.pop(int(row["tid"]), None)
                self._close(self._acquirer.forget(int(row["tid"])))
        self.holders.settle(self.now_ns)
        if len(self.words) > learning.MAX_WORDS:
            gone = learning.evict(self.words)
            self.holders.cells.forget(gone)
            self.evicted += len(gone)

    def _feed(self, futex: Records) -> None:
        cls = classify(futex["op"], futex["expected"])
        tgids = self.registry.tgids_of(futex["tid"])
        if self._open:
            for tid in np.unique(futex["tid"]).tolist():  # any later call of the thread supersedes it
                self._open.pop(tid, None)
        learning.learn(self.words, futex, cls, tgids)
        is_wake = np.flatnonzero(cls == WAKE)
        woke = futex.take(is_wake)
        wakes = np.empty(len(woke), dtype=WAKES)
        wakes["tgid"], wakes["tid"], wakes["word"] = tgids[is_wake], woke["tid"], woke["word"]
        wakes["enter_ns"], wakes["end_ns"] = woke["enter_ns"], woke["enter_ns"] + woke["dur_ns"]
        self.holders.wakes.add(wakes)
        self._close(self._acquirer.step(futex, cls, tgids, self.holders.recent.calls_between))

    def _close(self, acq: Records) -> None:
        if len(acq):
            self._guard_relocks(acq)
            learning.count(self.words, acq)
            self.holders.add(acq)
            if self._tap is not None:
                self._tap.acquisitions(acq)

    def finish(self) -> None:
        """No records will follow: offer the tap what is not settled yet, or may still go on."""
        if self._tap is None:
            return
        pending = self._acquirer.pending()
        self._guard_relocks(pending)
        self._tap.acquisitions(pending)
        self.holders.offer_rest(self._acquirer.pending())

    def _guard_relocks(self, acq: Records) -> None:
        """A re-lock follows its condvar wait with no syscall between: else it is another lock's wait."""
        maybe = np.flatnonzero(acq["cond"] != 0)
        for tid in np.unique(acq["tid"][maybe]).tolist():
            at = maybe[acq["tid"][maybe] == tid]
            between = self.holders.recent.calls_between(tid, acq["cond_end_ns"][at], acq["start_ns"][at])
            acq["cond"][at[between]] = 0
            acq["cond_caller"][at[between]] = 0

    # ---- queries

    def note_miss(self, tgid: int, word: int, holder_tid: int = 0, waiter_tid: int = 0, n: int = 1) -> None:
        """Count misses caused by a lock, and in the blame cell of that holder and waiter."""
        if (tgid, word) in self.words:
            self.words[tgid, word].misses += n
        self.holders.note_miss(tgid, word, holder_tid, waiter_tid, n)

    def kind(self, tgid: int, word: int) -> str:
        """``mutex``, ``pthread``, ``condvar``, ``shared`` or ``other`` (also where never seen)."""
        known = self.words.get((tgid, word))
        return known.kind if known is not None else "other"

    def is_mutex(self, tgid: int, word: int) -> bool:
        """Whether a word is a std mutex by all that was seen so far."""
        return self.kind(tgid, word) == "mutex"

    def is_lock(self, tgid: int, word: int) -> bool:
        """Whether a word is a lock of any kind: of std, or of glibc."""
        return self.kind(tgid, word) in ("mutex", "pthread")

    def wakes(self, tgid: int, word: int, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """(end_ns, tid) of the wakes on a word that began in [start, end), in order of their begin.

        A wake counts from its begin: the word was released before it, and the woken thread may run
        before the wake returns (the waker may even be preempted in it).
        """
        rows = self.holders.wakes.where("enter_ns", tgid=tgid, word=word)
        lo = np.searchsorted(rows["enter_ns"], np.uint64(max(0, start_ns)), side="left")
        hi = np.searchsorted(rows["enter_ns"], np.uint64(max(0, end_ns)), side="left")
        return list(zip(rows["end_ns"][lo:hi].tolist(), rows["tid"][lo:hi].tolist(), strict=True))

    def holder_pieces(self, tgid: int, word: int, waiter_tid: int, start_ns: int, end_ns: int) -> list[Piece]:
        """Cut [start, end] of a wait at every wake on its word; the pieces partition it exactly.

        Each piece's holder is the thread that wakes at its end; what follows the last wake's return
        has no known holder (0).
        """
        pieces: list[Piece] = []
        at = start_ns
        for wake_end, tid in self.wakes(tgid, word, start_ns, end_ns):
            stop = min(wake_end, end_ns)
            if tid != waiter_tid and stop > at:
                pieces.append(Piece(at, stop, tid))
                at = stop
        if at < end_ns or not pieces:
            pieces.append(Piece(at, end_ns, 0))
        return pieces

    def waits_of(self, tid: int, start_ns: int, end_ns: int) -> list[Acquisition]:
        """A thread's acquisitions (also pending and open ones) that overlap [start, end], in order."""
        rows = self.holders.acquisitions.where("start_ns", tid=tid)
        hit = rows[(rows["start_ns"] < end_ns) & (rows["end_ns"] > start_ns)]
        found = [_acquisition(row, open_=False) for row in hit]
        for row in self._acquirer.pending_of(tid):
            found.append(_acquisition(row, open_=True))
        found.extend(self._open_wait(tid, found[-1] if found and found[-1].open else None))
        if len(found) > 1 and found[-2].open:
            del found[-2]
        return [
            a for a in found if a.start_ns < end_ns and a.end_ns > start_ns and self.is_lock(a.tgid, a.word)
        ]

    def _open_wait(self, tid: int, pending: Acquisition | None) -> Iterable[Acquisition]:
        """The acquisition of a wait that has not ended, joined with its pending earlier waits."""
        row = self._open.get(tid)
        if row is None or classify(row["op"], row["expected"])[0] != LOCK_WAIT:
            return
        word, start = int(row["word"][0]), int(row["enter_ns"][0])
        stop, tgid = start + int(row["dur_ns"][0]), self.registry.tgid(tid)
        if pending is not None and pending.word == word:
            yield Acquisition(
                pending.tgid, word, tid, pending.start_ns, stop, pending.waits + 1, pending.barged + 1,
                pending.caller, pending.cond, True,
            )  # fmt: skip
            return
        if pending is not None:
            yield pending
        yield Acquisition(tgid, word, tid, start, stop, 1, 0, 0, 0, True)

    def own_kind(self, tgid: int) -> str:
        """The kind of a program's own locks: glibc's (``pthread``) only where no std mutex was ever seen.

        Where it did, a glibc lock is malloc's, or some library's.
        """
        if self._own_at != self.now_ns:
            self._own_kinds.clear()
            self._own_at = self.now_ns
        kind = self._own_kinds.get(tgid)
        if kind is None:
            std = any(w.tgid == tgid and w.kind == "mutex" for w in self.words.values())
            kind = self._own_kinds[tgid] = "mutex" if std else "pthread"
        return kind

    def is_own(self, word: Word) -> bool:
        """Whether a word is one of its program's own mutexes."""
        return word.kind == self.own_kind(word.tgid)

    # ---- summary

    def rows(self, limit: int = 50, *, bins: bool = False) -> tuple[LockRow, ...]:
        """The locks, ranked by misses caused, then by time waited; ``bins``: with ``wait_bins``."""
        return self._rows.locks(self.with_pending().values(), limit, bins=bins)

    def blame(self, limit: int = 50, *, settled: bool = False) -> tuple[BlameRow, ...]:
        """Blame cells with names, those of equal names together; ranked by misses, then total wait.

        Args:
            settled: without the waits of the last second.
        """
        return self._rows.blame(self._cells(settled=settled), limit)

    def by_holder(self, limit: int = 50) -> tuple[HolderRow, ...]:
        """Blame by lock and holder's operation alone."""
        return self._rows.holders(self._cells(), limit)

    def _cells(self, *, settled: bool = False) -> list[Cell]:
        holders = self.holders
        cells = holders.cells if settled else holders.cells_now(self._acquirer.pending())
        return [c for c in cells.cells.values() if self.is_lock(c.tgid, c.word)]

    def label(self, tgid: int, word: int) -> str:
        """A lock's name with its instance, as tables show it."""
        return self._rows.label(tgid, word)

    def operation(self, tgid: int, word: int, caller: int, tid: int, sign: int = 0) -> str:
        """What a thread did with a lock, its name where that is not known; ``sign`` as ``Sites.number``."""
        return self._rows.operation(tgid, word, caller, tid, self.sites.sign(sign))[0]

    @property
    def namer(self) -> Namer | None:
        """Who names locks and operations; None: addresses only."""
        return self._rows.namer

    @namer.setter
    def namer(self, namer: Namer) -> None:
        self._rows.namer = namer

    def with_pending(self) -> dict[tuple[int, int], Word]:
        """Words including acquisitions that may still go on."""
        pending = self._acquirer.pending()
        if not len(pending):
            return self.words
        words = dict(self.words)
        self._guard_relocks(pending)
        for key in {(int(r["tgid"]), int(r["word"])) for r in pending} & set(words):
            words[key] = copy_word(words[key])
        learning.count(words, pending)
        return words


def _acquisition(row: np.void, *, open_: bool) -> Acquisition:
    return Acquisition(
        int(row["tgid"]),
        int(row["word"]),
        int(row["tid"]),
        int(row["start_ns"]),
        int(row["end_ns"]),
        int(row["waits"]),
        int(row["barged"]),
        int(row["caller"]),
        int(row["cond"]),
        open_,
        int(row["hold_ns"]),
    )
