# SPDX-License-Identifier: Apache-2.0
"""Pieces of batches that need no session: records by kind, loss records, facts of the machine, joining."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tracer import schema
from tracer.schema import Batch, Kind, LossClass, Records


class ByKind:
    """Records (n,) as their kinds; looks for the places of a kind when it is asked.

    Most kinds are absent from most batches: those cost one look at a table of counts.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        self._kinds: NDArray[np.uint8] = np.ascontiguousarray(records["kind"])
        self._counts = np.bincount(self._kinds, minlength=max(Kind) + 1).tolist()

    def count(self, kind: Kind) -> int:
        """How many there are."""
        found: int = self._counts[kind]
        return found

    def places(self, kind: Kind) -> NDArray[np.intp]:
        """Indices of a kind in ``records``."""
        return np.flatnonzero(self._kinds == kind) if self._counts[kind] else np.empty(0, np.intp)

    def whole(self, kind: Kind) -> Records:
        """All records in the dtype of a kind's family, no copy: use at ``places(kind)`` only."""
        return self.records.view(schema.FAMILY[kind])

    def rows(self, kind: Kind) -> Records:
        """Copies of a kind's records, in their family's dtype."""
        return self.whole(kind)[self.places(kind)]


def loss_records(counts: Mapping[LossClass, int], since_ns: int, now_ns: int) -> Records:
    """LOSS records, dtype RECORD, one per class that lost any between two times."""
    found = [(loss, count) for loss, count in counts.items() if count]
    rows = np.zeros(len(found), schema.LOSS)
    for row, (loss, count) in zip(rows, found, strict=True):
        row["kind"], row["op"], row["count"] = Kind.LOSS, loss, count
        row["enter_ns"], row["dur_ns"] = since_ns, now_ns - since_ns
    return rows.view(schema.RECORD)


def machine_facts() -> dict[str, str | int | float]:
    """Facts of this machine that a trace needs; nothing that names it."""
    uname = platform.uname()
    before = time.monotonic_ns()
    real = time.time_ns()
    after = time.monotonic_ns()
    return {
        "kernel": uname.release,
        "machine": uname.machine,
        "cpus": os.cpu_count() or 0,
        "load_average": round(os.getloadavg()[0], 2),  # of the minute before
        "clock_offset_ns": real - (before + after) // 2,
    }


def joined(parts: list[Batch]) -> Batch:
    """Several batches as one, in order."""
    last = parts[-1]
    return Batch(
        records=np.concatenate([part.records for part in parts]),
        watermark_ns=last.watermark_ns,
        targets=tuple({item.tgid: item for part in parts for item in part.targets}.values()),
        threads=tuple(item for part in parts for item in part.threads),
        fds=tuple(item for part in parts for item in part.fds),
        epolls=tuple(item for part in parts for item in part.epolls),
        sites=tuple(item for part in parts for item in part.sites),
        lock_symbols=tuple(item for part in parts for item in part.lock_symbols),
        losses=last.losses,
        self_use=next((part.self_use for part in reversed(parts) if part.self_use), None),
        host={key: value for part in parts for key, value in part.host.items()},
    )
