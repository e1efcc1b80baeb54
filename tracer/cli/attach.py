# SPDX-License-Identifier: Apache-2.0
"""``xdtrace attach``: live tables of running VMMs. Wiring only."""

from __future__ import annotations

from tracer.cli import options as o
from tracer.cli.live import go, make_view, plan
from tracer.cli.run import ending_by_signal


def attach(
    pids: o.Pids = None,
    everything: o.All = False,
    output: o.Output = None,
    duration: o.Duration = None,
    period: o.Period = None,
    profile: o.ProfileFile = None,
    lock: o.Locks = None,
    audio: o.Audio = None,
    no_audio: o.NoAudio = False,
    as_json: o.Json = False,
    held_words: o.HeldWords = 4,
    refresh: o.Refresh = None,
    force: o.Force = False,
) -> None:
    """Trace running VMMs and show why their audio misses its period, live.

    Keys: q quit, p pause, s sort, r reset, 1-4 views. Without a terminal: plain text blocks.
    """
    todo = plan(
        pids,
        everything=everything,
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
    view = make_view(as_json=as_json, refresh_s=refresh)
    with ending_by_signal() as ending:
        go(todo, view, ending)
