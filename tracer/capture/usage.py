# SPDX-License-Identifier: Apache-2.0
"""What tracing costs, and what the host does to the target meanwhile.

Owns the measurement of our own CPU time, of the probes' run time (sampled: the
kernel's counting of it is itself a cost) and of steal time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from tracer.capture import bpfsys
from tracer.schema import SelfUse

_EVERY_NS = 1_000_000_000
# One interval in so many is measured with the kernel's counting switched on.
_SAMPLE_EVERY = 50


def steal_ns() -> int:
    """Steal time of all CPUs since boot, from /proc/stat."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = file.readline().split()
    return int(fields[8]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK")) if len(fields) > 8 else 0


class Usage:
    """Meter of one session.

    Args:
        program_fds: of the probes.
    """

    def __init__(self, program_fds: Iterable[int]) -> None:
        self._program_fds = tuple(program_fds)
        self._steal = steal_ns()
        self._cpu = time.process_time_ns()
        self._at = time.monotonic_ns()
        self._probe_ns_per_s = -1
        self._stats_fd = -1
        self._stats_from = (0, 0)
        self._calls = 0

    def tick(self, now_ns: int) -> SelfUse | None:
        """Call once per interval; gives a row about once a second."""
        self._sample(now_ns)
        elapsed = now_ns - self._at
        if elapsed < _EVERY_NS:
            return None
        cpu = time.process_time_ns()
        percent = 100.0 * (cpu - self._cpu) / elapsed
        self._cpu, self._at = cpu, now_ns
        return SelfUse(
            cpu_percent=percent, probe_ns_per_s=self._probe_ns_per_s, steal_ns=steal_ns() - self._steal
        )

    def _sample(self, now_ns: int) -> None:
        if self._stats_fd >= 0:
            since, before = self._stats_from
            self._probe_ns_per_s = (self._run_ns() - before) * 1_000_000_000 // max(now_ns - since, 1)
            self.close()
        elif self._calls % _SAMPLE_EVERY == _SAMPLE_EVERY // 5:
            try:
                self._stats_fd = bpfsys.enable_stats()
            except OSError:
                self._program_fds = ()  # older kernel, or not permitted: stays at -1
            else:
                self._stats_from = (now_ns, self._run_ns())
        self._calls += bool(self._program_fds)

    def _run_ns(self) -> int:
        return sum(int(bpfsys.fdinfo(fd).get("run_time_ns", 0)) for fd in self._program_fds)

    def close(self) -> None:
        """Switch the kernel's counting off again. Idempotent."""
        if self._stats_fd >= 0:
            os.close(self._stats_fd)
            self._stats_fd = -1
