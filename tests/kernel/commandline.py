# SPDX-License-Identifier: Apache-2.0
"""The command as a user types it, from this checkout: started anywhere, its exit code and words kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tracer.cli.main")
#: Seconds after which a command that does not end is a failure (not a measure of anything).
PATIENCE_S = 240


def environment(**more: str) -> dict[str, str]:
    """The environment in which the command is this checkout's; folders in PYTHONPATH go first."""
    first = more.pop("PYTHONPATH", "")
    return {**os.environ, **more, "PYTHONPATH": f"{first}:{ROOT}" if first else str(ROOT)}


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def xdtrace(
    *words: str,
    before: Sequence[str] = (),
    command: Sequence[str] = COMMAND,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run the command to its end.

    Args:
        words: its arguments.
        before: a command that runs it, such as setpriv and its options.
        command: instead of the module itself, for a fault that must be arranged in it.
    """
    done = subprocess.run(
        [*before, *command, *words],
        capture_output=True,
        text=True,
        env=environment() if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
