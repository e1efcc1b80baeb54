# SPDX-License-Identifier: Apache-2.0
"""Glitch bursts and the misses behind them, as text and as JSON.

Owns the sentences and the JSON's shape. Finds and matches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracer.audio import Burst, Capture
from tracer.model.explain import Alignment, Explained
from tracer.model.summary import Miss
from tracer.views.fmt import BAD, DIM, GOOD, NONE, WARN, clean, count, duration, plural
from tracer.views.grid import Block, Column, sentences, stack, table


@dataclass(frozen=True, slots=True)
class Heard:
    """A capture, with what a trace says of it. ``explained``: None without a trace; ``misses``: by id."""

    name: str
    capture: Capture
    explained: Explained | None = None
    misses: Mapping[int, Miss] | None = None

    def miss_of(self, number: int) -> Miss | None:
        """The miss behind a burst."""
        if self.explained is None or self.misses is None:
            return None
        found = self.explained.misses[number]
        return None if found is None else self.misses[found]


def to_dict(heard: Heard) -> dict[str, Any]:
    """The JSON form; ``miss`` is the id of a miss, null where none explains the burst."""
    capture, explained = heard.capture, heard.explained
    found = explained.misses if explained is not None else (None,) * len(capture.bursts)
    out: dict[str, Any] = {
        "tone_hz": capture.tone_hz,
        "bursts": [
            {"start_s": b.start_s, "end_s": b.end_s, "kind": b.kind, "miss": miss}
            for b, miss in zip(capture.bursts, found, strict=True)
        ],
        "naive_count": capture.naive_count,
        "edges": sum(b.edges for b in capture.bursts),
        "duration_s": capture.duration_s,
        "file": heard.name,
    }
    if explained is not None:
        a = explained.alignment
        out["unheard"] = list(explained.unheard)
        out["alignment"] = (
            None
            if a is None
            else {"begin_ns": a.begin_ns, "spread_ns": a.spread_ns, "pairs": a.pairs, "unique": a.unique}
        )
    return out


def render_glitches(heard: Heard) -> Block:
    """What was heard, how the clocks were aligned, and each burst with its miss."""
    return stack([sentences(_said(heard)), _bursts(heard)])


def _said(heard: Heard) -> list[tuple[str, str]]:
    capture, explained = heard.capture, heard.explained
    bursts = capture.bursts
    edges = sum(b.edges for b in bursts)
    parts = [
        (
            f"{clean(heard.name)}: {capture.duration_s:.1f} s of a tone of {capture.tone_hz:.2f} Hz, "
            f"{plural(len(bursts), 'glitch burst')} ({plural(edges, 'edge')}; counting jumps between samples "
            f"would give {count(capture.naive_count)})",
            BAD if bursts else GOOD,
        )
    ]
    if explained is None:
        if bursts:
            parts.append(("--trace DIR says which missed period explains each", DIM))
        return parts
    if explained.alignment is not None:
        parts.append(_aligned(explained.alignment))
    if bursts:
        known = sum(miss is not None for miss in explained.misses)
        outside = sum(explained.outside)
        text = f"{count(known)} of {plural(len(bursts), 'burst')} explained by missed periods"
        if outside:
            text += f", {count(outside)} outside the trace"
        left = len(bursts) - known - outside
        if left:
            text += f", {count(left)} unexplained: no period of this trace was missed then"
        parts.append((text, WARN if left else GOOD))
    if explained.unheard:
        n = plural(len(explained.unheard), "missed period")
        parts.append((f"{n} in that time left no glitch in this capture", DIM))
    return parts


def _aligned(a: Alignment) -> tuple[str, str]:
    if a.pairs == 0:
        return "no burst coincides with a missed period, wherever the capture is placed in the trace", WARN
    if a.spread_ns is None:
        return (
            "the capture's place in the trace rests on one burst and one miss alone: it may be another",
            WARN,
        )
    text = (
        f"the clocks are aligned by {plural(a.pairs, 'burst')} that begin with a missed period, "
        f"to ±{duration(a.spread_ns)}"
    )
    if not a.unique:
        return text + "; another place in the trace fits nearly as well", WARN
    return text, DIM


def _bursts(heard: Heard) -> Block:
    explained = heard.explained
    rows = [(i, burst) for i, burst in enumerate(heard.capture.bursts)]

    def why(row: tuple[int, Burst]) -> str | tuple[str, str]:
        miss = heard.miss_of(row[0])
        if miss is not None:
            return clean(miss.detail)
        if explained is None:
            return ""
        return ("outside the trace", DIM) if explained.outside[row[0]] else ("unexplained", WARN)

    def number(row: tuple[int, Burst]) -> str:
        miss = heard.miss_of(row[0])
        return NONE if miss is None else str(miss.id)

    columns: list[Column[tuple[int, Burst]]] = [
        Column("at", lambda r: f"{r[1].start_s:.3f}s", right=True),
        Column("long", lambda r: duration(round((r[1].end_s - r[1].start_s) * 1e9)), right=True),
        Column("kind", lambda r: r[1].kind, priority=2),
        Column("edges", lambda r: str(r[1].edges), right=True, priority=3),
    ]
    if explained is not None:
        columns += [Column("miss", number, right=True), Column("why", why, least=20, most=200)]
    return Block(lambda width, height: table("Bursts", "", columns, rows, width, height))
