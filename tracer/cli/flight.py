# SPDX-License-Identifier: Apache-2.0

"""``record --flight``: the last seconds in memory, written when a condition holds, on SIGUSR2, or at the end.

Owns the names of dumps, the signal and what is said of a dump. What is kept is tracer.trace's, when it is due
triggers.py's. Stands where a writer stands in the loop.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from tracer.cli.triggers import Condition, Counter, Limit
from tracer.errors import TraceError

if TYPE_CHECKING:
    from tracer.schema import Batch


@dataclass(frozen=True)
class FlightPlan:
    """A flight recorder as the user asked for it.

    Attributes:
        seconds: kept in memory; gap_s: least time between two dumps; most: dumps at the most.
        limit_bytes: of records in memory.
    """

    seconds: float
    conditions: tuple[Condition, ...]
    gap_s: float
    most: int
    limit_bytes: int


class FlightRecorder:
    """Takes every batch; writes a dump into a folder when one is due.

    Args:
        folder: where dumps go; made if missing.
        analysis: asked for its running totals (``tally()``) after each batch.
    """

    def __init__(self, folder: Path, wanted: FlightPlan, analysis: Any) -> None:
        from tracer.trace import Flight, make_private_folder

        self._folder = folder
        self._analysis = analysis
        self._flight = Flight(wanted.seconds, wanted.limit_bytes)
        self._counters = [Counter(condition) for condition in wanted.conditions]
        self._limit = Limit(int(wanted.gap_s * 1e9), wanted.most)
        self._asked = False
        self._dead: set[int] = set()
        self._handler: Any = None
        self.dumps: list[Path] = []
        make_private_folder(folder)

    def __enter__(self) -> FlightRecorder:
        self._handler = signal.signal(signal.SIGUSR2, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGUSR2, self._handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def append(self, batch: Batch) -> None:
        """Keep a batch, and write a dump if one is due."""
        self._flight.append(batch)
        now_ns = batch.watermark_ns
        tally = self._analysis.tally()
        due = [c for c in self._counters if c.holds(now_ns, getattr(tally, c.condition.what))]
        died = {t.tgid for t in batch.targets if t.role == "vmm" and not t.alive} - self._dead
        if self._asked:
            self._asked = False
            self._write("asked", "asked for by SIGUSR2")
        elif died:
            self._dead |= died
            self._write("exit", f"process {min(died)} exited")
        elif due:
            self._on_condition(due[0].condition, now_ns)

    def _on_condition(self, condition: Condition, now_ns: int) -> None:
        if self._limit.allows(now_ns):
            self._write(condition.what, condition.text)
            if self._limit.exhausted:
                _say("that was the last dump (--dumps); SIGUSR2 still writes one")

    def _write(self, kind: str, reason: str) -> None:
        path = self._name(kind)
        try:
            kept = self._flight.dump(path, {"flight": reason})
        except TraceError as error:
            # What is in memory is still there, and the next trigger may find room.
            _say(f"{error.message}; {error.hint}")
            return
        self.dumps.append(path)
        for counter in self._counters:
            counter.restart()
        short = ", less than asked for: memory was full" if kept.cut_short else ""
        _say(f"{reason}: the last {kept.seconds:.1f} s ({kept.records} records{short}) are in {path}")

    def _name(self, kind: str) -> Path:
        stem = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{kind}"
        number, path = 1, self._folder / f"{stem}.xdt"
        while os.path.lexists(path):
            number += 1
            path = self._folder / f"{stem}-{number}.xdt"
        return path


def _say(text: str) -> None:
    print(f"xdtrace: {text}", file=sys.stderr, flush=True)
