# SPDX-License-Identifier: Apache-2.0
"""The flight recorder's memory: the last seconds of a session, to be written when they are wanted.

Owns what is kept (whole batches, bounded in record time and in bytes) and how a trace that begins in
the middle is made to explain itself (background.py). When to write, and under what name, is the
caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tracer.schema import Batch
from tracer.trace.background import Background
from tracer.trace.writer import TraceWriter

NS: Final = 1_000_000_000
#: Default bound of the records kept, bytes: 60 s at 140,000 records a second.
LIMIT_BYTES: Final = 512 << 20


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
            for batch in self._batches:
                writer.append(batch)
        return kept
