# SPDX-License-Identifier: Apache-2.0
"""Hostile binaries end in unnamed frames: mutated, truncated, absurd, cyclic, with giant names.

The parsers in this process (elf, statics, device, maps) are fuzzed directly; the native
ones through the worker, whose death is an answer too, after which the next file is served.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import programs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracer.symbols import debugfiles, device, elf, maps, statics
from tracer.symbols.client import Client

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FAST = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    return programs.build(programs.C, folder / "good", "cc", "-g", "-O1", "-pthread", "-Wl,--build-id")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


def mutated(data: bytes, changes: list[tuple[int, int]], cut: int | None) -> bytes:
    """Bytes replaced at (position, value), then cut to a length."""
    spoilt = bytearray(data)
    for position, value in changes:
        spoilt[position % len(spoilt)] = value
    return bytes(spoilt[: cut % len(spoilt)] if cut is not None else spoilt)


def file_of(data: bytes) -> int:
    """A descriptor of an unnamed file with these bytes."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return os.dup(file.fileno())


def ask(client: Client, fd: int) -> bool:
    """Have the worker open the file and look into it; True if it gave an answer of the right form."""
    client.starts = 0
    opened = client.ask({"op": "open", "key": "k", "base": 0, "cached": False}, (fd,))
    if opened is None or not opened.get("ok"):
        return False
    found = client.ask({"op": "lookup", "key": "k", "addresses": list(range(0x1000, 0x1400, 7))})
    return found is not None and all(isinstance(frames, list) for frames in found["frames"])


# Positions in the headers matter more than those in code: half of the changes go there.
CHANGES = st.lists(
    st.tuples(st.one_of(st.integers(0, 1024), st.integers(0, 1 << 20)), st.integers(0, 255)), max_size=12
)
CUT = st.one_of(st.none(), st.integers(0, 1 << 20))


@FAST
@given(changes=CHANGES, cut=CUT)
def test_a_mutated_file_is_read_or_refused_in_this_process(
    good: Path, changes: list[tuple[int, int]], cut: int | None
) -> None:
    fd = file_of(mutated(good.read_bytes(), changes, cut))
    try:
        found = elf.read(fd)
        device.find(fd, "/x.so.1.2", "")
        if found is not None:
            assert len(found.segments) <= elf.MAX_SEGMENTS
            assert all(section.size <= os.fstat(fd).st_size for section in found.sections.values())
            assert len(statics.find(fd, found, lambda names: names)) <= statics.MAX_LOCKS
            found.vaddr(0x1234)
    finally:
        os.close(fd)


@SLOW
@given(changes=CHANGES, cut=CUT)
def test_a_mutated_file_does_not_outlive_the_worker_that_it_kills(
    good: Path, client: Client, changes: list[tuple[int, int]], cut: int | None
) -> None:
    bad = file_of(mutated(good.read_bytes(), changes, cut))
    fine = os.open(good, os.O_RDONLY)
    try:
        ask(client, bad)
        assert ask(client, fine), "the next file is served"
    finally:
        os.close(bad)
        os.close(fine)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 60, b"\0" * 4096, b"#!/bin/sh\n"])
def test_what_is_no_elf_has_no_names(client: Client, data: bytes) -> None:
    fd = file_of(data)
    try:
        found = elf.read(fd)
        assert found is None or not found.sections
        assert not ask(client, fd)
    finally:
        os.close(fd)


def test_absurd_counts_and_offsets_are_bounded() -> None:
    header = bytearray(b"\x7fELF\x02\x01\x01" + bytes(57))
    struct.pack_into("<HHIQQQIHHHHHH", header, 16, 3, 62, 1, 0, 64, 64, 0, 64, 56, 65535, 64, 65535, 7)
    entries = struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, 2**63, 2**63, 0, 0, 0, 0) * 9000
    fd = file_of(bytes(header) + entries)
    try:
        found = elf.read(fd)
        assert found is not None
        assert found.sections == {} and len(found.segments) <= elf.MAX_SEGMENTS
    finally:
        os.close(fd)


CYCLIC = """
    .text
    .globl spin
    .type spin, @function
spin: nop
    nop
    ret
.Lend:
    .size spin, .-spin
    .section .debug_abbrev,"",@progbits
    .byte 1, 0x11, 1, 0x11, 1, 0x12, 1, 0, 0
    .byte 2, 0x2e, 1, 3, 8, 0x11, 1, 0x12, 1, 0, 0
    .byte 3, 0x1d, 1, 0x31, 0x13, 0x11, 1, 0x12, 1, 0, 0
    .byte 0
    .section .debug_info,"",@progbits
.Linfo:
    .long .Ldone - .Lstart
.Lstart:
    .value 4
    .long 0
    .byte 8
    .byte 1
    .quad spin, .Lend
    .byte 2
    .asciz "spin"
    .quad spin, .Lend
DEEP
    .byte 0, 0
.Ldone:
"""


def _cyclic(deep: int) -> str:
    """Inlined calls, each the origin of the next, the last one the first one's: no name anywhere."""
    one = "    .byte 3\n    .long .Li{next} - .Linfo\n    .quad spin, .Lend\n"
    opens = "".join(f".Li{i}:\n" + one.format(next=(i + 1) % deep) for i in range(deep))
    return CYCLIC.replace("DEEP", opens + "    .byte 0\n" * deep)


@pytest.mark.parametrize("deep", [1, 2, 5000])
def test_inlines_that_are_their_own_origin_end(client: Client, good: Path, tmp_path: Path, deep: int) -> None:
    (tmp_path / "cyclic.s").write_text(_cyclic(deep))
    programs.run("cc", "-shared", "-nostdlib", "-o", tmp_path / "cyclic", tmp_path / "cyclic.s")
    fd, fine = os.open(tmp_path / "cyclic", os.O_RDONLY), os.open(good, os.O_RDONLY)
    try:
        ask(client, fd)
        assert ask(client, fine), "the next file is served"
    finally:
        os.close(fd)
        os.close(fine)


def test_a_giant_name_is_cut(client: Client, tmp_path: Path) -> None:
    name = "a" * (32 << 20)
    (tmp_path / "giant.s").write_text(f".text\n.type {name}, @function\n{name}: nop\n ret\n.size {name}, 2\n")
    programs.run("cc", "-c", "-o", tmp_path / "giant.o", tmp_path / "giant.s")
    fd = os.open(tmp_path / "giant.o", os.O_RDONLY)
    try:
        client.starts = 0
        opened = client.ask({"op": "open", "key": "g", "base": 0, "cached": False}, (fd,))
        found = client.ask({"op": "lookup", "key": "g", "addresses": [0]}) if opened else None
    finally:
        os.close(fd)
    for frames in (found or {}).get("frames", []):
        assert all(len(function) <= 1024 for function, _, _ in frames)


@pytest.mark.parametrize(
    "name",
    [
        "_R" + "I" * 4000,
        "_RNv" + "N" * 3000 + "C1a",
        "_ZN" + "9" * 4000 + "E",
        "_Z" + "P" * 4000 + "i",
        "_RMC0" + "TB2_" * 500 + "E",
        "_ZN" + "1a" * 1000 + "17h0123456789abcdefE",
        "_R\ud800",
        "x" * 10_000_000,
    ],
)
def test_a_hostile_name_stays_bounded(client: Client, name: str) -> None:
    client.starts = 0
    answer = client.ask({"op": "demangle", "names": [name]})
    assert answer is None or all(len(text) <= 1024 for text in answer.get("names", []))
    client.starts = 0
    assert client.ask({"op": "demangle", "names": ["main"]}) == {"names": ["main"]}


def test_a_worker_that_keeps_dying_is_not_started_for_ever(client: Client) -> None:
    client.close()
    client.starts = 10**6
    assert client.ask({"op": "demangle", "names": ["main"]}) is None
    client.starts = 0


@FAST
@given(st.text(max_size=400))
def test_any_text_is_parsed_as_maps(text: str) -> None:
    assert all(mapping.start < mapping.end for mapping in maps.parse(text).mappings)


@pytest.mark.parametrize("name", [b"../../etc/passwd\0", b"/etc/passwd\0", b"..\0", b"\0", b"a" * 5000])
def test_a_debug_link_cannot_leave_its_folder(good: Path, tmp_path: Path, name: bytes) -> None:
    (tmp_path / "link").write_bytes(name + bytes(8))
    programs.run("objcopy", "--add-section", f".gnu_debuglink={tmp_path}/link", good, tmp_path / "linked")
    fd = debugfiles.open_regular(tmp_path / "linked")
    assert fd is not None
    try:
        found = elf.read(fd)
        assert found is not None and found.debug_link == ""
    finally:
        os.close(fd)


def test_no_fifo_and_no_folder_is_opened_as_a_debug_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert debugfiles.open_regular(tmp_path / "fifo") is None
    assert debugfiles.open_regular(tmp_path) is None
    assert debugfiles.open_regular("/dev/zero") is None
