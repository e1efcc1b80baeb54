# SPDX-License-Identifier: Apache-2.0
"""For how long a thread's cgroups have stopped it (CPU quota), v1 and v2.

Owns where cpu.stat files are and what they say. Reads nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def parse_cgroup_mounts(mountinfo: str) -> tuple[str, str]:
    """(v2 mount point, mount point of v1's cpu controller) of /proc/self/mountinfo, "" where absent."""
    unified = legacy = ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        head, tail = before.split(), after.split()
        if len(head) < 5 or len(tail) < 3:
            continue
        if tail[0] == "cgroup2" and not unified:
            unified = head[4]
        elif tail[0] == "cgroup" and "cpu" in tail[2].split(",") and not legacy:
            legacy = head[4]
    return unified, legacy


def parse_throttled_ns(cpu_stat: str) -> int:
    """Throttled time in ns of a cpu.stat: throttled_usec (v2) or throttled_time (v1, in ns), else 0."""
    for line in cpu_stat.splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal() and name in ("throttled_usec", "throttled_time"):
            return int(value) * (1000 if name == "throttled_usec" else 1)
    return 0


class Cgroups:
    """Throttled time by cgroup; reads each cgroup once in its life (one call of procfs.threads()).

    Args:
        read: a file's text by its path, "" where it cannot be read.
    """

    def __init__(self, read: Callable[[str], str]) -> None:
        self._read = read
        self._unified, self._legacy = parse_cgroup_mounts(read("/proc/self/mountinfo"))
        self._known: dict[str, int] = {}

    def throttled_ns(self, cgroup: str) -> int:
        """Sum over a cgroup and its ancestors, as any of them stops the thread; -1 when unknown."""
        if cgroup not in self._known:
            self._known[cgroup] = self._sum(cgroup)
        return self._known[cgroup]

    def _sum(self, cgroup: str) -> int:
        places = {}
        for line in cgroup.splitlines():
            _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
            if not controllers and self._unified:
                places[self._unified] = path
            elif "cpu" in controllers.split(",") and self._legacy:
                places[self._legacy] = path
        if not places or any("/.." in path for path in places.values()):
            return -1
        return sum(self._up(Path(root), path) for root, path in places.items())

    def _up(self, root: Path, path: str) -> int:
        parts = [part for part in path.split("/") if part]
        levels = (root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))
        return sum(parse_throttled_ns(self._read(str(level / "cpu.stat"))) for level in levels)
