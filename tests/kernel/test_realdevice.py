# SPDX-License-Identifier: Apache-2.0
"""The real cross-domain device (tests/realdevice): it keeps its protocol, counts for itself, and makes the
system calls that tell the three write paths apart. What xdtrace concludes from them is other tests' matter.

With a cargo older than 1.81 these tests are skipped; where XDTRACE_KERNEL_TESTS=1 none at all is a failure.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from live import Live

from tracer import schema
from tracer.schema import Kind

DEVICE = Path(__file__).parents[1] / "realdevice"
CRATES = {
    "locked": "rutabaga_gfx-0.1.80",
    "dup": "krun-rutabaga-gfx-0.1.0-1.19.7",
    "refcount": "rutabaga_gfx-0.1.85",
}
BUILDS = [(variant, profile) for variant in CRATES for profile in ("release", "stripped")]
EPOLL_WAIT, EPOLL_PWAIT, FCNTL, CLOSE = 232, 281, 72, 3

#: What -v says at the end.
OPENED, FAILED = r"(\d+) short streams opened", r"(\d+) failed commands"

Build = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def build() -> Build:
    """Builds a variant in a profile (nothing to do where it is up to date); the binary's path."""

    def make(variant: str, profile: str) -> Path:
        command = ["bash", str(DEVICE / "build.sh"), "--profile", profile, variant]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # A distribution's cargo may be too old for these crates, though not for anything else here.
        if done.returncode == 5 or (done.returncode == 4 and os.environ.get("XDTRACE_KERNEL_TESTS") != "1"):
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    return make


@dataclass
class Device:
    """The driver, running: its process and its first line."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    def line(self) -> dict[str, Any]:
        assert self.process.stdout
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def printed(self) -> bool:
        assert self.process.stdout
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def tid(self, comm: str) -> int:
        """Of the VMM's only thread with that name."""
        tasks = Path(f"/proc/{self.ready['vmm']}/task")
        (tid,) = [int(t.name) for t in tasks.iterdir() if (t / "comm").read_text().strip() == comm]
        return tid


@contextmanager
def running(binary: Path, *options: str) -> Iterator[Device]:
    with subprocess.Popen(
        [str(binary), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            yield Device(process, json.loads(process.stdout.readline()))
        finally:
            process.kill()


@pytest.mark.parametrize(("variant", "profile"), BUILDS)
def test_the_audio_server_s_counts_are_those_of_its_log(
    build: Build, variant: str, profile: str, tmp_path: Path
) -> None:
    log = tmp_path / "cycles"
    options = ["--churn", "40", "--streams", "3", "--duration", "1", "--log", str(log)]
    with running(build(variant, profile), *options) as device:
        truth = device.line()
        assert device.process.wait(10) == 0
    assert device.ready["type"] == "ready" and device.ready["write_path"] == variant
    assert device.ready["device"] == CRATES[variant]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [line for line in lines if line["type"] == "cycle"]
    assert truth["cycles"] == len(rows) > 0
    assert truth["missed_cycles"] == sum(row["missed"] for row in rows)
    assert truth["missed_cycles"] == truth["wake_misses"] + truth["completion_misses"]
    assert truth["wake_misses"] == sum(row["leg"] == "wake" for row in rows)
    assert {row["wake_eventfd"] for row in rows} == {s["wake_eventfd"] for s in device.ready["streams"]}
    assert any(row["closing_ns"] > row["signal_ns"] for row in rows)
    for row in rows:
        assert row["missed"] == (row["deadline_ns"] > 0 and row["target_missed"])
        assert not row["missed"] or not 0 < row["closing_ns"] < row["deadline_ns"]


@pytest.mark.parametrize(("variant", "profile"), BUILDS)
def test_the_write_paths_differ_as_their_system_calls_say(
    build: Build, trace: Callable[..., Live], variant: str, profile: str
) -> None:
    options = ["--hold-start", "--linger", "--churn", "40", "--duration", "2"]
    with running(build(variant, profile), *options) as device:
        live = trace(device.ready["vmm"])
        gpu, worker = device.tid("gpu worker"), device.tid("cross domain")
        device.go()
        while not device.printed():
            live.next()
        assert device.line()["cycles"] > 0
        recording = live.finish()
    (stream,) = device.ready["streams"]

    writes = recording.of(Kind.WRITE, {gpu})
    writes = writes[writes["eventfd_id"] == stream["completion_eventfd"]]
    fds = recording.of(Kind.FD, {gpu})
    dups = fds[(fds["op"] == FCNTL) & (fds["eventfd_id"] == stream["completion_eventfd"])]
    closes = fds[(fds["op"] == CLOSE) & (fds["eventfd_id"] == stream["completion_eventfd"])]
    assert len(writes) > 0 and (writes["ret"] == 8).all()
    if variant == "dup":
        assert len(dups) == len(writes) == len(closes)
        assert (dups["ret"] == writes["fd"]).all() and (writes["fd"] == closes["fd"]).all()
        assert (dups["enter_ns"] < writes["enter_ns"]).all()
        assert (writes["enter_ns"] < closes["enter_ns"]).all()
    else:
        assert len(dups) == len(closes) == 0 and len(np.unique(writes["fd"])) == 1

    reads = recording.of(Kind.READ, {worker})
    reads = reads[reads["eventfd_id"] == stream["wake_eventfd"]]
    assert len(reads) > 0 and (reads["len"] == (4072 if variant == "dup" else 8)).all()
    waits = recording.of(Kind.EPOLL_WAIT, {worker})
    assert set(waits["op"]) == {EPOLL_WAIT if variant == "dup" else EPOLL_PWAIT}
    received = recording.of(Kind.RECVMSG, {worker})
    assert (received["nfds"] == 2).all() and len(received) > 0
    assert recording.lost == schema.Losses()


@pytest.mark.parametrize("variant", CRATES)
def test_memory_of_short_streams_becomes_blobs_and_goes_again(build: Build, variant: str) -> None:
    """The device refuses none of it: neither making, attaching, detaching nor letting go."""
    command = [str(build(variant, "release")), "--memory", "--churn", "40", "--duration", "1", "-v"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    opened, failed = (int(re.search(text, done.stderr)[1]) for text in (OPENED, FAILED))  # type: ignore[index]
    assert failed == 0 < opened


@pytest.mark.parametrize("variant", CRATES)
def test_a_stripped_build_keeps_no_symbols_but_its_crate_s_source_paths(build: Build, variant: str) -> None:
    paths = f"{CRATES[variant]}/src/cross_domain/".encode()
    with build(variant, "stripped").open("rb") as file:
        elf = ELFFile(file)
        assert elf.get_section_by_name(".symtab") is None
        assert elf.get_section_by_name(".debug_info") is None
        assert elf.get_section_by_name(".eh_frame") is not None
        constants = elf.get_section_by_name(".rodata")
        assert constants is not None and paths in constants.data()
    with build(variant, "release").open("rb") as file:
        assert ELFFile(file).has_dwarf_info()


@pytest.mark.parametrize("variant", ["locked", "refcount"])
def test_without_the_guard_the_id_collision_blocks_the_worker_for_good(build: Build, variant: str) -> None:
    """e_n gets item id 2, which is the token of the worker's resample event: it reads that one, in vain."""
    with running(build(variant, "release"), "--no-id-guard", "--linger", "--duration", "1") as device:
        truth = device.line()
        worker = f"/proc/{device.ready['vmm']}/task/{device.tid('cross domain')}"
        number = Path(worker, "syscall").read_text().split()[0]
    assert number == "0"
    assert truth["wake_misses"] == truth["cycles"] > 0 and truth["episodes"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_the_truth(build: Build, number: signal.Signals) -> None:
    with running(build("locked", "release"), "--churn", "40", "--duration", "0") as device:
        device.process.send_signal(number)
        assert device.line()["type"] == "ground_truth"
        assert device.process.wait(10) == 0


def test_a_killed_vmm_takes_its_audio_server_along(build: Build) -> None:
    with running(build("locked", "release"), "--load", "hogs", "--duration", "0") as device:
        audio = os.pidfd_open(device.ready["audio"])
        device.process.kill()
        assert select.select([audio], [], [], 10)[0]
        os.close(audio)
