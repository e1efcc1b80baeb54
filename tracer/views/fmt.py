# SPDX-License-Identifier: Apache-2.0
"""How numbers and names become text: units, escapes, sparklines, colours.

Owns humanising (the only place where ns turn into ms) and the palette.
Never looks at a Summary and never prints.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, groupby

from rich.cells import cell_len, set_cell_size
from rich.text import Text

#: Shown where a value is not known; never "0".
NONE = "–"

#: The width of a pipe, a file, a log: nothing is ever cut there.
ENDLESS = 1 << 20
#: Sentences are broken at this many cells, however wide the output.
READABLE = 120

# The Okabe-Ito palette: told apart with every common colour blindness (https://jfly.uni-koeln.de/color/).
ORANGE = "#e69f00"
SKY = "#56b4e9"
GREEN = "#009e73"
YELLOW = "#f0e442"
BLUE = "#0072b2"
VERMILLION = "#d55e00"
PURPLE = "#cc79a7"

BAD = f"bold {VERMILLION}"
WARN = ORANGE
GOOD = GREEN
DIM = "dim"
TITLE = "bold"

#: What a bar of segments is drawn with: a letter (readable without colour), a style, a name.
#: A via group is shown in place of its leaf: it says for whose work the thread was busy.
SEGMENT_MARKS: dict[str, tuple[str, str, str]] = {
    "lock": ("L", f"black on {VERMILLION}", "lock"),
    "not_scheduled": ("N", f"black on {ORANGE}", "not scheduled"),
    "stolen": ("T", f"black on {YELLOW}", "stolen CPU"),
    "slow_syscall": ("Y", f"black on {SKY}", "syscall"),
    "on_cpu": ("C", f"white on {BLUE}", "on CPU"),
    "blocked": ("B", f"black on {PURPLE}", "blocked"),
    "guest": ("g", f"black on {GREEN}", "guest"),
    "host": ("h", "black on #999999", "host"),
    "carried": ("·", DIM, "carried"),
    "serialised": ("S", f"black on {PURPLE}", "serialised"),
    "head_of_line": ("Q", f"black on {SKY}", "head of line"),
    "not_rearmed": ("R", f"black on {YELLOW}", "not re-armed"),
    "unknown": ("?", "", "unknown"),
}

_SPARK = "▁▂▃▄▅▆▇█"
_MISS_MARK = "×"
_ASCII_PRINTABLE = re.compile(r"[ -~]*\Z")


def is_endless(width: int) -> bool:
    """Whether that is the width of a pipe, or of what an indent leaves of it."""
    return width >= ENDLESS // 2


def clean(name: str) -> str:
    """A name from a target as it may be shown: what is not printable becomes an escape.

    Control characters, escape sequences, line ends, bidirectional overrides and lone
    surrogates never reach the terminal. Markup needs no escape: views draw Text, not markup.
    """
    if _ASCII_PRINTABLE.match(name):
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def pointed_at(text: str, at: int, length: int, width: int = 72) -> tuple[str, str]:
    """An expression as one printable line of at most ``width`` cells, and a caret below what is to blame."""
    before, blamed, after = (clean(part) for part in (text[:at], text[at : at + length], text[at + length :]))
    room = width * 2 // 3
    if len(before) > room or cell_len(before) > room:
        before = before[-room:]
        while cell_len(before) > room:
            before = before[1:]
        before = "…" + before
    mark = " " * cell_len(before) + "^" + "~" * (min(cell_len(blamed), width // 3) - 1)
    return cut(before + blamed + after, width)[:width], mark  # marks that take no cell are cut as well


def duration(ns: int | None) -> str:
    """Nanoseconds with three significant digits and a unit: ``843ns``, ``1.84ms``, ``138ms``, ``2.31s``."""
    if ns is None:
        return NONE
    sign, value = ("-", float(-ns)) if ns < 0 else ("", float(ns))
    if value < 999.5:
        return f"{sign}{value:.0f}ns"
    for unit in ("µs", "ms", "s"):
        value /= 1000
        if value < 999.5 or unit == "s":
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{sign}{value:.{digits}f}{unit}"


def clock(ns: int) -> str:
    """An elapsed time: ``00:12``, ``1:02:03``."""
    seconds = max(ns, 0) // 1_000_000_000
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def count(number: int) -> str:
    """An integer with thousands separators."""
    return f"{number:,}"


def percent(fraction: float | None) -> str:
    """A fraction (0..1) as per cent: ``100%``, ``13%``, ``0.2%``."""
    if fraction is None:
        return NONE
    value = fraction * 100
    return f"{value:.0f}%" if value >= 9.95 or value == 0 else f"{value:.1f}%"


def plural(number: int, noun: str) -> str:
    """``1 miss``, ``2 misses``."""
    if number == 1:
        return f"1 {noun}"
    return f"{count(number)} {noun}{'es' if noun.endswith(('s', 'x', 'ch')) else 's'}"


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` cells, with an ellipsis where it was cut."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else "…"[:width]


def pad(text: str, width: int, *, right: bool = False) -> str:
    """``text`` cut or filled to exactly ``width`` cells; ``right`` aligns it to the right."""
    text = cut(text, width)
    fill = " " * (width - cell_len(text))
    return fill + text if right else text + fill


def sparkline(slack_ns: Sequence[int | None], period_ns: int, width: int) -> Text:
    """The last ``width`` cycles' slack, scaled to the period; ``×`` is a missed cycle."""
    line = Text(no_wrap=True)
    for slack in slack_ns[-width:] if width > 0 else ():
        if slack is None or slack < 0:
            line.append(_MISS_MARK, BAD)
        else:
            level = slack * len(_SPARK) // period_ns if period_ns > 0 else 0
            line.append(_SPARK[min(level, len(_SPARK) - 1)], SKY)
    return line


def bar(parts_ns: Sequence[int], name: Callable[[int], str], width: int) -> Text:
    """A bar of ``width`` cells for parts in order.

    Each part gets its share by its cumulative end, rounded, so that the bar is always full; a part
    shorter than half a cell may vanish, and the longest part never does.

    Args:
        name: of a part by its place: what it is marked as. Of thousands of parts a few dozen are asked for.
    """
    ends = list(accumulate(parts_ns))
    total = ends[-1] if ends else 0
    line = Text(no_wrap=True)
    if total <= 0 or width <= 0:
        return line
    # A cell is the first part's whose end lies behind the cell's middle.
    middles = (-(-total * (2 * cell + 1) // (2 * width)) for cell in range(width))
    for part, cells in groupby(bisect_left(ends, middle) for middle in middles):
        letter, style, _ = SEGMENT_MARKS.get(name(part), SEGMENT_MARKS["unknown"])
        line.append(letter * sum(1 for _ in cells), style)
    return line


def legend(names: Iterable[str]) -> Text:
    """What the letters of the bars mean, for the marks in use."""
    line = Text(no_wrap=True)
    used = set(names)
    for name, (letter, style, words) in SEGMENT_MARKS.items():
        if name in used:
            if line:
                line.append("  ")
            line.append(letter, style)
            line.append(f" {words}", DIM)
    return line


def wrap(text: str, width: int, *, indent: str = "", lines: int | None = None) -> list[str]:
    """A sentence in lines of ``width`` cells, broken at spaces; past ``lines`` it ends in an ellipsis.

    On an endless width lines are readable ones, as many as it takes, and a word is never cut.
    """
    endless = is_endless(width)
    if endless:
        width, lines = READABLE, None
    out: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        room = width - (len(indent) if out else 0)
        if line and cell_len(joined) > room:
            out.append(line)
            line = word
        else:
            line = joined
    out.append(line)
    if lines is not None and len(out) > lines:
        out = [*out[: lines - 1], " ".join(out[lines - 1 :])]
    out = [indent + part if i else part for i, part in enumerate(out)]
    return out if endless else [cut(part, width) for part in out]
