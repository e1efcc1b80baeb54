# SPDX-License-Identifier: Apache-2.0
"""Lock words: what each is, who waited how long for whom, and what the holder did.

Owns everything that futex records say: kinds of words, acquisitions with barging, inferred
holders, hold times, blame. Verdicts store (tgid, word); names come from names.py at summary
time. Memory is bounded: a few seconds of waits and wakes for queries, and per word counters
and histograms of fixed size for ever (at most MAX_WORDS words, the longest unused go first).

No owner is stored in a std mutex: the thread that wakes a word was its last holder. That is
an inference, and everything called holder here is inferred (domain.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from tracer.model.acquire import ACQ, CONTENDED, LOCK_WAIT, PTHREAD_WAIT, STD_WAIT, WAKE, Acquirer, classify
from tracer.model.blame import RECENT_NS, WINDOW_NS, Cells, Recent, label_key, syscall_label
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summary import BlameRow, HoldStats, LockRow, WaitStats
from tracer.model.words import (
    SEEN_PRIVATE_OTHER,
    SEEN_PTHREAD,
    SEEN_SHARED,
    SEEN_STD,
    SEEN_STD_OTHER,
    WAKES,
    Acquisition,
    Piece,
    Rows,
    Word,
    bump,
    copy_word,
    join,
)
from tracer.schema import FUTEX_PRIVATE, Kind, Life, Records

RETAIN_NS = 8_000_000_000
MAX_WORDS = 4096
SETTLE_NS = 20_000_000  # blame waits this long for the holder's wake to return
SETTLE_EVERY_NS = 1_000_000_000  # and is done for many at once (RECENT_NS leaves room for it)
AROUND_ENOUGH = 300  # acquisitions per word whose surroundings are looked at
STALE_NS = 60_000_000_000  # a lock unused for so long gives up its place among the watched words


class Namer(Protocol):
    """What names.py offers: names asked for at summary time only."""

    def lock(self, tgid: int, word: int) -> tuple[str, str, str, str]:
        """(name, instance, named_by, evidence) of a lock word."""

    def operation(self, tgid: int, caller: int, tid: int) -> str:
        """What a thread was doing at a call site, "" where unknown."""


class Locks:
    """Everything about lock words of all targets.

    Args:
        registry: whose threads, roles, fds are looked up; written by its owner before each step.
        namer: names of locks and operations (names.py); None: addresses only.
    """

    def __init__(self, registry: Registry, namer: Namer | None = None) -> None:
        self.registry = registry
        self.namer = namer
        self.words: dict[tuple[int, int], Word] = {}
        self.evicted = 0
        self.recent = Recent()
        self.cells = Cells()
        self.now_ns = 0
        self._acquirer = Acquirer()
        self._wakes = Rows(WAKES)
        self._acquisitions = Rows(ACQ)
        self._unsettled: list[Records] = []
        self._early_misses: dict[tuple[int, int, int, int], int] = {}
        self._settle_at = 0
        self._open: dict[int, Records] = {}

    # ---- feeding

    def step(self, step: Step) -> None:
        """Take one step of record time."""
        self.now_ns = max(self.now_ns, step.end_ns)
        self.recent.step(step, self.now_ns)
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
        self._settle()
        self._wakes.expire(self.now_ns - RETAIN_NS)
        self._acquisitions.expire(self.now_ns - RETAIN_NS)
        if len(self.words) > MAX_WORDS:
            self._evict()

    def _feed(self, futex: Records) -> None:
        op, expected = futex["op"], futex["expected"]
        cls = classify(op, expected)
        tgids = self.registry.tgids_of(futex["tid"])
        if self._open:
            for tid in np.unique(futex["tid"]).tolist():  # any later call of the thread supersedes it
                self._open.pop(tid, None)
        self._learn_words(futex, cls, tgids)
        woke = futex[cls == WAKE]
        wakes = np.empty(len(woke), dtype=WAKES)
        wakes["tgid"], wakes["tid"], wakes["word"] = tgids[cls == WAKE], woke["tid"], woke["word"]
        wakes["enter_ns"], wakes["end_ns"] = woke["enter_ns"], woke["enter_ns"] + woke["dur_ns"]
        self._wakes.add(wakes)
        self._close(self._acquirer.step(futex, cls, tgids))

    def _learn_words(self, futex: Records, cls: np.ndarray, tgids: np.ndarray) -> None:
        op, two = futex["op"], futex["expected"] == CONTENDED
        std, pthread = op == STD_WAIT, op == PTHREAD_WAIT
        private = (op & FUTEX_PRIVATE) != 0
        bits = np.select(
            [cls == WAKE, cls == 0, ~private, std & two, std, pthread & two],
            [0, 0, SEEN_SHARED, SEEN_STD, SEEN_STD_OTHER, SEEN_PTHREAD],
            SEEN_PRIVATE_OTHER,
        ).astype(np.uint8)
        order = np.lexsort((futex["tid"], cls == WAKE, futex["word"], tgids))
        word, tgid, tid = futex["word"][order], tgids[order], futex["tid"][order]
        wake = (cls == WAKE)[order]
        end = (futex["enter_ns"] + futex["dur_ns"])[order]
        n = len(order)
        new_word = np.ones(n, dtype=bool)
        new_word[1:] = (word[1:] != word[:-1]) | (tgid[1:] != tgid[:-1])
        new_run = new_word.copy()
        new_run[1:] |= (tid[1:] != tid[:-1]) | (wake[1:] != wake[:-1])
        starts = np.flatnonzero(new_word)
        seen = np.bitwise_or.reduceat(bits[order], starts)
        last = np.maximum.reduceat(end, starts)
        owners: list[Word | None] = []
        for i, at in enumerate(starts.tolist()):
            key = int(tgid[at]), int(word[at])
            known = self.words.get(key)
            if known is None and seen[i] and key[1]:  # a wake alone makes no word known
                known = self.words[key] = Word(*key, first_ns=int(last[i]))
            if known is not None:
                known.seen |= int(seen[i])
                known.last_ns = max(known.last_ns, int(last[i]))
            owners.append(known)
        runs = np.flatnonzero(new_run & wake)
        if len(runs):
            lengths = np.diff(np.append(np.flatnonzero(new_run), n))
            of_run = dict(zip(np.flatnonzero(new_run).tolist(), lengths.tolist(), strict=True))
            belongs = np.cumsum(new_word) - 1
            for at in runs.tolist():
                known = owners[belongs[at]]
                if known is not None and known.seen & (SEEN_STD | SEEN_PTHREAD):
                    bump(known.wakers, int(tid[at]), of_run[at])

    def _close(self, acq: Records) -> None:
        if len(acq):
            self._guard_relocks(acq)
            self._count(acq, self.words)
            self._acquisitions.add(acq)
            self._unsettled.append(acq)

    def _guard_relocks(self, acq: Records) -> None:
        """A re-lock follows its condvar wait with no syscall between: else it is another lock's wait."""
        maybe = np.flatnonzero(acq["cond"] != 0)
        for tid in np.unique(acq["tid"][maybe]).tolist():
            at = maybe[acq["tid"][maybe] == tid]
            between = self.recent.calls_between(tid, acq["cond_end_ns"][at], acq["start_ns"][at])
            acq["cond"][at[between]] = 0
            acq["cond_caller"][at[between]] = 0

    @staticmethod
    def _count(acq: Records, words: dict[tuple[int, int], Word]) -> None:
        order = np.lexsort((acq["word"], acq["tgid"]))
        acq = acq[order]
        change = (acq["word"][1:] != acq["word"][:-1]) | (acq["tgid"][1:] != acq["tgid"][:-1])
        starts = np.concatenate(([0], np.flatnonzero(change) + 1, [len(acq)]))
        for lo, hi in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            rows = acq[lo:hi]
            word = words.get((int(rows["tgid"][0]), int(rows["word"][0])))
            if word is None:
                continue
            word.contended += len(rows)
            word.barged += int(rows["barged"].sum())
            word.waits.add((rows["end_ns"] - rows["start_ns"]).astype(np.int64))
            word.holds.add(rows["hold_ns"][rows["hold_ns"] >= 0])
            relock = rows["cond"] != 0
            word.relocks += int(relock.sum())
            pairs = zip(rows["tid"].tolist(), rows["caller"].tolist(), strict=True)
            for tid, caller in pairs:
                bump(word.waiters, tid)
                bump(word.callers, (tid, caller))
            for cond, caller in zip(
                rows["cond"][relock].tolist(), rows["cond_caller"][relock].tolist(), strict=True
            ):
                bump(word.conds, (cond, caller))

    def _evict(self) -> None:
        """Forget the words unused for longest, first those that are no locks."""
        order = sorted(
            self.words.values(), key=lambda w: (bool(w.misses), w.kind in ("mutex", "pthread"), w.last_ns)
        )
        gone = {(w.tgid, w.word) for w in order[: len(order) - MAX_WORDS * 7 // 8]}
        for key in gone:
            del self.words[key]
        self.cells.forget(gone)
        self.evicted += len(gone)

    # ---- blame

    def _settle(self) -> None:
        """Blame for acquisitions whose last holder's wake has had time to return."""
        if not self._unsettled or self.now_ns < self._settle_at:
            return
        self._settle_at = (self.now_ns // SETTLE_EVERY_NS + 1) * SETTLE_EVERY_NS
        acq = join(self._unsettled, ACQ)
        ripe = acq["closed_ns"] + np.uint64(SETTLE_NS) <= self.now_ns
        if not ripe.any():
            self._unsettled = [acq]
            return
        self._unsettled = [acq[~ripe]] if not ripe.all() else []
        self._blame(acq[ripe], self.cells)
        self._note_around(acq[ripe & (acq["cond"] == 0)])

    def _note_around(self, acq: Records) -> None:
        """Count what waiters did just before and just after, for names by behaviour."""
        for row in acq:
            word = self.words.get((int(row["tgid"]), int(row["word"])))
            if word is None or not self.registry.is_vmm(word.tgid) or word.around_seen >= AROUND_ENOUGH:
                continue
            word.around_seen += 1
            tid, until = int(row["tid"]), int(row["closed_ns"]) + SETTLE_NS
            if until - int(row["end_ns"]) > RECENT_NS // 2:
                continue
            pair = self.recent.around(tid, int(row["start_ns"]), int(row["end_ns"]), until)
            before, after = (syscall_label(r, word.tgid, self.registry) if len(r) else "" for r in pair)
            bump(word.around, (tid, before, after))

    def _blame(self, acq: Records, cells: Cells) -> None:
        """Add acquisitions, cut into pieces by holder, to blame cells."""
        order = np.lexsort((acq["closed_ns"], acq["word"], acq["tgid"]))
        acq = acq[order]
        change = (acq["word"][1:] != acq["word"][:-1]) | (acq["tgid"][1:] != acq["tgid"][:-1])
        starts = np.concatenate(([0], np.flatnonzero(change) + 1, [len(acq)]))
        for lo, hi in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            self._blame_word(acq[lo:hi], cells)

    def _blame_word(self, acq: Records, cells: Cells) -> None:
        tgid, word = int(acq["tgid"][0]), int(acq["word"][0])
        wakes = self._wakes.where("enter_ns", tgid=tgid, word=word)
        wakes = wakes[wakes["end_ns"] - wakes["enter_ns"] <= SETTLE_NS]  # whatever the cut: same answer
        lo = np.searchsorted(wakes["enter_ns"], acq["start_ns"], side="left")
        hi = np.searchsorted(wakes["enter_ns"], acq["end_ns"], side="left")
        count = np.maximum(hi - lo, 0)
        # Pieces: one per wake (to its return), and the rest of the wait, whose holder is unknown.
        of = np.repeat(np.arange(len(acq)), count + 1)
        first = np.cumsum(count + 1) - (count + 1)
        rank = np.arange(len(of)) - first[of]
        rest = rank == count[of]
        at = np.minimum(lo[of] + rank, max(0, len(wakes) - 1))
        stop = acq["end_ns"][of].copy()
        holder = np.zeros(len(of), dtype=np.uint32)
        if len(wakes):
            stop[~rest] = np.minimum(stop[~rest], wakes["end_ns"][at[~rest]])
            holder[~rest] = wakes["tid"][at[~rest]]
        rank_ns = (stop - acq["start_ns"][of]).astype(np.int64) + (of << 43)  # a long wake covers later ones
        stop = acq["start_ns"][of] + (np.maximum.accumulate(rank_ns) - (of << 43)).astype(np.uint64)
        begin = acq["start_ns"][of].copy()
        begin[1:] = np.where(of[1:] == of[:-1], stop[:-1], begin[1:])
        begin = np.minimum(begin, stop)
        length = (stop - begin).astype(np.int64)
        keep = (length > 0) & ~(rest & (count[of] > 0))  # after the last wake nobody is to blame
        of, begin, stop, holder, length = of[keep], begin[keep], stop[keep], holder[keep], length[keep]
        if not len(of):
            return
        labels, callers = self._doing(tgid, word, holder, begin, stop, acq["closed_ns"][of])
        longest = np.zeros(len(of), dtype=bool)  # an acquisition counts once, in its longest piece's cell
        by_length = np.lexsort((-length, of))
        heads = np.ones(len(of), dtype=bool)
        heads[1:] = of[by_length][1:] != of[by_length][:-1]
        longest[by_length[heads]] = True
        tids, from_ = acq["tid"][of].tolist(), acq["caller"][of].tolist()
        ends = acq["end_ns"][of].tolist()
        for i, held_by in enumerate(holder.tolist()):
            cell = cells.get((tgid, word, held_by, callers[i], labels[i], tids[i], from_[i]))
            ns = int(length[i])
            cell.waits += int(longest[i])
            cell.total_ns += ns
            cell.max_ns = max(cell.max_ns, ns)
            cell.last_ns = max(cell.last_ns, ends[i])

    def _doing(
        self,
        tgid: int,
        word: int,
        holder: np.ndarray,
        begin: np.ndarray,
        stop: np.ndarray,
        closed: np.ndarray,
    ) -> tuple[list[str], list[int]]:
        """Per piece the holder's longest syscall, and where it had taken the lock (if contended)."""
        labels, callers = [""] * len(holder), [0] * len(holder)
        recent = closed - stop <= np.uint64(RECENT_NS // 2)
        for tid in np.unique(holder).tolist():
            if not tid:
                continue
            at = np.flatnonzero((holder == tid) & recent)
            if not len(at):
                continue
            since = np.maximum(begin[at], np.maximum(stop[at], np.uint64(WINDOW_NS)) - np.uint64(WINDOW_NS))
            rows, picked = self.recent.longest(tid, since, stop[at])
            names: dict[tuple[int, int, int], str] = {}
            for i, j in zip(at.tolist(), picked.tolist(), strict=True):
                if j >= 0:
                    row = rows[j : j + 1]
                    key = label_key(row)
                    if key not in names:
                        names[key] = syscall_label(row, tgid, self.registry)
                    labels[i] = names[key]
            own = self._acquisitions.where("end_ns", tgid=tgid, word=word, tid=tid)
            k = np.searchsorted(own["end_ns"], stop[at], side="left") - 1
            for i, j in zip(at.tolist(), k.tolist(), strict=True):
                # its own contended acquisition is the hold that ended here if it was released here
                if j >= 0 and own["hold_ns"][j] >= 0:
                    released = int(own["end_ns"][j]) + int(own["hold_ns"][j])
                    if int(begin[i]) < released <= int(stop[i]):
                        callers[i] = int(own["caller"][j])
        return labels, callers

    def note_miss(self, tgid: int, word: int, holder_tid: int = 0, waiter_tid: int = 0, n: int = 1) -> None:
        """Count misses caused by a lock, and in the blame cell of that holder and waiter."""
        known = self.words.get((tgid, word))
        if known is not None:
            known.misses += n
        cell = self.cells.find(tgid, word, holder_tid, waiter_tid)
        if cell is not None:
            cell.misses += n
        elif known is not None:  # its blame is not settled yet
            bump(self._early_misses, (tgid, word, holder_tid, waiter_tid), n, limit=256)

    # ---- queries

    def kind(self, tgid: int, word: int) -> str:
        """``mutex``, ``pthread``, ``condvar``, ``shared`` or ``other`` (also where never seen)."""
        known = self.words.get((tgid, word))
        return known.kind if known is not None else "other"

    def is_mutex(self, tgid: int, word: int) -> bool:
        """Whether a word is a std mutex by all that was seen so far."""
        return self.kind(tgid, word) == "mutex"

    def wakes(self, tgid: int, word: int, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """(end_ns, tid) of the wakes on a word that began in [start, end), in order of their begin.

        A wake counts from its begin: the word was released before it, and the woken thread may run
        before the wake returns (the waker may even be preempted in it).
        """
        rows = self._wakes.where("enter_ns", tgid=tgid, word=word)
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
        rows = self._acquisitions.where("start_ns", tid=tid)
        hit = rows[(rows["start_ns"] < end_ns) & (rows["end_ns"] > start_ns)]
        found = [_acquisition(row, open_=False) for row in hit]
        for row in self._acquirer.pending_of(tid):
            found.append(_acquisition(row, open_=True))
        found.extend(self._open_wait(tid, found[-1] if found and found[-1].open else None))
        if len(found) > 1 and found[-2].open:
            del found[-2]
        return [
            a
            for a in found
            if a.start_ns < end_ns
            and a.end_ns > start_ns
            and self.kind(a.tgid, a.word) in ("mutex", "pthread")
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

    def watch_order(self, tgid: int) -> list[int]:
        """Live std mutex words of a process, the likeliest item_state first."""
        live = [
            w
            for w in self._with_pending().values()
            if w.tgid == tgid
            and w.kind == "mutex"
            and w.contended
            and (w.last_ns + STALE_NS >= self.now_ns or w.misses)
        ]
        return [w.word for w in sorted(live, key=self._watch_rank)]

    def core_words(self, tgid: int) -> list[int]:
        """Live mutex words that W and G alone use and that are no condvar's: item_state or like it."""
        words = self._with_pending()
        return [w for w in self.watch_order(tgid) if self._watch_rank(words[tgid, w])[0] == 0]

    def _watch_rank(self, word: Word) -> tuple[int, int, int, int]:
        roles = {self.registry.role(tid) for tid in word.participants}
        both, alone = {"W", "G"} <= roles, roles <= {"W", "G"}
        if word.is_relock:
            rank = 3
        elif both:
            rank = 0 if alone else 1
        elif not roles & {"W", "G"} and len(word.participants) == 2:
            rank = 1
        else:
            rank = 2
        return rank, -word.misses, -word.contended, word.word

    # ---- summary

    def rows(self, limit: int = 50) -> tuple[LockRow, ...]:
        """The locks, ranked by misses caused, then by time waited."""
        words = self._with_pending()
        locks = [w for w in words.values() if w.kind in ("mutex", "pthread") and w.contended]
        locks.sort(key=lambda w: (-w.misses, -w.waits.total, w.tgid, w.word))
        return tuple(self._row(w) for w in locks[:limit])

    def _with_pending(self) -> dict[tuple[int, int], Word]:
        """Words including acquisitions that may still go on."""
        pending = self._acquirer.pending()
        if not len(pending):
            return self.words
        words = dict(self.words)
        self._guard_relocks(pending)
        for key in {(int(r["tgid"]), int(r["word"])) for r in pending} & set(words):
            words[key] = copy_word(words[key])
        self._count(pending, words)
        return words

    def _row(self, word: Word) -> LockRow:
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

    def _operation(self, tgid: int, caller: int, tid: int) -> str:
        named = self.namer.operation(tgid, caller, tid) if self.namer is not None and caller else ""
        return named or (self.registry.comm(tid) if tid else "unknown")

    def blame(self, limit: int = 50) -> tuple[BlameRow, ...]:
        """Blame cells with names, those of equal names together; ranked by misses, then total wait."""
        cells = Cells({k: dataclasses.replace(c) for k, c in self.cells.cells.items()})
        pending = self._acquirer.pending()
        pending["closed_ns"] = pending["end_ns"]
        rest = [rows for rows in (*self._unsettled, pending) if len(rows)]
        if rest:
            self._blame(join(rest, ACQ), cells)
        for early, n in self._early_misses.items():
            found = cells.find(*early)
            if found is not None:
                found.misses += n
        merged: dict[tuple[str, str, str, str], list[int]] = {}
        for cell in cells.cells.values():
            if self.kind(cell.tgid, cell.word) not in ("mutex", "pthread"):
                continue
            key = (
                self.label(cell.tgid, cell.word),
                self._operation(cell.tgid, cell.holder_caller, cell.holder_tid),
                cell.syscall,
                self._operation(cell.tgid, cell.waiter_caller, cell.waiter_tid),
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
