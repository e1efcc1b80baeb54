# SPDX-License-Identifier: Apache-2.0
"""The live screen: redrawn when something changed, and its keys.

Owns the terminal's mode from ``__enter__`` to ``__exit__`` and restores it whatever
happens. Computes nothing; starts no thread (bcc's BPF() changes directory process-wide).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

from rich.text import Text

from tracer.model.summary import Summary
from tracer.views.base import Action
from tracer.views.fmt import BAD, DIM
from tracer.views.paint import Painter
from tracer.views.tables import SORTS, VIEWS, screen
from tracer.views.text import TextBlocks, console_for

_KEY_LABELS = ("1 overview", "2 locks", "3 held", "4 misses")


class LiveScreen:
    """A view for people.

    Args:
        out: a terminal.
        keys: where keys come from; None, or no terminal: no keys, and their hints are left out.
        refresh_s: seconds from one summary to the next.
    """

    def __init__(self, out: TextIO, keys: TextIO | None = None, refresh_s: float = 0.25) -> None:
        self.refresh_s = refresh_s
        self._out = out
        self._console = console_for(out)
        self._keys = keys if keys is not None and keys.isatty() else None
        self._painter: Painter | None = None
        self._mode: list[Any] | None = None
        self._view = 0
        self._sort = 0
        self._paused = False
        self._summary: Summary | None = None
        self._drawn: tuple[object, ...] = ()
        self._suspend = False
        self._old_suspend: Any = None

    def __enter__(self) -> Self:
        self._old_suspend = signal.signal(signal.SIGTSTP, self._on_suspend)
        try:
            self._enter_screen()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave_screen()
        finally:
            if self._old_suspend is not None:
                signal.signal(signal.SIGTSTP, self._old_suspend)
                self._old_suspend = None

    def _enter_screen(self) -> None:
        if self._keys is not None:
            self._mode = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._painter = Painter(self._console)
        self._drawn = ()

    def _leave_screen(self) -> None:
        try:
            if self._painter is not None:
                painter, self._painter = self._painter, None
                with _hung_up():
                    painter.close()
        finally:
            if self._mode is not None and self._keys is not None:
                mode, self._mode = self._mode, None
                with suppress(termios.error):  # it hung up
                    termios.tcsetattr(self._keys, termios.TCSADRAIN, mode)

    def _on_suspend(self, number: int, frame: FrameType | None) -> None:
        self._suspend = True  # acted upon in poll(): a handler may run in the middle of a frame

    def _go_to_sleep(self) -> None:
        """Ctrl-Z: give the terminal back, stop, and take it again when continued."""
        self._suspend = False
        self._leave_screen()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._on_suspend)
        self._enter_screen()

    def poll(self) -> Sequence[Action]:
        """Read keys and the terminal's size; redraw at once where one of them changed the screen."""
        if self._suspend:
            self._go_to_sleep()
        actions = [action for key in self._read_keys() if (action := self._press(key)) is not None]
        self._draw()
        return actions

    def _read_keys(self) -> str:
        if self._keys is None:
            return ""
        fd = self._keys.fileno()
        ready, _, _ = select.select([fd], [], [], 0)
        if not ready:
            return ""
        data = os.read(fd, 64)
        if not data:  # the terminal hung up
            self._keys = None
            return "q"
        return "" if data.startswith(b"\x1b") else data.decode("ascii", "ignore")

    def _press(self, key: str) -> Action | None:
        if key in ("q", "Q"):
            return Action.QUIT
        if key == "r":
            return Action.RESET
        if key == "p":
            self._paused = not self._paused
        elif key == "s":
            self._sort = (self._sort + 1) % len(SORTS)
        elif key in ("1", "2", "3", "4"):
            self._view = int(key) - 1
        return None

    def show(self, summary: Summary) -> None:
        if not self._paused:
            self._summary = summary
        self._draw()

    def _draw(self) -> None:
        """Draw what there is, unless it is on the screen already."""
        if self._painter is None or self._summary is None:
            return
        width, height = self._console.size
        state = (id(self._summary), width, height, self._view, self._sort, self._paused)
        if state == self._drawn:
            return
        self._drawn = state
        lines = screen(
            self._summary,
            width,
            height,
            view=VIEWS[self._view],
            sort=SORTS[self._sort],
            paused=self._paused,
            footer=self._footer(width),
        )
        with _hung_up():
            self._painter.paint(lines, (width, height))

    def _footer(self, width: int) -> Text:
        line = Text(no_wrap=True)
        if self._keys is None:
            line.append("Ctrl-C ends", DIM)
            return line
        for i, label in enumerate(_KEY_LABELS):
            line.append(label if width >= 80 else label.split()[0], "reverse" if i == self._view else DIM)
            line.append(" ")
        line.append(f" s sort:{SORTS[self._sort]}  ", DIM)
        line.append("p resume" if self._paused else "p pause", BAD if self._paused else DIM)
        line.append("  r reset  q quit", DIM)
        line.truncate(width, overflow="ellipsis")
        return line

    def finish(self, summary: Summary, extra: Mapping[str, object]) -> None:
        with _hung_up():
            TextBlocks(self._out).finish(summary, extra)


@contextmanager
def _hung_up() -> Iterator[None]:
    """Nobody sees what a terminal that hung up is told: SIGHUP ends the session, in good order."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def keyboard() -> TextIO | None:
    """Standard input where it is a terminal that we may read from, else None."""
    try:
        foreground = sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return None
    return sys.stdin if foreground else None
