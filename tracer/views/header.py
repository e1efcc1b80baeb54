# SPDX-License-Identifier: Apache-2.0
"""The header: what is traced, what that costs, what was lost, and the verdict.

Owns the lines above all tables. Computes nothing but text.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from tracer.model.summary import Summary
from tracer.model.summaryrows import TargetRow, WritePath
from tracer.views.fmt import (
    BAD,
    DIM,
    GOOD,
    NONE,
    WARN,
    clean,
    clock,
    count,
    cut,
    duration,
    plural,
    wrap,
)
from tracer.views.grid import Block


def render_header(summary: Summary, *, paused: bool = False) -> Block:
    """Targets, write paths, rates, losses, own cost, the verdict and what to do."""

    def build(width: int, height: int | None) -> list[Text]:
        lines = _flow([*_title(width), *_targets(summary), *_rates(summary, paused)], width)
        for tgid, path in summary.write_path.items():
            lines.append(_write_path(tgid, path, len(summary.write_path) > 1, width))
        lines.extend(_verdict(summary, width))
        return lines

    return Block(build)


def _item(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True)


def _title(width: int) -> list[Text]:
    return [_item("xdtrace", "bold")] if width >= 80 else []


def _target(target: TargetRow) -> Text:
    item = Text(f"{target.role} ", DIM)
    item.append(f"{clean(target.comm)} {target.tgid}", "" if target.alive else WARN)
    if target.crate:
        item.append(f" ({clean(target.crate)} {clean(target.version)})".replace(" )", ")"), DIM)
    if not target.alive:
        item.append(" exited", WARN)
    return item


def _targets(summary: Summary) -> list[Text]:
    items = [_target(target) for target in summary.targets]
    if summary.targets and not any(target.role == "audio" for target in summary.targets):
        items.append(_item("no audio server traced", WARN))
    return items


def _rates(summary: Summary, paused: bool) -> list[Text]:
    records, own = summary.records, summary.self
    lost = records.lost
    items = [_item("PAUSED", BAD)] if paused else []
    items.append(_item(clock(summary.window.end_ns - summary.window.start_ns)))
    items.append(_item(f"{count(records.per_s)} rec/s", DIM))
    if lost.ring or lost.map or lost.late:
        items.append(
            _item(f"LOST ring {count(lost.ring)} map {count(lost.map)} late {count(lost.late)}", BAD)
        )
    else:
        items.append(_item("lost 0", DIM))
    items.append(_item(f"own CPU {own.cpu_percent:.1f}%", WARN if own.cpu_percent >= 5 else DIM))
    probes = NONE if own.probe_ns_per_s < 0 else f"{own.probe_ns_per_s / 1e7:.1f}%"
    items.append(_item(f"probes {probes}", DIM))
    steal = summary.steal_ns
    if steal:
        items.append(_item(f"steal {duration(steal)}", WARN))
    return items


def _write_path(tgid: str, path: WritePath, several: bool, width: int) -> Text:
    line = Text("write path ", DIM, no_wrap=True)
    if several:
        line.append(f"{tgid} ")
    line.append(path.kind, WARN if path.kind == "unknown" else "bold")
    why = clean(path.why or path.evidence.replace("_", " "))
    cost = path.cost_ns
    figures = f"; {count(path.writes)} writes, each {duration(cost.p50)} p50 {duration(cost.p99)} p99"
    if path.writes and len(line.plain) + len(why) + len(figures) + 3 <= width:
        why += figures
    if why:
        line.append(cut(f" ({why})", max(width - len(line.plain), 1)), DIM)
    return line


def _verdict(summary: Summary, width: int) -> list[Text]:
    misses = sum(stream.misses for stream in summary.streams)
    style = BAD if misses else GOOD if summary.streams else WARN
    verdict = clean(summary.verdict)
    lines = [Text(part, style, no_wrap=True) for part in wrap(f"● {verdict}", width, indent="  ", lines=3)]
    if summary.streams and not misses:
        lines.append(Text(cut("  " + _watched(summary), width), no_wrap=True))
    todo = clean(summary.todo)
    if todo:
        lines.extend(Text(part, no_wrap=True) for part in wrap(f"→ {todo}", width, indent="  ", lines=2))
    return lines


def _watched(summary: Summary) -> str:
    cycles = sum(stream.cycles for stream in summary.streams)
    least = [s.slack_ns.min for s in summary.streams if s.slack_ns.min is not None]
    slack = f", least slack {duration(min(least))}" if least else ""
    streams = plural(len(summary.streams), "stream")
    return f"{plural(cycles, 'cycle')} of {streams} watched, none missed{slack}"


def _flow(items: Sequence[Text], width: int) -> list[Text]:
    """Items side by side, on as many lines as they need; an item is never broken."""
    lines: list[Text] = []
    for item in items:
        if lines and lines[-1].cell_len + 2 + item.cell_len <= width:
            lines[-1].append("  ")
            lines[-1].append_text(item)
        else:
            line = Text(no_wrap=True)
            line.append_text(item)
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
    return lines
