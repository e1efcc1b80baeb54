# SPDX-License-Identifier: Apache-2.0
"""Addresses of real processes to frames: inlined, mangled, stripped, split, deleted, replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import programs
import pytest

from tracer.profile.names import plain_path
from tracer.schema import CallSite, Frame
from tracer.symbols import Device, Symbolizer, device
from tracer.symbols.cache import Cache
from tracer.symbols.client import Client

NO_PROCESS = 2**22 + 1  # above PID_MAX_LIMIT: never a pid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def rust(folder: Path) -> Path:
    return programs.build(programs.RUST, folder / "rust", "rustc", "-g", "-O", "--edition=2021")


@pytest.fixture(scope="module")
def v0(folder: Path) -> Path:
    flags = ("-g", "-O", "--edition=2021", "-Csymbol-mangling-version=v0")
    return programs.build(programs.RUST, folder / "v0", "rustc", *flags)


@pytest.fixture(scope="module")
def c(folder: Path) -> Path:
    return programs.build(programs.C, folder / "c", "cc", "-g", "-O1", "-pthread", "-Wl,--build-id")


@pytest.fixture
def symbolizer(tmp_path: Path) -> Iterator[Symbolizer]:
    made = Symbolizer(cache=Cache(tmp_path / "cache"))
    yield made
    made.close()


def resolve(symbolizer: Symbolizer, path: Path) -> CallSite:
    with programs.running(path) as program:
        return symbolizer.resolve(program.tgid, program.address)


def strip(path: Path, output: Path, *flags: str) -> Path:
    programs.run("strip", *flags, "-o", output, path)
    return output


def paths(site: CallSite) -> list[str]:
    return [plain_path(frame.function).rsplit("::", 1)[-1] for frame in site.frames]


def assert_whole(site: CallSite, source: str, suffix: str) -> None:
    """Both frames, innermost first, each at its line."""
    inner, outer = site.frames
    assert (inner.inlined, outer.inlined) == (True, False)
    assert inner.file.endswith(suffix) and outer.file.endswith(suffix)
    assert inner.line == programs.line_of(source, "the inlined line")
    assert outer.line == programs.line_of(source, "the outer line")


@pytest.mark.parametrize("build", ["rust", "v0"])
def test_inlined_rust_frames_have_names_and_lines(
    symbolizer: Symbolizer, build: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(build)
    site = resolve(symbolizer, path)
    assert_whole(site, programs.RUST, f"{build}.rs")
    assert paths(site) == ["write", "submit_cmd"]
    assert plain_path(site.frames[1].function) == f"{build}::Context::submit_cmd"
    assert site.module == str(path) and len(site.build_id) >= 32


def test_v0_names_keep_their_types(symbolizer: Symbolizer, v0: Path) -> None:
    assert "Context<u64>" in resolve(symbolizer, v0).frames[0].function


def test_inlined_c_frames(symbolizer: Symbolizer, c: Path) -> None:
    site = resolve(symbolizer, c)
    assert_whole(site, programs.C, "c.c")
    assert paths(site) == ["write_item", "submit_cmd"]


def test_a_program_at_a_fixed_address(symbolizer: Symbolizer, folder: Path) -> None:
    fixed = programs.build(programs.C, folder / "fixed", "cc", "-g", "-O1", "-pthread", "-no-pie")
    site = resolve(symbolizer, fixed)
    assert paths(site) == ["write_item", "submit_cmd"]
    assert site.offset == site.address - 1


def test_cxx_names_are_readable(symbolizer: Symbolizer, folder: Path) -> None:
    site = resolve(symbolizer, programs.build(programs.CXX, folder / "cxx", "c++", "-g", "-O1", "-pthread"))
    assert site.frames[-1].function == "guest::Queue::pop(int)"


@pytest.mark.parametrize(
    ("mangled", "readable"),
    [
        ("_ZN4core3ptr13drop_in_place17h0123456789abcdefE", "core::ptr::drop_in_place"),
        ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
        ("_ZN5guest5Queue3popEi", "guest::Queue::pop(int)"),
        ("main", "main"),
        ("_R", "_R"),
        ("_Z", "_Z"),
        ("", ""),
    ],
)
def test_names_of_three_manglings(mangled: str, readable: str) -> None:
    client = Client()
    try:
        assert client.ask({"op": "demangle", "names": [mangled]}) == {"names": [readable]}
    finally:
        client.close()


def test_a_stripped_program_gives_its_place_only(symbolizer: Symbolizer, c: Path, tmp_path: Path) -> None:
    stripped = resolve(symbolizer, strip(c, tmp_path / "stripped"))
    whole = resolve(symbolizer, c)
    assert stripped.frames == ()
    assert (stripped.offset, stripped.build_id) == (whole.offset, whole.build_id)
    assert stripped.module == str(tmp_path / "stripped")


def test_a_symbol_table_alone_gives_the_outer_function(
    symbolizer: Symbolizer, c: Path, tmp_path: Path
) -> None:
    site = resolve(symbolizer, strip(c, tmp_path / "nodebug", "-g"))
    assert site.frames == (Frame("submit_cmd"),)


def test_a_debug_file_is_found_by_its_link(symbolizer: Symbolizer, c: Path, tmp_path: Path) -> None:
    linked = _split(c, tmp_path, tmp_path / "linked.debug")
    assert_whole(resolve(symbolizer, linked), programs.C, "c.c")


def test_a_debug_file_of_another_build_is_not_used(
    symbolizer: Symbolizer, c: Path, rust: Path, tmp_path: Path
) -> None:
    linked = _split(c, tmp_path, tmp_path / "linked.debug")
    programs.run("objcopy", "--only-keep-debug", rust, tmp_path / "linked.debug")
    assert resolve(symbolizer, linked).frames == ()


def test_a_debug_link_without_a_build_id_needs_the_right_crc(tmp_path: Path) -> None:
    bare = programs.build(programs.C, tmp_path / "bare", "cc", "-g", "-O1", "-pthread", "-Wl,--build-id=none")
    linked = _split(bare, tmp_path, tmp_path / "linked.debug")
    made = Symbolizer(cache=Cache(tmp_path / "cache"))
    assert_whole(resolve(made, linked), programs.C, "bare.c")
    made.close()
    with (tmp_path / "linked.debug").open("ab") as file:
        file.write(b"\0")
    made = Symbolizer(cache=Cache(tmp_path / "cache2"))
    assert resolve(made, linked).frames == ()
    made.close()


def test_a_debug_file_is_found_by_build_id(c: Path, tmp_path: Path) -> None:
    stripped = strip(c, tmp_path / "stripped")
    made = Symbolizer((tmp_path / "debug",), Cache(tmp_path / "cache"))
    with programs.running(stripped) as program:
        build_id = made.build_id(program.tgid)
        place = tmp_path / "debug" / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
        place.parent.mkdir(parents=True)
        programs.run("objcopy", "--only-keep-debug", c, place)
        assert_whole(made.resolve(program.tgid, program.address), programs.C, "c.c")
    made.close()


def test_minidebuginfo_names_functions(symbolizer: Symbolizer, c: Path, tmp_path: Path) -> None:
    if shutil.which("xz") is None:
        pytest.skip("no xz here")
    programs.run("objcopy", "--strip-debug", c, tmp_path / "mini")
    programs.run("xz", tmp_path / "mini")
    programs.run(
        "objcopy", "--strip-all", "--add-section", f".gnu_debugdata={tmp_path}/mini.xz", c, tmp_path / "both"
    )
    assert resolve(symbolizer, tmp_path / "both").frames == (Frame("submit_cmd"),)


def _split(path: Path, folder: Path, debug: Path) -> Path:
    programs.run("objcopy", "--only-keep-debug", path, debug)
    linked = strip(path, folder / "linked")
    programs.run("objcopy", f"--add-gnu-debuglink={debug}", linked)
    return linked


@pytest.mark.parametrize("replaced", [False, True])
def test_a_program_whose_file_is_gone_or_another(
    symbolizer: Symbolizer, c: Path, rust: Path, tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "gone"
    shutil.copy(c, path)
    with programs.running(path) as program:
        path.unlink()
        if replaced:
            shutil.copy(rust, path)
        site = symbolizer.resolve(program.tgid, program.address)
    assert paths(site) == ["write_item", "submit_cmd"]


def test_no_process_and_no_mapping_are_no_error(symbolizer: Symbolizer, c: Path) -> None:
    assert symbolizer.resolve(NO_PROCESS, 4711) == CallSite(NO_PROCESS, 4711)
    assert symbolizer.device(NO_PROCESS) == Device()
    assert symbolizer.lock_symbols(NO_PROCESS) == ()
    assert symbolizer.build_id(NO_PROCESS) == ""
    with programs.running(c) as program:
        for address in (0, 1, 2**47, 2**64 - 1):
            assert symbolizer.resolve(program.tgid, address) == CallSite(program.tgid, address)


def test_a_known_address_outlives_its_process_until_forgotten(symbolizer: Symbolizer, c: Path) -> None:
    with programs.running(c) as program:
        site = symbolizer.resolve(program.tgid, program.address)
    assert symbolizer.resolve(program.tgid, program.address) is site
    symbolizer.forget(program.tgid)
    assert symbolizer.resolve(program.tgid, program.address).frames == ()


def test_a_symcache_is_kept_on_disk_for_its_owner_alone(c: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second one reads it
        made = Symbolizer(cache=Cache(tmp_path / "cache"))
        assert paths(resolve(made, c)) == ["write_item", "submit_cmd"]
        made.close()
        (kept,) = (tmp_path / "cache").iterdir()
        assert kept.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"SYMC" + b"\xff" * 4096])
def test_a_spoilt_symcache_is_built_anew(c: Path, tmp_path: Path, content: bytes) -> None:
    for spoil in (True, False):
        made = Symbolizer(cache=Cache(tmp_path / "cache"))
        assert paths(resolve(made, c)) == ["write_item", "submit_cmd"]
        made.close()
        (kept,) = (tmp_path / "cache").iterdir()
        if spoil:
            kept.write_bytes(content)


def test_a_cache_that_others_may_write_is_not_used(c: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    made = Symbolizer(cache=Cache(tmp_path / "open"))
    assert paths(resolve(made, c)) == ["write_item", "submit_cmd"]
    made.close()
    assert not list((tmp_path / "open").iterdir())


def test_the_cache_stays_within_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracer.symbols.cache.MAX_TOTAL_BYTES", 25)
    cache = Cache(tmp_path / "cache")
    for number in range(5):
        fd = cache.begin(f"k{number}")
        assert fd is not None
        os.write(fd, b"x" * 10)
        os.utime(fd, (number, number))
        os.close(fd)
        cache.commit(f"k{number}", keep=True)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["k3.symcache", "k4.symcache"]


def test_a_dead_worker_costs_one_answer(c: Path, symbolizer: Symbolizer) -> None:
    with programs.running(c) as program:
        symbolizer.resolve(program.tgid, program.address)
        symbolizer.close()
        other = symbolizer.resolve(program.tgid, program.address + 1)
    assert paths(other)[-1] == "submit_cmd"


def test_a_static_lock_is_found_by_its_name(symbolizer: Symbolizer, c: Path) -> None:
    with programs.running(c) as program:
        (lock,) = symbolizer.lock_symbols(program.tgid)
        assert (lock.name, lock.address, lock.source) == ("table_lock", int(program.words[1], 16), "symbols")


def test_the_device_of_a_stripped_program(symbolizer: Symbolizer, c: Path, tmp_path: Path) -> None:
    with programs.running(strip(c, tmp_path / "stripped")) as program:
        found = symbolizer.device(program.tgid)
        assert (found.crate, found.version) == ("rutabaga_gfx", "0.1.80")
        assert found.build_id == symbolizer.build_id(program.tgid) != ""
        assert "rutabaga_gfx-0.1.80/src/cross_domain" in found.evidence


@pytest.mark.parametrize(
    ("text", "path", "crate", "version"),
    [
        (
            b"a.rs/r/krun-rutabaga-gfx-0.1.0-1.19.7/src/cross_domain/mod.rs",
            "/x",
            "krun-rutabaga-gfx",
            "0.1.0-1.19.7",
        ),
        (b"in a.rsrutabaga_gfx-0.1.85/src/cross_domain/x.rs", "/x", "rutabaga_gfx", "0.1.85"),
        (b"/r/my_fork-2.0.0-rc.1/src/cross_domain/x.rs", "/x", "my_fork", "2.0.0-rc.1"),
        (
            b"src/rutabaga_gfx/src/cross_domain/mod.rs",
            "/lib/libkrun.so.1.18.0",
            "krun-rutabaga-gfx",
            "1.18.0",
        ),
        (b"src/rutabaga_gfx/src/cross_domain/mod.rs", "/lib/libkrun.so", "krun-rutabaga-gfx", ""),
        (b"/home/x/tests/minivmm/src/main.rs", "/x", "minivmm", ""),
        (b"src/table.rs", "/opt/minivmm", "minivmm", ""),
        (b"elsewhere/src/cross_domain", "/x", "", ""),
        (b"", "/x", "", ""),
    ],
)
@pytest.mark.parametrize("before", [0, 100, 4 << 20, (4 << 20) - 20, (4 << 20) - 60])
def test_crate_and_version_from_a_source_path(
    tmp_path: Path, text: bytes, path: str, crate: str, version: str, before: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\0" * before + text)
    with file.open("rb") as opened:
        found = device.find(opened.fileno(), path, "") or Device()
    assert (found.crate, found.version) == (crate, version)
