# SPDX-License-Identifier: Apache-2.0
"""Everything xdtrace knows, as pandas DataFrames: Jupyter's door.

``tracer.open`` and ``tracer.attach`` give objects of this package. Both draw from one Analysis and its
Summary, as every view does; what the Analysis lets go of, a Collector keeps on its way. Columns are
listed in columns.py and described in docs/frames.md. Needs neither root nor bcc to open a trace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from tracer.errors import UsageError
from tracer.frames import build
from tracer.frames.collect import Collector
from tracer.frames.columns import TABLES
from tracer.frames.html import summary_html
from tracer.model.analysis import Analysis
from tracer.model.summary import Summary
from tracer.profile import default_profiles, load
from tracer.schema import Batch, Kind
from tracer.trace import TraceReader

__all__ = ["TABLES", "Frames", "Trace", "open_trace"]

_RECORD_KINDS: Final = tuple(Kind)


@dataclass(frozen=True, slots=True)
class Seen:
    """What frames are made of: one analysis, its summary, and what it let go of."""

    analysis: Analysis
    kept: Collector
    summary: Summary

    @property
    def offset_ns(self) -> int:
        """Real time minus CLOCK_MONOTONIC; 0 where the trace does not know it."""
        offset = self.summary.host.get("clock_offset_ns", 0)
        return int(offset) if isinstance(offset, int | float) else 0


class Frames(ABC):
    """The tables of a trace or of a live session. Every column is described in docs/frames.md."""

    title = ""

    @abstractmethod
    def _seen(self) -> Seen:
        """What there is to show now."""

    @abstractmethod
    def _batches(self) -> Iterable[Batch]:
        """The batches again, for records."""

    def _frame(self, name: str, make: Callable[[Seen], pd.DataFrame]) -> pd.DataFrame:
        return make(self._seen())

    @property
    def summary(self) -> Summary:
        """The Summary that every view shows (docs/summary.md)."""
        return self._seen().summary

    @property
    def start(self) -> pd.Timestamp:
        """When the records begin, UTC."""
        seen = self._seen()
        return pd.Timestamp(seen.summary.window.start_ns + seen.offset_ns, unit="ns", tz="UTC")

    @property
    def offset_ns(self) -> int:
        """Real time minus CLOCK_MONOTONIC: what the summary's times are behind the frames'."""
        return self._seen().offset_ns

    def seconds(self, times: pd.Series | pd.Timestamp) -> pd.Series | float:
        """Moments (n,) as seconds since ``start``, for axes."""
        since = times - self.start
        return since.dt.total_seconds() if isinstance(since, pd.Series) else float(since.total_seconds())

    def df_records(self, *kinds: str | Kind) -> pd.DataFrame:
        """Records as the probes wrote them, in order of arrival.

        Args:
            kinds: READ, WRITE, FUTEX …; none: all. Columns that no record of these kinds has are left out.

        Raises:
            UsageError: no such kind.
        """
        wanted = tuple(dict.fromkeys(_kind(kind) for kind in kinds)) or _RECORD_KINDS
        key = "records " + " ".join(kind.name for kind in wanted)
        return self._frame(key, lambda s: build.records(self._batches(), s.analysis, wanted, s.offset_ns))

    def df_waits(self) -> pd.DataFrame:
        """Waits for locks, cut by who held the lock meanwhile."""
        return self._frame("waits", lambda s: build.waits(s.analysis, s.kept, s.offset_ns))

    def df_acquisitions(self) -> pd.DataFrame:
        """Contended acquisitions of locks; uncontended ones never enter the kernel."""
        return self._frame("acquisitions", lambda s: build.acquisitions(s.analysis, s.kept, s.offset_ns))

    def df_periods(self) -> pd.DataFrame:
        """Audio cycles of each stream, with their slack."""
        return self._frame("periods", lambda s: build.periods(s.kept, s.offset_ns))

    def df_misses(self) -> pd.DataFrame:
        """Missed cycles with their verdicts."""
        return self._rows("misses", lambda s: s.misses)

    def df_segments(self) -> pd.DataFrame:
        """The misses' windows, cut to the nanosecond."""
        return self._frame(
            "segments", lambda s: build.segments(s.summary, s.analysis.registry.comm, s.offset_ns)
        )

    def df_threads(self) -> pd.DataFrame:
        """Threads and their roles."""
        return self._rows("threads", lambda s: s.threads)

    def df_blame(self) -> pd.DataFrame:
        """Holder's operation and syscall by victim's operation."""
        return self._rows("blame", lambda s: s.blame)

    def df_held(self) -> pd.DataFrame:
        """Which syscalls run under which lock."""
        return self._rows("held", lambda s: s.held)

    def df_streams(self) -> pd.DataFrame:
        """Audio streams."""
        return self._rows("streams", lambda s: s.streams)

    def df_locks(self) -> pd.DataFrame:
        """Locks that were waited for."""
        return self._rows("locks", lambda s: s.locks)

    def df_episodes(self) -> pd.DataFrame:
        """Runs of misses."""
        return self._rows("episodes", lambda s: s.episodes)

    def df_remedies(self) -> pd.DataFrame:
        """What each remedy alone would have avoided."""
        return self._frame("remedies", lambda s: build.remedies(s.summary))

    def _rows(self, name: str, rows: Callable[[Summary], Iterable[object]]) -> pd.DataFrame:
        return self._frame(name, lambda s: build.of_rows(name, rows(s.summary), s.offset_ns))

    def _repr_html_(self) -> str:
        return summary_html(self.summary, title=self.title, tables=tuple(TABLES))


class Trace(Frames):
    """A recorded trace; analysed when something of it is first asked for, and once.

    Args:
        path: a trace folder, or the single file that ``xdtrace export --to archive`` makes of one.
        period: (quantum, rate) of the streams where the audio server was not seen.
        profile: what is known of the VMM: a file or a name; None: the bundled ones.

    Raises:
        TraceError: no trace, or one that cannot be right (reading may raise it too).
        UsageError: a bad profile.
    """

    def __init__(
        self, path: str | Path, *, period: tuple[int, int] | None = None, profile: str | None = None
    ) -> None:
        self.path = Path(path).absolute()  # attaching later may change the working directory
        self.title = self.path.name
        profiles = default_profiles() if profile is None else (load(profile), *default_profiles())
        self._kept = Collector()
        self._analysis = Analysis(tuple(profiles), period, tap=self._kept)
        self._cache: dict[str, pd.DataFrame] = {}
        self._done: Seen | None = None
        with TraceReader(self.path) as reader:
            self.incomplete = reader.incomplete

    def _batches(self) -> Iterable[Batch]:
        with TraceReader(self.path) as reader:
            yield from reader
            self.incomplete = reader.incomplete

    def records_by_batch(self) -> Iterator[pd.DataFrame]:
        """``df_records()`` batch by batch, for traces that are larger than memory."""
        seen = self._seen()
        for batch in self._batches():
            if len(batch.records):
                yield build.records([batch], seen.analysis, _RECORD_KINDS, seen.offset_ns)

    def _seen(self) -> Seen:
        if self._done is None:
            for batch in self._batches():
                self._analysis.feed(batch)
            self._analysis.finish()
            self._done = Seen(self._analysis, self._kept, self._analysis.summary())
        return self._done

    def _frame(self, name: str, make: Callable[[Seen], pd.DataFrame]) -> pd.DataFrame:
        if name not in self._cache:
            self._cache[name] = super()._frame(name, make)
        return self._cache[name].copy(deep=False)  # pandas copies when somebody writes

    def __repr__(self) -> str:
        return f"tracer.open({str(self.path)!r})"


def open_trace(
    path: str | Path, *, period: tuple[int, int] | None = None, profile: str | None = None
) -> Trace:
    """A recorded trace as DataFrames; arguments and errors as of ``Trace``."""
    return Trace(path, period=period, profile=profile)


def _kind(name: str | Kind) -> Kind:
    try:
        return name if isinstance(name, Kind) else Kind[name.upper()]
    except KeyError:
        raise UsageError(f"{name!r} is no kind of record", f"use {', '.join(k.name for k in Kind)}") from None
