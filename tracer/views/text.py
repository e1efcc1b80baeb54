# SPDX-License-Identifier: Apache-2.0
"""Plain text: blocks at each refresh where stdout is no terminal, and the last summary anywhere.

Owns what goes to a pipe, a log or the normal screen. Never moves a cursor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.text import Text

from tracer.model.summary import Summary
from tracer.views.base import Unattended
from tracer.views.fmt import ENDLESS, cut, plural
from tracer.views.grid import Block, segments, stack
from tracer.views.tables import render_report


class PipeConsole(Console):
    """A Console that lets a closed pipe be the caller's business (rich would exit 1)."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console_for(out: TextIO) -> PipeConsole:
    """A console of the terminal's width; of ``COLUMNS`` where ``out`` is no terminal, else endless.

    ``NO_COLOR`` is respected (by rich).
    """
    if out.isatty():
        return PipeConsole(file=out, highlight=False, markup=False, emoji=False)
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() and int(columns) >= 40 else ENDLESS
    return PipeConsole(file=out, width=width, highlight=False, markup=False, emoji=False)


def write_block(console: Console, block: Block) -> None:
    """Print a block: with styles on a terminal, else as plain text."""
    if console.is_terminal:
        console.print(_Lines(block.lines(console.width)), end="")
    else:
        console.file.write(block.plain(console.width))
    console.file.flush()


class _Lines:
    def __init__(self, lines: list[Text]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: object) -> object:
        return segments(console, self._lines)


def render_ground_truth(extra: Mapping[str, object], *, several: bool = False) -> Block:
    """The demo's own count, to hold against ours; nothing where there is none.

    Args:
        several: there are several streams: the demo counts each one's episodes, we what one delay made once.
    """

    def build(width: int, height: int | None) -> list[Text]:
        truth = extra.get("ground_truth")
        if not isinstance(truth, Mapping):
            return []
        text = "the audio server itself counted " + ", ".join(
            plural(int(truth.get(key, 0)), noun)
            for key, noun in (("cycles", "cycle"), ("missed_cycles", "missed cycle"), ("episodes", "episode"))
        )
        return [Text(cut(f"{text}, each stream's counted apart" if several else text, width))]

    return Block(build)


class TextBlocks(Unattended):
    """A view for pipes and logs: a short block per refresh, the whole at the end.

    Args:
        out: where the text goes.
        refresh_s: seconds between blocks; None shows the last summary only.
    """

    def __init__(self, out: TextIO, refresh_s: float | None = 2.0) -> None:
        self._console = console_for(out)
        self._quiet = refresh_s is None
        self.refresh_s = refresh_s if refresh_s is not None else 3600.0

    def show(self, summary: Summary) -> None:
        if not self._quiet:
            write_block(
                self._console, stack([render_report(summary, full=False), Block(lambda w, h: [Text()])])
            )

    def finish(self, summary: Summary, extra: Mapping[str, object]) -> None:
        write_block(
            self._console,
            stack([render_report(summary), render_ground_truth(extra, several=len(summary.streams) > 1)]),
        )
