# SPDX-License-Identifier: Apache-2.0
"""The screen shows what was painted last, however little of it was written."""

from __future__ import annotations

import io

import pyte
import pytest
import views_data
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from tracer.views.paint import Painter
from tracer.views.tables import VIEWS, _blocks, screen

WIDTH, HEIGHT = 12, 5


class Screen:
    """A painter on a terminal of pyte's; ``written``: what the last picture wrote."""

    def __init__(self, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.out = io.StringIO()
        self.terminal = pyte.Screen(width, height)
        self._stream = pyte.Stream(self.terminal)
        console = Console(
            file=self.out,
            force_terminal=True,
            color_system="truecolor",
            width=width,
            _environ={"TERM": "xterm-256color"},
        )
        self.painter = Painter(console)
        self.written = ""

    def paint(self, lines: list[Text], size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[str]:
        self.out.seek(0)
        self.out.truncate()
        self.painter.paint(lines, size)
        self.written = self.out.getvalue()
        self._stream.feed(self.written)
        return [line.rstrip() for line in self.terminal.display]


texts = st.builds(
    Text, st.text("ab ", max_size=WIDTH), st.sampled_from(["", "bold", "red"]), no_wrap=st.just(True)
)
pictures = st.lists(st.lists(texts, min_size=HEIGHT, max_size=HEIGHT), min_size=1, max_size=60)


@given(pictures)
def test_the_screen_shows_the_last_picture(found: list[list[Text]]) -> None:
    screen = Screen()
    for lines in found:
        assert screen.paint(lines) == [line.plain.rstrip() for line in lines]
        assert [screen.terminal.buffer[y][0].bold for y, line in enumerate(lines) if line] == [
            line.style == "bold" for line in lines if line
        ]


def test_only_what_changed_is_written() -> None:
    screen = Screen()
    screen.paint([Text("one"), Text("two"), Text("three")])
    screen.paint([Text("one"), Text("TWO"), Text("three")])
    assert "TWO" in screen.written
    assert "one" not in screen.written
    assert "three" not in screen.written
    screen.paint([Text("one"), Text("TWO"), Text("three")])
    assert screen.written == ""


def test_a_line_as_wide_as_the_screen_keeps_its_last_cell() -> None:
    screen = Screen()
    assert screen.paint([Text("x" * WIDTH), Text("y")]) == ["x" * WIDTH, "y", "", "", ""]


def test_what_others_wrote_goes_in_time_and_at_once_with_a_new_size() -> None:
    screen, lines = Screen(), [Text("one"), Text("two")]
    screen.paint(lines)
    screen.terminal.draw("rubbish")
    assert screen.paint(lines, (WIDTH, HEIGHT - 1))[:2] == ["one", "two"]
    screen.terminal.draw("rubbish")
    shown = [screen.paint(lines)[:3] for _ in range(100)]
    assert shown[-1] == ["one", "two", ""]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", views_data.ALL)
def test_blocks_take_as_many_lines_as_they_say(name: str, view: str) -> None:
    summary = views_data.ALL[name]()
    for block in _blocks(summary, view, "harm"):
        for width in (20, 60, 80, 140):
            for height in (1, 3, 4, 5, 8, 16, 60):
                assert block.wants(width, height) == len(block.lines(width, height))


def test_a_screen_painted_over_another_is_as_painted_alone() -> None:
    names = sorted(views_data.ALL)
    over = Screen(140, 44)
    for name in [*names, *names]:
        lines = screen(views_data.ALL[name](), 140, 44)
        assert over.paint(lines, (140, 44)) == Screen(140, 44).paint(lines, (140, 44))
