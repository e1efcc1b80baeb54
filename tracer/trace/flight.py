# SPDX-License-Identifier: Apache-2.0
"""The flight recorder's memory: the last seconds of a session, to be written when they are wanted.

Owns what is kept (whole batches, bounded in record time and in bytes) and how a trace that begins in
the middle is made to explain itself (background.py). When to write, and under what name, is the
caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracer.schema import RECORD, Batch
from tracer.trace.background import Background
from tracer.trace.writer import TraceWriter

NS: Final = 1_000_000_000
#: Default bound of the records kept, bytes: 60 s at 140,000 records a second.
LIMIT_BYTES: Final = 512 << 20
#: Records of one batch of a dump, about.
_GROUP_RECORDS: Final = 65_536


@dataclass(frozen=True, slots=True)
class Kept:
    """What a dump held: seconds of record time, records, and whether memory had cut it short."""

    seconds: float
    records: int
    cut_short: bool


class Flight:
    """Holds the last batches of a session.

    Args:
        keep_s: seconds of record time to keep.
        limit_bytes: records kept at most; beyond it the oldest batch goes, however young.
    """

    def __init__(self, keep_s: float, limit_bytes: int = LIMIT_BYTES) -> None:
        self._keep_ns = int(keep_s * NS)
        self._limit = limit_bytes
        self._batches: deque[Batch] = deque()
        self._bytes = 0
        self._cut_ns = 0
        self._before = Background()
        self._began_ns = 0

    @property
    def bytes(self) -> int:
        """Of the records kept."""
        return self._bytes

    def append(self, batch: Batch) -> None:
        """Keep a batch; let go of those that are too old or too much."""
        if not self._began_ns:
            self._began_ns = batch.watermark_ns
        self._batches.append(batch)
        self._bytes += batch.records.nbytes
        horizon = batch.watermark_ns - self._keep_ns
        while len(self._batches) > 1:
            old = self._batches[0].watermark_ns < horizon
            if not old and self._bytes <= self._limit:
                break
            gone = self._batches.popleft()
            self._bytes -= gone.records.nbytes
            self._began_ns = max(self._began_ns, gone.watermark_ns)
            if not old:
                self._cut_ns = batch.watermark_ns
            self._before.take(gone)

    def dump(self, path: Path, settings: Mapping[str, Any]) -> Kept:
        """Write what is kept as a trace folder; go on keeping it.

        Args:
            path: NAME.xdt, must not exist; its parent must.
            settings: for meta.json.

        Raises:
            TraceError: as TraceWriter does.
        """
        newest = self._batches[-1].watermark_ns if self._batches else self._began_ns
        cut = self._cut_ns > newest - self._keep_ns and self._cut_ns > 0
        kept = Kept((newest - self._began_ns) / NS, sum(len(b.records) for b in self._batches), cut)
        with TraceWriter(path, settings={**settings, "seconds": kept.seconds, "cut_short": cut}) as writer:
            writer.append(self._before.batch(self._began_ns))
            for batch in _coalesced(self._batches):
                writer.append(batch)
        return kept


def _coalesced(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same in fewer batches: each costs half a millisecond to write, and a session waits meanwhile."""
    group: list[Batch] = []
    count = 0
    for batch in batches:
        if group and count + len(batch.records) > _GROUP_RECORDS:
            yield _joined(group)
            group, count = [], 0
        group.append(batch)
        count += len(batch.records)
    if group:
        yield _joined(group)


def _joined(group: list[Batch]) -> Batch:
    """One batch that says what several said; counts and the watermark are the last one's."""
    if len(group) == 1:
        return group[0]
    told: dict[str, Any] = {
        name: tuple(row for batch in group for row in getattr(batch, name))
        for name in ("targets", "threads", "fds", "epolls", "sites", "lock_symbols")
    }
    host = {key: value for batch in group for key, value in batch.host.items()}
    use = next((batch.self_use for batch in reversed(group) if batch.self_use is not None), None)
    records = np.concatenate([np.ascontiguousarray(batch.records).view(np.uint8) for batch in group])
    return replace(group[-1], records=records.view(RECORD), host=host, self_use=use, **told)
