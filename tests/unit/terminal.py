# SPDX-License-Identifier: Apache-2.0
"""A terminal for tests: a program on a pty, its screen kept by pyte. Waits for content, never for time."""

from __future__ import annotations

import os
import signal
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pexpect
import pyte

#: Seconds after which a screen that does not come is a failure (not a measure of anything).
PATIENCE_S = 120.0

_ENTER, _LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
_HIDE, _SHOW = b"\x1b[?25l", b"\x1b[?25h"


class Terminal:
    """Runs ``argv`` on a pty of width x height cells.

    Attributes:
        alternate: whether the alternate screen is on; ever_alternate: whether it ever was.
        first_mode, last_mode: termios attributes before the program ran and after it ended.
    """

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], width: int = 140, height: int = 44
    ) -> None:
        env = {**os.environ, "TERM": "xterm-256color", **environment}
        env.pop("COLUMNS", None)
        env.pop("LINES", None)
        self.alternate = self.ever_alternate = self.cursor_hidden = False
        self._screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self._screen)
        self._raw = b""
        self._child = pexpect.spawn(
            argv[0], list(argv[1:]), env=env, dimensions=(height, width), timeout=PATIENCE_S
        )
        self.first_mode = self.mode()
        self.last_mode: list[Any] = []

    def mode(self) -> list[Any]:
        """The termios attributes now."""
        return termios.tcgetattr(self._child.child_fd)

    def _read(self) -> bool:
        """Take in what the program wrote; False once it has closed the terminal."""
        try:
            data: bytes = self._child.read_nonblocking(65536, timeout=0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self._raw = self._raw[-16:] + data
        self.ever_alternate |= _ENTER in self._raw
        for on, off, name in ((_ENTER, _LEAVE, "alternate"), (_HIDE, _SHOW, "cursor_hidden")):
            last_on, last_off = self._raw.rfind(on), self._raw.rfind(off)
            if last_on != last_off:
                setattr(self, name, last_on > last_off)
        # pyte knows no alternate screen: what it shows after the end is what was written last.
        for part in data.replace(_LEAVE, b"\x1b[2J\x1b[H").split(b"\x00"):
            self._stream.feed(part)
        return True

    def text(self) -> str:
        """What the screen shows."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def row(self, number: int) -> str:
        """One row of the screen."""
        line: str = self._screen.display[number]
        return line.rstrip()

    def wait_for(self, *wanted: str, without: str | None = None) -> None:
        """Until all of ``wanted`` is on the screen, and ``without`` is not; fails after PATIENCE_S."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            alive = self._read()
            text = self.text()
            if all(word in text for word in wanted) and (without is None or without not in text):
                return
            assert alive, f"ended before it showed {wanted}:\n{text}"
        raise AssertionError(f"no {wanted} (without {without}) on the screen:\n{self.text()}")

    def press(self, keys: str) -> None:
        """Type."""
        self._child.send(keys)

    def resize(self, width: int, height: int) -> None:
        """Change the size; the program is told by SIGWINCH."""
        self._screen.resize(height, width)
        self._child.setwinsize(height, width)

    def signal(self, number: int) -> None:
        """Send a signal to the program."""
        self._child.kill(number)

    def wait_end(self) -> int | None:
        """Until the program has ended; its exit code, None if a signal killed it."""
        end = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < end, f"still running:\n{self.text()}"
        self._child.wait()
        self.last_mode = self.mode()
        code: int | None = self._child.exitstatus
        return code

    def hang_up(self) -> int | None:
        """Close the terminal; the program's exit code once it has ended, None if a signal killed it."""
        os.close(self._child.child_fd)
        self._child.wait()
        self._child.closed = self._child.ptyproc.closed = True
        code: int | None = self._child.exitstatus
        return code

    def kill(self) -> None:
        """End it whatever it does; once more does nothing."""
        if self._child.closed:
            return
        if self._child.isalive():
            self._child.kill(signal.SIGKILL)
        end = time.monotonic() + PATIENCE_S
        while self._read() and time.monotonic() < end:  # until the kernel has taken its probes away
            pass
        self._child.close()
