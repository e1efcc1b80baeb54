# SPDX-License-Identifier: Apache-2.0
"""Misses: the last ones in a line each, or in full with every segment.

Owns how a verdict is written and drawn. Computes nothing but text: which miss was
carried over from which comes from the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from tracer.model.summary import Miss, Segment, Summary
from tracer.model.summaryrows import StreamRow
from tracer.views.fmt import (
    BAD,
    DIM,
    SEGMENT_MARKS,
    WARN,
    bar,
    clean,
    count,
    cut,
    duration,
    is_endless,
    legend,
    pad,
    percent,
    plural,
    wrap,
)
from tracer.views.grid import Block, heading

_RECENT = 500  # misses looked at: no screen shows more, and a run may have many thousands
_CARRIED_CAUSE = " (carried)"


def mark(segment: Segment) -> str:
    """The mark a segment is drawn with: its via group where it has one."""
    return segment.via or segment.kind


def _late(miss: Miss) -> str:
    return "never closed" if miss.late_ns is None else f"{duration(miss.late_ns)} late"


def _cause(miss: Miss) -> str:
    name = clean(miss.cause)
    if miss.lock and miss.cause == "lock":
        name += f" {clean(miss.lock)}"
    elif miss.via and miss.via != miss.cause:
        name += f" ({clean(miss.via)})"
    return name + (_CARRIED_CAUSE if miss.carried_from is not None else "")


def _audible(miss: Miss) -> str:
    return {"yes": "audible", "no": "not audible"}.get(miss.audible, "audible?")


def _names(summary: Summary) -> dict[str, str]:
    return {stream.id: clean(stream.title) for stream in summary.streams}


def groups(misses: Sequence[Miss]) -> list[tuple[Miss, list[Miss]]]:
    """Each miss with the carried ones right behind it that name the same origin (or itself)."""
    found: list[tuple[Miss, list[Miss]]] = []
    for miss in misses:
        if found and miss.carried_from is not None:
            head = found[-1][0]
            if miss.carried_from in (head.id, head.carried_from):
                found[-1][1].append(miss)
                continue
        found.append((miss, []))
    return found


def render_misses(summary: Summary) -> Block:
    """The last misses, newest first: a sentence each, with its bar of segments."""
    names = _names(summary)
    recent = groups(summary.misses[-_RECENT:])

    def build(width: int, height: int | None) -> list[Text]:
        if not summary.misses:
            return []
        note = f"newest first, of {plural(_total(summary.streams, summary), 'missed cycle')}"
        lines = [heading("Misses", note, width)]
        rows = groups(summary.misses) if is_endless(width) else recent
        shown, _ = _fit(rows, height)
        keys: set[str] = set()
        for miss, carried in rows[: -shown - 1 : -1]:
            drawn = _bar(miss.segments, _bar_width(width))
            lines.extend(_entry(miss, drawn, carried, names, width))
            keys.update(_marks(drawn))
        if left := len(rows) - shown:
            lines.append(Text(cut(f"  … {count(left)} earlier", width), DIM))
        lines.append(_legend(keys, width))
        return lines

    return Block(build, lambda width, height: _fit(recent, height)[1] if recent else 0)


def _fit(rows: Sequence[tuple[Miss, list[Miss]]], height: int | None) -> tuple[int, int]:
    """How many of the newest entries there is room for (at least one), and the lines of it all."""
    lines, left = 1, len(rows)
    for miss, _ in reversed(rows):
        below = 1 if left == 1 else 2  # the legend, and how many more there are
        if height is not None and lines > 1 and lines + _lines_of(miss) + below > height:
            break
        lines += _lines_of(miss)
        left -= 1
    return len(rows) - left, lines + (1 if left else 0) + 1


def _total(streams: Sequence[StreamRow], summary: Summary) -> int:
    return max(sum(stream.misses for stream in streams), len(summary.misses))


def _legend(keys: set[str], width: int) -> Text:
    line = legend(keys)
    line.truncate(width, overflow="ellipsis")
    return line


def _bar(segments: Sequence[Segment], width: int) -> Text:
    """A bar of the segments, each with its mark."""
    return bar([segment.ns for segment in segments], lambda i: mark(segments[i]), width)


def _lines_of(miss: Miss) -> int:
    """How many lines an entry takes."""
    return 2 if miss.detail and miss.carried_from is None else 1


def _bar_width(width: int) -> int:
    return 40 if width >= 120 else 24 if width >= 78 else 12


def _marks(drawn: Text) -> set[str]:
    """The marks that a miss's bar really shows: a short segment may take no cell."""
    letters = set(drawn.plain)
    return {name for name, (letter, _, _) in SEGMENT_MARKS.items() if letter in letters}


def _entry(miss: Miss, drawn: Text, carried: Sequence[Miss], names: dict[str, str], width: int) -> list[Text]:
    style = DIM if miss.carried_from is not None else ""
    line = Text(no_wrap=True)
    line.append_text(drawn)
    line.append(" " * (_bar_width(width) - drawn.cell_len) + " ")
    line.append(f"{_late(miss)}  ", style or BAD)
    line.append(_cause(miss), style or "bold")
    rest = [names.get(miss.stream, clean(miss.stream) or "no stream"), f"cycle {count(miss.cycle)}", miss.leg]
    rest.append(_audible(miss))
    if carried:
        rest.append(f"+{len(carried)} carried")
    if miss.evidence != "complete":
        rest.append("evidence degraded")
    for part in rest:
        if line.cell_len + 2 + len(part) <= width:
            line.append(f"  {part}", WARN if part.startswith("evidence") else style or DIM)
    line.truncate(width, overflow="ellipsis")
    out = [line]
    if _lines_of(miss) > 1:
        out.append(Text(cut("  " + clean(miss.detail), width), style, no_wrap=True))
    return out


def render_misses_in_detail(summary: Summary) -> Block:
    """The last misses, newest first, each with its segments, its sufficient causes and its evidence."""
    names = _names(summary)

    def build(width: int, height: int | None) -> list[Text]:
        if not summary.misses:
            return []
        note = f"newest first, of {plural(_total(summary.streams, summary), 'missed cycle')}"
        lines = [heading("Misses in detail", note, width)]
        rows = groups(summary.misses[-_RECENT:])
        for shown, (miss, carried) in enumerate(reversed(rows)):
            entry = _in_detail(miss, carried, names, width)
            last = shown + 1 == len(rows)
            if height is not None and shown and len(lines) + len(entry) > height - (not last):
                lines.append(Text(cut(f"  … {count(len(rows) - shown)} earlier", width), DIM))
                break
            lines.extend(entry)
        return lines

    return Block(build)


def _field(name: str, value: str, width: int, style: str = "") -> list[Text]:
    lines = wrap(value, max(width - 14, 10), lines=3)
    out = []
    for i, part in enumerate(lines):
        line = Text(pad(f"  {name}" if i == 0 else "", 14), DIM, no_wrap=True)
        line.append(part, style or "not dim")
        line.truncate(width, overflow="ellipsis")
        out.append(line)
    return out


def _sufficient(miss: Miss) -> str:
    names = ", or ".join(map(clean, miss.sufficient))
    return f"{names}: without {'it' if len(miss.sufficient) == 1 else 'any one'} the cycle is on time"


def _in_detail(miss: Miss, carried: Sequence[Miss], names: dict[str, str], width: int) -> list[Text]:
    stream = names.get(miss.stream, clean(miss.stream) or "no stream")
    title = Text(f"#{miss.id} ", "bold", no_wrap=True)
    title.append(f"{stream}  cycle {count(miss.cycle)}  {miss.leg}  ")
    title.append(_late(miss), BAD)
    title.append(f"  {_audible(miss)}  kick {clean(miss.kick)}", DIM)
    if miss.evidence != "complete":
        title.append("  evidence degraded", WARN)
    title.truncate(width, overflow="ellipsis")
    lines = [title]
    if miss.detail:
        lines.extend(Text("  " + part, no_wrap=True) for part in wrap(clean(miss.detail), width - 2, lines=4))
    lines.extend(_field("cause", _cause(miss), width, "bold"))
    if miss.carried_from is not None:
        lines.extend(_field("carried", f"from miss #{miss.carried_from}", width))
    elif miss.sufficient:
        lines.extend(_field("sufficient", _sufficient(miss), width))
    elif miss.jointly:
        lines.extend(_field("jointly", " + ".join(map(clean, miss.jointly)), width))
    if miss.chain:
        lines.extend(_field("chain", " ← ".join(map(clean, miss.chain)), width))
    if miss.went_first:
        first = ", ".join(f"{clean(k)} {count(v)}" for k, v in miss.went_first.items())
        lines.extend(_field("went first", first, width))
    if miss.todo:
        lines.extend(_field("do", clean(miss.todo), width))
    if carried:
        ids = f"#{carried[0].id}" if len(carried) == 1 else f"#{carried[0].id} to #{carried[-1].id}"
        lines.extend(_field("and", f"{plural(len(carried), 'carried miss')} ({ids})", width))
    lines.extend(_segments(miss.segments, width))
    lines.append(Text())
    return lines


def alike(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Pieces of one kind, group, object and thread together, the largest sum first."""
    found: dict[tuple[str, str, str, int], list[Segment]] = {}
    for segment in segments:
        found.setdefault((segment.kind, segment.via, segment.object, segment.tid), []).append(segment)
    return sorted(found.values(), key=lambda group: -sum(s.ns for s in group))


def _segments(segments: Sequence[Segment], width: int, most: int = 8) -> list[Text]:
    """The bar in order of time, then what it is made of, the largest part first."""
    drawn = Text("  ", no_wrap=True)
    drawn.append_text(_bar(segments, min(width - 2, 100)))
    lines = [drawn] if segments else []
    total = sum(s.ns for s in segments)
    parts = alike(segments)
    for group in parts[:most]:
        lines.append(_alike(group, total, width))
    if len(parts) > most:
        rest_ns = sum(s.ns for group in parts[most:] for s in group)
        lines.append(Text(cut(f"    … {count(len(parts) - most)} more, {duration(rest_ns)}", width), DIM))
    return lines


def _alike(group: Sequence[Segment], total_ns: int, width: int) -> Text:
    """Pieces of one kind, thread and object as one line: a long starvation has thousands of them."""
    first, ns = group[0], sum(s.ns for s in group)
    letter, style, _ = SEGMENT_MARKS.get(mark(first), SEGMENT_MARKS["unknown"])
    line = Text("  ", no_wrap=True)
    line.append(letter, style)
    line.append(f" {pad(duration(ns), 7, right=True)} {pad(percent(ns / max(total_ns, 1)), 5, right=True)}  ")
    line.append(" ".join(filter(None, [first.kind, clean(first.object)])))
    if first.via:
        line.append(f"  via {first.via}")
    if first.tid:
        line.append(f"  tid {first.tid}", DIM)
    if len(group) > 1:
        line.append(f"  in {count(len(group))} pieces", DIM)
    elif first.detail:
        line.append(f"  {clean(first.detail)}", DIM)
    line.truncate(width, overflow="ellipsis")
    return line
