# SPDX-License-Identifier: Apache-2.0
"""The live screen through a real terminal, on a fake session: keys, resize, every way to end."""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminal import Terminal

FAKE = Path(__file__).with_name("cli_fakes.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def start() -> Iterator[Callable[..., Terminal]]:
    running: list[Terminal] = []

    def run(*words: str, batches: int = 0, width: int = 140, height: int = 70) -> Terminal:
        environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/unit'}"}
        terminal = Terminal([sys.executable, str(FAKE), str(batches), *words], environment, width, height)
        running.append(terminal)
        return terminal

    yield run
    for terminal in running:
        terminal.kill()


def test_the_screen_comes_up_and_q_leaves_the_last_summary_on_the_normal_screen(
    start: Callable[..., Terminal],
) -> None:
    terminal = start("attach", "42")
    terminal.wait_for("Streams", "Misses", "Locks", "q quit")
    assert terminal.alternate
    terminal.press("q")
    assert terminal.wait_end() == 0
    assert not terminal.alternate
    assert not terminal.cursor_hidden
    assert "Each of these alone would have avoided" in terminal.text()
    assert "q quit" not in terminal.text()


def test_keys_choose_the_view(start: Callable[..., Terminal]) -> None:
    terminal = start("attach", "42")
    terminal.wait_for("Streams")
    for key, title, gone in (
        ("2", "Names", "Streams"),
        ("3", "Threads", "Names"),
        ("4", "Misses in detail", "Threads"),
    ):
        terminal.press(key)
        terminal.wait_for(title, without=gone)
    terminal.press("1")
    terminal.wait_for("Streams", without="Misses in detail")


def test_s_changes_the_order_and_says_so(start: Callable[..., Terminal]) -> None:
    terminal = start("attach", "42")
    terminal.wait_for("s sort:harm", "sorted by misses caused, then time waited")
    terminal.press("s")
    terminal.wait_for("s sort:time", "sorted by time waited")
    terminal.press("ss")
    terminal.wait_for("s sort:harm")


def test_p_holds_the_screen_and_r_starts_over(start: Callable[..., Terminal]) -> None:
    terminal = start("attach", "42")
    terminal.wait_for("Still happening")
    terminal.press("p")
    terminal.wait_for("PAUSED", "p resume")
    terminal.press("r")
    terminal.press("p")
    terminal.wait_for("reset 1", without="PAUSED")


def test_other_keys_and_escape_sequences_do_nothing(start: Callable[..., Terminal]) -> None:
    terminal = start("attach", "42")
    terminal.wait_for("Streams")
    terminal.press("xyz\x1b[A\x1b[B\t")
    terminal.press("2")
    terminal.wait_for("Names")


def test_the_screen_follows_the_terminals_size(start: Callable[..., Terminal]) -> None:
    terminal = start("attach", "42")
    terminal.wait_for("top waiter")
    terminal.resize(60, 24)
    terminal.wait_for("Streams", "q quit", without="top waiter")
    assert terminal.row(-1).startswith("1 2 3 4")
    terminal.resize(140, 44)
    terminal.wait_for("top waiter", "1 overview")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_with_the_last_summary(start: Callable[..., Terminal], number: signal.Signals) -> None:
    terminal = start("attach", "42")
    terminal.wait_for("Streams")
    terminal.signal(number)
    assert terminal.wait_end() == 0
    assert not terminal.alternate
    assert "Each of these alone would have avoided" in terminal.text()


@pytest.mark.parametrize("size", [(140, 44), (80, 25)])
def test_a_terminal_that_is_closed_is_an_orderly_end(
    start: Callable[..., Terminal], size: tuple[int, int]
) -> None:
    terminal = start("attach", "42")
    terminal.resize(*size)
    terminal.wait_for("Streams")
    assert terminal.hang_up() == 0


def test_ctrl_c_ends_it_with_the_last_summary(start: Callable[..., Terminal]) -> None:
    terminal = start("attach", "42")
    terminal.wait_for("Streams")
    terminal.press("\x03")
    assert terminal.wait_end() == 0
    assert "Each of these alone would have avoided" in terminal.text()


def test_the_end_of_the_target_and_of_the_duration_end_it(start: Callable[..., Terminal]) -> None:
    for words, batches in ((("attach", "42"), 5), (("attach", "42", "--duration", "0.1"), 0)):
        terminal = start(*words, batches=batches)
        assert terminal.wait_end() == 0
        assert not terminal.alternate
        assert "Each of these alone would have avoided" in terminal.text()


def test_the_terminals_mode_is_as_before(start: Callable[..., Terminal]) -> None:
    terminal = start("attach", "42")
    before = terminal.first_mode
    terminal.wait_for("Streams")
    assert not terminal.mode()[3] & termios.ICANON
    terminal.press("q")
    assert terminal.wait_end() == 0
    assert terminal.last_mode == before


def test_json_in_a_terminal_takes_no_screen(start: Callable[..., Terminal]) -> None:
    terminal = start("attach", "42", "--json", batches=3)
    assert terminal.wait_end() == 0
    assert not terminal.ever_alternate
