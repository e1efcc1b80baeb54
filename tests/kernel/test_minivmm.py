# SPDX-License-Identifier: Apache-2.0
"""``xdtrace demo`` on the mini-VMM: every write path under every load, counts against the audio server's own.

Every run's counts are exact. Verdicts are asserted where the load makes them certain; where runs differ, the
test asks for another run until it has seen what it is about, and fails if it never does.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable

import pytest
from demo_runs import ATTEMPTS, Row, Run, demo, share, sufficient

from tracer.cli.minivmm import binary

WRITE_PATHS = ("locked", "dup", "refcount", "task")
LOADS = ("none", "pipe", "preempt-holder", "nested", "hogs", "gpu")
EVIDENCE = {
    "locked": {"held_words", "wake_order", "symbols"},
    "dup": {"dup_calls"},
    "refcount": {"held_words", "wake_order", "symbols"},
    "task": {"held_words", "wake_order", "symbols"},
}
SHORT, LONG = "256/48000", "1024/48000"
#: Churn makes audio late at short periods; the loads are clear of other causes at long ones.
GRID = {load: ("--period", SHORT if load in ("none", "hogs", "gpu") else LONG) for load in LOADS}

Runs = Callable[..., Run]


@pytest.fixture(scope="module")
def runs(live_host: None) -> Runs:
    """The n-th run with some options; a run that another test has made is shared."""
    if shutil.which("cargo") is None and os.environ.get("XDTRACE_KERNEL_TESTS") != "1":
        pytest.skip("the mini-VMM needs cargo")
    binary()
    made: defaultdict[tuple[str, ...], list[Run]] = defaultdict(list)

    def run(*words: str, attempt: int = 0) -> Run:
        known = made[words]
        while len(known) <= attempt:
            known.append(demo(*words))
        return known[attempt]

    return run


def grid_options(write_path: str, load: str) -> tuple[str, ...]:
    """Of the run that shows a write path under a load, without churn beside it."""
    churn = ("--churn", "200" if load == "none" else "0")
    return ("--write-path", write_path, "--load", load, *churn, *GRID[load], "--duration", "4")


def misses_seen(
    runs: Runs, words: tuple[str, ...], condition: Callable[[Row], bool]
) -> tuple[Run, list[Row]]:
    """The first of a few runs in which origins meet a condition, and those origins."""
    tried = []
    for attempt in range(ATTEMPTS):
        run = runs(*words, attempt=attempt)
        if found := [miss for miss in run.origins if condition(miss)]:
            return run, found
        tried.append(run)
    raise AssertionError(f"never seen in {tried}")


def enough(runs: Runs, words: tuple[str, ...], wanted: int) -> list[Run]:
    """As many equal runs as it takes to see some origins; all of them."""
    made: list[Run] = []
    while sum(len(run.origins) for run in made) < wanted:
        assert len(made) < ATTEMPTS, f"hardly a miss in {made}"
        made.append(runs(*words, attempt=len(made)))
    return made


#: The write path shows at item_state: without a wait for it, or a write since, it stays open.
OPEN = re.compile(
    r"locked or refcount: (no lock that W and G share was ever contended"
    r"|nobody waited for the item_state of the stream's own context"
    r"|only [0-7] of \d+ completion writes came after the first wait for item_state"
    r"|only 1?\d of \d+ completion writes came after the first wait for a lock without a name"
    r"|a lock without a name was held at \d+ of \d+ completion writes)"
)


def tells(run: Run, write_path: str) -> bool:
    """Whether a run tells its write path, which must be the right one; if not, it must say why it cannot."""
    found = run.write_path
    if found["kind"] == "unknown":
        assert write_path in ("locked", "refcount") and OPEN.fullmatch(found["why"]), (run, found)
        assert "ever contended" not in found["why"] or not run.locks("item_state"), (run, found)
        assert "own context" not in found["why"] or "per-client" in run.words, (run, found)
        return False
    assert found["kind"] == write_path and found["evidence"] in EVIDENCE[write_path], (run, found)
    assert found["writes"] > 0 and found["why"], (run, found)
    return True


def told(runs: Runs, words: tuple[str, ...], write_path: str) -> Run:
    """The first run that tells the write path."""
    tried = []
    for attempt in range(ATTEMPTS):
        run = runs(*words, attempt=attempt)
        if tells(run, write_path):
            return run
        tried.append(run.write_path)
    raise AssertionError(f"never told: {tried}")


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("write_path", WRITE_PATHS)
def test_counts_are_the_audio_server_s_and_the_write_path_is_told(
    runs: Runs, write_path: str, load: str
) -> None:
    words = grid_options(write_path, load)  # each run holds its counts
    if load in ("hogs", "gpu") and write_path in ("locked", "refcount"):
        run = runs(*words)  # nobody may have to wait for item_state in a whole run
        tells(run, write_path)
    else:
        run = told(runs, words, write_path)
    assert all(miss["cause"] and miss["todo"] for miss in run.origins)


@pytest.mark.parametrize("load", LOADS[1:])
def test_counts_hold_with_churn_and_load_together(runs: Runs, load: str) -> None:
    run = runs("--load", load, "--period", SHORT, "--duration", "3")
    tells(run, "locked")


@pytest.mark.parametrize("write_path", WRITE_PATHS)
def test_a_context_of_its_own_takes_the_stream_out_of_the_churn(runs: Runs, write_path: str) -> None:
    words = ("--write-path", write_path, "--topology", "per-client", "--period", SHORT, "--duration", "3")
    run = runs(*words)
    tells(run, write_path)
    assert share(run.origins, lambda miss: miss["via"] == "serialised") <= 0.5


def test_several_streams_are_counted_each(runs: Runs) -> None:
    run = runs("--streams", "3", "--period", SHORT, "--duration", "3")
    assert len([s for s in run.summary["streams"] if s["cycles"]]) == 3
    assert len(run.summary["episodes"]) <= sum(s["episodes"] for s in run.summary["streams"])
    tells(run, "locked")


def test_the_lock_is_named_and_its_waits_counted_under_locked_churn(runs: Runs) -> None:
    run = runs(*grid_options("locked", "none"))
    (lock,) = run.locks("item_state")
    assert lock["contended"] > 0 and 0 < lock["wait_ns"]["p50"] <= lock["wait_ns"]["max"]
    assert lock["kind"] == "mutex" and lock["named_by"] in ("symbols", "behaviour")
    assert {lock["top_waiter"], lock["top_holder"]} <= {"gpu worker", "cross domain"}
    blame = run.blame("item_state")
    assert 0 < sum(row["waits"] for row in blame) <= lock["contended"] + lock["barged"]
    assert all(row["holder_operation"] and row["victim_operation"] for row in blame)
    operations = {row["holder_operation"] for row in blame} | {row["victim_operation"] for row in blame}
    assert operations & {"write", "add_item", "handle_fence", "process_receive"}, blame


@pytest.mark.parametrize("write_path", WRITE_PATHS)
def test_churn_alone_is_serialised_and_not_the_lock(runs: Runs, write_path: str) -> None:
    made = enough(runs, grid_options(write_path, "none"), 8)
    origins = [miss for run in made for miss in run.origins]
    assert share(origins, lambda miss: sufficient(miss, "serialised")) > 0.5, made
    assert share(origins, lambda miss: sufficient(miss, "lock:")) < 0.1, made
    avoided, of = (sum(run.remedy("item_state")[key] for run in made) for key in ("avoided", "of"))
    assert of == sum(run.misses for run in made) and avoided <= 0.1 * of, made
    assert sum(run.remedy("fair")["avoided"] for run in made) > 0.4 * of, made


def test_the_fair_worker_really_misses_far_less(runs: Runs) -> None:
    """The remedy in earnest, run against run in turn, until enough has been missed to compare."""
    words = grid_options("locked", "none")
    first = fair = 0
    for attempt in range(ATTEMPTS):
        first += runs(*words, attempt=attempt).misses
        fair += runs(*words, "--worker", "fair", attempt=attempt).misses
        if first >= 40 and 2 * fair < first:
            return
    raise AssertionError(f"{fair} cycles missed with the fair worker, {first} without")


@pytest.mark.parametrize("write_path", ["locked", "refcount"])
def test_a_slow_pipe_s_lock_is_named_but_is_not_the_cause(runs: Runs, write_path: str) -> None:
    run, found = misses_seen(
        runs,
        grid_options(write_path, "pipe"),
        lambda miss: miss["leg"] == "wake" and miss["lock"] == "item_state",
    )
    for miss in found:
        assert any("item_state held by gpu worker in write(pipe" in link for link in miss["chain"]), miss
        assert sufficient(miss, "head_of_line") and not sufficient(miss, "lock:item_state"), miss
    assert any(row["holder_syscall"] == "write(pipe)" for row in run.blame("item_state"))
    remedy = run.remedy("item_state")
    assert remedy["of"] == run.misses and remedy["avoided"] <= max(1, 0.1 * remedy["of"]), run


def test_without_the_lock_the_same_pipe_is_head_of_line(runs: Runs) -> None:
    run, found = misses_seen(runs, grid_options("dup", "pipe"), lambda miss: miss["cause"] == "head_of_line")
    assert all(miss["via"] == "head_of_line" for miss in found)
    assert not any(sufficient(miss, "lock:item_state") for miss in found)
    assert run.remedy("item_state")["avoided"] <= max(1, 0.1 * run.misses), run


def test_a_preempted_holder_is_both_the_lock_and_the_missing_cpu(runs: Runs) -> None:
    run, found = misses_seen(
        runs,
        grid_options("locked", "preempt-holder"),
        lambda miss: sufficient(miss, "lock:item_state", "not_scheduled:cross domain"),
    )
    for miss in found:
        assert miss["cause"] == "not_scheduled" and miss["lock"] == "item_state", miss
        assert any("item_state held by cross domain" in link for link in miss["chain"]), miss
    for remedy in ("item_state", "realtime"):
        assert run.remedy(remedy)["avoided"] >= len(found), run
    # What W did is told by its syscalls where it was seen to do one of its operations, else by its name.
    assert {row["holder_operation"] for row in run.blame("item_state")} & {"handle_fence", "cross domain"}, (
        run
    )


def test_a_nested_lock_s_chain_is_shown(runs: Runs) -> None:
    """G waits for item_state; W, which has it, for a lock whose holder sleeps in a read."""
    run, found = misses_seen(
        runs,
        grid_options("locked", "nested"),
        lambda miss: miss["cause"] == "lock" and len(miss["chain"]) > 2,
    )
    for miss in found:
        waiter, held, behind = miss["chain"][:3]
        assert waiter == "gpu worker" and miss["lock"] == "item_state", miss
        assert held.startswith("item_state held by cross domain"), miss
        assert "held by fs worker in read" in behind, miss
        assert sufficient(miss, "lock:item_state"), miss
    assert run.remedy("item_state")["avoided"] >= len(found), run


def test_hogs_are_a_missing_cpu(runs: Runs) -> None:
    made = enough(runs, grid_options("locked", "hogs"), 2)
    causes = [miss["cause"] for run in made for miss in run.origins]
    assert causes.count("not_scheduled") * 2 > len(causes), made


def test_another_context_s_command_is_head_of_line(runs: Runs) -> None:
    run, found = misses_seen(runs, grid_options("dup", "gpu"), lambda miss: sufficient(miss, "head_of_line"))
    assert found
    assert run.remedy("item_state")["avoided"] <= max(1, 0.1 * run.misses), run
