# SPDX-License-Identifier: Apache-2.0
"""What commands print arrives whole, also where Python's stdout is unbuffered and signals come."""

from __future__ import annotations

import array
import fcntl
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

_BYTES = 1_000_000
_CHILD = f"""
import signal, sys
from tracer.cli import main
signal.signal(signal.SIGUSR1, lambda *_: None)
main.write_whole()
sys.stdout.write("x" * {_BYTES} + "\\n")
sys.stdout.flush()
"""


def test_a_signal_cuts_nothing_off_a_long_line() -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-c", _CHILD], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout is not None
        full = fcntl.fcntl(child.stdout, fcntl.F_GETPIPE_SZ)
        waiting = array.array("i", [0])
        while waiting[0] < full and child.poll() is None:  # the child is stuck in write(2) then
            fcntl.ioctl(child.stdout, termios.FIONREAD, waiting)
            time.sleep(0.001)
        child.send_signal(signal.SIGUSR1)
        assert len(child.stdout.read()) == _BYTES + 1
    assert child.returncode == 0
