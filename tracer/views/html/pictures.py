# SPDX-License-Identifier: Apache-2.0
"""The page's pictures as shapes: where each lies and what it is called.

Owns geometry only: what is drawn stands in the Summary. Shapes are stretched to the page's width, so
text never lies inside a picture: it would be stretched too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tracer.model.summary import Miss, Segment, Summary, Window
from tracer.model.summaryrows import HolderRow, LockRow, StreamRow, ThreadRow
from tracer.views.fmt import SEGMENT_MARKS, count, duration, plural
from tracer.views.misses import alike, groups

#: Mark -> its name in words; the class of a shape is "m-" and the mark.
MARKS = {name: words for name, (_, _, words) in SEGMENT_MARKS.items()} | {"own": "for this cycle"}

#: Columns that a timeline is drawn in: pieces shorter than one are drawn as what prevails in it.
COLUMNS = 480
#: Width and height that slack is drawn in, before it is stretched.
WIDE, HIGH = 1024, 100
#: Threads of a timeline, and rows of the table below it.
LANES, PARTS = 12, 8
#: Locks and operations of the heat map, and locks whose waits are drawn.
HEAT_ROWS, HEAT_COLUMNS, WAIT_LOCKS = 10, 8, 8
#: Lateness is drawn up to so many periods.
LATE_PERIODS = 2


@dataclass(frozen=True, slots=True)
class Lane:
    """A row of a timeline: (mark, path) of its shapes, in COLUMNS × 1; ``says``: the same in words."""

    label: str
    sub: str
    shapes: tuple[tuple[str, Markup], ...]
    says: str


@dataclass(frozen=True, slots=True)
class Part:
    """What a miss is made of: pieces of one kind, thread and object together."""

    mark: str
    what: str
    via: str
    thread: str
    ns: int
    share: float
    pieces: int
    detail: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """One miss; ``deadline`` as a share of its window, which is ``total_ns`` long."""

    miss: Miss
    stream: str
    lanes: tuple[Lane, ...]
    marks: tuple[str, ...]
    deadline: float
    total_ns: int
    column_ns: int
    parts: tuple[Part, ...]
    more: int


def timeline(miss: Miss, summary: Summary) -> Timeline:
    """A miss's segments, a lane per responsible thread, above them for whose work each instant went."""
    total = max(sum(s.ns for s in miss.segments), 1)
    known = {t.tid: t for t in summary.threads}
    whose = [(0, s.via or "own", s.ns) for s in miss.segments]
    lanes = [Lane("for whose work", "", *_lane(_columns(whose, total)[0], whose))]
    kinds = [(s.tid, s.kind, s.ns) for s in miss.segments]
    columns = _columns(kinds, total)
    by_tid: dict[int, list[tuple[int, str, int]]] = {}
    for piece in kinds:
        by_tid.setdefault(piece[0], []).append(piece)
    for tid, pieces in list(by_tid.items())[:LANES]:
        thread = known.get(tid)
        label = thread.comm if thread is not None else "not seen" if not tid else f"thread {tid}"
        sub = f"{thread.role} {tid}".strip() if thread is not None else ""
        lanes.append(Lane(label, sub, *_lane(columns[tid], pieces)))
    parts = alike(miss.segments)
    name = {stream.id: stream.title for stream in summary.streams}.get(miss.stream, miss.stream)
    used = {mark for lane in lanes for mark, _ in lane.shapes}
    return Timeline(
        miss=miss,
        stream=name or "no stream",
        lanes=tuple(lanes),
        marks=tuple(mark for mark in MARKS if mark in used),
        deadline=min(max((miss.deadline_ns - miss.start_ns) / total, 0.0), 1.0),
        total_ns=total,
        column_ns=total // COLUMNS,
        parts=tuple(_part(group, total, known) for group in parts[:PARTS]),
        more=max(len(parts) - PARTS, 0),
    )


def _part(group: Sequence[Segment], total: int, known: Mapping[int, ThreadRow]) -> Part:
    first, ns = group[0], sum(s.ns for s in group)
    thread = known.get(first.tid)
    return Part(
        mark=first.kind,
        what=" ".join(filter(None, [MARKS.get(first.kind, first.kind), first.object])),
        via=MARKS.get(first.via, first.via),
        thread=thread.comm if thread is not None else str(first.tid or "not seen"),
        ns=ns,
        share=ns / total,
        pieces=len(group),
        detail=first.detail if len(group) == 1 else "",
    )


def _columns(pieces: Sequence[tuple[int, str, int]], total: int) -> dict[int, list[dict[str, int]]]:
    """How much of each mark is in each column of each lane, in 1/COLUMNS ns; pieces are (lane, mark, ns)."""
    lanes: dict[int, list[dict[str, int]]] = {}
    at = 0
    for lane, mark, ns in pieces:
        columns = lanes.get(lane)
        if columns is None:
            columns = lanes[lane] = [{} for _ in range(COLUMNS)]
        begin, at = at, at + ns
        if not ns:
            continue
        for column in range(begin * COLUMNS // total, (at * COLUMNS - 1) // total + 1):
            inside = min(at * COLUMNS, (column + 1) * total) - max(begin * COLUMNS, column * total)
            columns[column][mark] = columns[column].get(mark, 0) + inside
    return lanes


def _lane(
    columns: Sequence[dict[str, int]], pieces: Sequence[tuple[int, str, int]]
) -> tuple[tuple[tuple[str, Markup], ...], str]:
    """Shapes in COLUMNS × 1, each column showing what prevails in it, and the sums in words."""
    runs: dict[str, list[tuple[int, int]]] = {}
    before = ""
    for column, weight in enumerate(columns):
        mark = max(weight, key=lambda m: (weight[m], m)) if weight else ""
        if mark and mark == before:
            runs[mark][-1] = (runs[mark][-1][0], column + 1)
        elif mark:
            runs.setdefault(mark, []).append((column, column + 1))
        before = mark
    sums: dict[str, int] = {}
    for _, mark, ns in pieces:
        sums[mark] = sums.get(mark, 0) + ns
    says = ", ".join(
        f"{MARKS.get(mark, mark)} {duration(ns)}" for mark, ns in sorted(sums.items(), key=lambda i: -i[1])
    )
    shapes = tuple((mark, _path(f"M{a} 0H{b}V1H{a}Z" for a, b in rows)) for mark, rows in runs.items())
    return shapes, says


@dataclass(frozen=True, slots=True)
class SlackPicture:
    """A stream's slack: paths in WIDE × HIGH; ``zero``: where the deadline lies, from the top."""

    stream: StreamRow
    mean: Markup
    least: Markup
    late: Markup
    zero: float
    below_ns: int
    clipped: bool
    seconds: float
    says: str


def slack(stream: StreamRow, window: Window) -> SlackPicture:
    """Slack over the recording: up is time to spare, down is late, at most LATE_PERIODS of it."""
    width = stream.slack_bin_ns
    start = min(b.start_ns for b in stream.slack_bins)
    end = max(b.start_ns for b in stream.slack_bins) + width
    top = max(stream.period_ns, max((b.mean_ns or 0) for b in stream.slack_bins), 1)
    worst = max((b.late_ns or 0) for b in stream.slack_bins)
    below = min(max(worst, top // 4), LATE_PERIODS * top)
    scale, across = HIGH / (top + below), WIDE / (end - start)
    zero = top * scale
    mean, least, late = [], [], []
    following = [b.start_ns for b in stream.slack_bins[1:]] + [end]
    for b, then in zip(stream.slack_bins, following, strict=True):
        # A short recording's stretches are shorter than a period; a gap is left where cycles were missing.
        until = then if then - b.start_ns <= stream.period_ns + width else b.start_ns + width
        x, w = (b.start_ns - start) * across, max((until - b.start_ns) * across, 1.0)
        if b.mean_ns is not None and b.least_ns is not None:
            mean.append(_box(x, zero - min(b.mean_ns, top) * scale, w, zero))
            least.append(_box(x, zero - min(b.least_ns, top) * scale, w, zero))
        if b.misses:
            depth = below if not b.late_ns else min(b.late_ns, below)
            late.append(_box(x, zero, max(w, 3.0), zero + max(depth * scale, 4.0)))
    clipped = worst > below or any(b.misses and not b.late_ns for b in stream.slack_bins)
    missed = sum(b.misses > 0 for b in stream.slack_bins)
    where = (
        f", in {missed} of {plural(len(stream.slack_bins), 'stretch')} of {duration(width)}" if missed else ""
    )
    says = (
        f"{plural(stream.cycles, 'cycle')}, {count(stream.misses)} missed{where}; median slack "
        f"{duration(stream.slack_ns.p50)}, least {duration(stream.slack_ns.min)}"
    )
    return SlackPicture(
        stream, _path(mean), _path(least), _path(late), zero, below, clipped, (end - start) / 1e9, says
    )


def _path(pieces: Iterable[str]) -> Markup:
    """A path of numbers of ours only: nothing in it needs an escape, and it is never shortened."""
    return Markup("".join(pieces))


def _box(x: float, top: float, width: float, bottom: float) -> str:
    return f"M{x:.1f} {top:.1f}h{width:.1f}V{bottom:.1f}h-{width:.1f}Z"


@dataclass(frozen=True, slots=True)
class Heat:
    """Waits by lock and holder's operation; a cell is (row, 0…1) or None."""

    operations: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[HolderRow, float] | None, ...]], ...]
    more: int


def heat(holders: Sequence[HolderRow]) -> Heat:
    """The locks and operations with most waiting; as warm as the share of the longest total."""
    locks = list(dict.fromkeys(h.lock for h in sorted(holders, key=_harm)))[:HEAT_ROWS]
    kept = [h for h in holders if h.lock in locks]
    operations = list(dict.fromkeys(h.operation for h in sorted(kept, key=_harm)))[:HEAT_COLUMNS]
    most = max((h.wait_ns_total for h in kept), default=1) or 1
    cells = {(h.lock, h.operation): (h, h.wait_ns_total / most) for h in kept if h.operation in operations}
    rows = tuple((lock, tuple(cells.get((lock, o)) for o in operations)) for lock in locks)
    return Heat(tuple(operations), rows, len(holders) - len(cells))


def _harm(row: HolderRow) -> tuple[int, int]:
    return (-row.wait_ns_total, -row.misses)


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the waits for each lock were, on one scale of octaves from ``low_ns`` to ``high_ns``."""

    rows: tuple[tuple[LockRow, Markup, str], ...]
    low_ns: int
    high_ns: int
    ticks: tuple[tuple[float, str], ...]


def waits(locks: Sequence[LockRow]) -> Waits | None:
    """A histogram per lock; None where no lock was waited for."""
    shown = [lock for lock in locks if lock.wait_bins][:WAIT_LOCKS]
    if not shown:
        return None
    edges = sorted({(b.from_ns, b.to_ns) for lock in shown for b in lock.wait_bins})
    slot = {edge: i for i, edge in enumerate(edges)}
    rows = []
    for lock in shown:
        most = max(b.waits for b in lock.wait_bins)
        path = _path(
            _box(slot[b.from_ns, b.to_ns] * WIDE / len(edges), HIGH - max(b.waits * HIGH / most, 2.0),
                 WIDE / len(edges) * 0.92, HIGH)
            for b in lock.wait_bins
            if b.waits
        )  # fmt: skip
        stats = lock.wait_ns
        says = (
            f"{plural(lock.contended, 'wait')}, half of them shorter than {duration(stats.p50)}, 99 of 100 "
            f"shorter than {duration(stats.p99)}, the longest {duration(stats.max)}; most in one bar: {most}"
        )
        rows.append((lock, path, says))
    step = max(len(edges) // 4, 1)
    ticks = tuple((i / len(edges), duration(edges[i][0])) for i in range(0, len(edges), step))
    return Waits(tuple(rows), edges[0][0], edges[-1][1], ticks)


def grouped(misses: Sequence[Miss]) -> list[tuple[Miss, int]]:
    """Misses newest first, each with how many were carried over from it."""
    return [(miss, len(carried)) for miss, carried in reversed(groups(misses))]
