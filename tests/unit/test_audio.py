# SPDX-License-Identifier: Apache-2.0
"""Glitch bursts: every break of the tone is found, nothing else is, and what is no tone is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tracer import audio

RATE, QUANTUM = 48000, 1024
#: Cycle at which a gap begins, and how many quanta it lasts.
GAPS = {20: 1, 50: 2, 90: 3, 120: 1, 200: 2, 250: 3, 333: 1}


def sine(
    tone_hz: float, first: int, count: int, rate: int = RATE, amplitude: float = 0.5
) -> NDArray[np.float64]:
    return np.asarray(amplitude * np.sin(2 * np.pi * tone_hz / rate * np.arange(first, first + count)))


def played(
    tone_hz: float,
    gaps: Mapping[int, int],
    cycles: int,
    *,
    skip: bool = False,
    quantum: int = QUANTUM,
    rate: int = RATE,
    amplitude: float = 0.5,
) -> NDArray[np.float64]:
    """A tone that stops for whole quanta and goes on where it stopped; ``skip``: leaves them out instead."""
    out, at, cycle = [], 0, 0
    while cycle < cycles:
        lost = gaps.get(cycle, 0)
        if skip:
            at += lost * quantum
        elif lost:
            out.append(np.zeros(lost * quantum))
        out.append(sine(tone_hz, at, quantum, rate, amplitude))
        at += quantum
        cycle += 1 if skip else lost + 1
    return np.concatenate(out)


def written(
    folder: Path, samples: NDArray[np.float64], rate: int = RATE, subtype: str = "PCM_16", ext: str = "wav"
) -> Path:
    path = folder / f"capture.{ext}"
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.mark.parametrize(("tone_hz", "naive"), [(997.0, 13), (1000.0, 8)])
def test_both_edges_of_gaps_of_one_to_three_quanta_are_found(
    tmp_path: Path, tone_hz: float, naive: int
) -> None:
    capture = audio.analyse(written(tmp_path, played(tone_hz, GAPS, 400)))
    assert abs(capture.tone_hz - tone_hz) < 0.01
    assert [burst.kind for burst in capture.bursts] == ["zeros"] * 7
    assert sum(burst.edges for burst in capture.bursts) == 14
    assert capture.naive_count == naive < 14
    for burst, (cycle, lost) in zip(capture.bursts, GAPS.items(), strict=True):
        assert abs(burst.start_s * RATE - cycle * QUANTUM) <= 2
        assert abs(burst.end_s * RATE - (cycle + lost) * QUANTUM) <= 2


def test_a_skip_of_whole_quanta_is_told_by_its_phase(tmp_path: Path) -> None:
    capture = audio.analyse(written(tmp_path, played(997, {20: 1, 50: 2, 90: 3, 120: 4}, 150, skip=True)))
    assert [(burst.kind, burst.edges) for burst in capture.bursts] == [("jump", 1)] * 4
    assert [audio.skipped_quanta(burst, capture, QUANTUM) for burst in capture.bursts] == [1, 2, 3, 4]


def test_at_1_khz_three_quanta_leave_no_trace_and_one_is_ambiguous(tmp_path: Path) -> None:
    capture = audio.analyse(written(tmp_path, played(1000, {20: 1, 90: 3}, 150, skip=True)))
    assert [audio.skipped_quanta(burst, capture, QUANTUM) for burst in capture.bursts] == [None]


@pytest.mark.parametrize(
    ("ext", "subtype"),
    [
        ("wav", "PCM_16"),
        ("wav", "PCM_24"),
        ("wav", "PCM_32"),
        ("wav", "FLOAT"),
        ("flac", "PCM_16"),
        ("flac", "PCM_24"),
    ],
)
def test_all_sample_formats_give_the_same_bursts(tmp_path: Path, ext: str, subtype: str) -> None:
    capture = audio.analyse(written(tmp_path, played(997, GAPS, 400), subtype=subtype, ext=ext))
    assert [burst.edges for burst in capture.bursts] == [2] * 7


def test_a_glitch_on_one_of_two_channels_counts_and_one_on_both_counts_once(tmp_path: Path) -> None:
    left, right = played(997, {20: 1, 60: 1}, 100), played(997, {20: 1}, 100)
    capture = audio.analyse(written(tmp_path, np.stack([left, right], axis=1)))
    assert [round(burst.start_s * RATE / QUANTUM) for burst in capture.bursts] == [20, 60]
    one_sided = audio.analyse(written(tmp_path, np.stack([np.zeros(len(left)), left], axis=1)))
    assert len(one_sided.bursts) == 2


@pytest.mark.parametrize("level", [0.01, 0.15, -0.3])
@pytest.mark.parametrize("silence", ["at zero", "at the offset"])
def test_an_offset_hides_no_gap_and_makes_none(tmp_path: Path, level: float, silence: str) -> None:
    samples = played(997, GAPS, 400)
    offset = np.where(samples == 0, 0 if silence == "at zero" else level, level)
    capture = audio.analyse(written(tmp_path, samples + offset))
    assert [(burst.kind, burst.edges) for burst in capture.bursts] == [("zeros", 2)] * 7


def test_a_channel_of_faint_noise_beside_the_tone_is_left_out(tmp_path: Path) -> None:
    tone = played(997, GAPS, 400)
    noise = np.random.default_rng(3).normal(0, 2e-4, len(tone))
    capture = audio.analyse(written(tmp_path, np.stack([noise, tone], axis=1), subtype="FLOAT"))
    assert [burst.edges for burst in capture.bursts] == [2] * 7


@pytest.mark.parametrize("seconds", [4, 7])
def test_a_tone_that_changes_is_refused_with_both_frequencies_and_when(tmp_path: Path, seconds: int) -> None:
    samples = np.concatenate([sine(997, 0, seconds * RATE), sine(440, 0, (8 - seconds) * RATE)])
    with pytest.raises(audio.NoSingleTone, match=rf"changes.*997 Hz.*440 Hz at {seconds}\.0 s"):
        audio.analyse(written(tmp_path, samples))


def test_one_channel_that_is_no_tone_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(0, 0.1, 4 * RATE)
    with pytest.raises(audio.NoSingleTone, match="channel 2 of"):
        audio.analyse(written(tmp_path, np.stack([sine(997, 0, 4 * RATE), noise], axis=1)))


def test_eight_bits_are_too_coarse_for_a_quiet_tone_and_enough_for_a_loud_high_one(tmp_path: Path) -> None:
    with pytest.raises(audio.NoisyCapture, match="too coarse"):
        audio.analyse(written(tmp_path, played(997, GAPS, 400), subtype="PCM_U8"))
    capture = audio.analyse(written(tmp_path, played(3001, GAPS, 400, amplitude=0.9), subtype="PCM_U8"))
    assert len(capture.bursts) == 7


@pytest.mark.parametrize(("ext", "kind"), [("wav", "RF64"), ("w64", "W64")])
def test_files_for_more_than_four_gigabytes_are_read(tmp_path: Path, ext: str, kind: str) -> None:
    path = tmp_path / f"x.{ext}"
    soundfile.write(path, played(997, GAPS, 400), RATE, subtype="PCM_16", format=kind)
    assert len(audio.analyse(path).bursts) == 7


@pytest.mark.parametrize(("size", "told"), [(0, "0 samples"), (1000, "500 samples"), (0xFFFFFFFF, "")])
def test_a_header_with_a_wrong_size_is_read_to_the_end_or_refused_with_the_remedy(
    tmp_path: Path, size: int, told: str
) -> None:
    """A recorder that was killed leaves zero or the largest number there."""
    path = written(tmp_path, played(997, GAPS, 400))
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)
    if told:
        with pytest.raises(audio.UnreadableAudio, match=told) as refused:
            audio.analyse(path)
        assert "--ignore-length" in refused.value.hint
    else:
        assert len(audio.analyse(path).bursts) == 7


def test_a_cut_wav_is_read_as_far_as_it_goes_and_a_cut_flac_is_called_damaged(tmp_path: Path) -> None:
    wav = written(tmp_path, played(997, GAPS, 400))
    wav.write_bytes(wav.read_bytes()[: wav.stat().st_size // 2 + 1])
    assert len(audio.analyse(wav).bursts) == 4
    flac = written(tmp_path, played(997, GAPS, 400), ext="flac")
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    with pytest.raises(audio.UnreadableAudio, match="damaged"):
        audio.analyse(flac)


def test_silence_before_and_after_the_tone_is_no_glitch(tmp_path: Path) -> None:
    silence = np.zeros(RATE // 2)
    capture = audio.analyse(written(tmp_path, np.concatenate([silence, sine(997, 0, RATE), silence])))
    assert capture.bursts == ()
    assert abs(capture.tone_start_s - 0.5) < 0.001
    assert abs(capture.tone_end_s - 1.5) < 0.001


def test_close_glitches_are_one_burst_unless_asked_otherwise(tmp_path: Path) -> None:
    path = written(tmp_path, played(997, {20: 1, 22: 1, 80: 1}, 100))
    assert [burst.edges for burst in audio.analyse(path).bursts] == [4, 2]
    assert [burst.edges for burst in audio.analyse(path, join_s=0).bursts] == [2, 2, 2]


def test_a_file_of_many_blocks_is_read_without_seams(tmp_path: Path) -> None:
    cycles = 3 * audio._BLOCK // QUANTUM
    at = audio._BLOCK // QUANTUM  # a gap exactly where one block ends
    capture = audio.analyse(written(tmp_path, played(997, {at: 1, 2 * at - 1: 2}, cycles)), join_s=0)
    assert [burst.edges for burst in capture.bursts] == [2, 2]


def speech(rng: np.random.Generator) -> NDArray[np.float64]:
    """Something like it: a gliding pitch with harmonics, in syllables."""
    t = np.arange(4 * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    return np.asarray(0.2 * voice * (np.sin(2 * np.pi * 2 * t) > -0.3) + 0.002 * rng.normal(size=len(t)))


RNG = np.random.default_rng(7)


@pytest.mark.parametrize(
    ("samples", "error"),
    [
        (np.zeros(RATE), audio.SilentCapture),
        (np.zeros(10), audio.SilentCapture),
        (0.2 * RNG.normal(size=4 * RATE), audio.NoSingleTone),
        (speech(RNG), audio.NoSingleTone),
        (sine(997, 0, RATE) / 2 + sine(440, 0, RATE) / 2, audio.NoSingleTone),
        (np.clip(sine(997, 0, RATE, amplitude=1.05), -0.99, 0.99), audio.ClippedCapture),
        (np.clip(sine(997, 0, RATE, amplitude=4.0), -0.99, 0.99), audio.ClippedCapture),
        (sine(997, 0, 4 * RATE) + 0.01 * RNG.normal(size=4 * RATE), audio.NoisyCapture),
        (np.full(RATE, np.nan), audio.UnreadableAudio),
    ],
    ids=[
        "silence",
        "ten samples",
        "noise",
        "speech",
        "two tones",
        "clipped",
        "much clipped",
        "tone in noise",
        "nan",
    ],
)
def test_what_is_no_tone_is_refused_with_the_reason(
    tmp_path: Path, samples: NDArray[np.float64], error: type[audio.AudioError]
) -> None:
    with pytest.raises(error) as told:
        audio.analyse(written(tmp_path, samples, subtype="FLOAT"))
    assert type(told.value) is error
    assert "capture.wav" in told.value.message
    assert told.value.exit_code == 2


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"no sound at all"])
@pytest.mark.parametrize("name", ["x.wav", "x.raw", "x"])
def test_what_is_no_sound_file_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path / "missing.wav", tmp_path):
        with pytest.raises(audio.UnreadableAudio):
            audio.analyse(path)


def test_a_quiet_tone_with_little_noise_is_none_too_quiet(tmp_path: Path) -> None:
    samples = played(997, {20: 1}, 100, amplitude=0.02) + 3e-5 * RNG.normal(size=100 * QUANTUM)
    capture = audio.analyse(written(tmp_path, samples, subtype="PCM_24"))
    assert [burst.edges for burst in capture.bursts] == [2]


@st.composite
def dropouts(draw: st.DrawFn) -> tuple[int, float, float, int, Sequence[tuple[int, int]]]:
    """Rate, tone, amplitude, quantum, and gaps as (cycle, length), at least two cycles apart."""
    rate = draw(st.sampled_from([44100, 48000, 96000]))
    quantum = draw(st.sampled_from([64, 256, 1024]))
    steps = draw(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 3)), max_size=8))
    gaps, at = [], 4 * 1024 // quantum
    for apart, lost in steps:
        at += apart
        gaps.append((at, lost))
        at += lost
    return rate, draw(st.floats(200, 4000)), draw(st.floats(0.05, 0.9)), quantum, gaps


@settings(deadline=None, max_examples=60)
@given(dropouts())
def test_every_gap_is_found_whatever_the_tone_the_rate_and_the_place(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[int, float, float, int, Sequence[tuple[int, int]]]
) -> None:
    rate, tone_hz, amplitude, quantum, gaps = case
    cycles = (gaps[-1][0] if gaps else 0) + 5 + 20 * 1024 // quantum
    samples = played(tone_hz, dict(gaps), cycles, quantum=quantum, rate=rate, amplitude=amplitude)
    capture = audio.analyse(written(tmp_path_factory.getbasetemp(), samples, rate), join_s=0)
    assert abs(capture.tone_hz / tone_hz - 1) < 1e-3
    assert [burst.kind for burst in capture.bursts] == ["zeros"] * len(gaps)
    for burst, (cycle, lost) in zip(capture.bursts, gaps, strict=True):
        assert burst.edges == 2
        assert abs(burst.start_s * rate - cycle * quantum) <= 2
        assert abs(burst.end_s * rate - (cycle + lost) * quantum) <= 2
