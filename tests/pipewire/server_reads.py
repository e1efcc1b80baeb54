# SPDX-License-Identifier: Apache-2.0
"""Which cycles the server ended without a completion, by its own reads: a witness of its own.

The kernel's event tracing (tracefs, an instance of ours) notes each read(2) of the server's data loop:
of the sink's timer, where cycles start, and of the eventfd that tells their completion. Uses no BPF and
nothing of tracer/.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

_READ = {"x86_64": 0, "aarch64": 63}
_LINE = re.compile(r"-(\d+)\s.*\s(\d+\.\d{6}): (sys_enter: NR \d+ \(([0-9a-f]+)|sys_exit: NR \d+ = (-?\d+))")


@dataclass(frozen=True)
class Reads:
    """When a data loop read its timer and its completion eventfd, ns of CLOCK_MONOTONIC (to 1 µs)."""

    timer: tuple[int, ...]
    completion: tuple[int, ...]

    def without_completion(self) -> list[int]:
        """Ends of cycles in which no completion was read."""
        return [
            end
            for start, end in pairwise(self.timer)
            if bisect_right(self.completion, end) == bisect_right(self.completion, start)
        ]


class ServerReads:
    """Traces one thread's read(2) while it is entered as a context manager."""

    def __init__(self, folder: Path, pid: int, tid: int) -> None:
        self._tracefs = folder / "tracefs"
        self._instance = self._tracefs / "instances" / f"server-{tid}"
        self._pid, self._tid = pid, tid

    def __enter__(self) -> Self:
        self._tracefs.mkdir()
        subprocess.run(["mount", "-t", "tracefs", "none", str(self._tracefs)], check=True)
        self._instance.mkdir()
        self._set("trace_clock", "mono")
        self._set("buffer_size_kb", "16384")
        self._set("set_event_pid", str(self._tid))
        for event in ("sys_enter", "sys_exit"):
            self._set(f"events/raw_syscalls/{event}/filter", f"id == {_READ[platform.machine()]}")
            self._set(f"events/raw_syscalls/{event}/enable", "1")
        return self

    def _set(self, name: str, value: str) -> None:
        (self._instance / name).write_text(value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._instance.rmdir()
        subprocess.run(["umount", str(self._tracefs)], check=True)

    def take(self) -> Reads:
        """Everything read so far; the server must still be there."""
        self._set("tracing_on", "0")
        text = (self._instance / "trace").read_text()
        self._set("tracing_on", "1")
        found: list[tuple[int, int]] = []
        fd = -1
        for match in _LINE.finditer(text):
            if match[4] is not None:
                fd = int(match[4], 16)
            elif fd >= 0 and match[5] == "8":
                found.append((int(match[2].replace(".", "")) * 1000, fd))
                fd = -1
        links = {fd: os.readlink(f"/proc/{self._pid}/fd/{fd}") for fd in {fd for _, fd in found}}
        most = Counter(fd for _, fd in found).most_common()
        timer = next(fd for fd, _ in most if links[fd] == "anon_inode:[timerfd]")
        done = next(fd for fd, _ in most if links[fd] == "anon_inode:[eventfd]")
        return Reads(*(tuple(at for at, fd in found if fd == wanted) for wanted in (timer, done)))


def data_loop(pid: int) -> int:
    """The server's thread beside its main one."""
    (tid,) = {int(name) for name in os.listdir(f"/proc/{pid}/task")} - {pid}
    return tid
