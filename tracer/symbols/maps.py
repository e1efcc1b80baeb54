# SPDX-License-Identifier: Apache-2.0
"""Where an address of a process lies: mapped files, and how to open the very file that is mapped.

Owns the parsing of /proc/PID/maps and the ways to the file behind a mapping
(deleted files, other mount namespaces). Never reads what is in the file: that
is elf.py. A process that is gone has no mappings; nothing here raises for it.

Formats: proc(5), fs/proc/task_mmu.c.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from dataclasses import dataclass

#: A process of ours has a few hundred mappings; one with more than this is read so far.
MAX_MAPS = 65_536
#: /proc/PID/maps is cut here (bytes): MAX_MAPS lines with long paths.
MAX_MAPS_BYTES = 32 << 20
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps that maps a file.

    Attributes:
        start, end: addresses, end excluded.
        file_offset: offset of ``start`` in the file, bytes.
        executable: the mapping may be executed.
        device, inode: of the mapped file, as /proc shows them ("fe:01", 1234).
        path: as the process sees it, without " (deleted)".
    """

    start: int
    end: int
    file_offset: int
    executable: bool
    device: str
    inode: int
    path: str

    @property
    def file(self) -> tuple[str, int, str]:
        """What tells one mapped file from another."""
        return (self.device, self.inode, self.path)


class Maps:
    """The file mappings of one process at one moment, by address."""

    def __init__(self, mappings: tuple[Mapping, ...]) -> None:
        self.mappings = tuple(sorted(mappings, key=lambda mapping: mapping.start))
        self._starts = [mapping.start for mapping in self.mappings]

    def find(self, address: int) -> Mapping | None:
        """The mapping that holds ``address``, or None."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self.mappings[index].end:
            return self.mappings[index]
        return None

    def code_files(self) -> tuple[Mapping, ...]:
        """The first executable mapping of each file, in address order."""
        seen: dict[tuple[str, int, str], Mapping] = {}
        for mapping in self.mappings:
            if mapping.executable:
                seen.setdefault(mapping.file, mapping)
        return tuple(seen.values())


def parse(text: str) -> Maps:
    """Parse /proc/PID/maps; lines that are no file mapping, or no line of that format, are left out."""
    found: list[Mapping] = []
    for line in text.split("\n", MAX_MAPS)[:MAX_MAPS]:
        fields = line.split(maxsplit=5)
        if len(fields) != 6 or not fields[5].startswith("/"):
            continue
        try:
            first, last = fields[0].split("-")
            start, end = int(first, 16), int(last, 16)
            offset, inode = int(fields[2], 16), int(fields[4])
        except ValueError:
            continue
        if start < end:
            path = fields[5].removesuffix(_DELETED)
            found.append(Mapping(start, end, offset, "x" in fields[1], fields[3], inode, path))
    return Maps(tuple(found))


def read(tgid: int) -> Maps:
    """The mappings of a live process; empty where it is gone or may not be looked at."""
    try:
        with open(f"/proc/{tgid}/maps", "rb") as file:
            return parse(file.read(MAX_MAPS_BYTES).decode("utf-8", "surrogateescape"))
    except OSError:
        return Maps(())


def open_mapped(tgid: int, mapping: Mapping) -> int | None:
    """Open the file behind a mapping, read-only; None where no way leads to it.

    The ways, in order: map_files (works for deleted files and other mount
    namespaces, needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE), the executable's
    link, the path below the process's own root. What is found by a path is
    taken only if its inode is the mapped one, so a replaced file is not mistaken
    for the one that runs. Never blocks on a FIFO and follows no device.
    """
    ways = (
        (f"/proc/{tgid}/map_files/{mapping.start:x}-{mapping.end:x}", False),
        (f"/proc/{tgid}/exe", True),
        (f"/proc/{tgid}/root{mapping.path}", True),
    )
    for way, check in ways:
        try:
            fd = os.open(way, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
        except OSError:
            os.close(fd)
            continue
        if stat.S_ISREG(status.st_mode) and (not check or status.st_ino == mapping.inode):
            return fd
        os.close(fd)
    return None
