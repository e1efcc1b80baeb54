# SPDX-License-Identifier: Apache-2.0
"""The few facts of an ELF file that are needed before its debug info: id, segments, sections.

Owns a reader that trusts nothing: every count, offset and size is bounded by the
constants below and by the file itself, so that a truncated or hostile file costs
little and gives less. DWARF and demangling, which cannot be bounded so, are
done in a child process (worker.py). Opens no file: it is given a descriptor.

Formats: elf(5); the debug link: gdb manual, "Separate Debug Files".
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

#: Bounds on what is believed of a header.
MAX_SEGMENTS = 256
MAX_SECTIONS = 4096
MAX_NAMES_BYTES = 1 << 20
MAX_NOTE_BYTES = 1 << 16
MAX_LINK_BYTES = 4096
#: A build id is 20 bytes by convention (SHA-1); longer ones than this are ignored.
MAX_BUILD_ID_BYTES = 64

_PT_LOAD, _PT_NOTE = 1, 4
_SHT_NOTE, _SHT_NOBITS = 7, 8
_NT_GNU_BUILD_ID = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD segment; bytes."""

    offset: int
    vaddr: int
    size: int


@dataclass(frozen=True, slots=True)
class Section:
    """A section that has bytes in the file."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class Elf:
    """What is known of an ELF file.

    Attributes:
        build_id: hex, "" where there is none.
        debug_link, debug_crc: of .gnu_debuglink, "" and 0 where there is none.
        segments: PT_LOAD, in file order.
        sections: by name (the first of each name).
    """

    build_id: str
    debug_link: str
    debug_crc: int
    segments: tuple[Segment, ...]
    sections: dict[str, Section]

    @property
    def has_dwarf(self) -> bool:
        """It carries debug info of its own."""
        return ".debug_info" in self.sections or ".zdebug_info" in self.sections

    @property
    def has_symtab(self) -> bool:
        """It carries a full symbol table."""
        return ".symtab" in self.sections

    @property
    def load_address(self) -> int:
        """The lowest virtual address of any segment."""
        return min((segment.vaddr for segment in self.segments), default=0)

    def vaddr(self, file_offset: int) -> int | None:
        """The virtual address of a file offset, None outside all segments."""
        for segment in self.segments:
            if segment.offset <= file_offset < segment.offset + segment.size:
                return file_offset - segment.offset + segment.vaddr
        return None


class _File:
    """Bounded reads of a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size

    def at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes at ``offset``; less at the end, none outside."""
        if not 0 <= offset < self.size or size <= 0:
            return b""
        return os.pread(self.fd, min(size, self.size - offset), offset)


def read(fd: int) -> Elf | None:
    """Read an ELF file's headers; None if it is none (or of neither class or order known).

    Raises:
        OSError: the descriptor cannot be read.
    """
    file = _File(fd)
    ident = file.at(0, 64)
    if len(ident) < 52 or ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        return None
    wide, order = ident[4] == 2, "<" if ident[5] == 1 else ">"
    header = struct.Struct(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
    if len(ident) < 16 + header.size:
        return None
    fields = header.unpack_from(ident, 16)
    segments, notes = _segments(file, order, wide, fields[4], fields[8], fields[9])
    sections = _sections(file, order, wide, fields[5], *fields[10:13])
    notes += [(s.offset, s.size) for s in sections.values() if s.type == _SHT_NOTE]
    build_id = ""
    for offset, size in notes:
        build_id = build_id or _build_id(file.at(offset, min(size, MAX_NOTE_BYTES)), order)
    link, crc = _debug_link(file, sections.get(".gnu_debuglink"), order)
    return Elf(build_id, link, crc, tuple(segments), sections)


def _segments(
    file: _File, order: str, wide: bool, offset: int, stride: int, count: int
) -> tuple[list[Segment], list[tuple[int, int]]]:
    entry = struct.Struct(order + ("IIQQQQQQ" if wide else "IIIIIIII"))
    loads: list[Segment] = []
    notes: list[tuple[int, int]] = []
    if stride < entry.size:
        return loads, notes
    table = file.at(offset, min(count, MAX_SEGMENTS) * stride)
    for at in range(0, len(table) - entry.size + 1, stride):
        if wide:
            kind, _, where, vaddr, _, size, _, _ = entry.unpack_from(table, at)
        else:
            kind, where, vaddr, _, size, _, _, _ = entry.unpack_from(table, at)
        if kind == _PT_LOAD:
            loads.append(Segment(where, vaddr, size))
        elif kind == _PT_NOTE:
            notes.append((where, size))
    return loads, notes


def _sections(
    file: _File, order: str, wide: bool, offset: int, stride: int, count: int, names_index: int
) -> dict[str, Section]:
    entry = struct.Struct(order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"))
    if stride < entry.size:
        return {}
    table = file.at(offset, min(count, MAX_SECTIONS) * stride)
    rows = [entry.unpack_from(table, at) for at in range(0, len(table) - entry.size + 1, stride)]
    if names_index >= len(rows):
        return {}
    names = file.at(rows[names_index][4], min(rows[names_index][5], MAX_NAMES_BYTES))
    found: dict[str, Section] = {}
    for name_at, kind, flags, address, where, size, link, *_ in rows:
        if name_at >= len(names) or kind == _SHT_NOBITS or where >= file.size:
            continue
        name = names[name_at : name_at + 256].split(b"\0", 1)[0].decode("ascii", "replace")
        size = min(size, file.size - where)
        found.setdefault(name, Section(name, kind, flags, address, where, size, link))
    return found


def _build_id(notes: bytes, order: str) -> str:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(order + "III", notes, at)
        name_at = at + 12
        data_at = name_at + ((name_size + 3) & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + 4] == b"GNU\0":
            identity = notes[data_at : data_at + size]
            return identity.hex() if 0 < size <= MAX_BUILD_ID_BYTES and len(identity) == size else ""
        at = data_at + ((size + 3) & ~3)
    return ""


def _debug_link(file: _File, section: Section | None, order: str) -> tuple[str, int]:
    if section is None or section.size > MAX_LINK_BYTES:
        return "", 0
    data = file.at(section.offset, section.size)
    name = data.split(b"\0", 1)[0]
    crc_at = (len(name) + 4) & ~3
    if not name or b"/" in name or name in (b".", b"..") or crc_at + 4 > len(data):
        return "", 0
    return os.fsdecode(name), struct.unpack_from(order + "I", data, crc_at)[0]
