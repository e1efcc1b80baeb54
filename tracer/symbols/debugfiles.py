# SPDX-License-Identifier: Apache-2.0
"""Where the separate debug file of a file is on this host: beside it, or by build id.

Owns the search order of separate debug files. Opens them, and never reads more
than their headers. Servers are asked by debuginfod.py.

Order and places: gdb manual, "Separate Debug Files".
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tracer.symbols import elf

SYSTEM_DEBUG_DIRS = (Path("/usr/lib/debug"),)
#: A debug file beyond this is not checked against its link's CRC, and so not used by name.
MAX_CRC_BYTES = 1 << 30


def find(module: elf.Elf, directory: str, tgid: int, debug_dirs: Sequence[Path]) -> int | None:
    """A descriptor of the separate debug file of ``module``, or None.

    A file found by its path must carry the module's build id; one found by the
    debug link of a module without a build id must have the link's CRC.

    Args:
        directory: of the module, as its process sees it (for the debug link).
    """
    for path in _places(module, directory, tgid, debug_dirs):
        fd = open_regular(path)
        if fd is None:
            continue
        if _belongs(fd, module):
            return fd
        os.close(fd)
    return None


def open_regular(path: str | Path) -> int | None:
    """Open a regular file read-only without blocking; None where that fails."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _places(module: elf.Elf, directory: str, tgid: int, debug_dirs: Sequence[Path]) -> Iterator[Path]:
    root = Path(f"/proc/{tgid}/root")
    roots = (*debug_dirs, *SYSTEM_DEBUG_DIRS, *(root / d.relative_to("/") for d in SYSTEM_DEBUG_DIRS))
    if module.build_id:
        name = f".build-id/{module.build_id[:2]}/{module.build_id[2:]}.debug"
        yield from (base / name for base in roots)
    if module.debug_link:
        inside = Path(directory).relative_to("/") if directory.startswith("/") else Path(directory)
        yield root / inside / module.debug_link
        yield root / inside / ".debug" / module.debug_link
        yield from (base / inside / module.debug_link for base in roots)
        yield from (base / module.debug_link for base in debug_dirs)


def _belongs(fd: int, module: elf.Elf) -> bool:
    try:
        found = elf.read(fd)
        if found is None or not (found.has_dwarf or found.has_symtab):
            return False
        if module.build_id:
            return found.build_id == module.build_id
        return _crc(fd) == module.debug_crc
    except OSError:
        return False


def _crc(fd: int) -> int | None:
    if os.fstat(fd).st_size > MAX_CRC_BYTES:
        return None
    crc = offset = 0
    while piece := os.pread(fd, 1 << 20, offset):
        crc = zlib.crc32(piece, crc)
        offset += len(piece)
    return crc
