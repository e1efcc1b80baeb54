# SPDX-License-Identifier: Apache-2.0
"""What Jupyter shows of a trace or a live session: one small page.

Owns the HTML of ``_repr_html_`` and of live displays. Everything in it is escaped: names come from the
traced programs. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tracer.model.summary import Finding, Summary
from tracer.views.fmt import NONE, clean, clock, count, duration, plural

#: Rows of each table; frames have all.
_ROWS = 8

_STYLE = (
    "<style>.xdtrace table{margin:.2em 0 .8em 0;border-collapse:collapse}"
    ".xdtrace td,.xdtrace th{padding:.15em .7em;text-align:left!important;vertical-align:top}"
    ".xdtrace td.n,.xdtrace th.n{text-align:right!important;font-variant-numeric:tabular-nums}"
    ".xdtrace caption{text-align:left;caption-side:top;font-weight:600;padding:.2em 0}"
    ".xdtrace caption,.xdtrace th{white-space:nowrap}"
    ".xdtrace .dim{opacity:.65}</style>"
)


def text(value: object) -> str:
    """Any text as it may stand in HTML."""
    return escape(clean(str(value)))


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], more: int = 0) -> str:
    """An HTML table; head cells that begin with ``>`` head a column of numbers. No rows: no table."""
    rows = list(rows)
    if not rows:
        return ""
    cell = [' class="n"' if name.startswith(">") else "" for name in head]
    lines = [f"<table><caption>{text(caption)}</caption><thead><tr>"]
    lines += [f"<th{c}>{text(name.removeprefix('>'))}</th>" for name, c in zip(head, cell, strict=True)]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        cells = "".join(f"<td{c}>{text(value)}</td>" for value, c in zip(row, cell, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    lines.append("</tbody></table>")
    if more > 0:
        lines.append(f'<div class="dim">and {count(more)} more</div>')
    return "".join(lines)


def summary_html(summary: Summary, *, title: str, tables: Sequence[str] = (), note: str = "") -> str:
    """The page.

    Args:
        title: what is shown, such as the trace's name.
        tables: names of frames to offer. note: a sentence on the state of a live session.
    """
    s = summary
    span = s.window.end_ns - s.window.start_ns
    lost = s.records.lost.ring + s.records.lost.map + s.records.lost.late
    facts = [
        f"{count(s.records.total)} records in {clock(span)}"
        if span > 60e9
        else f"{count(s.records.total)} records in {duration(span)}"
    ]
    facts.append(f"{count(lost)} lost" if lost else "none lost")
    facts += [f"{t.comm} ({t.role} {t.tgid})" for t in s.targets]
    facts += [f"write path {path.kind}" for path in s.write_path.values()]
    facts.append(f"steal {duration(s.steal_ns)}")
    parts = [
        _STYLE,
        f"<p><b>{text(title)}</b>: {text(s.verdict)}</p>",
        f"<p>{text(s.todo)}</p>" if s.todo else "",
        f'<p class="dim">{text(" · ".join(facts))}</p>',
        f"<p>{text(note)}</p>" if note else "",
        _streams(s),
        _remedies(s),
        _locks(s),
        _misses(s),
        _findings(s.findings),
    ]
    if tables:
        parts.append(f'<div class="dim">Frames: {" ".join(f"df_{name}()" for name in tables)}</div>')
    return f'<div class="xdtrace">{"".join(parts)}</div>'


def _streams(s: Summary) -> str:
    head = (
        "stream",
        ">period",
        ">cycles",
        ">missed",
        ">carried",
        ">episodes",
        ">slack p50",
        ">least",
        "causes",
    )
    rows = [
        (
            r.title,
            duration(r.period_ns) + ("" if r.source == "exact" else " (inferred)"),
            count(r.cycles),
            count(r.misses),
            count(r.carried),
            count(r.episodes),
            duration(r.slack_ns.p50),
            duration(r.slack_ns.min),
            ", ".join(f"{cause} {n}" for cause, n in r.misses_by_cause.items()) or NONE,
        )
        for r in s.streams[:_ROWS]
    ]
    return table("Streams", head, rows, len(s.streams) - len(rows))


def _remedies(s: Summary) -> str:
    rows = [
        (name, f"{r.episodes_avoided} of {r.episodes_of}", f"{r.avoided} of {r.of}")
        for name, r in s.counterfactual.items()
        if r.of
    ]
    return table("Each of these alone would have avoided", ("remedy", ">episodes", ">misses"), rows)


def _locks(s: Summary) -> str:
    head = ("lock", ">misses", ">contended", ">wait p50", ">p99", ">max", "top waiter", "top holder")
    rows = [
        (
            f"{r.name} [{r.instance}]" if r.instance else r.name,
            count(r.misses_caused),
            count(r.contended),
            duration(r.wait_ns.p50),
            duration(r.wait_ns.p99),
            duration(r.wait_ns.max),
            r.top_waiter or NONE,
            r.top_holder or NONE,
        )
        for r in s.locks[:_ROWS]
    ]
    return table("Locks, by harm", head, rows, len(s.locks) - len(rows))


def _misses(s: Summary) -> str:
    misses, names = s.misses, {r.id: r.title for r in s.streams}
    origins = [m for m in misses if m.carried_from is None]
    rows = [
        (m.id, names.get(m.stream, m.stream), m.cause, duration(m.late_ns), m.detail)
        for m in reversed(origins[-_ROWS:])
    ]
    carried = len(misses) - len(origins)
    caption = "Newest misses" + (f" (and {plural(carried, 'miss')} carried over)" if carried else "")
    return table(caption, (">miss", "stream", "cause", ">late", "verdict"), rows, len(origins) - len(rows))


def _findings(found: Sequence[Finding]) -> str:
    return table("Findings", ("what", "why", "what to do"), [(f.what, f.why, f.do) for f in found])
