# SPDX-License-Identifier: Apache-2.0
"""Screens as text, at three widths, against golden files.

Owns tests/data/screens/. ``XDTRACE_WRITE_SCREENS=1 pytest …`` writes them anew: then read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import views_data
from rich.cells import cell_len
from rich.text import Text

from tracer.model.summary import Summary
from tracer.views.tables import VIEWS, render_report, screen

SCREENS = Path(__file__).parents[1] / "data" / "screens"
WIDTHS = {60: 30, 80: 30, 140: 44}
CASES = [(name, "overview") for name in views_data.ALL] + [
    ("missing", "locks"),
    ("missing", "misses"),
    ("hostile", "misses"),
    ("clean", "held"),
    ("mixed", "misses"),
]


def check(path: Path, text: str) -> None:
    """Compare with the golden file, or write it where asked to."""
    if os.environ.get("XDTRACE_WRITE_SCREENS") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def drawn(summary: Summary, width: int, height: int, view: str) -> str:
    footer = Text("(keys)")
    lines = [line.plain for line in screen(summary, width, height, view=view, footer=footer)]
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width
    assert lines[-1] == "(keys)"
    return "".join(line.rstrip() + "\n" for line in lines)


@pytest.mark.parametrize(("name", "view"), CASES)
@pytest.mark.parametrize("width", WIDTHS)
def test_screen_looks_as_it_did(name: str, view: str, width: int) -> None:
    text = drawn(views_data.ALL[name](), width, WIDTHS[width], view)
    check(SCREENS / f"{name}-{view}-{width}.txt", text)


@pytest.mark.parametrize("name", views_data.ALL)
def test_report_looks_as_it_did(name: str) -> None:
    check(SCREENS / f"{name}-report-100.txt", render_report(views_data.ALL[name]()).plain(100))


@pytest.mark.parametrize("name", views_data.ALL)
@pytest.mark.parametrize("view", VIEWS)
def test_every_screen_fits_every_terminal(name: str, view: str) -> None:
    summary = views_data.ALL[name]()
    for width in (20, 33, 47, 60, 79, 80, 100, 119, 140, 250):
        for height in (3, 8, 16, 24, 60):
            drawn(summary, width, height, view)


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_of_a_hostile_name_reaches_the_terminal_raw(view: str) -> None:
    for width in WIDTHS:
        for line in screen(views_data.hostile(), width, 60, view=view):
            assert line.plain.isprintable()


def test_markup_in_names_is_shown_and_not_obeyed() -> None:
    lines = screen(views_data.hostile(), 140, 60)
    shown = [line for line in lines if "[bold red]owned[/]" in line.plain]
    assert shown
    assert not any("red" in str(span.style) for line in shown for span in line.spans)
