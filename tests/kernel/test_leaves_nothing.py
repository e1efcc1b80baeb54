# SPDX-License-Identifier: Apache-2.0
"""However a live run ends, it ends in order: a last summary, exit code 0, and nothing stays behind.

Not attached, not mounted, not pinned, no process of the demo's; the target goes on as if nothing had been.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from commandline import COMMAND, environment
from live import Child
from test_lifecycle import bpf_ids_of, gone, surroundings

from tracer.cli.minivmm import binary

ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP", "closed pipe", "target exits")


@dataclass
class Tracer:
    """A live run that prints JSON lines; its first snapshot has been read."""

    process: subprocess.Popen[bytes]
    before: tuple[list[str], list[str]]
    programs: set[int]
    maps: set[int]
    first: dict[str, Any]

    def targets(self) -> list[int]:
        """Tgids that it traces."""
        return [int(target["tgid"]) for target in self.first["targets"]]

    def end(self, how: str) -> dict[str, Any] | None:
        """Bring it to its end; the last line it printed, None where nobody could read it."""
        out = self.process.stdout
        assert out is not None
        if how == "closed pipe":
            out.close()
        elif how == "target exits":
            os.kill(self.targets()[0], signal.SIGKILL)
        else:
            self.process.send_signal(signal.Signals[how])
        last = None if how == "closed pipe" else json.loads(out.read().splitlines()[-1])
        assert self.process.wait(60) == 0
        assert self.process.stderr is not None and self.process.stderr.read() == b""
        return last

    def left_nothing(self) -> None:
        """Programs and maps are freed, and the host is as it was."""
        assert gone(self.programs, self.maps)
        assert surroundings() == self.before


@pytest.fixture
def start(live_host: None) -> Iterator[Callable[..., Tracer]]:
    """Starts the command with --json; killed afterwards if it still runs."""
    running: list[subprocess.Popen[bytes]] = []

    def run(*words: str) -> Tracer:
        before = surroundings()
        process = subprocess.Popen(
            [*COMMAND, *words, "--json", "--refresh", "0.1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        running.append(process)
        assert process.stdout
        first = json.loads(process.stdout.readline())
        assert first["type"] == "snapshot"
        programs, maps = bpf_ids_of(process.pid)
        assert programs and maps
        return Tracer(process, before, programs, maps, first)

    yield run
    for process in running:
        assert process.stdout and process.stderr
        with closing(process.stdout), closing(process.stderr):
            process.kill()
            process.wait(10)


@pytest.mark.parametrize("how", ENDINGS)
def test_attach_leaves_nothing(start: Callable[..., Tracer], child: Child, how: str) -> None:
    tracer = start("attach", str(child.tgid))
    last = tracer.end(how)
    tracer.left_nothing()
    if how == "target exits":
        assert last is not None and [target["alive"] for target in last["targets"]] == [False]
    else:
        assert child.do("contend 3") == ""
    if last is not None:
        assert last["type"] == "summary"
        assert last["records"]["lost"] == {"ring": 0, "map": 0, "late": 0}


@pytest.mark.parametrize("how", ENDINGS)
def test_the_demo_leaves_nothing_and_none_of_its_processes(start: Callable[..., Tracer], how: str) -> None:
    binary()
    tracer = start("demo", "--period", "256/48000", "--churn", "20")
    group = os.getpgid(tracer.targets()[0])
    assert len(tracer.targets()) == 2 and group != os.getpgid(tracer.process.pid)
    last = tracer.end(how)
    tracer.left_nothing()
    assert ended(group)
    if last is not None:
        assert last["type"] == "summary"
        assert "ground_truth" in last


def ended(group: int) -> bool:
    """Whether none of a process group lives; what was killed dies as soon as it gets a CPU, not before."""
    for _ in range(1000):
        if not [p for p in psutil.process_iter() if pgid(p.pid) == group and not dead(p)]:
            return True
        time.sleep(0.01)
    return False


def dead(process: psutil.Process) -> bool:
    """Whether nothing but an entry is left of it, if that."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def pgid(pid: int) -> int:
    """Of a process that may just end."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def test_a_target_that_exits_ends_the_run_even_where_another_lives_on(
    start: Callable[..., Tracer], start_child: Callable[[], Child]
) -> None:
    """The last one's exit ends it, not the first one's."""
    first, second = start_child(), start_child()
    tracer = start("attach", str(first.tgid), str(second.tgid))
    first.end()
    seen = snapshot_with(tracer, first.tgid, alive=False)
    assert {t["tgid"]: t["alive"] for t in seen["targets"]} == {first.tgid: False, second.tgid: True}
    second.end()
    assert tracer.process.stdout
    last = json.loads(tracer.process.stdout.read().splitlines()[-1])
    assert tracer.process.wait(60) == 0
    assert last["type"] == "summary" and not any(t["alive"] for t in last["targets"])
    tracer.left_nothing()


def snapshot_with(tracer: Tracer, tgid: int, *, alive: bool) -> dict[str, Any]:
    """The first snapshot in which a target is alive or not; a hundred are enough or it never will be."""
    assert tracer.process.stdout
    for _ in range(100):
        assert select.select([tracer.process.stdout], [], [], 30)[0]
        seen: dict[str, Any] = json.loads(tracer.process.stdout.readline())
        if [target["alive"] for target in seen["targets"] if target["tgid"] == tgid] == [alive]:
            return seen
    raise AssertionError("not seen in 100 snapshots")


def test_an_output_folder_is_whole_after_a_signal(
    start: Callable[..., Tracer], child: Child, tmp_path: Path
) -> None:
    tracer = start("attach", str(child.tgid), "-o", str(tmp_path / "run"))
    assert tracer.end("SIGTERM") is not None
    tracer.left_nothing()
    report = subprocess.run(
        [sys.executable, "-m", "tracer.cli.main", "report", str(tmp_path / "run")],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (report.returncode, report.stderr) == (0, "")
    # Ended within a second nothing is said to be absent yet (which of the two it is, is the machine's pace).
    assert re.search("no audio stream (seen|yet)", report.stdout)
