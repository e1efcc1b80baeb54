# SPDX-License-Identifier: Apache-2.0
"""Blame: each contended wait cut into pieces by holder, with what that holder did meanwhile.

Owns the wakes and acquisitions of the last seconds, the waits not yet settled, and the blame
cells they end in. Waits are settled many at once, when the last holder's wake has had time to
return. Who a thread or a lock is called is not known here.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.acquire import ACQ
from tracer.model.blame import RECENT_NS, WINDOW_NS, Cells, Recent, label_key, syscall_label
from tracer.model.operations import RELOCK, Sites
from tracer.model.registry import Registry
from tracer.model.signs import AROUND_NS, Signs
from tracer.model.tap import PIECE, Tap
from tracer.model.uses import Uses
from tracer.model.words import WAKES, Rows, Word, bump, join
from tracer.schema import Records

RETAIN_NS: Final = 8_000_000_000
SETTLE_NS: Final = 20_000_000  # blame waits this long for the holder's wake to return
SETTLE_EVERY_NS: Final = 1_000_000_000  # and is done for many at once (RECENT_NS leaves room for it)
AROUND_ENOUGH: Final = 300  # acquisitions per word whose surroundings are looked at
#: Holders told of one wait; of a convoy of hundreds the last, the earlier together are nobody.
MOST_HOLDERS: Final = 32
#: Bounds of what one settling looks at per word where thousands of threads meet: pieces of waits, and
#: threads whose calls are looked up (those with most time). Beyond them nobody, and no operation, is told.
MAX_PIECES: Final = 20_000
MAX_THREADS: Final = 256


class Holders:
    """Who held what while others waited.

    Args:
        registry: whose fds and targets are looked up; words: of ``Locks``, whose surroundings are noted;
            uses: what eventfds are; sites: where the signs of call sites are counted.
        tap: is given each settled wait's pieces.
    """

    def __init__(
        self,
        registry: Registry,
        words: dict[tuple[int, int], Word],
        uses: Uses,
        sites: Sites,
        tap: Tap | None = None,
    ) -> None:
        self.registry = registry
        self.uses = uses
        self.sites = sites
        self.words = words
        self.recent = Recent()
        self.cells = Cells()
        self.wakes = Rows(WAKES)
        self.acquisitions = Rows(ACQ)
        self._unsettled: list[Records] = []
        self._early_misses: dict[tuple[int, int, int, int], int] = {}
        self._settle_at = 0
        self._tap = tap
        self._found: dict[tuple[int, int], Signs] = {}  # while waits are blamed: by tgid and calls

    def add(self, acq: Records) -> None:
        """Take closed acquisitions (n,) of dtype ACQ."""
        self.acquisitions.add(acq)
        self._unsettled.append(acq)

    def settle(self, now_ns: int) -> None:
        """Blame for acquisitions whose last holder's wake has had time to return; forget what is old."""
        self.wakes.expire(now_ns - RETAIN_NS)
        self.acquisitions.expire(now_ns - RETAIN_NS)
        if not self._unsettled or now_ns < self._settle_at:
            return
        self._settle_at = (now_ns // SETTLE_EVERY_NS + 1) * SETTLE_EVERY_NS
        acq = join(self._unsettled, ACQ)
        ripe = acq["closed_ns"] + np.uint64(SETTLE_NS) <= now_ns
        if not ripe.any():
            self._unsettled = [acq]
            return
        self._unsettled = [] if ripe.all() else [acq.take(np.flatnonzero(~ripe))]
        self._blame(acq.take(np.flatnonzero(ripe)), self.cells, self._tap, settled=True)
        self._note_around(acq.take(np.flatnonzero(ripe & (acq["cond"] == 0))))

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

    def _blame(self, acq: Records, cells: Cells, tap: Tap | None = None, *, settled: bool = False) -> None:
        """Add acquisitions, cut into pieces by holder, to blame cells."""
        order = np.lexsort((acq["closed_ns"], acq["word"], acq["tgid"]))
        acq = acq.take(order)
        change = (acq["word"][1:] != acq["word"][:-1]) | (acq["tgid"][1:] != acq["tgid"][:-1])
        starts = np.concatenate(([0], np.flatnonzero(change) + 1, [len(acq)]))
        for lo, hi in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            self._blame_word(acq[lo:hi], cells, tap, settled)
        self._found.clear()

    def _blame_word(self, acq: Records, cells: Cells, tap: Tap | None, settled: bool) -> None:
        tgid, word = int(acq["tgid"][0]), int(acq["word"][0])
        wakes = self.wakes.where("enter_ns", tgid=tgid, word=word)
        quick = wakes["end_ns"] - wakes["enter_ns"] <= SETTLE_NS  # whatever the cut: same answer
        wakes = wakes.take(np.flatnonzero(quick))
        lo = np.searchsorted(wakes["enter_ns"], acq["start_ns"], side="left")
        hi = np.searchsorted(wakes["enter_ns"], acq["end_ns"], side="left")
        handed = np.maximum(hi - lo, 0)
        count = np.minimum(handed, max(1, min(MOST_HOLDERS, MAX_PIECES // len(acq))))
        lo, before = hi - count, (handed > count).astype(np.int64)
        # Pieces: the holders before the last ones as one, one per wake (to its return), and the rest of
        # the wait, whose holder is unknown.
        of = np.repeat(np.arange(len(acq)), before + count + 1)
        first = np.cumsum(before + count + 1) - (before + count + 1)
        rank = np.arange(len(of)) - first[of] - before[of]
        rest, early = rank == count[of], rank < 0
        at = np.clip(lo[of] + rank, 0, max(0, len(wakes) - 1))
        stop = acq["end_ns"][of].copy()
        holder = np.zeros(len(of), dtype=np.uint32)
        if len(wakes):
            stop[~rest] = np.minimum(stop[~rest], wakes["end_ns"][at[~rest]])
            told = ~rest & ~early
            holder[told] = wakes["tid"][at[told]]
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
        labels, callers, held = self._doing(tgid, word, holder, begin, stop, acq["closed_ns"][of])
        signs = self._signs(tgid, acq, settled)
        if tap is not None:
            number = self.sites.number
            pieces = np.empty(len(of), dtype=PIECE)
            for name in ("tgid", "tid", "word", "caller"):
                pieces[name] = acq[name][of]
            pieces["acq_ns"], pieces["start_ns"], pieces["end_ns"] = acq["start_ns"][of], begin, stop
            pieces["holder"], pieces["holder_caller"] = holder, callers
            pieces["sign"] = np.array([number(sign) for sign in signs], dtype=np.uint32)[of]
            pieces["holder_sign"] = [number(sign) for sign in held]
            tap.pieces(pieces, labels)
        longest = np.zeros(len(of), dtype=bool)  # an acquisition counts once, in its longest piece's cell
        by_length = np.lexsort((-length, of))
        heads = np.ones(len(of), dtype=bool)
        heads[1:] = of[by_length][1:] != of[by_length][:-1]
        longest[by_length[heads]] = True
        tids, from_ = acq["tid"][of].tolist(), acq["caller"][of].tolist()
        ends, belongs = acq["end_ns"][of].tolist(), of.tolist()
        for i, held_by in enumerate(holder.tolist()):
            key = (tgid, word, held_by, callers[i], held[i], labels[i], tids[i], from_[i], signs[belongs[i]])
            cell = cells.get(key)
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
    ) -> tuple[list[str], list[int], list[str]]:
        """Per piece the holder's longest syscall, where it took the lock (if contended), its sign."""
        labels, callers, held = [""] * len(holder), [0] * len(holder), [""] * len(holder)
        recent = closed - stop <= np.uint64(RECENT_NS // 2)
        for tid in _busiest(holder[holder != 0], (stop - begin)[holder != 0]):
            at = np.flatnonzero((holder == tid) & recent)
            if not len(at):
                continue
            since = np.maximum(begin[at], np.maximum(stop[at], np.uint64(WINDOW_NS)) - np.uint64(WINDOW_NS))
            rows, picked = self.recent.longest(tid, since, stop[at])
            names: dict[tuple[int, int, int], str] = {}
            of_call = {-1: ""}
            for j in np.unique(picked[picked >= 0]).tolist():
                row = rows[j : j + 1]
                key = label_key(row)
                if key not in names:
                    names[key] = syscall_label(row, tgid, self.registry)
                of_call[j] = names[key]
            for i, j in zip(at.tolist(), picked.tolist(), strict=True):
                labels[i] = of_call[j]
            signs = self._signs_of(tgid, tid, int(since.min()), int(stop[at].max()) + SETTLE_NS)
            # Its own contended acquisition is the hold that ended here if it was released here.
            own, hit = self._own_hold(tgid, word, tid, begin[at], stop[at])
            for i, caller in zip(at[hit].tolist(), own["caller"].tolist(), strict=True):
                callers[i] = caller
            told = signs.of_waits(own["start_ns"], own["end_ns"], own["hold_ns"])
            for i, sign, cond in zip(at[hit].tolist(), told, own["cond"].tolist(), strict=True):
                held[i] = RELOCK if cond else sign
            other = at[~hit]
            for i, sign in zip(other.tolist(), signs.of_holds(begin[other], stop[other]), strict=True):
                held[i] = sign
        return labels, callers, held

    def _own_hold(
        self, tgid: int, word: int, tid: int, begin: np.ndarray, stop: np.ndarray
    ) -> tuple[Records, NDArray[np.bool_]]:
        """Contended acquisitions (m,) whose release ended one of the holds [begin, stop] (n,), and which."""
        own = self.acquisitions.where("end_ns", tgid=tgid, word=word, tid=tid)
        if not len(own):
            return own, np.zeros(len(stop), dtype=bool)
        k = np.searchsorted(own["end_ns"], stop, side="left") - 1
        last = own.take(np.maximum(k, 0))
        released = last["end_ns"] + np.maximum(last["hold_ns"], 0).astype(np.uint64)
        hit = (k >= 0) & (last["hold_ns"] >= 0) & (begin < released) & (released <= stop)
        return last.take(np.flatnonzero(hit)), hit

    def _signs(self, tgid: int, acq: Records, settled: bool) -> list[str]:
        """The sign of each acquisition (n,) of one word; ``settled``: count them at their call sites."""
        found = [RELOCK] * len(acq)
        if not self.registry.is_vmm(tgid):
            return [""] * len(acq)
        plain = acq["cond"] == 0
        for tid in _busiest(acq["tid"][plain], (acq["end_ns"] - acq["start_ns"])[plain]):
            at = np.flatnonzero(plain & (acq["tid"] == tid))
            rows = acq.take(at)
            signs = self._signs_of(
                tgid, tid, int(rows["start_ns"].min()), int(rows["closed_ns"].max()) + SETTLE_NS
            )
            told = signs.of_waits(rows["start_ns"], rows["end_ns"], rows["hold_ns"])
            for i, sign, caller in zip(at.tolist(), told, rows["caller"].tolist(), strict=True):
                found[i] = sign
                if settled and caller:
                    self.sites.note(tgid, caller, tid, sign)
        return found

    def _signs_of(self, tgid: int, tid: int, start_ns: int, until_ns: int) -> Signs:
        calls = self.recent.of(tid, max(0, start_ns - AROUND_NS), until_ns)
        signs = self._found.get((tgid, id(calls)))
        if signs is None or signs.of is not calls:
            signs = self._found[tgid, id(calls)] = Signs(self.uses, tgid, calls)
        return signs

    def note_miss(self, tgid: int, word: int, holder_tid: int, waiter_tid: int, n: int) -> None:
        """Count misses in the blame cell of a holder and a waiter."""
        cell = self.cells.find(tgid, word, holder_tid, waiter_tid)
        if cell is not None:
            cell.misses += n
        elif (tgid, word) in self.words:  # its blame is not settled yet
            bump(self._early_misses, (tgid, word, holder_tid, waiter_tid), n, limit=256)

    def cells_now(self, pending: Records) -> Cells:
        """The cells, with what is not settled yet and acquisitions (n,) that may still go on.

        Costs as much as settling it: for the last summary, not for each on the way.
        """
        cells = Cells({key: cell.copy() for key, cell in self.cells.cells.items()})
        self._blame_rest(pending, cells)
        for early, n in self._early_misses.items():
            found = cells.find(*early)
            if found is not None:
                found.misses += n
        return cells

    def offer_rest(self, pending: Records) -> None:
        """Offer the tap the pieces of what is not settled, and of acquisitions (n,) that may still go on."""
        self._blame_rest(pending, Cells(), self._tap)

    def _blame_rest(self, pending: Records, cells: Cells, tap: Tap | None = None) -> None:
        pending["closed_ns"] = pending["end_ns"]
        rest = [rows for rows in (*self._unsettled, pending) if len(rows)]
        if rest:
            self._blame(join(rest, ACQ), cells, tap)


def _busiest(tids: NDArray[np.uint32], ns: NDArray[np.uint64]) -> list[int]:
    """The distinct threads of (n,) pieces, at most ``MAX_THREADS``: those with most time, ascending."""
    found, of = np.unique(tids, return_inverse=True)
    if len(found) > MAX_THREADS:
        spent = np.bincount(of, weights=ns.astype(np.float64))
        found = np.sort(found[np.argsort(-spent, kind="stable")[:MAX_THREADS]])
    return [int(tid) for tid in found.tolist()]
