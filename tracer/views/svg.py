# SPDX-License-Identifier: Apache-2.0

"""The live screen as an SVG picture, for a bug report or a page: needs no network to be looked at.

Owns the picture's frame only; what is on it is tables.screen's.
"""

from __future__ import annotations

import io
import re

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from tracer.model.summary import Summary
from tracer.views.tables import screen

WIDTH, HEIGHT = 140, 46

# Rich's own format loads a font from a host; any monospace font of the reader's will do.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}|<!--.*?-->", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "font-family: Fira Code, monospace",
    "font-family: ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace",
)


def to_svg(summary: Summary, *, width: int = WIDTH, height: int = HEIGHT, title: str = "xdtrace") -> str:
    """One screen of ``width`` x ``height`` cells as an SVG document."""
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text("\n").join(screen(summary, width, height)), no_wrap=True, overflow="crop", end="")
    return console.export_svg(title=title, code_format=_FORMAT, unique_id="xdtrace")
