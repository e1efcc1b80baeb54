# SPDX-License-Identifier: Apache-2.0
"""``xdtrace glitches``: what a capture's glitches are, and which misses explain them. Wiring only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracer.cli import options as o
from tracer.cli.live import make_analysis
from tracer.cli.report import check_output, open_trace, say_lost
from tracer.cli.run import replay
from tracer.errors import TraceError, UsageError

if TYPE_CHECKING:
    from tracer.audio import Capture
    from tracer.model.summary import Summary
    from tracer.views.glitches import Heard

FORMATS = ("text", "json")


def glitches(
    sounds: Annotated[
        list[Path],
        typer.Argument(
            metavar="WAV...",
            readable=False,
            help="Captures of a steady tone: WAV or FLAC.",
            show_default=False,
        ),
    ],
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="DIR", readable=False, help="The trace that ran meanwhile."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="text|json", help="json: one object a capture.")
    ] = "text",
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw bursts and waveform into this picture."),
    ] = None,
    period: o.Period = None,
    profile: o.ProfileFile = None,
) -> None:
    """Count glitch bursts in a capture of the sink's monitor; match each to the missed period behind it.

    Play a sine (best of 997 Hz) in the guest, record the sink's monitor with pw-record, and trace meanwhile.
    """
    from tracer import audio
    from tracer.views.glitches import render_glitches, to_dict
    from tracer.views.text import console_for, write_block

    if form not in FORMATS:
        raise UsageError(f"--format {form!r} is unknown", "use text or json")
    if plot is not None and len(sounds) > 1:
        raise UsageError("--plot draws one capture", "name one WAV")
    if plot is not None:
        check_output(plot, sounds[0], option="--plot", what="the capture")
    summary = None if trace is None else _summary(trace, period, profile)
    for sound in sounds:
        heard = _heard(sound, audio.analyse(sound), summary)
        if form == "json":
            print(json.dumps(to_dict(heard), separators=(",", ":")))
        else:
            write_block(console_for(sys.stdout), render_glitches(heard))
        if plot is not None:
            from tracer.views.waveform import draw

            draw(heard, sound, plot)
            print(f"drew {plot}", file=sys.stderr)


def _summary(path: Path, period: str | None, profile: str | None) -> Summary:
    analysis = make_analysis(profile, o.parse_period(period))
    with open_trace(path) as trace:
        summary = replay(trace, analysis)
        say_lost(trace.incomplete)
    if not summary.streams:
        raise TraceError(
            f"no audio stream was seen in {path}, so nothing in it can explain a glitch",
            "record while the tone plays, or leave --trace away",
        )
    return summary


def _heard(sound: Path, capture: Capture, summary: Summary | None) -> Heard:
    from tracer.model.explain import explain
    from tracer.views.glitches import Heard

    if summary is None:
        return Heard(sound.name, capture)
    explained = explain(
        capture.bursts,
        summary.misses,
        period_ns=max(stream.period_ns for stream in summary.streams),
        window=(summary.window.start_ns, summary.window.end_ns),
        tone_s=(capture.tone_start_s, capture.tone_end_s),
    )
    return Heard(sound.name, capture, explained, {miss.id: miss for miss in summary.misses})
