# SPDX-License-Identifier: Apache-2.0
"""The demo through a real terminal: real probes on the real mini-VMM. Waits for what is on the screen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from terminal import PATIENCE_S, Terminal

from tracer.cli.minivmm import binary

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-m", "tracer.cli.main", "demo", "--period", "256/48000"]


@pytest.fixture(scope="module")
def program(live_host: None) -> Path:
    """The mini-VMM, built beforehand so that no test waits for cargo."""
    if shutil.which("cargo") is None and os.environ.get("XDTRACE_KERNEL_TESTS") != "1":
        pytest.skip("the mini-VMM needs cargo")
    return binary()


def left_behind(program: Path) -> list[int]:
    """Processes of the mini-VMM that the finished demo did not end."""
    me = psutil.Process()
    return [
        p.pid
        for p in psutil.process_iter(["exe", "environ"])
        if p.info["exe"] == str(program) and (p.info["environ"] or {}).get("XDTRACE_TEST") == str(me.pid)
    ]


@pytest.fixture
def demo(program: Path) -> Iterator[Callable[..., Terminal]]:
    running: list[Terminal] = []

    def start(*words: str, width: int = 140, height: int = 44) -> Terminal:
        environment = {**ENVIRONMENT, "XDTRACE_TEST": str(os.getpid())}
        running.append(Terminal([*COMMAND, *words], environment, width, height))
        return running[-1]

    yield start
    for terminal in running:
        terminal.kill()
    end = time.monotonic() + PATIENCE_S  # one that was killed leaves its mini-VMM to end by itself
    while left_behind(program):
        assert time.monotonic() < end, left_behind(program)
        time.sleep(0.05)


def test_streams_locks_and_the_write_path_come_up_and_q_ends_it(demo: Callable[..., Terminal]) -> None:
    terminal = demo("--write-path", "locked")
    terminal.wait_for("audio minipipewire", "Streams", "last cycles", "write path locked")
    terminal.press("2")
    terminal.wait_for("Locks", "item_state", "Names")
    terminal.press("3")
    terminal.wait_for("Threads", "gpu worker", "cross domain", "data-loop")
    terminal.resize(80, 30)
    terminal.press("1")
    terminal.wait_for("Streams", "q quit", without="Threads")
    terminal.press("q")
    assert terminal.wait_end() == 0
    assert not terminal.alternate
    assert terminal.last_mode == terminal.first_mode
    assert "the audio server itself counted" in terminal.text()


@pytest.mark.parametrize("how", ["\x03", signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_in_order(demo: Callable[..., Terminal], how: str | signal.Signals) -> None:
    terminal = demo()
    terminal.wait_for("last cycles")
    if isinstance(how, str):
        terminal.press(how)
    else:
        terminal.signal(how)
    assert terminal.wait_end() == 0
    assert not terminal.alternate
    assert "the audio server itself counted" in terminal.text()


def test_a_killed_demo_takes_its_mini_vmm_along(demo: Callable[..., Terminal], program: Path) -> None:
    terminal = demo()
    terminal.wait_for("last cycles")
    assert len(left_behind(program)) == 2  # the fixture asserts that none is there in the end
    terminal.kill()


def test_json_lines_end_with_what_the_audio_server_counted(program: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--duration", "3", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, "XDTRACE_TEST": str(os.getpid())},
        timeout=120,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["type"] for line in lines[:-1]} == {"snapshot"}
    last = lines[-1]
    truth = last["ground_truth"]
    assert last["type"] == "summary"
    assert last["records"]["lost"] == {"ring": 0, "map": 0, "late": 0}
    assert abs(sum(s["misses"] for s in last["streams"]) - truth["missed_cycles"]) <= 1
    assert abs(sum(s["cycles"] for s in last["streams"]) - truth["cycles"]) <= 2
    assert left_behind(program) == []


def test_a_closed_pipe_ends_the_demo_and_its_processes(program: Path) -> None:
    child = subprocess.Popen(
        [*COMMAND, "--json", "--refresh", "0.1"],
        stdout=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT, "XDTRACE_TEST": str(os.getpid())},
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith(b'{"type":"snapshot"')
    child.stdout.close()
    assert child.wait(PATIENCE_S) == 0
    assert left_behind(program) == []
