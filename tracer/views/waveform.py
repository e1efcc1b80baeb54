# SPDX-License-Identifier: Apache-2.0
"""A picture of a capture: where its bursts lie, and the waveform around each.

Owns the drawing; needs matplotlib (the extra ``plot``). Reads only the samples that it shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import soundfile

from tracer.errors import HostError, UsageError
from tracer.views.fmt import BLUE, GREEN, ORANGE, VERMILLION, clean
from tracer.views.glitches import Heard

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Bursts whose waveform is drawn: the longest.
_SHOWN: Final = 6
#: Seconds shown before and after a burst, at most this much of one.
_AROUND_S: Final = 0.01
_MOST_S: Final = 0.25
#: Points of a line: more are drawn as the envelope.
_POINTS: Final = 4000


def draw(heard: Heard, sound: Path, file: Path) -> None:
    """Draw into ``file``, whose suffix gives the format.

    Args:
        heard: of the capture ``sound``.

    Raises:
        HostError: there is no matplotlib. UsageError: the file cannot be written, or its format is unknown.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise HostError(
            "there is no matplotlib to draw with",
            "install xdtrace with its extra `plot`, or matplotlib alone",
        ) from None
    bursts = heard.capture.bursts
    longest = sorted(range(len(bursts)), key=lambda i: bursts[i].start_s - bursts[i].end_s)[:_SHOWN]
    rows = 1 + len(longest)
    figure = Figure(figsize=(10, 1.2 + 1.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    title = f"{clean(heard.name)}: {heard.capture.tone_hz:.2f} Hz, {len(bursts)} glitch bursts"
    figure.suptitle(title, parse_math=False)
    _overview(heard, axes[0])
    with soundfile.SoundFile(sound) as samples:
        for ax, number in zip(axes[1:], sorted(longest), strict=True):
            _waveform(heard, samples, number, ax)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot draw into {file}: {why}", "name a .png, .svg or .pdf file") from error


def _colour(heard: Heard, number: int) -> str:
    if heard.explained is None:
        return BLUE
    if heard.explained.misses[number] is not None:
        return GREEN
    return ORANGE if heard.explained.outside[number] else VERMILLION


def _overview(heard: Heard, ax: Axes) -> None:
    """All bursts in time; a long one as long as it is, a short one still visible."""
    length = heard.capture.duration_s
    names = {
        BLUE: "burst",
        GREEN: "explained by a miss",
        ORANGE: "outside the trace",
        VERMILLION: "unexplained",
    }
    for colour, name in names.items():
        mine = [b for i, b in enumerate(heard.capture.bursts) if _colour(heard, i) == colour]
        if mine:
            spans = [(b.start_s, max(b.end_s - b.start_s, length / 600)) for b in mine]
            ax.broken_barh(spans, (0, 1), color=colour, label=f"{name}: {len(mine)}")
    ax.set(xlim=(0, length), ylim=(0, 1), yticks=[], xlabel="time in the capture (s)", title="bursts")
    if heard.capture.bursts:
        ax.legend(loc="upper right", fontsize="small")


def _waveform(heard: Heard, file: Any, number: int, ax: Axes) -> None:
    burst, rate = heard.capture.bursts[number], heard.capture.rate_hz
    first = max(0, int((burst.start_s - _AROUND_S) * rate))
    last = min(int((burst.end_s + _AROUND_S) * rate), first + int(_MOST_S * rate))
    file.seek(first)
    samples = file.read(last - first, always_2d=True)
    times = (first + np.arange(len(samples))) / rate
    step = max(1, len(samples) // _POINTS)
    for channel in range(samples.shape[1]):
        ax.plot(times[::step], samples[::step, channel], lw=0.8, color=(BLUE, ORANGE)[channel % 2])
    ax.axvspan(burst.start_s, min(burst.end_s, times[-1]), color=_colour(heard, number), alpha=0.2, lw=0)
    ax.set(xlim=(times[0], times[-1]), ylabel="amplitude", xlabel="time in the capture (s)")
    miss = heard.miss_of(number)
    text = f"{burst.kind}, {1e3 * (burst.end_s - burst.start_s):.1f} ms"
    if miss is not None:
        text += f"; miss {miss.id}: {clean(miss.detail)}"
    elif heard.explained is not None:
        text += "; outside the trace" if heard.explained.outside[number] else "; unexplained"
    ax.set_title(
        text if len(text) < 130 else text[:129] + "…", fontsize="small", loc="left", parse_math=False
    )
