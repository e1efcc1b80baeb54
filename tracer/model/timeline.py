# SPDX-License-Identifier: Apache-2.0
"""Records in order of time, and what a thread did in an interval.

Owns two things: ``Sequencer``, which turns batches (cut anywhere) into fixed
steps of record time, so that no result can depend on where a batch was cut;
and ``Timeline``, which keeps the last seconds of spans per thread. What a thread
did in an interval is window.py's. Knows no stream, no role.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from tracer.model.step import Step, Threads
from tracer.model.track import MIN_STOLEN_NS, Track
from tracer.model.words import join
from tracer.schema import OFFCPU, RECORD, RW, Flag, Kind, Records, empty_records, end_ns, view

#: One step of record time. All state of the model changes only at multiples of it.
STEP_NS: Final = 200_000_000
#: How long spans are kept: the longest window (2 s grace) plus what baselines look back on.
RETENTION_NS: Final = 8_000_000_000
#: Steps without a record are passed over from here on: nothing of what came before is kept or undecided
#: (a trace that says a century has few records and a billion steps).
QUIET_NS: Final = 4 * RETENTION_NS
#: A thread's first spans to end after an interval; one that began within it is among them.
_LOOK_AHEAD: Final = 16


class Sequencer:
    """Batches in, steps out: each step has the records with end in (previous, end], sorted.

    Sorted by (end, tid, kind, enter), duplicates dropped never. LATE records are
    counted and dropped, here as in a live session, so that both agree. Steps go on without records
    for QUIET_NS, then to the one of the next record, whenever that is learned.
    """

    def __init__(self) -> None:
        self._pending: list[Records] = []
        self._next: int | None = None
        self._last_ns = 0
        self.late = 0
        self.first_ns: int | None = None

    def feed(self, records: Records, watermark_ns: int) -> Iterator[tuple[Records, int]]:
        """Yield (records of the step, end of the step in ns) for each step the watermark completes."""
        if len(records):
            late = (records["flags"] & Flag.LATE) != 0
            if late.any():
                self.late += int(late.sum())
                records = records.take(np.flatnonzero(~late))
        if len(records):
            self._pending.append(records)
        if self._next is None:
            if not self._pending:
                return
            first = min(int(end_ns(part).min()) for part in self._pending)
            self._next = (first // STEP_NS + 1) * STEP_NS
            self.first_ns = self._last_ns = first
        if watermark_ns < self._next:
            return
        pending = _in_order(join(self._pending, RECORD))
        ends = end_ns(pending)
        while watermark_ns >= self._next:
            cut = int(np.searchsorted(ends, np.uint64(self._next), side="right"))
            if cut:
                self._last_ns = int(ends[cut - 1])
            elif self._next - self._last_ns > QUIET_NS:
                if not len(ends):
                    break
                self._next = -(-int(ends[0]) // STEP_NS) * STEP_NS
                self._last_ns = int(ends[0])
                continue
            yield pending[:cut], self._next
            pending, ends = pending[cut:], ends[cut:]
            self._next += STEP_NS
        self._pending = [pending] if len(pending) else []

    def finish(self) -> Iterator[tuple[Records, int]]:
        """Yield what is left, as if the watermark had passed it all."""
        if self._pending:
            last = max(int(end_ns(part).max()) for part in self._pending)
            yield from self.feed(empty_records(), (last // STEP_NS + 1) * STEP_NS)


def _in_order(records: Records) -> Records:
    """Records sorted by (end, tid, kind, enter); cheap where they nearly are."""
    ends = end_ns(records)
    order = np.argsort(ends, kind="stable")
    records, ends = records.take(order), ends.take(order)
    ties = np.flatnonzero(ends[1:] == ends[:-1])
    if not len(ties):
        return records
    member = np.zeros(len(records), dtype=bool)
    member[ties] = True
    member[ties + 1] = True
    at = np.flatnonzero(member)
    tied = records.take(at)
    inner = np.lexsort((tied["enter_ns"], tied["kind"], tied["tid"], ends[at]))
    records[at] = tied.take(inner)
    return records


class FailedWrite(NamedTuple):
    """A write of eight bytes, as to an eventfd, that failed."""

    tid: int
    enter: int
    end: int
    errno: int
    eventfd: int


@dataclass(slots=True)
class _Chunk:
    """One step's spans by thread."""

    end_ns: int
    threads: Threads
    stolen: list[tuple[int, int]]
    failed: list[FailedWrite] | None = None


@dataclass(slots=True)
class Timeline:
    """The last ``RETENTION_NS`` of spans, per thread."""

    _chunks: list[_Chunk] = field(default_factory=list)
    _chunk_ends: list[int] = field(default_factory=list)
    _tracks: dict[int, Track] = field(default_factory=dict)
    end_ns: int = 0

    def step(self, step: Step) -> None:
        """Take over one step's records."""
        self.end_ns = step.end_ns
        if len(step.threads.records):
            self._chunks.append(_Chunk(step.end_ns, step.threads, _stolen(step.threads.records)))
            self._chunk_ends.append(step.end_ns)
        old = bisect_right(self._chunk_ends, step.end_ns - RETENTION_NS)
        if old:
            gone = self._chunk_ends[old - 1]
            del self._chunks[:old], self._chunk_ends[:old]
            for tid in [t for t, track in self._tracks.items() if track.forget(gone)]:
                del self._tracks[tid]

    @property
    def begin_ns(self) -> int:
        """Nothing that ended before this is kept."""
        return self._chunks[0].end_ns - STEP_NS if self._chunks else self.end_ns

    def spans(self, tid: int, start_ns: int, stop_ns: int) -> Records:
        """Spans (n,) of a thread that overlap [start_ns, stop_ns], by end; OPEN ones only if never closed."""
        parts: list[Records] = []
        chunks = self._chunks
        for i in range(bisect_left(self._chunk_ends, start_ns), len(chunks)):
            chunk = chunks[i]
            bounds = chunk.threads.slices.get(tid)
            if bounds is None:
                continue
            low, high = bounds
            if chunk.end_ns - STEP_NS > stop_ns:
                # Past the interval: only a span that began within it is of interest.
                part = chunk.threads.records[low : min(high, low + _LOOK_AHEAD)]
            else:
                first = low + int(np.searchsorted(chunk.threads.ends[low:high], start_ns))
                part = chunk.threads.records[first:high]
            inside = part["enter_ns"] <= stop_ns
            if not inside.all():
                part = part.take(np.flatnonzero(inside))
            if len(part):
                parts.append(part)
            elif chunk.end_ns - STEP_NS > stop_ns:
                break
        if not parts:
            return empty_records()
        found = join(parts, RECORD)
        if (found["flags"] & Flag.OPEN).any():
            found = _without_superseded(found)
        return found

    def stolen(self, start_ns: int, stop_ns: int) -> bool:
        """Whether a span that overlaps an interval tells of stolen time before it, by whichever thread."""
        first = bisect_left(self._chunk_ends, start_ns)
        return any(
            back >= start_ns and out <= stop_ns
            for chunk in self._chunks[first:]
            for out, back in chunk.stolen
        )

    def failed_writes(self, start_ns: int, stop_ns: int) -> Iterator[FailedWrite]:
        """Failed writes within an interval, of each thread in order; looked for once a step."""
        first = bisect_left(self._chunk_ends, start_ns)
        for chunk in self._chunks[first : bisect_left(self._chunk_ends, stop_ns) + 1]:
            if chunk.failed is None:
                chunk.failed = _failed(chunk.threads.records)
            for write in chunk.failed:
                if write.enter >= start_ns and write.end <= stop_ns:
                    yield write

    def track(self, tid: int, start_ns: int) -> Track:
        """A thread's spans from a time on as tuples; converted once and kept."""
        track = self._tracks.get(tid)
        start_ns = max(start_ns, self.begin_ns)  # what ended before that is gone: no reason to read anew
        if track is None or not track.since_ns <= start_ns <= track.until_ns + STEP_NS:
            track = self._tracks[tid] = Track(start_ns)
        for i in range(bisect_right(self._chunk_ends, track.until_ns), len(self._chunks)):
            chunk = self._chunks[i]
            if chunk.end_ns >= track.since_ns:
                bounds = chunk.threads.slices.get(tid)
                if bounds is not None:
                    track.add(chunk.threads.records[bounds[0] : bounds[1]])
            track.until_ns = chunk.end_ns
        return track


def _stolen(spans: Records) -> list[tuple[int, int]]:
    """The off-CPU spans of (n,) that tell of steal worth looking at, as (begin, end)."""
    off = view(spans, OFFCPU)
    at = np.flatnonzero((off["kind"] == Kind.OFFCPU) & (off["stolen_ns"] >= MIN_STOLEN_NS))
    rows = off.take(at)
    return list(zip(rows["enter_ns"].tolist(), end_ns(rows).tolist(), strict=True))


def _failed(spans: Records) -> list[FailedWrite]:
    """The writes of eight bytes among spans (n,) that failed; one that is still open has not."""
    rw = view(spans, RW)
    at = np.flatnonzero(
        (rw["ret"] < 0) & (rw["kind"] == Kind.WRITE) & (rw["len"] == 8) & ((rw["flags"] & Flag.OPEN) == 0)
    )
    rows = rw.take(at)
    columns = (rows["tid"], rows["enter_ns"], end_ns(rows), -rows["ret"].astype(np.int64), rows["eventfd_id"])
    return [FailedWrite(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _without_superseded(found: Records) -> Records:
    """Drop OPEN records whose span was recorded again later (equal family, tid and enter)."""
    keep = np.ones(len(found), dtype=bool)
    last: dict[tuple[bool, int], int] = {}
    off = (found["kind"] == Kind.OFFCPU).tolist()
    opened = ((found["flags"] & Flag.OPEN) != 0).tolist()
    for i, key in enumerate(zip(off, found["enter_ns"].tolist(), strict=True)):
        before = last.get(key)
        if before is not None and opened[before]:
            keep[before] = False
        last[key] = i
    return found.take(np.flatnonzero(keep))
