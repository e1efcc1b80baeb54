# SPDX-License-Identifier: Apache-2.0
"""Blocks of lines and tables that drop columns instead of wrapping.

Owns ``Block`` (what every ``render_*`` returns: a rich renderable that can also be asked
for its lines) and the layout of tables. Knows nothing of what is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Span, Text

from tracer.views.fmt import DIM, NONE, TITLE, cut, is_endless, pad, wrap

Row = TypeVar("Row")
#: A cell: plain text, or text with a style, or a Text of its own.
Cell = str | tuple[str, str] | Text


class Block:
    """Lines drawn for a width, and at most a height.

    Args:
        build: (width, height or None) -> lines; never longer than width cells.
        wants: (width, height) -> how many lines that gives, where it can be told without drawing them.
    """

    def __init__(
        self,
        build: Callable[[int, int | None], list[Text]],
        wants: Callable[[int, int], int] | None = None,
    ) -> None:
        self._build = build
        self._wants = wants

    def lines(self, width: int, height: int | None = None) -> list[Text]:
        """The lines for ``width`` cells; cut at ``height`` lines."""
        lines = self._build(max(width, 20), height)
        return lines if height is None else lines[: max(height, 0)]

    def wants(self, width: int, height: int) -> int:
        """How many lines it takes of ``height``; a screen asks before it draws."""
        if self._wants is None:
            return len(self.lines(width, height))
        return max(min(self._wants(max(width, 20), height), height), 0)

    def plain(self, width: int, height: int | None = None) -> str:
        """The same without styles, each line ended by a newline."""
        return "".join(line.plain.rstrip() + "\n" for line in self.lines(width, height))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from segments(console, self.lines(options.max_width))


def segments(console: Console, lines: Iterable[Text]) -> Iterable[Segment]:
    """Lines as segments, without rich's wrapping (they fit already)."""
    for line in lines:
        yield from line_segments(console, line)
        yield Segment.line()


def line_segments(console: Console, line: Text) -> Iterable[Segment]:
    """A line as segments; ``Text.render`` alone forgets the style of a line that has no other."""
    if line.style and not line.spans:
        return (Segment(line.plain, console.get_style(line.style, default=Style.null())),)
    return line.render(console)


def stack(blocks: Sequence[Block], *, gap: int = 1) -> Block:
    """Blocks below each other; empty ones leave no gap."""

    def build(width: int, height: int | None) -> list[Text]:
        out: list[Text] = []
        for block in blocks:
            lines = block.lines(width)
            if lines and out:
                out.extend(Text() for _ in range(gap))
            out.extend(lines)
        return out

    return Block(build)


def sentences(parts: Sequence[tuple[str, str]]) -> Block:
    """Sentences with their styles, each broken where it must be, its further lines indented."""
    return Block(
        lambda width, height: [
            Text(line, style, no_wrap=True)
            for text, style in parts
            for line in wrap(text, width, indent="  ")
        ]
    )


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table.

    Attributes:
        cell: row -> cell; given the column's width where it can use it (``sized``).
        priority: 0 is never dropped; of the others the highest goes first.
        least: the width it is kept with, if need be by dropping other columns; 0: its full width,
            always (numbers). Where none are left to drop, text is cut down to ``_FLOOR``.
        most: the width beyond which it is cut even where there is room (but in a pipe).
    """

    title: str
    cell: Callable[[Row], Cell]
    priority: int = 0
    right: bool = False
    least: int = 0
    most: int = 60


#: Below this many cells a cut name says nothing.
_FLOOR = 8


def _split(cell: Cell) -> tuple[str, str | Text]:
    if isinstance(cell, Text):
        return cell.plain, cell
    return cell if isinstance(cell, tuple) else (cell, "")


def _shown(widths: list[int], least: list[int], priorities: list[int], room: int, gap: int) -> list[int]:
    """Indices of the columns kept."""
    keep = list(range(len(widths)))
    while len(keep) > 1 and sum(least[i] for i in keep) + gap * (len(keep) - 1) > room:
        worst = max(keep, key=lambda i: (priorities[i], i))
        if priorities[worst] == 0:
            break
        keep.remove(worst)
    return keep


def table_wants(rows: Sequence[Row], empty: str = "") -> Callable[[int, int], int]:
    """How many lines ``table`` makes of rows, at most the height."""
    lines = len(rows) + 2 if rows else 2 if empty else 0
    return lambda width, height: min(lines, height)


def table(
    title: str,
    note: str,
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    width: int,
    height: int | None = None,
    *,
    empty: str = "",
) -> list[Text]:
    """A titled table as lines of at most ``width`` cells.

    Columns without any value are left out; then columns go by priority until the least widths
    fit; then the widest text columns are cut. Past ``height`` lines the last one says how many
    rows are not shown.

    Args:
        empty: shown in place of rows where there are none; "" gives no lines at all then.
    """
    if not rows:
        return [heading(title, note, width), Text(cut("  " + empty, width), DIM)] if empty else []
    shown, hidden = rows, 0
    if height is not None and len(rows) + 2 > height:
        shown = rows[: max(height - 3, 0)]
        hidden = len(rows) - len(shown)
    gap = 1 if width < 80 else 2
    cells = [[_split(column.cell(row)) for row in shown] for column in columns]
    used = [i for i, column in enumerate(cells) if any(text not in ("", NONE) for text, _ in column)]
    natural = [max([cell_len(columns[i].title), *(cell_len(text) for text, _ in cells[i])]) for i in used]
    if not is_endless(width):
        natural = [min(w, columns[i].most) for i, w in zip(used, natural, strict=True)]
    least = [min(columns[i].least, w) if columns[i].least else w for i, w in zip(used, natural, strict=True)]
    keep = _shown(natural, least, [columns[i].priority for i in used], width, gap)
    widths = {used[k]: natural[k] for k in keep}
    floor = {used[k]: min(natural[k], _FLOOR) if columns[used[k]].least else natural[k] for k in keep}
    excess = sum(widths.values()) + gap * (len(widths) - 1) - width
    while excess > 0:
        widest = max(widths, key=lambda i: widths[i] - floor[i])
        if widths[widest] <= floor[widest]:
            break
        widths[widest] -= 1
        excess -= 1
    lines = [heading(title, note, width)]
    head = (" " * gap).join(pad(columns[i].title, w, right=columns[i].right) for i, w in widths.items())
    lines.append(Text(cut(head.rstrip(), width), DIM, no_wrap=True))
    wide = sum(widths.values()) + gap * (len(widths) - 1) > width
    shape = [(cells[i], w, columns[i].right) for i, w in widths.items()]
    for r in range(len(shown)):
        line = _line([(*column[r], w, right) for column, w, right in shape], " " * gap)
        if wide:
            line.truncate(width, overflow="ellipsis")
        lines.append(line)
    if hidden:
        lines.append(Text(cut(f"  … {hidden:,} more", width), DIM))
    return lines


def _line(cells: Iterable[tuple[str, str | Text, int, bool]], gap: str) -> Text:
    """A row of (text, style or a Text of its own, width, right) as one Text.

    Made at once: ``Text.append`` costs five times as much, and a screen has hundreds of cells.
    """
    parts: list[str] = []
    spans: list[Span] = []
    at = 0
    for text, style, width, right in cells:
        if parts:
            parts.append(gap)
            at += len(gap)
        part = pad(text, width, right=right)
        if isinstance(style, Text):
            if cell_len(text) <= width:
                part = text + " " * (width - cell_len(text))
                spans.extend(span.move(at) for span in style.spans)
        elif style:
            spans.append(Span(at, at + len(part), style))
        parts.append(part)
        at += len(part)
    return Text("".join(parts), no_wrap=True, spans=spans)


def heading(title: str, note: str, width: int) -> Text:
    """A section's title, with a dim note behind it."""
    line = Text(cut(title, width), TITLE, no_wrap=True)
    room = width - cell_len(title) - 2
    if note and room > 8:
        line.append("  " + cut(note, room), DIM)
    return line
