# SPDX-License-Identifier: Apache-2.0
"""``xdtrace attach`` on programs that are no VMM: it works, lists their locks, and claims no audio."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commandline import xdtrace

from tracer.model.summaryrows import LOCK_KINDS

pytestmark = pytest.mark.usefixtures("live_host")

#: Threads on a mutex of glibc's (which waits by FUTEX_WAIT with value 2) and on a Python lock (a semaphore).
PYTHON = r"""
import ctypes, sys, threading, time
libc = ctypes.CDLL(None)
libc.pthread_mutex_lock.argtypes = libc.pthread_mutex_unlock.argtypes = [ctypes.c_void_p]
mutex, lock = ctypes.create_string_buffer(64), threading.Lock()
def run():
    while True:
        libc.pthread_mutex_lock(mutex)
        time.sleep(0.001)
        libc.pthread_mutex_unlock(mutex)
        with lock:
            time.sleep(0.001)
for number in range(3):
    threading.Thread(target=run, daemon=True).start()
print("ready", hex(ctypes.addressof(mutex)), flush=True)
sys.stdin.read()
"""

#: Imports as little as it can: without a cache, Go compiles each package that a program needs.
GO = """
package main

import (
	"runtime"
	"sync"
	"syscall"
	"time"
)

func main() {
	runtime.GOMAXPROCS(4)
	var mutex sync.Mutex
	shared := map[int][]byte{}
	for i := 0; i < 16; i++ {
		go func() {
			for turn := 0; ; turn++ {
				mutex.Lock()
				shared[turn%97] = make([]byte, 4096)
				mutex.Unlock()
				if turn%64 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}
	syscall.Write(1, []byte("ready\\n"))
	syscall.Read(0, make([]byte, 1))
}
"""
COMPILER = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
QEMU = shutil.which("qemu-system-x86_64")

Start = Callable[[Sequence[str]], tuple[int, list[str]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program that says "ready"; its pid and what else it said on that line."""
    with ExitStack() as stack:

        def run(command: Sequence[str]) -> tuple[int, list[str]]:
            child = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(child.kill)
            assert child.stdout
            first, *rest = child.stdout.readline().split()
            assert first == "ready"
            return child.pid, rest

        yield run


def traced(pid: int) -> dict[str, Any]:
    """The last summary of two seconds' tracing, which must say that there is no audio."""
    outcome = xdtrace("attach", str(pid), "--duration", "2", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    *snapshots, last = [json.loads(line) for line in outcome.out.splitlines()]
    assert {line["type"] for line in snapshots} == {"snapshot"} and last["type"] == "summary"
    assert "no audio stream seen" in last["verdict"]
    assert "no audio stream seen" in {finding["what"] for finding in last["findings"]}
    assert last["streams"] == last["misses"] == last["episodes"] == []
    assert last["records"]["total"] > 0
    assert last["records"]["lost"] == {"ring": 0, "map": 0, "late": 0}
    summary: dict[str, Any] = last
    return summary


def test_a_python_program_s_mutex_is_listed(start: Start) -> None:
    pid, (word,) = start([sys.executable, "-c", PYTHON])
    summary = traced(pid)
    (lock,) = [lock for lock in summary["locks"] if lock["address"] == int(word, 16)]
    assert lock["kind"] == "pthread" and lock["contended"] > 0
    assert 0 < lock["wait_ns"]["p50"] <= lock["wait_ns"]["max"] <= lock["wait_ns"]["total"]
    (target,) = summary["targets"]
    assert (target["tgid"], target["alive"]) == (pid, True)
    # Python's own locks are semaphores; what is no mutex is listed as what it is, behind the locks.
    kinds = [row["kind"] for row in summary["locks"]]
    assert kinds == sorted(kinds, key=lambda kind: kind not in LOCK_KINDS)
    semaphores = [row for row in summary["locks"] if row["kind"] == "semaphore_or_condvar"]
    assert sum(row["contended"] for row in semaphores) > 0 and all(row["evidence"] for row in semaphores)
    assert not any(row["misses_caused"] for row in summary["locks"])


def go_program(start: Start, tmp_path: Path) -> int:
    """The pid of a running Go program."""
    (tmp_path / "main.go").write_text(GO)
    settings = {"GO111MODULE": "off", "GOFLAGS": "", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    command = [COMPILER or "go", "build", "-o", "program", "main.go"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **settings}, check=True)
    return start([str(tmp_path / "program")])[0]


# Neither is required: where they are missing there is nothing to test, and nothing is skipped.
if COMPILER is not None:

    def test_a_go_program_is_traced(start: Start, tmp_path: Path) -> None:
        """Its runtime parks threads by futex, but goroutines wait for a mutex in user space."""
        pid = go_program(start, tmp_path)
        summary = traced(pid)
        assert all(lock["contended"] > 0 and lock["tgid"] == pid for lock in summary["locks"])
        assert any(row["kind"] == "park" for row in summary["locks"]), (
            "its threads park, and that is no mutex"
        )
        assert not any(row["kind"] == "mutex" for row in summary["locks"])
        assert len([thread for thread in summary["threads"] if thread["tgid"] == pid]) > 1


if QEMU is not None:

    def test_qemu_is_traced(start: Start) -> None:
        """A machine that has no disk: its firmware looks for one."""
        command = [str(QEMU), "-machine", "q35,accel=tcg", "-m", "64", "-display", "none", "-nodefaults"]
        pid, _ = start(["sh", "-c", 'echo ready; exec "$@"', "sh", *command])
        assert len(traced(pid)["threads"]) > 1
