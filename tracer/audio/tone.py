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
    """One channel's tone; ``noise`` is the deviation of the recurrence residual."""

    channel: int
    omega: float
    amplitude: float
    noise: float

    @property
    def threshold(self) -> float:
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
    heard = [c for c in range(file.channels) if np.abs(pieces[:, :, c]).max() > _SILENT]
    if not heard:
        raise SilentCapture(
            f"{file.name} is silent", "record the monitor of the sink that plays the tone, while it plays"
        )
    return [_tone(file.name, channel, pieces[:, :, channel]) for channel in heard]


def _tone(name: str, channel: int, pieces: NDArray[np.float64]) -> Tone:
    loud = pieces[np.abs(pieces).max(axis=1) > _SILENT]
    fits = [_sine(piece) for piece in loud]
    pure = [i for i, (_, _, share) in enumerate(fits) if share >= _PURE]
    if pure:
        middle = float(np.median([fits[i][0] for i in pure]))
        pure = [i for i in pure if abs(fits[i][0] - middle) < 0.005 * middle]
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
    spread = [float(np.median(np.abs(residual(loud[i], omega)))) for i in pure]
    tone = Tone(channel, omega, amplitude, float(np.median(spread)) / 0.6745)
    if _SIGMAS * tone.noise > amplitude * math.sin(omega / 2):
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


def _sine(piece: Samples) -> tuple[float, float, float]:
    """Angular frequency, amplitude, share of power of the best sine (IEEE 1057, four parameters)."""
    n = np.arange(piece.size, dtype=float)
    spectrum = np.abs(np.fft.rfft((piece - piece.mean()) * np.hanning(piece.size)))
    at = int(spectrum[1:-1].argmax()) + 1
    low, top, high = np.log(spectrum[at - 1 : at + 2] + 1e-30)
    bend = low - 2 * top + high
    omega = 2 * math.pi * (at + (0.5 * (low - high) / bend if bend else 0.0)) / piece.size
    step, rest, a, b = 0.0, piece, 0.0, 0.0
    for _ in range(4):
        omega = min(max(omega + step, 1e-3), math.pi - 1e-3)
        cos, sin = np.cos(omega * n), np.sin(omega * n)
        base = np.stack([cos, sin, np.ones_like(n), n * (b * cos - a * sin)][: 4 if a or b else 3], axis=1)
        fit = np.linalg.lstsq(base, piece, rcond=None)[0]
        rest = piece - base @ fit
        a, b = float(fit[0]), float(fit[1])
        step = float(fit[3]) if len(fit) == 4 else 0.0
        step = step if abs(step) < 2 * math.pi / piece.size else 0.0
    power = float(np.var(piece))
    return omega, math.hypot(a, b), 1 - float(np.mean(rest * rest)) / power if power else 0.0


def residual(x: Samples, omega: float) -> Samples:
    """What the recurrence of a sine leaves, one sample less at each end."""
    return x[2:] - 2 * math.cos(omega) * x[1:-1] + x[:-2]
