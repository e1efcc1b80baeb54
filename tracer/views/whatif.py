# SPDX-License-Identifier: Apache-2.0
"""A prediction as text: what would have been on time, what remains and why, where the time went.

Owns the sentences. Computes nothing.
"""

from __future__ import annotations

from rich.text import Text

from tracer.model.lead import REMEDY_TEXT
from tracer.model.whatif import CycleRow, Prediction, WhatIf
from tracer.views.fmt import DIM, GOOD, WARN, clean, count, cut, duration, plural
from tracer.views.grid import Block, Column, sentences, stack, table
from tracer.views.streams import tally

_CYCLES = 20


def called(what: WhatIf) -> str:
    """The change in words: ``no waits on item_state, and write path dup``."""
    parts = [f"no waits on {clean(name)}" for name in what.locks]
    parts += [REMEDY_TEXT[name] for name in what.remedies]
    return ", and ".join(parts)


def render_prediction(found: Prediction, *, full: bool = False) -> Block:
    """The answer in one sentence, then the figures behind it; ``full`` lists every cycle."""
    return stack([sentences(_said(found)), _cycles(found, full)])


def _said(found: Prediction) -> list[tuple[str, str]]:
    name = called(found.what)
    if not found.cycles_watched:
        return [("no audio stream was seen, so there is nothing to predict", WARN)]
    if not found.misses:
        return [
            (
                f"With {name}: nothing to avoid, none of {plural(found.cycles_watched, 'cycle')} was missed",
                "",
            ),
            *_notes(found),
        ]
    on_time = f"{count(found.avoided)} of {plural(found.misses, 'missed cycle')}"
    parts = [
        (
            f"With {name}: {on_time} ({count(found.episodes_avoided)} of "
            f"{plural(found.episodes, 'episode')}) would have been on time; "
            f"{count(found.misses - found.avoided)} remain",
            GOOD if found.avoided else "bold",
        )
    ]
    if found.remaining_by_cause:
        parts.append((f"remain, by their cause as recorded: {tally(found.remaining_by_cause)}", ""))
    if found.then:
        origins = plural(found.then_of, "remaining origin")
        parts.append((f"of {origins}, taking this out too would save: {tally(found.then)}", ""))
    elif found.then_of:
        parts.append(("no single further cause would save what remains", ""))
    if found.removed_ns:
        text = f"{duration(found.removed_ns)} taken out of the late paths: {duration(found.gained_ns)} gained"
        if found.passed_ns:
            text += f" ({duration(found.passed_ns)} of it from passing commands of others)"
        if found.moved_ns:
            text += f", {duration(found.moved_ns)} come back as waiting for G's other commands"
        parts.append((text, ""))
    if found.unjudged:
        parts.append(
            (f"{plural(found.unjudged, 'missed cycle')} without a verdict, counted as remaining", WARN)
        )
    return [*parts, *_notes(found)]


def _notes(found: Prediction) -> list[tuple[str, str]]:
    notes = [(f"! {clean(note)}", WARN) for note in found.notes]
    return [*notes, ("by replay of what was missed; what a change makes newly late is not predicted", DIM)]


def _cycles(found: Prediction, full: bool) -> Block:
    rows = found.cycles if full else found.cycles[:_CYCLES]
    hidden = len(found.cycles) - len(rows)

    def late(ns: int | None) -> str:
        return "never" if ns is None else duration(ns)

    columns: list[Column[CycleRow]] = [
        Column("cycle", lambda r: count(r.cycle), right=True),
        Column("stream", lambda r: clean(r.name), 2),
        Column("leg", lambda r: r.leg, 3),
        Column("cause", lambda r: r.cause, 1),
        Column("late by", lambda r: late(r.late_ns), right=True),
        Column(
            "predicted",
            lambda r: "not judged" if r.predicted_late_ns is None else duration(r.predicted_late_ns),
            right=True,
        ),
        Column("", lambda r: ("on time", GOOD) if r.avoided else ("missed", WARN)),
        Column("", lambda r: ("carried", DIM) if r.carried else "", 4),
    ]

    def build(width: int, height: int | None) -> list[Text]:
        lines = table("Cycle by cycle", "late (negative: early)", columns, rows, width, height)
        if hidden:
            lines.append(Text(cut(f"  … {hidden:,} more (--cycles shows them all)", width), DIM))
        return lines

    return Block(build)
