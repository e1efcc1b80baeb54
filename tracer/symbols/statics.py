# SPDX-License-Identifier: Apache-2.0
"""Static locks that a program's symbol table names.

Owns the choice of symbols: data of the program itself (not of Rust's libraries
or of C's) whose name ends in lock or mutex. Types are in DWARF only, and too
expensive to look up for what is best effort: a lock by another name is learnt
from its first contended wait. Reads a bounded part of the table.

Format: elf(5). The futex word of a std Mutex and of a pthread_mutex_t is its first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

import numpy as np

from tracer.symbols import elf

#: Bytes of .symtab that are read (24 per symbol), and locks returned per file.
MAX_SYMTAB_BYTES = 64 << 20
MAX_STRTAB_BYTES = 128 << 20
MAX_LOCKS = 64
MAX_CANDIDATES = 4096

_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_STT_OBJECT = 1
_PTHREAD_MUTEX_BYTES = 40  # glibc, 64-bit: bits/struct_mutex.h
_MAX_LOCK_BYTES = 4096
_ENDING = re.compile(rb"(?i:lock|mutex)s?(17h[0-9a-f]{16}E)?$")
_LAST = re.compile(r"(?i)(^|_)(lock|mutex)s?$")


def find(
    fd: int, found: elf.Elf, demangle: Callable[[Sequence[str]], Sequence[str]]
) -> list[tuple[str, int]]:
    """(name, virtual address) of static locks in an ELF file of this machine's order, 64-bit.

    Args:
        demangle: linkage names to readable ones, in order; may return fewer.

    Raises:
        OSError: the file cannot be read.
    """
    table, names = found.sections.get(".symtab"), found.sections.get(".strtab")
    if table is None or names is None:
        return []
    data = os.pread(fd, min(table.size, MAX_SYMTAB_BYTES), table.offset)
    text = os.pread(fd, min(names.size, MAX_STRTAB_BYTES), names.offset)
    symbols = np.frombuffer(data[: len(data) - len(data) % _SYMBOL.itemsize], dtype=_SYMBOL)
    fits = ((symbols["info"] & 15) == _STT_OBJECT) & (symbols["size"] >= 4)
    symbols = symbols[fits & (symbols["size"] <= _MAX_LOCK_BYTES) & (symbols["name"] < len(text))]
    mangled: list[str] = []
    chosen: list[tuple[int, int]] = []
    for symbol in symbols:
        at = int(symbol["name"])
        name = text[at : at + 512].split(b"\0", 1)[0]
        if _ENDING.search(name) and len(chosen) < MAX_CANDIDATES:
            mangled.append(name.decode("ascii", "replace"))
            chosen.append((int(symbol["value"]), int(symbol["size"])))
    locks: list[tuple[str, int]] = []
    for linkage, readable, (address, size) in zip(mangled, demangle(mangled), chosen, strict=False):
        path = readable.split("::")
        rust = linkage != readable and path[0] not in ("std", "core", "alloc")
        if _LAST.search(path[-1]) and (rust or size == _PTHREAD_MUTEX_BYTES) and len(locks) < MAX_LOCKS:
            locks.append((path[-1], address))
    return locks
