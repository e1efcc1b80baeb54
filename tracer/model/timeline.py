# SPDX-License-Identifier: Apache-2.0
"""Records in order of time, and what a thread did in an interval.

Owns two things: ``Sequencer``, which turns batches (cut anywhere) into fixed
steps of record time, so that no result can depend on where a batch was cut;
and ``Timeline``, which keeps the last seconds of spans per thread and cuts an
interval of a thread into pieces, each with one state. Knows no stream, no role.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.schema import OFFCPU, Flag, Kind, Records, empty_records, end_ns, view

#: One step of record time. All state of the model changes only at multiples of it.
STEP_NS: Final = 200_000_000
#: How long spans are kept: the longest window (2 s grace) plus what baselines look back on.
RETENTION_NS: Final = 8_000_000_000
#: Steal below this is noise of the clock's granularity and is not cut out.
MIN_STOLEN_NS: Final = 20_000


class Sequencer:
    """Batches in, steps out: each step has the records with end in (previous, end], sorted.

    Sorted by (end, tid, kind, enter), duplicates dropped never. LATE records are
    counted and dropped, here as in a live session, so that both agree.
    """

    def __init__(self) -> None:
        self._pending: list[Records] = []
        self._next: int | None = None
        self.late = 0
        self.first_ns: int | None = None

    def feed(self, records: Records, watermark_ns: int) -> Iterator[tuple[Records, int]]:
        """Yield (records of the step, end of the step in ns) for each step the watermark completes."""
        if len(records):
            late = (records["flags"] & Flag.LATE) != 0
            if late.any():
                self.late += int(late.sum())
                records = records[~late]
        if len(records):
            self._pending.append(records)
        if self._next is None:
            if not self._pending:
                return
            first = min(int(end_ns(part).min()) for part in self._pending)
            self._next = (first // STEP_NS + 1) * STEP_NS
            self.first_ns = first
        if watermark_ns < self._next:
            return
        pending = np.concatenate(self._pending) if self._pending else empty_records()
        pending = _in_order(pending)
        ends = end_ns(pending)
        while watermark_ns >= self._next:
            cut = int(np.searchsorted(ends, self._next, side="right"))
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
    records, ends = records[order], ends[order]
    ties = np.flatnonzero(ends[1:] == ends[:-1])
    if not len(ties):
        return records
    member = np.zeros(len(records), dtype=bool)
    member[ties] = True
    member[ties + 1] = True
    at = np.flatnonzero(member)
    tied = records[at]
    inner = np.lexsort((tied["enter_ns"], tied["kind"], tied["tid"], ends[at]))
    records[at] = tied[inner]
    return records


class State(enum.Enum):
    """What a thread does at an instant."""

    ON_CPU = "on_cpu"
    SYSCALL = "syscall"
    SYSCALL_BLOCKED = "syscall_blocked"
    RUNNABLE = "runnable"
    BLOCKED = "blocked"
    STOLEN = "stolen"


@dataclass(frozen=True, slots=True)
class Piece:
    """A thread's state over [start_ns, end_ns).

    Attributes:
        syscall: the span it is inside of (a RECORD row), None in user space.
        offcpu: the off-CPU span it belongs to (an OFFCPU row), None while on a CPU.
    """

    start_ns: int
    end_ns: int
    state: State
    syscall: np.void | None = None
    offcpu: np.void | None = None

    @property
    def ns(self) -> int:
        """Length in ns."""
        return self.end_ns - self.start_ns


@dataclass(slots=True)
class _Chunk:
    """One step's spans, sorted by (tid, end)."""

    end_ns: int
    records: Records
    ends: NDArray[np.uint64]
    slices: dict[int, tuple[int, int]]


@dataclass(slots=True)
class Timeline:
    """The last ``RETENTION_NS`` of spans, per thread."""

    _chunks: list[_Chunk] = field(default_factory=list)
    end_ns: int = 0

    def step(self, records: Records, step_end_ns: int) -> None:
        """Take over one step's records (sorted, as ``Sequencer`` yields them)."""
        self.end_ns = step_end_ns
        spans = records[(records["kind"] <= Kind.OFFCPU)]
        if len(spans):
            tids = spans["tid"]
            order = np.argsort(tids, kind="stable")
            spans, tids = spans[order], tids[order]
            starts = np.flatnonzero(np.r_[True, tids[1:] != tids[:-1]])
            stops = np.r_[starts[1:], len(tids)]
            slices = {int(tids[a]): (int(a), int(b)) for a, b in zip(starts, stops, strict=True)}
            self._chunks.append(_Chunk(step_end_ns, spans, end_ns(spans), slices))
        horizon = step_end_ns - RETENTION_NS
        while self._chunks and self._chunks[0].end_ns <= horizon:
            self._chunks.pop(0)

    @property
    def begin_ns(self) -> int:
        """Nothing that ended before this is kept."""
        return self._chunks[0].end_ns - STEP_NS if self._chunks else self.end_ns

    def spans(self, tid: int, start_ns: int, stop_ns: int) -> Records:
        """Spans (n,) of a thread that overlap [start_ns, stop_ns], by end; OPEN ones only if never closed."""
        parts: list[Records] = []
        for chunk in self._chunks:
            if chunk.end_ns < start_ns:
                continue
            bounds = chunk.slices.get(tid)
            if bounds is None:
                continue
            low, high = bounds
            first = low + int(np.searchsorted(chunk.ends[low:high], start_ns))
            part = chunk.records[first:high]
            inside = part["enter_ns"] <= stop_ns
            if not inside.all():
                part = part[inside]
            if len(part):
                parts.append(part)
            if high > low and int(chunk.records["enter_ns"][low:high].min()) > stop_ns and parts:
                break
        if not parts:
            return empty_records()
        found = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if (found["flags"] & Flag.OPEN).any():
            found = _without_superseded(found)
        return found

    def last(self, tid: int, kind: Kind, before_ns: int, back_ns: int = 2_000_000_000) -> np.void | None:
        """The last span of a kind that ended at or before a time, None where none is kept."""
        found: np.void | None = None
        for chunk in reversed(self._chunks):
            if chunk.end_ns - STEP_NS > before_ns:
                continue
            if chunk.end_ns < before_ns - back_ns:
                break
            bounds = chunk.slices.get(tid)
            if bounds is None:
                continue
            low, high = bounds
            stop = low + int(np.searchsorted(chunk.ends[low:high], before_ns, side="right"))
            rows = chunk.records[low:stop]
            at = np.flatnonzero((rows["kind"] == kind) & ((rows["flags"] & Flag.OPEN) == 0))
            if len(at):
                found = rows[at[-1]]
                break
        return found

    def pieces(self, tid: int, start_ns: int, stop_ns: int) -> list[Piece]:
        """Cut [start_ns, stop_ns) of a thread into pieces, in order, without gaps.

        A thread with no span at all in the interval is on a CPU in user space as
        far as records can say; callers decide whether its records are complete.
        """
        if stop_ns <= start_ns:
            return []
        spans = self.spans(tid, start_ns, stop_ns)
        off = view(spans[spans["kind"] == Kind.OFFCPU], OFFCPU)
        calls = spans[spans["kind"] < Kind.OFFCPU]
        pieces: list[Piece] = []
        cursor = start_ns
        for row in off:
            out, back = int(row["enter_ns"]), int(row["enter_ns"]) + int(row["dur_ns"])
            if back <= cursor:
                continue
            if out > cursor:
                _on_cpu(pieces, calls, cursor, min(out, stop_ns))
                cursor = min(out, stop_ns)
            if cursor >= stop_ns:
                break
            blocked_until = out
            if not row["preempted"] and int(row["op"]) & 3:
                woken = int(row["woken_ns"])
                blocked_until = min(max(woken, out), back) if woken else back
            until = min(blocked_until, stop_ns)
            if until > cursor:
                _split_by_call(pieces, calls, cursor, until, row)
                cursor = until
            until = min(back, stop_ns)
            if until > cursor:
                call = _call_at(calls, cursor)
                pieces.append(Piece(cursor, until, State.RUNNABLE, call, row))
                cursor = until
            if cursor >= stop_ns:
                break
        if cursor < stop_ns:
            _on_cpu(pieces, calls, cursor, stop_ns)
        return self._with_steal(tid, pieces, start_ns, stop_ns)

    def _with_steal(self, tid: int, pieces: list[Piece], start_ns: int, stop_ns: int) -> list[Piece]:
        """Cut out of on-CPU pieces what the hypervisor took.

        An off-CPU span says how much steal time its CPU gained while the thread was on it
        before; where in that time it lay is not recorded, so the longest pieces give it up first.
        """
        after = view(self.spans(tid, start_ns, stop_ns + 20_000_000), OFFCPU)
        after = after[after["kind"] == Kind.OFFCPU]
        if not len(after) or int(after["stolen_ns"].max()) < MIN_STOLEN_NS:
            return pieces
        previous = start_ns
        for row in after:
            stolen, out = int(row["stolen_ns"]), int(row["enter_ns"])
            if stolen >= MIN_STOLEN_NS and out > start_ns:
                run = [
                    i
                    for i, p in enumerate(pieces)
                    if p.state in (State.ON_CPU, State.SYSCALL) and p.start_ns >= previous and p.end_ns <= out
                ]
                # The on-CPU stretch may have begun before the window: only its share lies inside.
                for i in sorted(run, key=lambda i: -pieces[i].ns):
                    take = min(stolen, pieces[i].ns)
                    if take < MIN_STOLEN_NS:
                        break
                    p = pieces[i]
                    pieces[i] = Piece(p.start_ns, p.start_ns + take, State.STOLEN, p.syscall)
                    if take < p.ns:
                        pieces.append(Piece(p.start_ns + take, p.end_ns, p.state, p.syscall))
                    stolen -= take
                pieces.sort(key=lambda p: p.start_ns)
            previous = out + int(row["dur_ns"])
            if out >= stop_ns:
                break
        return pieces


def _without_superseded(found: Records) -> Records:
    """Drop OPEN records whose span was recorded again later (equal kind, tid and enter)."""
    keep = np.ones(len(found), dtype=bool)
    last: dict[tuple[int, int], int] = {}
    family = np.where(found["kind"] == Kind.OFFCPU, 1, 0)
    for i in range(len(found)):
        key = (int(family[i]), int(found["enter_ns"][i]))
        before = last.get(key)
        if before is not None and found["flags"][before] & Flag.OPEN:
            keep[before] = False
        last[key] = i
    return found[keep]


def _call_at(calls: Records, at_ns: int) -> np.void | None:
    """The syscall span that encloses an instant: begun at or before it, ending after it."""
    ends = end_ns(calls)
    first = int(np.searchsorted(ends, at_ns, side="right"))
    if first < len(calls) and int(calls["enter_ns"][first]) <= at_ns:
        row: np.void = calls[first]
        return row
    return None


def _on_cpu(pieces: list[Piece], calls: Records, start_ns: int, stop_ns: int) -> None:
    """Append on-CPU pieces of [start_ns, stop_ns), cut by syscall spans."""
    _cut(pieces, calls, start_ns, stop_ns, None, State.SYSCALL, State.ON_CPU)


def _split_by_call(pieces: list[Piece], calls: Records, start_ns: int, stop_ns: int, off: np.void) -> None:
    """Append blocked pieces of [start_ns, stop_ns), cut by syscall spans."""
    _cut(pieces, calls, start_ns, stop_ns, off, State.SYSCALL_BLOCKED, State.BLOCKED)


def _cut(
    pieces: list[Piece],
    calls: Records,
    start_ns: int,
    stop_ns: int,
    off: np.void | None,
    inside: State,
    outside: State,
) -> None:
    cursor = start_ns
    ends = end_ns(calls)
    i = int(np.searchsorted(ends, start_ns, side="right"))
    while cursor < stop_ns and i < len(calls):
        enter, end = int(calls["enter_ns"][i]), int(ends[i])
        if enter >= stop_ns:
            break
        if enter > cursor:
            pieces.append(Piece(cursor, enter, outside, None, off))
            cursor = enter
        until = min(end, stop_ns)
        if until > cursor:
            pieces.append(Piece(cursor, until, inside, calls[i], off))
            cursor = until
        i += 1
    if cursor < stop_ns:
        pieces.append(Piece(cursor, stop_ns, outside, None, off))
