# SPDX-License-Identifier: Apache-2.0
"""Lines on the alternate screen, of which only those that changed are written.

Owns what the terminal shows. A table's rows are mostly those of a moment ago: writing all of them each
time (as ``rich.live`` does) is most of what a refresh costs, here and in the terminal. Now and then all
are written, so that what another program wrote over them does not stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.segment import ControlType, Segment
from rich.text import Text

from tracer.views.grid import line_segments

#: Every so many pictures all lines are written.
_WHOLE_EVERY = 40


class Painter:
    """The alternate screen, taken when made and given back by ``close``.

    Args:
        console: of a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: list[Text] = []
        self._size = (0, 0)
        self._pictures = 0
        console.set_alt_screen(True)
        console.show_cursor(False)

    def close(self) -> None:
        """Give the normal screen back."""
        self._console.set_alt_screen(False)
        self._console.show_cursor(True)

    def paint(self, lines: Sequence[Text], size: tuple[int, int]) -> None:
        """Show lines of at most the terminal's width, from the top, in place of those before.

        Args:
            size: the terminal's width and height for which they were made.
        """
        whole = size != self._size or self._pictures % _WHOLE_EVERY == 0
        before: Sequence[Text] = [] if whole else self._shown
        changed = [
            (y, line)
            for y, line in enumerate(lines[: size[1]])
            if y >= len(before) or not _same(line, before[y])
        ]
        self._shown, self._size = list(lines), size
        self._pictures += 1
        if not self._console.is_dumb_terminal and (changed or whole):
            self._console.print(_Changes(changed, size[0], clear=whole), end="", soft_wrap=True)


def _same(line: Text, other: Text) -> bool:
    """Whether two lines look alike."""
    return line.plain == other.plain and line.style == other.style and line.spans == other.spans


class _Changes:
    """Lines at their places, without rich's wrapping, padding or cropping."""

    def __init__(self, lines: Iterable[tuple[int, Text]], width: int, *, clear: bool) -> None:
        self._lines = lines
        self._width = width
        self._clear = clear

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._clear:
            yield Control.clear()
        for y, line in self._lines:
            yield Control.move_to(0, y)
            yield from line_segments(console, line)
            if line.cell_len < self._width:  # after the last cell it would take that one away
                yield Segment("\x1b[K", None, [(ControlType.ERASE_IN_LINE, 0)])
