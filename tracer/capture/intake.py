# SPDX-License-Identifier: Apache-2.0
"""One batch of a session: what lies in the ring, spans that have not ended, and what is learnt beside them.

Owns the watermark, which records are late, and the counts of losses. Judges nothing but which lock words to
watch; starts and ends nothing.
"""

from __future__ import annotations

import time

import numpy as np

from tracer import schema
from tracer.capture import inflight
from tracer.capture.attached import Attached
from tracer.capture.batches import ByKind, loss_records
from tracer.capture.drain import Drain, in_order
from tracer.capture.fdids import FdIds
from tracer.capture.maps import Maps
from tracer.capture.names import Learnt, Names
from tracer.capture.search import AudioSearch
from tracer.capture.usage import Usage
from tracer.capture.watched import Watched
from tracer.schema import Batch, Flag, Kind, LossClass, Losses, Records

# A record is submitted within this time of its end, or is marked late.
_GRACE_NS = 10_000_000
_OPEN_EVERY_NS = 100_000_000
_OPEN_AGE_NS = 50_000_000


class Intake:
    """Makes the batches of one session, out of its parts.

    Args:
        maps, drain: where records and counts come from.
        attached: the processes, and what is learnt of them.
        names, usage: of call sites; of our own cost.
        words: the watched lock words. search: looks for audio servers.
        fd_ids: fills in eventfd ids where the kernel does not tell them; None where it does.
        attach_ns: when tracing began.
    """

    def __init__(
        self,
        maps: Maps,
        drain: Drain,
        attached: Attached,
        names: Names,
        usage: Usage,
        words: Watched,
        search: AudioSearch,
        fd_ids: FdIds | None,
        attach_ns: int,
    ) -> None:
        self._maps = maps
        self._drain = drain
        self._attached = attached
        self._names = names
        self._usage = usage
        self._words = words
        self._search = search
        self._fd_ids = fd_ids
        self._attach_ns = attach_ns
        self._late = 0
        self._lost = Losses()
        self._watermark_ns = 0
        self._opened_ns = 0

    def batch(self, host: dict[str, str | int | float], *, final: bool = False) -> Batch:
        """What there is now.

        Args:
            host: facts of the machine, for the first batch.
            final: the probes are detached: no record follows.
        """
        now_ns = time.monotonic_ns()
        opened = self._open(now_ns)
        parts = [opened, *self._push_words()]
        records, at_ns, complete = self._drain.take()
        # Where a probe was stopped in the middle of a record (its CPU was taken away), what lies
        # behind it may be older than the next watermark.
        watermark_ns = max(at_ns - _GRACE_NS if complete or final else 0, self._watermark_ns)
        self._mark_late(records)
        parts += [records, self._losses(now_ns)]
        self._watermark_ns = watermark_ns
        self._learn(records, opened, now_ns)  # may fill in ids, so before the parts become one
        parts += self._push_words()  # a lock's first wait: its word is watched from here on
        return self._wrap(in_order(parts), watermark_ns, host, now_ns)

    def _open(self, now_ns: int) -> Records:
        if now_ns - self._opened_ns < _OPEN_EVERY_NS * 9 // 10:
            return schema.empty_records()
        self._opened_ns = now_ns
        tids, threads = self._maps.threads()
        read_ns = time.monotonic_ns()
        records = inflight.open_records(tids, threads, read_ns, _OPEN_AGE_NS)
        if self._attached.unsure:
            unsure = np.isin(records["tid"], list(self._attached.unsure)) & (
                records["flags"] & Flag.CLIPPED != 0
            )
            records = records[~unsure]
        return records

    def _mark_late(self, records: Records) -> None:
        late = schema.end_ns(records) < self._watermark_ns
        if late.any():
            records["flags"][late] |= np.uint8(Flag.LATE)
            self._late += int(late.sum())

    def _losses(self, now_ns: int) -> Records:
        ring, lost_map = self._maps.losses()
        lost = Losses(ring, lost_map, self._late)
        before, self._lost = self._lost, lost
        counts = {
            LossClass.RING: lost.ring - before.ring,
            LossClass.MAP: lost.map - before.map,
            LossClass.LATE: lost.late - before.late,
        }
        return loss_records(counts, self._watermark_ns or self._attach_ns, now_ns)

    def _wrap(
        self, records: Records, watermark_ns: int, host: dict[str, str | int | float], now_ns: int
    ) -> Batch:
        names = self._names.take()
        self._named(names)
        learned = self._attached.take_learned()
        return Batch(
            records=records,
            watermark_ns=watermark_ns,
            targets=tuple(learned.targets.values()),
            threads=tuple(learned.threads),
            fds=tuple(learned.fds),
            epolls=tuple(learned.epolls),
            sites=names.sites,
            lock_symbols=(*learned.locks, *names.lock_symbols),
            losses=self._lost,
            self_use=self._usage.tick(now_ns),
            host=host,
        )

    def _named(self, names: Learnt) -> None:
        for program in names.programs:
            self._attached.note_program(program)
        for tgid in {symbol.tgid for symbol in names.lock_symbols}:
            self._words.prefer(tgid, [item.address for item in names.lock_symbols if item.tgid == tgid])

    # -- learning from records

    def _learn(self, records: Records, opened: Records, now_ns: int) -> None:
        learned, side = self._attached.learned, self._attached.side
        by_kind = ByKind(records)
        learned.threads.extend(side.life(by_kind))
        for tgid in self._attached.note_execs(by_kind):
            self._words.forget(tgid)
        learned.threads.extend(side.others(by_kind))
        alive = self._attached.alive()
        learned.threads.extend(side.refresh(alive, now_ns))
        learned.fds.extend(side.fds(by_kind))
        if self._fd_ids is not None:
            self._fd_ids.learn(learned.fds)
            self._fd_ids.fill(records, side.tgid_of)
        for futexes in (ByKind(opened).rows(Kind.FUTEX), by_kind.rows(Kind.FUTEX)):
            if len(futexes):
                self._futexes(futexes)
        self._words.keep(alive, now_ns)
        self._search.step(by_kind, now_ns)

    def _futexes(self, futexes: Records) -> None:
        """Choose lock words by FUTEX records (n,); ask for the names of callers."""
        tids, inverse = np.unique(futexes["tid"], return_inverse=True)
        tgids = np.array([self._attached.side.tgid_of.get(tid, 0) for tid in tids.tolist()])[inverse]
        for tgid in np.unique(tgids[tgids != 0]).tolist():
            mine = futexes[tgids == tgid]
            self._words.learn(tgid, mine)
            for address in np.unique(mine["caller"]).tolist():
                if address:
                    self._names.ask_site(tgid, address)

    def _push_words(self) -> list[Records]:
        infos = self._attached.infos
        return self._words.push(self._maps, infos.__contains__, lambda tgid: infos[tgid].alive)
