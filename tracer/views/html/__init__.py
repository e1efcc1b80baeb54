# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page that needs no network, no script and nothing beside it.

Owns what is on the page, in which order, and how much of it: everything is bounded, and what is
left out is said. The templates beside this file lay it out; pictures.py draws. All that comes from
a target is escaped by the templates, in one place (``_shown``); a content policy forbids the page to
run or to load anything whatever a name may hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from tracer.model.lead import REMEDY_TEXT, ranked
from tracer.model.summary import Miss, Summary
from tracer.views import fmt
from tracer.views.findings import sort_findings
from tracer.views.html import pictures
from tracer.views.locks import held_order, sort_locks
from tracer.views.streams import sort_streams, tally

#: How much of each is on the page; with all of them full, and names as long as TEXT, it is 2.3 MB.
TIMELINES = 24
MISSES = 400
STREAMS = 32
LOCKS = 30
THREADS = 100
HELD = 40
FINDINGS = 40
#: Characters of one name or sentence.
TEXT = 600


def to_html(summary: Summary, *, title: str, notes: Sequence[str] = ()) -> str:
    """The page.

    Args:
        title: what it reports on, e.g. the trace's path.
        notes: what is missing of the trace, in words.
    """
    drawn = _drawn(summary.misses)
    held = sorted(summary.held, key=held_order)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            s=summary,
            title=title,
            notes=notes,
            style=Markup(_environment().get_template("style.css").render()),
            remedies=[
                (REMEDY_TEXT[name], summary.counterfactual[name]) for name in ranked(summary.counterfactual)
            ],
            timelines=[pictures.timeline(miss, summary) for miss in drawn],
            drawn={miss.id for miss in drawn},
            slack=[
                pictures.slack(stream, summary.window)
                for stream in sort_streams(summary.streams, "harm")[:STREAMS]
                if stream.slack_bins
            ],
            heat=pictures.heat(summary.holders),
            waits=pictures.waits(sort_locks(summary.locks, "harm")),
            held=held[:HELD],
            findings=sort_findings(summary.findings)[:FINDINGS],
            misses=[(miss, carried) for miss, carried in pictures.grouped(summary.misses[-MISSES:])],
            streams=sort_streams(summary.streams, "harm")[:STREAMS],
            locks=sort_locks(summary.locks, "harm")[:LOCKS],
            threads=sorted(summary.threads, key=lambda t: (not t.role, t.tgid, t.role, t.tid))[:THREADS],
            left_out=_left_out(summary, len(drawn), len(held)),
            names={stream.id: stream.title for stream in summary.streams},
        )
    )


def _drawn(misses: Sequence[Miss]) -> list[Miss]:
    """The misses that get a timeline, late by the most first: of each cause in turn."""
    by_cause: dict[str, list[Miss]] = {}
    for miss in misses:
        if miss.carried_from is None and miss.segments:
            by_cause.setdefault(miss.cause, []).append(miss)
    queues = [sorted(rows, key=_lateness) for rows in by_cause.values()]
    queues.sort(key=len, reverse=True)
    chosen: list[Miss] = []
    while len(chosen) < TIMELINES and any(queues):
        for queue in queues:
            if queue and len(chosen) < TIMELINES:
                chosen.append(queue.pop())
    return sorted(chosen, key=_lateness, reverse=True)


def _lateness(miss: Miss) -> tuple[int, int]:
    return (miss.late_ns if miss.late_ns is not None else 1 << 62, -miss.id)


def _left_out(summary: Summary, drawn: int, held: int) -> list[str]:
    """What the page does not show, in words."""
    origins = sum(miss.carried_from is None for miss in summary.misses)
    parts = (
        (origins - drawn, "miss with a timeline of its own"),
        (len(summary.misses) - MISSES, "earlier miss in the list"),
        (len(summary.streams) - STREAMS, "stream"),
        (len(summary.locks) - LOCKS, "lock"),
        (len(summary.threads) - THREADS, "thread"),
        (held - HELD, "row of held locks"),
        (len(summary.findings) - FINDINGS, "finding"),
    )
    return [f"{fmt.count(n)} more: {what}" for n, what in parts if n > 0]


def _shown(value: object) -> object:
    """What becomes of every value on the page: escaped for people here, for HTML by the template."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return fmt.clean(value if len(value) <= TEXT else value[:TEXT] + "…")
    return value


def _read(name: str) -> str:
    return resources.files(__name__).joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        loader=FunctionLoader(_read),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=fmt.duration, count=fmt.count, percent=fmt.percent, clock=fmt.clock, tally=tally
    )
    environment.globals.update(marks=pictures.MARKS, plural=fmt.plural)
    return environment
