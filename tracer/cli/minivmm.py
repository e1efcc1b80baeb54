# SPDX-License-Identifier: Apache-2.0
"""The mini-VMM as a child: built when needed, started, told to go, and never left behind.

Owns the child's pipes and its process group. Knows its line protocol and nothing of tracing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tracer.errors import HostError

SOURCES = Path(__file__).resolve().parents[2] / "tests" / "minivmm"
#: Seconds after the child's last word in which its last records still arrive.
SETTLE_S = 0.3
#: Seconds the child gets to count up after it was asked to end.
WIND_DOWN_S = 3.0
_READY_S = 10.0


def binary() -> Path:
    """The mini-VMM's program, built by cargo where it is missing or older than its sources.

    Raises:
        HostError: no sources (an installed xdtrace), no cargo, or it does not build.
    """
    manifest = SOURCES / "Cargo.toml"
    if not manifest.is_file():
        raise HostError(
            "the demo's mini-VMM comes with the sources, which are not here",
            "run `./dev demo` in a checkout, or `xdtrace attach PID` on a VMM of your own",
        )
    target = Path(os.environ.get("CARGO_TARGET_DIR", SOURCES / "target"))
    program = target / "release" / "minivmm"
    sources = (manifest, *SOURCES.glob(".cargo/*.toml"), *SOURCES.glob("src/**/*.rs"))
    newest = max(path.stat().st_mtime for path in sources)
    if program.is_file() and program.stat().st_mtime >= newest:
        return program
    cargo = shutil.which("cargo") or shutil.which(str(Path.home() / ".cargo/bin/cargo"))
    if cargo is None:
        raise HostError(
            "the demo's mini-VMM must be built, and there is no cargo",
            "install Rust 1.63 or newer (Debian: apt install cargo; anywhere: https://rustup.rs)",
        )
    print("building the mini-VMM (once) ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [cargo, "build", "--release", "--quiet", "--target-dir", str(target.absolute())],
        cwd=SOURCES,  # its .cargo/config.toml counts only from there
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode or not program.is_file():
        raise HostError(
            "the mini-VMM does not build",
            f"see cargo's words above; try cargo build --manifest-path {manifest}",
        )
    return program


class MiniVmm:
    """A running mini-VMM (or real device: the same protocol), holding its start until ``start``.

    Args:
        program: its path; arguments: beside --hold-start and --linger.

    Attributes:
        vmm, audio: tgids of its two processes; others: of VMMs beside the first.
        ground_truth: what its audio server counted, once it said so.

    Raises:
        HostError: it did not get ready.
    """

    def __init__(self, program: Path, arguments: Sequence[str]) -> None:
        self.ground_truth: Mapping[str, Any] | None = None
        self.vmm = self.audio = 0
        self.others: tuple[int, ...] = ()
        self._program = program
        self._rest = b""
        self._end: float | None = None
        self._asked = False
        # A session of its own: Ctrl-C reaches us alone, and nothing of it survives its group's end.
        self._child = subprocess.Popen(
            [program, *arguments, "--hold-start", "--linger"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait_ready(self) -> None:
        end = time.monotonic() + _READY_S
        while not self.vmm and time.monotonic() < end and self._read(0.1):
            pass
        if not self.vmm:
            raise HostError(
                f"{self._program.name} did not get ready",
                f"run it by hand to see why: {self._program}",
            )

    def start(self) -> None:
        """Let audio and load begin."""
        self._write(b"\n")

    def _write(self, data: bytes) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it is gone: reading will tell
            self._child.stdin.write(data)

    def _read(self, timeout_s: float = 0.0) -> bool:
        """Take in what the child said; False once it has closed its end."""
        out = self._child.stdout
        assert out is not None
        while select.select([out], [], [], timeout_s)[0]:
            data = os.read(out.fileno(), 65536)
            if not data:
                return False
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._take(line)
            timeout_s = 0.0
        return True

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            return
        if said.get("type") == "ready":
            self.vmm, self.audio = int(said["vmm"]), int(said["audio"])
            self.others = tuple(said.get("others", ()))
        elif said.get("type") == "ground_truth":
            self.ground_truth = {key: said[key] for key in ("cycles", "missed_cycles", "episodes")}

    def tick(self, asked: bool) -> bool:
        """Whether the run is over: the child has counted up (or died), and its last records came in.

        Args:
            asked: the user wants the end; the child is then told to stop and count up.
        """
        now = time.monotonic()
        if asked and not self._asked:
            self._asked = True
            if self._end is None:
                self._end = now + WIND_DOWN_S
            self._signal(signal.SIGTERM, group=False)
        counted = self.ground_truth is not None
        alive = self._read()
        if self.ground_truth is not None and not counted:
            self._end = now + SETTLE_S
        elif not alive:
            self._end = now
        return self._end is not None and now >= self._end

    def _signal(self, number: signal.Signals, *, group: bool) -> None:
        try:
            if group:
                os.killpg(self._child.pid, number)
            else:
                os.kill(self._child.pid, number)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """End it: its stdin's end first, then signals; afterwards its whole group is gone."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self._signal(number, group=True)
            try:
                self._child.wait(1.0)
                break
            except subprocess.TimeoutExpired:
                continue
        self._signal(signal.SIGKILL, group=True)
