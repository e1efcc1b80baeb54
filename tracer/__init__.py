# SPDX-License-Identifier: Apache-2.0
"""xdtrace: why did the audio miss its period, and would it have, without that lock?

``tracer.open`` and ``tracer.attach`` are the doors for notebooks (docs/frames.md). Importing this is cheap:
pandas comes with the first call, bcc and root are needed by ``attach`` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from tracer.frames import Trace
    from tracer.frames.live import LiveSession

__all__ = ["attach", "open"]
__version__ = "0.1.0"


def open(
    path: str | os.PathLike[str], *, period: tuple[int, int] | None = None, profile: str | None = None
) -> Trace:
    """Open a recorded trace as DataFrames.

    Args:
        path: a trace folder, or the single file that ``xdtrace export --to archive`` makes of one.
        period: (quantum, rate) of the streams, (256, 48000) say, where the audio server was not seen.
        profile: what is known of the VMM: a TOML file or a name; None: the bundled ones.

    Raises:
        TraceError: no trace, a newer one, or one that cannot be right.
        UsageError: a bad profile.
    """
    from pathlib import Path

    from tracer.frames import Trace

    return Trace(Path(path), period=period, profile=profile)


def attach(
    *pids: int,
    output: str | os.PathLike[str] | None = None,
    period: tuple[int, int] | None = None,
    profile: str | None = None,
    audio: int | bool | None = None,
    held_words: int = 4,
    refresh_s: float = 1.0,
    force: bool = False,
) -> LiveSession:
    """Trace running VMMs while the result is entered as a context manager; needs root and bcc.

    Args:
        pids: VMM processes. output: record into this trace folder too; force: overwrite it.
        period, profile: as of ``open``. audio: the audio server's PID; None: find it; False: none.
        held_words: lock words watched at each syscall, 0 to 16.
        refresh_s: seconds between two updates of the tables shown.

    Raises:
        UsageError: an argument is wrong. On entering: TargetError, HostError, TraceError.
    """
    from pathlib import Path

    from tracer.frames.live import LiveSession

    return LiveSession(
        pids,
        output=None if output is None else Path(output),
        period=period,
        profile=profile,
        audio=audio,
        held_words=held_words,
        refresh_s=refresh_s,
        force=force,
    )
