# SPDX-License-Identifier: Apache-2.0
"""What batches that are no longer kept had said, as far as later ones need it.

Owns the folding of a batch into a bounded state: the newest row of each target, thread, fd, call
site and lock symbol, the watched words in force, periodic timers. ``batch()`` gives it back as a
batch, without which a trace that begins in the middle of a session could not name its threads nor
read its masks. Interprets nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np

from tracer import schema
from tracer.schema import Batch, Kind, Life, Records

#: Rows of one side table that are kept; the one learnt longest ago gives way. Targets are few; threads that
#: exit are dropped at once, fds and call sites are replaced in place.
MAX_ROWS: Final = 65_536
#: WORDS records kept per process: of the newest generations, up to four records each.
_MAX_WORDS: Final = 16

_K = TypeVar("_K")
_V = TypeVar("_V")


class Background:
    """State that outlives the batches which told it. Memory: at most ``MAX_ROWS`` rows of each side table."""

    def __init__(self) -> None:
        self._targets: dict[int, schema.Target] = {}
        self._threads: dict[int, schema.Thread] = {}
        self._fds: dict[tuple[int, int], schema.Fd] = {}
        self._epolls: dict[tuple[int, int, int], schema.EpollEntry] = {}
        self._sites: dict[tuple[int, int], schema.CallSite] = {}
        self._symbols: dict[tuple[int, int], schema.LockSymbol] = {}
        self._words: dict[int, dict[tuple[int, int], Records]] = {}
        self._host: dict[str, str | int | float] = {}
        self._losses = schema.Losses()

    def take(self, batch: Batch) -> None:
        """Fold a batch in, in the order of the session."""
        _update(self._targets, {t.tgid: t for t in batch.targets})
        _update(self._threads, {t.tid: t for t in batch.threads})
        _update(self._fds, {(f.tgid, f.fd): f for f in batch.fds})
        _update(self._epolls, {(e.tgid, e.epfd, e.data): e for e in batch.epolls})
        _update(self._sites, {(s.tgid, s.address): s for s in batch.sites})
        _update(self._symbols, {(s.tgid, s.address): s for s in batch.lock_symbols})
        self._host.update(batch.host)
        self._losses = batch.losses
        kinds = batch.records["kind"]
        for kind, fold in ((Kind.LIFE, self._life), (Kind.WORDS, self._watched), (Kind.TIMER, self._timer)):
            at = np.flatnonzero(kinds == kind)
            if len(at):
                fold(schema.view(batch.records.take(at), schema.FAMILY[kind]))

    def batch(self, now_ns: int) -> Batch:
        """All of it as one batch whose few records bear the time *now_ns* (ns, CLOCK_MONOTONIC)."""
        kept = [row for rows in self._words.values() for row in rows.values()]
        records = np.concatenate(kept) if kept else schema.empty_records()
        records["enter_ns"], records["dur_ns"] = now_ns, 0
        return Batch(
            records,
            watermark_ns=now_ns,
            targets=tuple(self._targets.values()),
            threads=tuple(self._threads.values()),
            fds=tuple(self._fds.values()),
            epolls=tuple(self._epolls.values()),
            sites=tuple(self._sites.values()),
            lock_symbols=tuple(self._symbols.values()),
            losses=self._losses,
            host=dict(self._host),
        )

    # --- records that say something lasting ---

    def _life(self, rows: Records) -> None:
        for row in rows:
            tid, tgid = int(row["tid"]), int(row["tgid"])
            if row["op"] == Life.EXIT:
                self._threads.pop(tid, None)
                continue
            comm = bytes(row["comm"]).split(b"\0", 1)[0].decode("utf-8", "replace")
            known = self._threads.get(tid)
            if known is None or (tgid and known.tgid != tgid):
                known = schema.Thread(tid, tgid, comm)
            _update(self._threads, {tid: replace(known, comm=comm or known.comm)})

    def _watched(self, rows: Records) -> None:
        for i, row in enumerate(rows):
            words = self._words.setdefault(int(row["tid"]), {})
            key = int(row["op"]), int(row["flags"])  # generation, which four of its words
            words[key] = rows[i : i + 1].view(schema.RECORD).copy()
            while len(words) > _MAX_WORDS:
                del words[next(iter(words))]

    def _timer(self, rows: Records) -> None:
        periodic = rows[(rows["interval_ns"] > 0) & (rows["ret"] == 0)]
        for row in periodic:
            thread = self._threads.get(int(row["tid"]))
            if thread is None:
                continue
            key = thread.tgid, int(row["fd"])
            known = self._fds.get(key, schema.Fd(*key, "timerfd"))
            _update(self._fds, {key: replace(known, interval_ns=int(row["interval_ns"]))})


def _update(known: dict[_K, _V], new: Mapping[_K, _V]) -> None:
    """Newest last, within ``MAX_ROWS``."""
    for key in new:
        known.pop(key, None)
    known.update(new)
    for key in _oldest(known, len(known) - MAX_ROWS):
        del known[key]


def _oldest(known: Mapping[_K, Any], count: int) -> Iterable[_K]:
    return [key for key, _ in zip(known, range(max(count, 0)), strict=False)]
