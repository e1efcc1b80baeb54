# SPDX-License-Identifier: Apache-2.0
"""Compiled probes are kept whole, for us alone, or not used at all."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.capture.bytecode import Cache, Compiled, MapSpec, marked, relocated

EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def load_map(reference: int, source: int = 1) -> bytes:
    """r1 = a map."""
    return struct.pack("<BBhi", 0x18, 1 | source << 4, 0, reference) + bytes(8)


def sample() -> Compiled:
    maps = (MapSpec("xd_ring", 27, 0, 0, 4096, 0), MapSpec("xd_cpus", 6, 4, 32, 1, 0))
    return Compiled(maps, {"one": load_map(0) + load_map(1) + EXIT, "two": EXIT})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home" / "probes"


def test_what_was_kept_comes_back(folder: Path) -> None:
    cache = Cache(str(folder))
    assert cache.get("key") is None
    assert cache.put("key", sample())
    assert cache.get("key") == sample()
    assert cache.get("other") is None
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "key").stat().st_mode & 0o777 == 0o600


@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("home", numbered=True) / "probes"
    cache = Cache(str(folder))
    cache.put("key", sample())
    raw = bytearray((folder / "key").read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    (folder / "key").write_bytes(raw)
    assert cache.get("key") is None


@given(st.binary(max_size=200))
def test_anything_else_is_no_object(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("home", numbered=True) / "probes"
    cache = Cache(str(folder))
    cache.put("key", sample())
    (folder / "key").write_bytes(raw)
    assert cache.get("key") is None


def test_a_folder_that_others_can_enter_is_not_used(folder: Path) -> None:
    cache = Cache(str(folder))
    cache.put("key", sample())
    folder.chmod(0o755)
    assert cache.get("key") is None and not cache.put("new", sample())


def test_a_file_that_others_can_write_is_not_used(folder: Path) -> None:
    cache = Cache(str(folder))
    cache.put("key", sample())
    (folder / "key").chmod(0o622)
    assert cache.get("key") is None


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    cache = Cache(str(folder))
    cache.put("key", sample())
    os.symlink(folder / "key", folder / "link")
    assert cache.get("link") is None
    os.symlink(folder, tmp_path / "home" / "elsewhere")
    assert Cache(str(tmp_path / "home" / "elsewhere")).get("key") is None


def test_no_place_to_keep_it_is_no_error() -> None:
    cache = Cache("/proc/self/nothing")
    assert not cache.put("key", sample()) and cache.get("key") is None


def test_the_oldest_make_room(folder: Path) -> None:
    cache = Cache(str(folder))
    for i in range(20):
        cache.put(f"key{i}", sample())
        os.utime(folder / f"key{i}", ns=(i, i))
    cache.put("newest", sample())
    assert len(os.listdir(folder)) == 16
    assert cache.get("newest") is not None and cache.get("key0") is None


def test_a_marked_call_becomes_one_of_the_kernel_s_functions_and_nothing_else_changes() -> None:
    def call(number: int, source: int = 0) -> bytes:
        return struct.pack("<BBhi", 0x85, source << 4, 0, number)

    # The second half of a 64-bit load may look like a call: it is none.
    wide = struct.pack("<BBhiBBhi", 0x18, 1, 0, 5, 0x85, 0, 0, 99)
    code = call(5) + wide + call(99) + EXIT
    assert marked(code, {99: 4711}) == call(5) + wide + call(4711, source=2) + EXIT
    assert relocated(marked(code, {99: 4711}), {}) == marked(code, {99: 4711})
    assert marked(code, {}) == code


def test_references_are_replaced_and_unknown_ones_refused() -> None:
    code = load_map(7) + EXIT
    assert relocated(code, {7: 3}) == load_map(3) + EXIT
    assert relocated(load_map(12345, source=0) + EXIT, {}) == load_map(12345, source=0) + EXIT
    for bad in (load_map(8), load_map(7, source=2), struct.pack("<BBhi", 0x85, 0x10, 0, 1), EXIT[:-1]):
        with pytest.raises(ValueError):
            relocated(bad, {7: 3})
