# SPDX-License-Identifier: Apache-2.0
"""Keeps what an analysis lets go of, for frames.

Owns the memory: without a limit all of a trace, with one (live) the newest rows. Interprets nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from tracer.model.cycles import Cycle
from tracer.model.tap import Tap
from tracer.schema import Records


class Collector(Tap):
    """A Tap that keeps rows.

    Args:
        limit: rows kept of each table (the newest; whole steps are dropped); None: all.

    Attributes:
        periods: lists of rows in the order of ``columns._PERIOD_COLUMNS``, one list per step.
        acquired: arrays of dtype ACQ. held: (array of dtype PIECE, its syscalls).
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self.reset()

    def reset(self) -> None:
        self.periods: deque[list[tuple[Any, ...]]] = deque()
        self.acquired: deque[Records] = deque()
        self.held: deque[tuple[Records, tuple[str, ...]]] = deque()
        self._rows = {"periods": 0, "acquired": 0, "held": 0}

    def cycles(self, cycles: Sequence[Cycle]) -> None:
        if cycles:
            self.periods.append([_row(cycle) for cycle in cycles])
            self._bound("periods", self.periods, len(cycles))

    def acquisitions(self, acquisitions: Records) -> None:
        if len(acquisitions):
            self.acquired.append(acquisitions.copy())
            self._bound("acquired", self.acquired, len(acquisitions))

    def pieces(self, pieces: Records, syscalls: Sequence[str]) -> None:
        if len(pieces):
            self.held.append((pieces, tuple(syscalls)))
            self._bound("held", self.held, len(pieces))

    def _bound(self, name: str, chunks: deque[Any], added: int) -> None:
        self._rows[name] += added
        while self._limit is not None and self._rows[name] > self._limit and len(chunks) > 1:
            gone = chunks.popleft()
            self._rows[name] -= len(gone[0]) if name == "held" else len(gone)


def _row(cycle: Cycle) -> tuple[Any, ...]:
    late = cycle.late_ns
    return (
        cycle.stream.id,
        cycle.number,
        cycle.driver.id,
        cycle.nominal_ns,
        cycle.start_ns,
        cycle.signal_ns,
        cycle.read_ns,
        cycle.write_ns,
        cycle.closing_ns,
        cycle.deadline_ns,
        None if late is None else -late,
        cycle.missed,
        cycle.leg or None,
        cycle.reader_tid or None,
        cycle.writer_tid or None,
    )
