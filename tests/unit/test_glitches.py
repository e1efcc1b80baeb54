# SPDX-License-Identifier: Apache-2.0
"""Glitches and misses: each gets the right one, the clocks' offset is found, the rest is unexplained."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import views_data
from hypothesis import given, settings
from hypothesis import strategies as st
from test_audio import GAPS, QUANTUM, RATE, played, written
from test_captures import DATA

from tracer.cli import glitches as command
from tracer.cli.main import run_command
from tracer.model.explain import explain
from tracer.model.summary import Miss, Summary, Window

PERIOD = QUANTUM * 1_000_000_000 // RATE
BEGIN = 7_000_000_000_000
WINDOW = (BEGIN - 10**9, BEGIN + 60 * 10**9)


@dataclass(frozen=True)
class Span:
    start_s: float
    end_s: float


def misses_of(gaps: dict[int, int], begin_ns: int = BEGIN, detail: str = "late") -> list[Miss]:
    """A miss for every quantum that a gap leaves out; heard at sample cycle * QUANTUM after ``begin_ns``."""
    plain = views_data.missing().misses[0]
    cycles = [cycle + i for cycle, lost in gaps.items() for i in range(lost)]
    return [
        dataclasses.replace(
            plain, id=1 + n, cycle=k, deadline_ns=begin_ns + k * PERIOD, audible="unknown", detail=detail
        )
        for n, k in enumerate(cycles)
    ]


def spans_of(gaps: dict[int, int], jitter_ns: int = 0) -> list[Span]:
    return [
        Span((k * PERIOD + jitter_ns) / 1e9, ((k + n) * PERIOD + jitter_ns) / 1e9) for k, n in gaps.items()
    ]


def heads(gaps: dict[int, int]) -> list[int]:
    """Ids of the misses that begin the gaps."""
    counts = list(gaps.values())
    return [1 + sum(counts[:i]) for i in range(len(counts))]


def test_each_burst_gets_the_miss_that_began_it() -> None:
    found = explain(spans_of(GAPS), misses_of(GAPS), period_ns=PERIOD, window=WINDOW, tone_s=(0.0, 9.0))
    assert list(found.misses) == heads(GAPS)
    assert found.unheard == ()
    assert not any(found.outside)
    assert found.alignment is not None
    assert abs(found.alignment.begin_ns - BEGIN) <= 1000
    assert found.alignment.pairs == len(GAPS)
    assert found.alignment.spread_ns is not None and found.alignment.spread_ns <= 1000
    assert found.alignment.unique


@settings(max_examples=40)
@given(
    begin=st.integers(0, 10**16),
    shift=st.integers(0, 10**9),
    jitter=st.lists(st.integers(-1_000_000, 1_000_000), min_size=7, max_size=7),
)
def test_the_offset_is_found_whatever_it_is(begin: int, shift: int, jitter: list[int]) -> None:
    """Misses are up to 1 ms off, and a constant delay lies between a deadline and what is heard of it."""
    spans = [
        Span((k * PERIOD + j) / 1e9, ((k + n) * PERIOD + j) / 1e9)
        for (k, n), j in zip(GAPS.items(), jitter, strict=True)
    ]
    window = (begin, begin + 10**11)
    found = explain(spans, misses_of(GAPS, begin + shift), period_ns=PERIOD, window=window, tone_s=(0.0, 9.0))
    assert list(found.misses) == heads(GAPS)
    assert found.alignment is not None and found.alignment.unique
    assert abs(found.alignment.begin_ns - begin - shift) <= 1_000_001
    assert found.alignment.spread_ns is not None and found.alignment.spread_ns <= 2_000_000


def test_what_no_miss_explains_is_said_to_be_unexplained() -> None:
    others = {k: n for k, n in GAPS.items() if k not in (90, 250)}
    found = explain(spans_of(GAPS), misses_of(others), period_ns=PERIOD, window=WINDOW, tone_s=(0.0, 9.0))
    ids = iter(heads(others))
    assert list(found.misses) == [None if k in (90, 250) else next(ids) for k in GAPS]
    assert not any(found.outside)


def test_misses_that_were_not_heard_are_listed_and_inaudible_ones_are_not_expected() -> None:
    heard = {k: n for k, n in GAPS.items() if k != 200}
    misses = misses_of(GAPS)
    found = explain(spans_of(heard), misses, period_ns=PERIOD, window=WINDOW, tone_s=(0.0, 9.0))
    assert found.unheard == tuple(m.id for m in misses if 200 <= m.cycle < 202)
    silent = [dataclasses.replace(m, audible="no") if 200 <= m.cycle < 202 else m for m in misses]
    found = explain(spans_of(heard), silent, period_ns=PERIOD, window=WINDOW, tone_s=(0.0, 9.0))
    assert found.unheard == ()
    assert None not in found.misses


def test_bursts_before_and_after_the_trace_are_told_from_unexplained_ones() -> None:
    traced = {k: n for k, n in GAPS.items() if 40 <= k <= 260 and k != 120}
    window = (BEGIN + 40 * PERIOD, BEGIN + 260 * PERIOD)
    found = explain(spans_of(GAPS), misses_of(traced), period_ns=PERIOD, window=window, tone_s=(0.0, 9.0))
    assert found.outside == tuple(not 40 <= k <= 260 for k in GAPS)
    assert [miss is None for miss in found.misses] == [k not in traced for k in GAPS]


def test_one_pair_aligns_nothing_for_sure() -> None:
    found = explain(spans_of({20: 1}), misses_of({50: 1}), period_ns=PERIOD, window=WINDOW, tone_s=(0.0, 9.0))
    assert found.alignment is not None
    assert found.alignment.spread_ns is None and not found.alignment.unique


def test_evenly_spaced_bursts_may_lie_elsewhere() -> None:
    bursts, misses = dict.fromkeys(range(50, 150, 10), 1), dict.fromkeys(range(0, 300, 10), 1)
    found = explain(spans_of(bursts), misses_of(misses), period_ns=PERIOD, window=WINDOW, tone_s=(0.0, 9.0))
    assert found.alignment is not None and not found.alignment.unique


def test_nothing_to_match_is_no_error() -> None:
    for spans, misses in ((spans_of(GAPS), []), ([], misses_of(GAPS))):
        found = explain(spans, misses, period_ns=PERIOD, window=WINDOW, tone_s=(0.0, 9.0))
        assert found.alignment is None
        assert found.misses == (None,) * len(spans)


# --- the command -------------------------------------------------------------------------


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return written(tmp_path, played(997.0, GAPS, 400))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Summary:
    """A trace, whose summary explains the capture but for one burst."""
    summary = dataclasses.replace(
        views_data.base(),
        misses=tuple(misses_of({k: n for k, n in GAPS.items() if k != 333}, detail="late\x1b[31m because")),
        window=Window(*WINDOW),
    )
    monkeypatch.setattr(command, "_summary", lambda *_: summary)
    return summary


def run(*words: str | Path) -> int:
    return run_command(["glitches", *map(str, words)])


def test_json_has_the_promised_shape(
    capture: Path, traced: Summary, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capture, "--trace", "x.xdt", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert abs(found["tone_hz"] - 997) < 0.01
    assert found["naive_count"] == 13
    assert found["edges"] == 14
    assert [set(burst) for burst in found["bursts"]] == [{"start_s", "end_s", "kind", "miss"}] * 7
    assert [burst["miss"] for burst in found["bursts"]] == [*heads(GAPS)[:-1], None]
    assert abs(found["alignment"]["begin_ns"] - BEGIN) < 100_000


def test_without_a_trace_no_miss_is_named(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capture, capture, "--format", "json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert {burst["miss"] for line in lines for burst in json.loads(line)["bursts"]} == {None}
    assert "alignment" not in lines[0]


def test_text_says_what_is_explained_and_what_is_not(
    capture: Path, traced: Summary, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capture, "--trace", "x.xdt") == 0
    text = capsys.readouterr().out
    assert "7 glitch bursts (14 edges; counting jumps between samples would give 13)" in text
    assert "6 of 7 bursts explained by missed periods, 1 unexplained" in text
    assert "aligned by 6 bursts" in text
    assert "\x1b[31m" not in text and "because" in text


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn(
    capture: Path, traced: Summary, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capture, "--trace", "x.xdt", "--plot", tmp_path / f"p.{suffix}") == 0
    assert (tmp_path / f"p.{suffix}").stat().st_size > 10_000
    if suffix == "svg":
        assert "\x1b" not in (tmp_path / "p.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "what", "code"),
    [
        (["--plot", "p.nonsense"], "cannot draw", 2),
        (["--plot", "no/where/p.png"], "there is no folder", 2),
        (["--format", "xml"], "unknown", 2),
        (["--trace", "/nonexistent.xdt"], "cannot open", 5),
    ],
)
def test_what_cannot_be_is_said(
    capture: Path, words: list[str], what: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capture, *words) == code
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 2


def test_no_matplotlib_is_said(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(capture, "--plot", tmp_path / "p.png") == 4
    assert "matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["silence", "noise", "clipped", "text"])
def test_what_is_no_tone_is_refused_with_the_reason(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.wav"
    tone = played(997.0, {}, 100)
    samples = {
        "silence": np.zeros(RATE),
        "noise": np.random.default_rng(1).normal(0, 0.1, RATE),
        "clipped": np.clip(tone * 3, -0.9, 0.9),
    }
    if what == "text":
        path.write_text("no sound", encoding="utf-8")
    else:
        soundfile.write(path, samples[what], RATE)
    assert run(path) == 2
    said = capsys.readouterr()
    assert said.out == ""
    reason = {"silence": "silent", "noise": "no capture of one steady tone", "clipped": "clipped"}
    assert reason.get(what, "cannot be read as sound") in said.err


def test_a_trace_in_which_no_stream_was_seen_explains_nothing(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracer.trace import TraceWriter

    with TraceWriter(tmp_path / "empty.xdt"):
        pass
    assert run(capture, "--trace", tmp_path / "empty.xdt") == 5
    assert "no audio stream was seen" in capsys.readouterr().err


def test_a_real_trace_of_another_time_explains_no_burst_for_sure(
    capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capture, "--trace", DATA / "lock.xdt.tar", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["alignment"]["unique"]
