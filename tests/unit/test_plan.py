# SPDX-License-Identifier: Apache-2.0
"""What the runs of ``bench accuracy`` will give, before any is run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from bench import accuracy
from bench.labels import INSTEAD_ON_WAKE
from bench.matrix import ANSWERS_LATE, LATE_WAKEUPS, VICTIMS, Trial, in_a_round, trials
from bench.plan import SPACING, WARM_UP, expected

LEGS = ("completion", "wake")
BOTH = (
    "blocked",
    "forward_failed",
    "head_of_line",
    "host_late",
    "lock",
    "not_rearmed",
    "not_scheduled",
    "on_cpu",
    "serialised",
    "slow_syscall",
)
#: A guest that is late, or a command that writes nothing, has been woken.
CELLS = {(cause, leg) for cause in BOTH for leg in LEGS} | {
    ("guest_late", "completion"),
    ("unknown", "completion"),
}


def test_five_rounds_give_two_hundred_episodes_of_each_cause_and_leg() -> None:
    five = expected(islice(trials(False, 1), 5 * in_a_round(False)))
    assert set(five) == CELLS
    assert min(five.values()) >= 200, five


def test_a_round_takes_about_as_long_as_it_did() -> None:
    """211 runs were recorded in 16 minutes, two at a time: 5.4 rounds of 39 runs, 302 s of audio each."""
    one = list(islice(trials(False, 1), in_a_round(False)))
    assert sum(trial.seconds for trial in one) + 1.3 * len(one) <= 1.05 * (302 + 1.3 * 39)


@pytest.mark.parametrize("quick", [True, False])
def test_of_every_kind_that_is_injected_a_share_is_known(quick: bool) -> None:
    for trial in islice(trials(quick, 1), in_a_round(quick)):
        for word in trial.inject.split("+") if trial.inject and not trial.negative else []:
            if "&" not in word:
                assert expected([Trial(word, "dup", trial.period, 10_000.0, 1)]), word


def test_a_plan_counts_what_its_options_say() -> None:
    seconds = (WARM_UP + 100 * SPACING) * 256 / 48000
    of = Trial("no_write", "dup", "256/48000", seconds, 1)
    assert expected([of]) == {("unknown", "completion"): 100}
    assert expected([of, of]) == {("unknown", "completion"): 200}
    several = Trial("no_write", "dup", "256/48000", seconds, 1, ("--streams", "4"))
    assert expected([several]) == {("unknown", "completion"): 70}
    exits = Trial("forward_failed.exit", "dup", "512/48000", 2.0, 1, ("--streams", "10"))
    assert expected([exits]) == {("forward_failed", "wake"): 9}
    assert not expected([Trial("no_write", "dup", "256/48000", seconds, 1, negative=True)])
    assert not expected([Trial("", "dup", "256/48000", seconds, 1)])
    held = expected([Trial("lock.item_state", "dup", "256/48000", seconds, 1)])
    assert set(held) == {("lock", "completion"), (INSTEAD_ON_WAKE["lock.item_state"], "wake")}


def test_what_answers_late_is_forecast_by_its_own_share() -> None:
    """With the usual delays these kinds make wakeups late, not completions."""
    for word in ANSWERS_LATE:
        kind = word.partition(":")[0]
        assert set(expected([Trial(word, "dup", "256/48000", 60.0, 1)])) == {
            (kind.split(".")[0], "completion")
        }
        assert set(expected([Trial(kind, "dup", "256/48000", 60.0, 1)])) == {(kind.split(".")[0], "wake")}
    assert set(expected([Trial(LATE_WAKEUPS, "dup", "256/48000", 60.0, 1)])) == {("host_late", "wake")}


def test_a_kept_run_is_judged_as_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan may be another one by then, and a seed another run."""
    was = Trial("serialised", "dup", "64/48000", 6.0, 7, ("--guest-us", "5,40"), negative=True)
    monkeypatch.setattr(accuracy, "capture", lambda trial, folder: None)
    accuracy.record(was, tmp_path / "7")
    other = Trial("no_write", "task", "1024/48000", 4.0, 7)
    assert accuracy.recorded(tmp_path / "7", other) == was
    assert accuracy.recorded(tmp_path / "8", other) == other  # recorded before it was written down


def test_every_victim_has_its_share() -> None:
    for victim in VICTIMS:
        word = f"not_scheduled.{victim}"
        assert expected([Trial(word, "dup", "256/48000", 60.0, 1)]), word
