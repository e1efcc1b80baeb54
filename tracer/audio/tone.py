# SPDX-License-Identifier: Apache-2.0
"""The tone of a capture: found by itself, or refused with the reason.

Owns what a steady tone is, and the errors. Looks at pieces spread over the file; knows nothing of bursts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import soundfile
from numpy.typing import NDArray

from tracer.errors import UsageError

Samples = NDArray[np.float64]

#: Length of a piece in which the tone is looked for, and how many are looked at, spread over the file.
_PIECE: Final = 2048
_PIECES: Final = 400
#: Peak below which a capture is silent (-70 dBFS).
_SILENT: Final = 3e-4
#: A channel that is so much quieter than the loudest carries no tone (-40 dB).
_FAINT: Final = 0.01
#: Frequencies so close are one.
_SAME: Final = 0.005
#: The tone changes if this share of its pieces, and at least two, have another frequency.
_OTHER: Final = 0.02
#: Sample formats whose steps alone may hide an edge.
_COARSE: Final = ("PCM_U8", "PCM_S8", "ULAW", "ALAW")
#: Share of a piece's power that one sine must explain, and of the pieces that must be such.
_PURE: Final = 0.99
_PURE_PIECES: Final = 0.15
#: An edge is at least A sin(w/2); noise of a normal distribution stays below seven sigma for hours.
_EDGE_SHARE: Final = 0.25
_SIGMAS: Final = 7.0
#: Clipped: as many samples at the peak (a sine: 0.029), and a fundamental above it.
_FLAT: Final = 0.05
_OVER: Final = 1.003


class AudioError(UsageError):
    """A capture in which glitches cannot be counted."""


class UnreadableAudio(AudioError):
    """No sound file, or a damaged one."""


class SilentCapture(AudioError):
    """Nothing was recorded."""


class ClippedCapture(AudioError):
    """The tone is cut off at its peaks, which looks like an edge in every period."""


class NoSingleTone(AudioError):
    """Noise, speech, music, or several tones."""


class NoisyCapture(AudioError):
    """A tone under so much noise that edges could hide in it."""


@dataclass(frozen=True, slots=True)
class Tone:
    """One channel's tone; ``noise``: deviation of the recurrence residual, ``level``: DC offset."""

    channel: int
    omega: float
    amplitude: float
    noise: float
    level: float

    @property
    def threshold(self) -> float:
        """How far a sample may be from what the ones before it foretell and still be of the tone."""
        return max(_EDGE_SHARE * self.amplitude * math.sin(self.omega / 2), _SIGMAS * self.noise)


def tones(file: soundfile.SoundFile) -> list[Tone]:
    """The tone of every channel that has one; raises what is the matter if none has."""
    count = min(_PIECES, file.frames // _PIECE)
    if count == 0:
        raise SilentCapture(
            f"{file.name} holds {file.frames} samples: too short", "record a few seconds of the tone"
        )
    last = file.frames - _PIECE
    pieces = np.empty((count, _PIECE, file.channels))
    for i in range(count):
        file.seek(last * i // max(1, count - 1))
        pieces[i] = file.read(_PIECE, always_2d=True)
    if not np.isfinite(pieces).all():
        raise UnreadableAudio(f"{file.name} holds samples that are no numbers", "record it again")
    peaks = np.abs(pieces).max(axis=(0, 1))
    heard = [c for c in range(file.channels) if peaks[c] > max(_SILENT, _FAINT * peaks.max())]
    if not heard:
        raise SilentCapture(
            f"{file.name} is silent", "record the monitor of the sink that plays the tone, while it plays"
        )
    return [_tone(file, channel, pieces[:, :, channel]) for channel in heard]


def _tone(file: soundfile.SoundFile, channel: int, pieces: NDArray[np.float64]) -> Tone:
    name = file.name if file.channels == 1 else f"channel {channel + 1} of {file.name}"
    which = np.flatnonzero(np.abs(pieces).max(axis=1) > _SILENT)
    loud = pieces[which]
    fits = [_sine(piece) for piece in loud]
    pure = [i for i, (_, _, share, _) in enumerate(fits) if share >= _PURE]
    if pure:
        middle = sorted(fits[i][0] for i in pure)[len(pure) // 2]
        other = [i for i in pure if abs(fits[i][0] - middle) >= _SAME * middle]
        if len(other) >= max(2.0, _OTHER * len(pure)):
            start = int(which[other[0]]) * (file.frames - _PIECE) // max(1, len(pieces) - 1)
            hz = [omega * file.samplerate / (2 * math.pi) for omega in (middle, fits[other[0]][0])]
            raise NoSingleTone(
                f"the tone in {name} changes: {hz[0]:.0f} Hz most of the time, {hz[1]:.0f} Hz at "
                f"{start / file.samplerate:.1f} s",
                "record one steady tone, best of 997 Hz, or cut the capture to one",
            )
        pure = [i for i in pure if i not in other]
    flat = [i for i, piece in enumerate(loud) if _is_flat(piece, fits[i][1])]
    if len(flat) > len(loud) / 2:
        raise ClippedCapture(f"the tone in {name} is clipped", "lower the volume and record again")
    if len(pure) < max(1.0, _PURE_PIECES * len(loud)):
        raise NoSingleTone(
            f"{name} is no capture of one steady tone: {len(pure)} of {len(loud)} pieces are",
            "play a sine, best of 997 Hz, alone on that sink, and record its monitor",
        )
    omega = float(np.median([fits[i][0] for i in pure]))
    amplitude = float(np.median([fits[i][1] for i in pure]))
    level = float(np.median([fits[i][3] for i in pure]))
    spread = [float(np.median(np.abs(residual(loud[i] - level, omega)))) for i in pure]
    tone = Tone(channel, omega, amplitude, float(np.median(spread)) / 0.6745, level)
    if _SIGMAS * tone.noise > amplitude * math.sin(omega / 2):
        if file.subtype in _COARSE:
            raise NoisyCapture(
                f"the steps of {file.subtype_info} in {name} are too coarse to see where its tone breaks",
                "record 16 bits or more: pw-record --format s16",
            )
        raise NoisyCapture(
            f"the noise in {name} is too loud to see where its tone breaks",
            "record the sink's monitor instead of a microphone, or a louder tone",
        )
    return tone


def _is_flat(piece: Samples, amplitude: float) -> bool:
    """Whether a piece stays at its peak as no sine does (not judged below -40 dBFS, where steps are wide)."""
    size = np.abs(piece)
    peak = float(size.max())
    return peak > 0.01 and float(np.mean(size > 0.999 * peak)) > _FLAT and amplitude > _OVER * peak


def _sine(piece: Samples) -> tuple[float, float, float, float]:
    """Angular frequency, amplitude, share of power and mean of the best sine (IEEE 1057, four parameters)."""
    n = np.arange(piece.size, dtype=float)
    spectrum = np.abs(np.fft.rfft((piece - piece.mean()) * np.hanning(piece.size)))
    at = int(spectrum[1:-1].argmax()) + 1
    low, top, high = np.log(spectrum[at - 1 : at + 2] + 1e-30)
    bend = low - 2 * top + high
    omega = 2 * math.pi * (at + (0.5 * (low - high) / bend if bend else 0.0)) / piece.size
    step, rest, a, b, level = 0.0, piece, 0.0, 0.0, 0.0
    for _ in range(4):
        omega = min(max(omega + step, 1e-3), math.pi - 1e-3)
        cos, sin = np.cos(omega * n), np.sin(omega * n)
        base = np.stack([cos, sin, np.ones_like(n), n * (b * cos - a * sin)][: 4 if a or b else 3], axis=1)
        fit = np.linalg.lstsq(base, piece, rcond=None)[0]
        rest = piece - base @ fit
        a, b, level = (float(part) for part in fit[:3])
        step = float(fit[3]) if len(fit) == 4 else 0.0
        step = step if abs(step) < 2 * math.pi / piece.size else 0.0
    power = float(np.var(piece))
    return omega, math.hypot(a, b), 1 - float(np.mean(rest * rest)) / power if power else 0.0, level


def residual(x: Samples, omega: float) -> Samples:
    """What the recurrence of a sine leaves, one sample less at each end."""
    return x[2:] - 2 * math.cos(omega) * x[1:-1] + x[:-2]
