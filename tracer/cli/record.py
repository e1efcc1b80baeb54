# SPDX-License-Identifier: Apache-2.0
"""``xdtrace record``: a trace folder without a screen. Wiring only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tracer.cli import options as o
from tracer.cli.live import go, make_view, plan
from tracer.cli.run import ending_by_signal


def record(
    pids: o.Pids,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The trace folder to make.")],
    duration: o.Duration = None,
    period: o.Period = None,
    profile: o.ProfileFile = None,
    lock: o.Locks = None,
    audio: o.Audio = None,
    no_audio: o.NoAudio = False,
    held_words: o.HeldWords = 4,
    force: o.Force = False,
) -> None:
    """Record running VMMs into a trace folder; the last summary is printed at the end."""
    todo = plan(
        pids,
        output=output,
        duration=duration,
        period=period,
        profile=profile,
        lock=lock,
        audio=audio,
        no_audio=no_audio,
        held_words=held_words,
        force=force,
    )
    view = make_view(as_json=False, refresh_s=None, quiet=True)
    print(f"recording into {output}; Ctrl-C ends it", file=sys.stderr)
    with ending_by_signal() as ending:
        go(todo, view, ending)
    print(f"recorded into {output}; `xdtrace report {output}` shows it again", file=sys.stderr)
