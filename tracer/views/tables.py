# SPDX-License-Identifier: Apache-2.0
"""All renderables by one name, and the screens made of them.

Owns which blocks make which screen and who gets how many lines. Every ``render_*``
takes a Summary and returns a Block, which rich can print and the live screen can cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from tracer.model.summary import Summary
from tracer.views.findings import render_findings, render_lead, render_remedies
from tracer.views.fmt import clean, cut, is_endless
from tracer.views.grid import Block, stack
from tracer.views.header import render_header
from tracer.views.locks import render_blame, render_held, render_lock_evidence, render_locks
from tracer.views.misses import render_misses, render_misses_in_detail
from tracer.views.streams import SORTS, render_streams, render_threads

__all__ = [
    "SORTS",
    "VIEWS",
    "render_blame",
    "render_findings",
    "render_header",
    "render_held",
    "render_lead",
    "render_lock_evidence",
    "render_locks",
    "render_misses",
    "render_misses_in_detail",
    "render_remedies",
    "render_report",
    "render_streams",
    "render_threads",
    "screen",
]

VIEWS = ("overview", "locks", "held", "misses")

_FEW = 6  # lines of the remedies on the overview
_PAGE = 32  # lines of a table in a report
_LEAST = 4  # lines under which a block says nothing: title, head, a row, "more"


def _blocks(summary: Summary, view: str, sort: str) -> list[Block]:
    """The blocks of a view below the header, the most important first."""
    if view == "locks":
        return [
            render_locks(summary, sort=sort),
            render_blame(summary),
            render_remedies(summary),
            render_lock_evidence(summary),
        ]
    if view == "held":
        return [render_findings(summary, full=True), render_held(summary), render_threads(summary)]
    if view == "misses":
        return [render_misses_in_detail(summary)]
    return [
        render_streams(summary, sort=sort),
        render_misses(summary),
        render_locks(summary, sort=sort),
        render_findings(summary),
        _at_most(_FEW, render_remedies(summary)),
        render_blame(summary),
    ]


def _shares(wants: Sequence[int], room: int) -> list[int]:
    """Lines for each block (a blank one goes before each): what it wants where there is room.

    As many blocks as can say something, the first ones first; then the largest give way.
    """
    shown = [i for i, want in enumerate(wants) if want]
    while len(shown) > 1 and sum(min(wants[i], _LEAST) + 1 for i in shown) > room:
        shown.pop()
    shares = [want if i in shown else 0 for i, want in enumerate(wants)]
    while shown and sum(shares) + len(shown) > room:
        largest = max(shown, key=lambda i: (shares[i], i))
        if shares[largest] <= 1:
            break
        shares[largest] -= 1
    return shares


def screen(
    summary: Summary,
    width: int,
    height: int,
    *,
    view: str = "overview",
    sort: str = "harm",
    paused: bool = False,
    footer: Text | None = None,
) -> list[Text]:
    """A whole screen: exactly ``height`` lines of at most ``width`` cells."""
    lines = render_header(summary, paused=paused).lines(width)[: max(height - 1, 1)]
    blocks = _blocks(summary, view, sort)
    room = height - len(lines) - (1 if footer is not None else 0)
    wants = [block.wants(width, max(room, 0)) for block in blocks]
    for block, share in zip(blocks, _shares(wants, room), strict=True):
        if share and len(lines) < height - 1:
            lines.append(Text())
            lines.extend(block.lines(width, share))
    body = height - (1 if footer is not None else 0)
    if view == "misses" and not summary.misses:
        lines.extend([Text(), Text(cut(_no_misses(summary), width))])
    lines = lines[:body] + [Text()] * (body - len(lines))
    for line in lines if width < 20 else ():  # blocks are drawn for no less
        line.truncate(width, overflow="ellipsis")
    return [*lines, footer] if footer is not None else lines


def _no_misses(summary: Summary) -> str:
    if summary.streams:
        return "no missed cycle so far"
    return f"{clean(summary.verdict)}: no misses to show"


def _at_most(most: int, block: Block) -> Block:
    """The block, cut at ``most`` lines however much room there is; in a pipe nothing is cut."""

    def build(width: int, height: int | None) -> list[Text]:
        if is_endless(width):
            return block.lines(width, height)
        return block.lines(width, most if height is None else min(height, most))

    return Block(build, lambda width, height: block.wants(width, min(height, most)))


def render_report(summary: Summary, *, full: bool = True) -> Block:
    """Everything below each other, for a page rather than a screen.

    Args:
        full: the last summary, led by what would have helped; else a block among many.
    """
    if not full:
        tables = (render_streams(summary), render_locks(summary))
        return stack([render_header(summary), *(_at_most(_PAGE // 2, block) for block in tables)])
    return stack(
        [
            stack([render_lead(summary), render_remedies(summary, titled=not summary.lead)], gap=0),
            render_header(summary),
            render_findings(summary, full=True),
            _at_most(_PAGE, render_streams(summary)),
            _at_most(_PAGE, render_locks(summary)),
            _at_most(_PAGE // 2, render_blame(summary)),
            _at_most(_PAGE // 2, render_held(summary)),
            _at_most(_PAGE, render_misses(summary)),
        ]
    )
