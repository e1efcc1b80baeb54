# SPDX-License-Identifier: Apache-2.0
"""Verdicts on delays that were made on purpose: the quick form of ``bench accuracy``, and what was heard.

Floors are far below what docs/accuracy.md measures: they catch what is broken, not what is a little worse.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.accuracy import analysed, capture, truth, verdicts, without_kicks
from bench.matrix import LOCKS, NEGATIVES, OTHERS, VICTIMS, Trial
from tracer import audio
from tracer.cli.minivmm import binary
from tracer.trace import TraceReader

ROOT = Path(__file__).resolve().parents[2]
RATE, QUANTUM = 48000, 256


@pytest.fixture(scope="module")
def minivmm(live_host: None) -> None:
    """Skips where the mini-VMM cannot be built, but not where kernel tests are required."""
    if shutil.which("cargo") is None and os.environ.get("XDTRACE_KERNEL_TESTS") != "1":
        pytest.skip("the mini-VMM needs cargo")
    binary()


@pytest.fixture(scope="module")
def quick(minivmm: None) -> dict[str, Any]:
    """The one line that the quick form prints."""
    words = [sys.executable, "-m", "bench", "accuracy", "--quick", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_quick_form_finds_the_misses_and_invents_none(quick: dict[str, Any]) -> None:
    assert quick["failed_runs"] == 0
    assert quick["detection"]["misses"] > 200
    assert quick["detection"]["precision"] >= 0.97
    assert quick["detection"]["recall"] >= 0.95


def test_the_quick_form_names_causes_far_better_than_naive_rules(quick: dict[str, Any]) -> None:
    cause = quick["cause"]
    assert cause["label"]["episodes"] > 100
    assert cause["precision"] >= 0.85 and cause["recall"] >= 0.80 and cause["set"]["share"] >= 0.85
    assert cause["recall"] > max(quick["naive"].values())
    assert quick["mixed_share"] + quick["unknown_share"] <= 0.15


def test_the_quick_form_injects_nearly_every_cause(quick: dict[str, Any]) -> None:
    causes = {name.partition("/")[0] for name in quick["by_cause"]}
    wanted = {kind.partition(".")[0] for kind in (*LOCKS, *OTHERS)} | {"not_scheduled", "unknown"}
    assert causes <= wanted
    assert len(wanted - {"no_write"} - causes) <= 2, causes  # so short a run may be without a few
    assert sum(f"not_scheduled.{victim}" in quick["by_kind"] for victim in VICTIMS) > len(VICTIMS) / 2


def test_negatives_have_no_miss_that_is_not_there_and_blame_no_lock(quick: dict[str, Any]) -> None:
    assert quick["negatives_cycles"] > 1000 * len(NEGATIVES)
    assert quick["negatives_false_misses"] == 0
    assert quick["negatives_locks_blamed"] == 0


def silent(capture: audio.Capture, start_s: float = 0.0) -> set[int]:
    """Cycles that the sink heard nothing of, by the bursts in its capture."""
    cycles: set[int] = set()
    for burst in capture.bursts:
        assert burst.kind == "zeros", burst
        first, end = round(burst.start_s * RATE / QUANTUM), round(burst.end_s * RATE / QUANTUM)
        assert abs(burst.start_s * RATE - first * QUANTUM) <= 2  # a gap of whole quanta
        cycles |= set(range(first, end))
    return cycles


@pytest.mark.parametrize(
    ("inject", "write_path", "seed"),
    [
        ("+".join(OTHERS), "locked", 71),
        ("+".join((*LOCKS, "serialised:2..4")), "dup", 72),
        ("slow_syscall.w:3..6+guest_late", "refcount", 73),
    ],
)
def test_what_is_heard_is_what_is_missed(
    minivmm: None, tmp_path: Path, inject: str, write_path: str, seed: int
) -> None:
    """Run by run: each silent cycle of the sink's capture is a miss that was told, and the reverse."""
    wav = tmp_path / "sink.wav"
    trial = Trial(inject, write_path, f"{QUANTUM}/{RATE}", 4.0, seed, ("--wav", str(wav)))
    capture(trial, tmp_path)
    cycles, _ = truth(tmp_path)
    # By the driver's own count, which the sink plays by: where the driver was late, time is no measure.
    by_deadline = {cycle.deadline_ns: cycle.cycle for cycle in cycles}
    told = {
        by_deadline[min(by_deadline, key=lambda deadline: abs(deadline - verdict.deadline_ns))]
        for verdict in verdicts(analysed(without_kicks(TraceReader(tmp_path / "run.xdt"))))
    }
    heard = audio.analyse(wav, join_s=0)
    assert abs(heard.tone_hz - 997) < 0.1
    # What was missed before the tone began or after it ended is silence beside it, and no glitch.
    first, end = round(heard.tone_start_s * RATE / QUANTUM), round(heard.tone_end_s * RATE / QUANTUM)
    # Nothing follows the last cycle that would show whether it was missed.
    told.discard(len(cycles) - 1)
    inaudible = {cycle for cycle in told if not first <= cycle < end}
    assert inaudible == {cycle for cycle in range(len(cycles) - 1) if not first <= cycle < end}
    assert silent(heard) - {len(cycles) - 1} == told - inaudible
    assert len(told) > 10
