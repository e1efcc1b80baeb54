# SPDX-License-Identifier: Apache-2.0
"""What goes into a trace comes out of it; and the folder is safe to make as root."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_samples import assert_equal, record, some_batch

from tracer import schema
from tracer.errors import OutputError, TraceError
from tracer.trace import (
    FORMAT_VERSION,
    TraceReader,
    TraceWriter,
    check_place,
    make_private_folder,
    pack,
)
from tracer.trace.format import FILES, SCHEMAS, SIDES

_I64 = st.integers(-(1 << 63), (1 << 63) - 1)
_U64 = st.integers(0, (1 << 64) - 1)
_ID = st.integers(0, 1 << 22)
_FD = st.integers(-1, (1 << 31) - 1)
_NS = st.integers(0, (1 << 63) - 1)
_NICE = st.integers(-20, 99)
_TEXT = st.text(max_size=12)
_SPAN_NS = 10**12
_FRAMES = st.lists(st.builds(schema.Frame, _TEXT, _TEXT, _I64, st.booleans()), max_size=3).map(tuple)


def _rows(kind: type, *columns: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.builds(kind, *columns), max_size=3).map(tuple)


@st.composite
def _records(draw: st.DrawFn) -> schema.Records:
    count = draw(st.integers(0, 40))
    records = np.frombuffer(draw(st.binary(min_size=56 * count, max_size=56 * count)), schema.RECORD).copy()
    records["kind"] = 1 + records["kind"] % len(schema.Kind)
    records["op"] = 1 + records["op"] % 3
    records["tid"] %= 1 << 22
    records["enter_ns"] %= _SPAN_NS
    records["dur_ns"] %= _SPAN_NS
    return records


def _in_turn(batches: list[schema.Batch]) -> list[schema.Batch]:
    """Watermarks never go back."""
    marks = sorted(batch.watermark_ns for batch in batches)
    return [replace(batch, watermark_ns=mark) for batch, mark in zip(batches, marks, strict=True)]


BATCHES = st.lists(
    st.builds(
        schema.Batch,
        records=_records(),
        watermark_ns=st.integers(2 * _SPAN_NS, 20 * _SPAN_NS),
        targets=_rows(
            schema.Target,
            *(_ID, _TEXT, _TEXT, _TEXT, _TEXT, _NS, _TEXT, _TEXT, st.booleans()),
            st.lists(_TEXT, max_size=2).map(tuple),
        ),
        threads=_rows(schema.Thread, _ID, _ID, _TEXT, _TEXT, _NICE, _TEXT, st.just(-1) | _NS),
        fds=_rows(schema.Fd, _ID, _FD, _TEXT, _FD, _TEXT, _NS, _NS),
        epolls=_rows(schema.EpollEntry, _ID, _FD, _FD, _U64, _U64),
        sites=_rows(schema.CallSite, _ID, _U64, _TEXT, _U64, _TEXT, _FRAMES),
        lock_symbols=_rows(schema.LockSymbol, _ID, _U64, _TEXT, _TEXT),
        losses=st.builds(schema.Losses, _U64, _U64, _U64),
        self_use=st.none() | st.builds(schema.SelfUse, st.floats(0, 1e6), _I64, _I64),
        host=st.dictionaries(_TEXT, _TEXT | _I64 | st.floats(allow_nan=False), max_size=3),
    ),
    max_size=5,
).map(_in_turn)


@given(BATCHES)
@settings(deadline=None, max_examples=40)
def test_every_batch_comes_back_equal_from_folder_and_archive(
    tmp_path_factory: pytest.TempPathFactory, batches: list[schema.Batch]
) -> None:
    folder = tmp_path_factory.mktemp("t") / "a.xdt"
    with TraceWriter(folder) as writer:
        for batch in batches:
            writer.append(batch)
    pack(folder, folder.with_suffix(".tar"))
    for path in (folder, folder.with_suffix(".tar")):
        with TraceReader(path) as reader:
            assert reader.incomplete is None
            for got, wanted in zip(reader, batches, strict=True):
                assert_equal(got, wanted)
            assert reader.incomplete is None


def test_columns_are_the_fields_of_the_dataclasses() -> None:
    batch = {field.name: field for field in fields(schema.Batch)}
    assert set(SIDES) == set(batch) - {"records", "watermark_ns", "losses", "self_use"}
    for name, kind in {
        "targets": schema.Target,
        "threads": schema.Thread,
        "fds": schema.Fd,
        "epolls": schema.EpollEntry,
        "sites": schema.CallSite,
        "lock_symbols": schema.LockSymbol,
    }.items():
        assert SCHEMAS[name].names == [field.name for field in fields(kind)]


def test_any_arrow_reader_opens_the_events(tmp_path: Path) -> None:
    record(tmp_path / "a.xdt")
    with pa.OSFile(str(tmp_path / "a.xdt/events.arrows")) as file:
        table = pa.ipc.open_stream(file).read_all()
    assert table.num_rows == 500
    assert table["enter_ns"][-1].as_py() == 4099


def test_a_trace_is_iterated_twice_and_read_while_it_grows(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.xdt") as writer:
        writer.append(some_batch(0))
        with TraceReader(tmp_path / "a.xdt") as reader:
            assert len(list(reader)) == len(list(reader)) == 1
            assert reader.incomplete is not None and "not closed" in reader.incomplete
        writer.append(some_batch(1))
    with TraceReader(tmp_path / "a.xdt") as reader:
        assert len(list(reader)) == 2


def test_meta_names_host_targets_settings_and_totals(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.xdt", settings={"profile": "libkrun"}) as writer:
        for number in range(3):
            writer.append(some_batch(number))
    meta = json.loads((tmp_path / "a.xdt/meta.json").read_text())
    assert meta["version"] == FORMAT_VERSION
    assert meta["host"] == {"kernel": "6.18", "cpus": 2}
    assert [target["tgid"] for target in meta["targets"]] == [0, 2]
    assert meta["settings"] == {"profile": "libkrun"}
    assert (meta["batches"], meta["records"], meta["losses"]["ring"]) == (3, 300, 2)


def test_text_that_is_no_utf8_is_kept_escaped(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.xdt") as writer:
        writer.append(schema.Batch(schema.empty_records(), 1, threads=(schema.Thread(1, 1, "a\udcffb"),)))
    (batch,) = TraceReader(tmp_path / "a.xdt")
    assert batch.threads[0].comm == "a\\udcffb"


def test_folder_and_files_are_for_their_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        record(tmp_path / "a.xdt")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.xdt").stat().st_mode) == 0o700
    assert {stat.S_IMODE((tmp_path / "a.xdt" / name).stat().st_mode) for name in FILES} == {0o600}
    assert set(os.listdir(tmp_path / "a.xdt")) == set(FILES)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_user_behind_sudo_owns_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "2345")
    record(tmp_path / "a.xdt")
    for path in (tmp_path / "a.xdt", *(tmp_path / "a.xdt").iterdir()):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345), path


def _put_folder(path: Path) -> None:
    path.mkdir()


def _put_foreign(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("dear")


def _put_file(path: Path) -> None:
    path.write_text("dear")


def _put_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def _put_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("put", [_put_foreign, _put_file, _put_link, _put_dangling_link])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_trace_is_never_overwritten(
    put: Callable[[Path], None], force: bool, tmp_path: Path
) -> None:
    put(tmp_path / "a.xdt")
    before = sorted((str(path), path.is_symlink()) for path in tmp_path.rglob("*"))
    for make in (check_place, TraceWriter):
        with pytest.raises(OutputError) as caught:
            make(tmp_path / "a.xdt", force=force)
        assert caught.value.exit_code == 2
    assert sorted((str(path), path.is_symlink()) for path in tmp_path.rglob("*")) == before


def test_where_no_folder_is_no_trace_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "none" / "a.xdt", tmp_path / "file" / "a.xdt"):
        for make in (check_place, TraceWriter, partial(check_place, shared=True), make_private_folder):
            with pytest.raises(OutputError):
                make(place)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_a_place_that_will_do_is_left_as_it_is(tmp_path: Path) -> None:
    check_place(tmp_path / "new.xdt")
    record(tmp_path / "a.xdt")
    check_place(tmp_path / "a.xdt", force=True)
    check_place(tmp_path, shared=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.xdt"]
    assert len(list(TraceReader(tmp_path / "a.xdt"))) == 5


def test_a_trace_is_overwritten_only_by_force(tmp_path: Path) -> None:
    _put_folder(tmp_path / "empty.xdt")
    with pytest.raises(TraceError, match="exists"):
        TraceWriter(tmp_path / "empty.xdt")
    record(tmp_path / "a.xdt", 5)
    with pytest.raises(TraceError, match="exists"):
        TraceWriter(tmp_path / "a.xdt")
    assert len(list(TraceReader(tmp_path / "a.xdt"))) == 5
    with TraceWriter(tmp_path / "a.xdt", force=True) as writer:
        writer.append(some_batch(7))
    (batch,) = TraceReader(tmp_path / "a.xdt")
    assert_equal(batch, some_batch(7))


def test_a_link_placed_in_an_old_trace_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("dear")
    record(tmp_path / "a.xdt")
    for name in ("events.arrows", "meta.json.new"):
        (tmp_path / "a.xdt" / name).unlink(missing_ok=True)
        (tmp_path / "a.xdt" / name).symlink_to(victim)
    with pytest.raises(TraceError):
        TraceReader(tmp_path / "a.xdt")
    with TraceWriter(tmp_path / "a.xdt", force=True) as writer:
        writer.append(some_batch())
    assert victim.read_text() == "dear"
    assert not (tmp_path / "a.xdt/events.arrows").is_symlink()


def test_a_link_placed_while_recording_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("dear")
    with TraceWriter(tmp_path / "a.xdt") as writer:
        (tmp_path / "a.xdt/meta.json.new").symlink_to(victim)
        writer.append(some_batch())
    assert not (tmp_path / "a.xdt/meta.json.new").exists()
    assert victim.read_text() == "dear"


def test_the_archive_is_a_tar_that_unpacks_to_the_folder(tmp_path: Path) -> None:
    record(tmp_path / "a.xdt")
    pack(tmp_path / "a.xdt", tmp_path / "a.tar")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "a.tar", "-C", tmp_path / "out"], check=True)
    for name in FILES:
        assert (tmp_path / "out/a.xdt" / name).read_bytes() == (tmp_path / "a.xdt" / name).read_bytes()
    with pytest.raises(TraceError, match="exists"):
        pack(tmp_path / "a.xdt", tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["nothing", "empty", "text", "device"])
def test_what_is_no_trace_is_refused(name: str, tmp_path: Path) -> None:
    paths = {"nothing": tmp_path / "no", "device": Path("/dev/null")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("not a trace\n" * 100)
    with pytest.raises(TraceError) as caught:
        TraceReader(paths.get(name, tmp_path / name))
    assert caught.value.exit_code == 5
    assert caught.value.hint
