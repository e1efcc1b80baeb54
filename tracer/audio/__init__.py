# SPDX-License-Identifier: Apache-2.0
"""Glitch bursts in a capture of one steady tone: the user's own evidence.

Owns the way from a WAV or FLAC file to bursts. Reads it twice in blocks, so that hours take little memory.
Knows nothing of traces: who matches bursts with misses does so elsewhere.

A pure tone obeys x[n+1] - 2 cos(w) x[n] + x[n-1] = 0. Where it breaks off or starts again the left side is
at least A sin(w/2) in one of two samples, wherever in the period that is; the sample-to-sample delta, by
contrast, sees nothing near a zero crossing. It is counted too, because people compare with it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import soundfile
from numpy.typing import NDArray

from tracer.audio.tone import (
    AudioError,
    ClippedCapture,
    NoisyCapture,
    NoSingleTone,
    Samples,
    SilentCapture,
    Tone,
    UnreadableAudio,
    residual,
    tones,
)

__all__ = [
    "AudioError",
    "Burst",
    "Capture",
    "ClippedCapture",
    "NoSingleTone",
    "NoisyCapture",
    "SilentCapture",
    "UnreadableAudio",
    "analyse",
    "skipped_quanta",
]

Runs = list[tuple[int, int]]

_GIVE: Final = "give a WAV or FLAC file: pw-record makes one"
#: Bytes that a WAV file may have beside its samples, and a sample's of the usual formats.
_HEADER: Final = 4096
_SAMPLE_BYTES: Final = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}

_BLOCK: Final = 1 << 17
#: Samples: a shorter stretch of zeros is a zero crossing; edges that are closer are one.
_SHORT: Final = 8


@dataclass(frozen=True, slots=True)
class Burst:
    """Glitches that follow each other closely.

    ``kind``: "zeros" (silence where the tone should be), "jump" (the tone goes on elsewhere in its period,
    or clicks), "both". ``edges``: places where the tone breaks. ``phase_cycles``: how far the tone is,
    afterwards, from where it would have been, in [-0.5, 0.5); None where there is too little of it there.
    """

    start_s: float
    end_s: float
    kind: str
    edges: int
    phase_cycles: float | None


@dataclass(frozen=True, slots=True)
class Capture:
    """What a file holds. ``tone_start_s``, ``tone_end_s``: silence outside them is no glitch.

    ``naive_count``: samples that differ from the one before by more than 1.5 x 2 A sin(pi f / rate), on all
    channels that carry the tone.
    """

    rate_hz: int
    channels: int
    duration_s: float
    tone_hz: float
    amplitude: float
    tone_start_s: float
    tone_end_s: float
    bursts: tuple[Burst, ...]
    naive_count: int


def analyse(path: Path, *, join_s: float = 0.05) -> Capture:
    """Find the tone of a capture and every place where it breaks.

    Args:
        path: WAV or FLAC, any number of channels; a channel without signal is left out.
        join_s: glitches at most this far apart are one burst; 0 keeps each apart.

    Raises:
        AudioError: a subclass says why nothing can be counted.
    """
    _check(path)
    try:
        with soundfile.SoundFile(path) as file:
            _check_size(path, file)
            heard = tones(file)
            edges, zeros, naive = _scan(file, heard)
            return _capture(file, heard, edges, zeros, naive, join_s)
    except (soundfile.LibsndfileError, OSError) as error:
        if path.open("rb").read(4) != b"fLaC":
            raise UnreadableAudio(f"{path} cannot be read as sound: {error}", _GIVE) from error
        raise UnreadableAudio(
            f"{path} is damaged: it breaks off, or a part of it is missing",
            "record it again, or make a WAV of what is left: flac --decode --decode-through-errors",
        ) from error


def _check(path: Path) -> None:
    """Refuse what is no sound file in words that libsndfile does not have."""
    try:
        path.stat()
    except OSError as error:  # libsndfile calls every such error a system error
        raise UnreadableAudio(f"cannot open {path}: {error.strerror}", _GIVE) from error
    if not path.is_file():
        raise UnreadableAudio(f"{path} is no file", _GIVE)
    if path.suffix.lower() == ".raw":  # which soundfile would take for headerless samples
        raise UnreadableAudio(f"{path} has no header", _GIVE)


def _check_size(path: Path, file: soundfile.SoundFile) -> None:
    """Refuse a WAV file whose header says less than there is: its recorder was killed."""
    size = path.stat().st_size - _HEADER
    told = file.frames * file.channels * _SAMPLE_BYTES.get(file.subtype, size)
    if file.format in ("WAV", "WAVEX") and told < size // 2:
        raise UnreadableAudio(
            f"the header of {path} says {file.frames} samples, the file holds more: its recorder was killed",
            f"end the recorder by Ctrl-C; to mend this one: sox --ignore-length {path} mended.wav",
        )


def skipped_quanta(burst: Burst, capture: Capture, quantum: int, most: int = 16) -> int | None:
    """How many quanta of the tone were left out at a jump: the smallest number that explains its phase.

    None: none up to ``most`` does, or more than one as well (1 kHz at 48 kHz repeats every three of 1024).
    """
    if burst.phase_cycles is None:
        return None
    per_quantum = quantum * capture.tone_hz / capture.rate_hz
    off = [abs((k * per_quantum - burst.phase_cycles + 0.5) % 1 - 0.5) for k in range(1, most + 1)]
    fitting = [k for k, error in enumerate(off, start=1) if error < 0.01]
    return fitting[0] if len(fitting) == 1 else None


def _windows(file: soundfile.SoundFile) -> Iterator[tuple[int, int, int, Samples]]:
    """The file in overlapping windows: where it begins, what of it is new (from, to), the samples."""
    start, margin = 0, 2 * _SHORT
    while start < file.frames:
        begin = max(0, start - margin)
        file.seek(begin)
        window = file.read(_BLOCK + 2 * margin, always_2d=True)
        if not len(window):
            return  # the header promised more than there is
        end = begin + len(window)
        stop = end if end >= file.frames else end - margin
        yield begin, start - begin, stop - begin, window
        start = stop


def _scan(file: soundfile.SoundFile, heard: list[Tone]) -> tuple[Runs, Runs, int]:
    """Edges and stretches of zeros of all channels together, as [first, last] sample, and the naive count."""
    edges: list[Runs] = [[] for _ in heard]
    zeros: list[Runs] = [[] for _ in heard]
    naive = 0
    for begin, first, stop, window in _windows(file):
        if not np.isfinite(window).all():
            raise UnreadableAudio(f"{file.name} holds samples that are no numbers", "record it again")
        for i, tone in enumerate(heard):
            x = window[:, tone.channel] - tone.level
            broken = np.zeros(len(x), dtype=bool)
            broken[1:-1] = np.abs(residual(x, tone.omega)) > tone.threshold
            least = 1e-3 * tone.amplitude  # silence is at the tone's mean, or at zero
            quiet = _long_runs((np.abs(x) <= least) | (np.abs(x + tone.level) <= least))
            for flags, runs in ((broken, edges[i]), (quiet, zeros[i])):
                _extend(runs, np.flatnonzero(flags[first:stop]) + begin + first)
            jumps = np.abs(np.diff(x)) > 1.5 * 2 * tone.amplitude * math.sin(tone.omega / 2)
            naive += int(np.count_nonzero(jumps[max(0, first - 1) : stop - 1]))
    return _union(edges), _union(zeros), naive


def _long_runs(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Only the runs of at least `_SHORT`."""
    change = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    kept = np.zeros(len(flags) + 1, dtype=np.int8)
    starts, ends = change[::2], change[1::2]
    long = ends - starts >= _SHORT
    kept[starts[long]] += 1
    kept[ends[long]] -= 1
    return np.cumsum(kept[:-1]).astype(bool)


def _extend(runs: Runs, indices: NDArray[np.int64]) -> None:
    """Adds flagged samples, in order, joining those at most `_SHORT` apart."""
    if not len(indices):
        return
    cuts = np.flatnonzero(np.diff(indices) > _SHORT)
    starts = indices[np.concatenate(([0], cuts + 1))]
    ends = indices[np.concatenate((cuts, [len(indices) - 1]))]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if runs and start - runs[-1][1] <= _SHORT:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))


def _union(of_channels: list[Runs]) -> Runs:
    return _joined(sorted(run for runs in of_channels for run in runs), _SHORT)


def _joined(runs: Runs, apart: float) -> Runs:
    """Runs in order, those at most ``apart`` samples apart as one."""
    out: Runs = []
    for start, end in runs:
        if out and start - out[-1][1] <= apart:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _within(runs: Runs, start: int, end: int) -> Runs:
    """Those of ordered runs that begin in [start, end]."""
    return runs[bisect_left(runs, (start, 0)) : bisect_left(runs, (end + 1, 0))]


def _capture(
    file: soundfile.SoundFile, heard: list[Tone], edges: Runs, zeros: Runs, naive: int, join_s: float
) -> Capture:
    rate, frames = file.samplerate, file.frames
    starts, ends = 0, frames - 1
    glitches = _joined(sorted(edges + zeros), _SHORT)
    # Silence before the tone and after it is no glitch.
    if zeros and zeros[0][0] == 0:
        starts = zeros[0][1] + 1
    if zeros and zeros[-1][1] == frames - 1:
        ends = zeros[-1][0] - 1
    inside = [run for run in glitches if run[1] > starts + _SHORT and run[0] < ends - _SHORT]
    joined = _joined(inside, max(_SHORT, join_s * rate))
    bursts = []
    for i, (start, end) in enumerate(joined):
        room = (joined[i - 1][1] if i else starts, joined[i + 1][0] if i + 1 < len(joined) else ends)
        quiet, breaks = _within(zeros, start, end), _within(edges, start, end)
        alone = [e for e in breaks if not any(z[0] - _SHORT <= e[1] and e[0] <= z[1] + _SHORT for z in quiet)]
        kind = "jump" if not quiet else "both" if alone else "zeros"
        phase = _phase_change(file, heard[0], (start, end), room)
        bursts.append(Burst(start / rate, (end + 1) / rate, kind, len(breaks), phase))
    return Capture(
        rate_hz=rate,
        channels=file.channels,
        duration_s=frames / rate,
        tone_hz=heard[0].omega * rate / (2 * math.pi),
        amplitude=heard[0].amplitude,
        tone_start_s=starts / rate,
        tone_end_s=(ends + 1) / rate,
        bursts=tuple(bursts),
        naive_count=naive,
    )


def _phase_change(
    file: soundfile.SoundFile, tone: Tone, burst: tuple[int, int], room: tuple[int, int]
) -> float | None:
    """Phase after a burst less that before it, in cycles; ``room``: where its neighbours end and begin."""
    length = 256
    least = max(_SHORT, math.ceil(math.pi / tone.omega))  # half a period
    before = (max(room[0] + 2, burst[0] - length), burst[0] - 1)
    after = (burst[1] + 2, min(room[1] - 2, burst[1] + 2 + length))
    phases = []
    for start, stop in (before, after):
        if stop - start < least:
            return None
        file.seek(start)
        piece = file.read(stop - start, always_2d=True)[:, tone.channel]
        n = tone.omega * np.arange(start, start + len(piece))
        fit = np.linalg.lstsq(np.stack([np.cos(n), np.sin(n)], axis=1), piece, rcond=None)[0]
        if math.hypot(fit[0], fit[1]) < tone.amplitude / 2:
            return None
        phases.append(math.atan2(fit[0], fit[1]))
    return ((phases[1] - phases[0]) / (2 * math.pi) + 0.5) % 1 - 0.5
