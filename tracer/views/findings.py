# SPDX-License-Identifier: Apache-2.0
"""Findings, and what each remedy would have avoided.

Owns how advice is written. Computes nothing but text.
"""

from __future__ import annotations

from rich.text import Text

from tracer.model.lead import REMEDY_TEXT, ranked
from tracer.model.summary import Finding, Remedy, Summary
from tracer.views.fmt import BAD, DIM, WARN, clean, count, cut, wrap
from tracer.views.grid import Block, Cell, Column, heading, table, table_wants
from tracer.views.streams import tally

_LEVELS = {"alert": ("!!", BAD), "warn": ("! ", WARN), "info": ("· ", DIM)}


def sort_findings(rows: tuple[Finding, ...]) -> list[Finding]:
    """Alerts first; else as the model gave them."""
    order = list(_LEVELS)
    return sorted(rows, key=lambda f: order.index(f.level) if f.level in _LEVELS else len(order))


def render_findings(summary: Summary, *, full: bool = False) -> Block:
    """What an engineer would check first: what, why, and the one thing to do.

    Args:
        full: never cut, but shortened and then left out where there is no room.
    """
    where = "a taller window" if full else "view 3"

    def build(width: int, height: int | None) -> list[Text]:
        if not summary.findings:
            return []
        lines = [heading("Findings", "", width)]
        rows = sort_findings(summary.findings)
        for shown, finding in enumerate(rows):
            entry = _entry(finding, width, full)
            room = len(entry) if height is None else height - len(lines) - (shown + 1 < len(rows))
            if full and len(entry) > room:
                entry = _entry(finding, width, False)
            if len(entry) > room:
                lines.append(Text(cut(f"  … {len(rows) - shown} more ({where} shows them all)", width), DIM))
                break
            lines.extend(entry)
        return lines

    return Block(build)


def _entry(finding: Finding, width: int, full: bool) -> list[Text]:
    sign, style = _LEVELS.get(finding.level, _LEVELS["info"])
    what, why, do = clean(finding.what), clean(finding.why), clean(finding.do)
    if not full:
        text = f"{sign} {what}" + (f" → {do}" if do else "")
        return [Text(part, style, no_wrap=True) for part in wrap(text, width, indent="   ", lines=2)]
    lines = [Text(part, style, no_wrap=True) for part in wrap(f"{sign} {what}", width, indent="   ")]
    lines.extend(Text("   " + part, DIM, no_wrap=True) for part in wrap(why, width - 3) if why)
    lines.extend(Text("   " + part, no_wrap=True) for part in wrap(f"→ {do}", width - 3, indent="  ") if do)
    return lines


def render_lead(summary: Summary) -> Block:
    """What would have helped, in one sentence; nothing where no episode was judged."""

    def build(width: int, height: int | None) -> list[Text]:
        text = clean(summary.lead)
        return [Text(part, "bold", no_wrap=True) for part in wrap(text, width)] if text else []

    return Block(build)


def render_remedies(summary: Summary, *, titled: bool = True) -> Block:
    """What each remedy alone would have avoided, by replay; the best first.

    Args:
        titled: with a heading; not where the sentence that it belongs to stands above it.
    """
    rows = [(name, summary.counterfactual[name]) for name in ranked(summary.counterfactual)]

    judged = any(remedy.of or remedy.episodes_of for _, remedy in rows)

    def share(got: int, of: int) -> Cell:
        return (f"{count(got)} of {count(of)}", "bold" if got else DIM)

    columns: list[Column[tuple[str, Remedy]]] = [
        Column("remedy", lambda r: REMEDY_TEXT[r[0]], least=14, most=32),
        Column("episodes", lambda r: share(r[1].episodes_avoided, r[1].episodes_of), right=True),
        Column("misses", lambda r: share(r[1].avoided, r[1].of), 1, right=True),
        Column("what remains", lambda r: (tally(r[1].remaining_by_cause), DIM), 2, least=14, most=60),
    ]

    def build(width: int, height: int | None) -> list[Text]:
        if not judged:
            return []
        note = "each alone would have avoided, by replay"
        lines = table("What would have helped", note, columns, rows, width, height)
        return lines if titled else lines[1:]

    return Block(build, table_wants(rows if judged else []) if titled else None)
