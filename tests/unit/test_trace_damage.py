# SPDX-License-Identifier: Apache-2.0
"""Killed, cut, filled up, rotten or made by an enemy: a trace gives its whole batches or a TraceError.

XDTRACE_KILLS sets how often the child is killed (25 by default; run it with 100 by hand).
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_samples import assert_equal, record, some_batch

from tracer import schema
from tracer.errors import TraceError
from tracer.trace import READ_LIMIT_BYTES, TraceReader, TraceWriter, messages, pack, writer
from tracer.trace import format as fmt

_KILLS = int(os.environ.get("XDTRACE_KILLS", "25"))
_STREAM_FILES = [name for name in fmt.FILES if name != fmt.META]

_FORKER = """
import os, sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from trace_samples import some_batch
from tracer.trace import TraceWriter
for path in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)
        continue
    done = os.open(path.strip() + ".done", os.O_WRONLY | os.O_CREAT)
    with TraceWriter(Path(path.strip())) as writer:
        for number in range(1 << 20):
            writer.append(some_batch(number, 500))
            os.write(done, b"x")
"""


def read_all(path: Path) -> tuple[list[schema.Batch], str | None]:
    """Its whole batches and what it says is missing."""
    with TraceReader(path) as reader:
        return list(reader), reader.incomplete


def assert_whole_prefix(path: Path, at_least: int, count: int) -> None:
    """The first batches, each equal to what was written, and a word about the rest."""
    batches, incomplete = read_all(path)
    assert len(batches) >= at_least
    for number, batch in enumerate(batches):
        assert_equal(batch, some_batch(number, count))
    assert incomplete


def test_killed_at_any_moment_it_loses_at_most_the_batch_being_written(tmp_path: Path) -> None:
    code = _FORKER.format(tests=str(Path(__file__).parent), root=str(Path(__file__).parents[2]))
    chance = random.Random(_KILLS)
    forker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert forker.stdin is not None and forker.stdout is not None
    with forker, forker.stdin, forker.stdout:
        for number in range(_KILLS):
            path, done = tmp_path / f"{number}.xdt", tmp_path / f"{number}.xdt.done"
            forker.stdin.write(f"{path}\n")
            child = int(forker.stdout.readline())
            # The moment is drawn in batches done, then in idle turns: it hits anywhere in a batch.
            wanted = chance.randrange(30)
            while not done.exists() or done.stat().st_size < wanted:
                os.sched_yield()
            for _ in range(chance.randrange(20_000)):
                pass
            os.kill(child, signal.SIGKILL)
            assert forker.stdout.readline() == "gone\n"
            acknowledged = done.stat().st_size
            if not acknowledged and not (path / "index.arrows").exists():
                continue  # killed before there was a trace to speak of
            try:
                batches, incomplete = read_all(path)
            except TraceError as error:
                assert not acknowledged and "no whole batch" in error.message
                continue
            assert acknowledged <= len(batches) <= acknowledged + 1
            for at, batch in enumerate(batches):
                assert_equal(batch, some_batch(at, 500))
            assert incomplete is not None and "not closed" in incomplete


@pytest.mark.parametrize("name", fmt.FILES)
def test_each_file_may_be_cut_at_any_byte(name: str, tmp_path: Path) -> None:
    written = record(tmp_path / "a.xdt", 12)
    whole = (tmp_path / "a.xdt" / name).read_bytes()
    chance = random.Random(name)
    cuts = {0, 1, 7, 8, len(whole) - 1, len(whole) - 8, *(chance.randrange(len(whole)) for _ in range(60))}
    refused = 0
    for cut in cuts:
        (tmp_path / "a.xdt" / name).write_bytes(whole[:cut])
        try:
            batches, incomplete = read_all(tmp_path / "a.xdt")
        except TraceError as error:
            told = "cannot be read" if name == fmt.META else "no whole batch"
            assert told in error.message and cut < len(whole)
            refused += 1
            continue
        assert batches and name != fmt.META
        for got, wanted in zip(batches, written, strict=False):
            assert_equal(got, wanted)
        if len(batches) < len(written) or name == "index.arrows":
            assert incomplete, cut
    assert refused


def test_a_cut_loses_nothing_before_it(tmp_path: Path) -> None:
    """Cut just after batch 7's records: eight batches are there, not fewer."""
    sizes = []
    with TraceWriter(tmp_path / "a.xdt") as out:
        for number in range(12):
            out.append(some_batch(number))
            sizes.append((tmp_path / "a.xdt/events.arrows").stat().st_size)
    os.truncate(tmp_path / "a.xdt/events.arrows", sizes[7])
    batches, incomplete = read_all(tmp_path / "a.xdt")
    assert len(batches) == 8
    assert incomplete == "the last 4 of 12 batches are cut off"


@pytest.mark.parametrize("name", _STREAM_FILES)
def test_a_missing_file_leaves_nothing_and_is_said(name: str, tmp_path: Path) -> None:
    record(tmp_path / "a.xdt", 3)
    (tmp_path / "a.xdt" / name).unlink()
    with pytest.raises(TraceError, match=f"no whole batch of records: {name} is missing"):
        TraceReader(tmp_path / "a.xdt")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_without_meta_the_version_is_not_known(damage: str, tmp_path: Path) -> None:
    record(tmp_path / "a.xdt", 3)
    (tmp_path / "a.xdt/meta.json").unlink()
    if damage == "cut":
        (tmp_path / "a.xdt/meta.json").write_text("{")
    with pytest.raises(TraceError, match="cannot be read, and with it the version"):
        TraceReader(tmp_path / "a.xdt")


def test_a_trace_that_began_and_holds_no_batch_yet_says_so(tmp_path: Path) -> None:
    out = TraceWriter(tmp_path / "a.xdt")
    with pytest.raises(TraceError, match="no whole batch of records: the recording was not closed"):
        TraceReader(tmp_path / "a.xdt")
    out.close()
    assert read_all(tmp_path / "a.xdt") == ([], None)


def test_an_archive_cut_anywhere_gives_its_whole_batches_or_is_refused(tmp_path: Path) -> None:
    """Of a copy that broke off, what lies before is read: the index comes before the records."""
    written = record(tmp_path / "a.xdt", 12)
    pack(tmp_path / "a.xdt", tmp_path / "a.tar")
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        records = next(m for m in archive if m.name.endswith("/events.arrows"))
    counts = []
    for cut in range(0, records.offset_data + records.size, 499):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        try:
            batches, incomplete = read_all(tmp_path / "cut.tar")
        except TraceError:
            counts.append(0)
            continue
        for got, wanted in zip(batches, written, strict=False):
            assert_equal(got, wanted)
        gone = 12 - len(batches)
        which = f"{gone} of 12 batches are" if gone > 1 else "of 12 batches is"
        assert incomplete == f"the last {which} cut off"
        counts.append(len(batches))
    assert counts == sorted(counts) and len(set(counts)) > 6


def test_a_lost_write_of_an_unfinished_trace_ends_it_there(tmp_path: Path) -> None:
    """After a loss of power a file has its length but not all its pages."""
    sizes = []
    out = TraceWriter(tmp_path / "a.xdt")
    for number in range(10):
        out.append(some_batch(number))
        sizes.append((tmp_path / "a.xdt/events.arrows").stat().st_size)
    data = bytearray((tmp_path / "a.xdt/events.arrows").read_bytes())
    data[sizes[6] :] = bytes(len(data) - sizes[6])
    (tmp_path / "a.xdt/events.arrows").write_bytes(data)
    assert_whole_prefix(tmp_path / "a.xdt", 7, 100)
    assert len(read_all(tmp_path / "a.xdt")[0]) == 7
    with open(tmp_path / "a.xdt/index.arrows", "ab") as file:
        file.write(bytes(8192))
    assert_whole_prefix(tmp_path / "a.xdt", 7, 100)
    out.close()


def test_a_full_disk_is_an_error_and_what_was_there_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    room = 20_000

    def write(fd: int, data: memoryview) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(fd, data[:room])
        room -= done
        return done

    monkeypatch.setattr("tracer.trace.writer.os.write", write)
    count = 0
    with TraceWriter(tmp_path / "a.xdt") as out, pytest.raises(TraceError, match="No space left"):
        for count in range(1000):
            out.append(some_batch(count))
    with pytest.raises(TraceError):
        out.append(some_batch(0))
    monkeypatch.undo()
    assert 0 < count < 1000
    assert_whole_prefix(tmp_path / "a.xdt", count, 100)


@pytest.mark.parametrize(("key", "name"), [("version", "format"), ("record_schema", "record schema")])
def test_a_newer_version_is_refused_by_name(tmp_path: Path, key: str, name: str) -> None:
    record(tmp_path / "a.xdt")
    meta = json.loads((tmp_path / "a.xdt/meta.json").read_text())
    (tmp_path / "a.xdt/meta.json").write_text(json.dumps({**meta, key: 99}))
    with pytest.raises(TraceError, match=f"has {name} 99") as caught:
        TraceReader(tmp_path / "a.xdt")
    assert "newer xdtrace" in caught.value.hint and caught.value.exit_code == 5
    versions: list[object] = [0, -1, "x", None, 1.5, True, []]
    for version in versions:
        (tmp_path / "a.xdt/meta.json").write_text(json.dumps({**meta, key: version}))
        with pytest.raises(TraceError):
            TraceReader(tmp_path / "a.xdt")


# --- hostile: checksums are right, so only the checks of content stand --------------------


def forge(path: Path, name: str, columns: list[pa.Array], table: pa.Schema, **index: object) -> None:
    """A trace whose one batch holds *columns* in stream *name*, consistent in all but its content."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_batch(pa.record_batch(columns, schema=table))
    start = len(table.serialize())
    forge_message(path, name, sink.getvalue().to_pybytes()[start:-8], **index)


def forge_message(path: Path, name: str, message: bytes, **index: object) -> None:
    """The same for any bytes as the message."""
    with TraceWriter(path):
        pass
    with open(path / (name + ".arrows"), "r+b") as file:
        file.seek(len(fmt.SCHEMA_MESSAGES[name]))
        file.write(message)
    ends = [len(fmt.SCHEMA_MESSAGES[stream]) + len(message) * (stream == name) for stream in fmt.STREAMS]
    row = {
        **dict.fromkeys(fmt.SCHEMAS[fmt.INDEX].names, 0),
        "cpu_percent": 0.0,
        "self_use": False,
        "ends": ends,
        **index,
    }
    import zlib

    row["crc32"] = writer.index_checksum(row, zlib.crc32(message))
    with open(path / "index.arrows", "r+b") as file:
        file.seek(len(fmt.SCHEMA_MESSAGES[fmt.INDEX]))
        file.write(
            messages.write_message(
                fmt.INDEX, [pa.array([row[c.name]], type=c.type) for c in fmt.SCHEMAS[fmt.INDEX]]
            )
        )
        file.write(messages.end_of_stream())


def _head(**changed: int) -> schema.Records:
    records = np.zeros(3, schema.RECORD)
    records["kind"] = schema.Kind.READ
    for name, value in changed.items():
        records[name][1] = value
    return records


HOSTILE_RECORDS = {
    "kind 0": _head(kind=0),
    "kind 16": _head(kind=16),
    "kind 255": _head(kind=255),
    "tid": _head(tid=(1 << 22) + 1),
    "enter": _head(enter_ns=1 << 63),
    "dur": _head(dur_ns=(1 << 64) - 1),
    "life": _head(kind=schema.Kind.LIFE, op=5),
    "loss": _head(kind=schema.Kind.LOSS, op=0),
}


def test_a_forged_trace_of_good_content_is_read(tmp_path: Path) -> None:
    """The forger forges well: what the tests below refuse is the content alone."""
    records = _head()
    forge(tmp_path / "a.xdt", "events", fmt.records_to_columns(records), fmt.SCHEMAS["events"], records=3)
    (batch,), incomplete = read_all(tmp_path / "a.xdt")
    assert batch.records.tobytes() == records.tobytes()
    assert incomplete is None


@pytest.mark.parametrize("name", HOSTILE_RECORDS)
def test_records_no_probe_writes_are_refused(name: str, tmp_path: Path) -> None:
    columns = fmt.records_to_columns(HOSTILE_RECORDS[name])
    forge(tmp_path / "a.xdt", "events", columns, fmt.SCHEMAS["events"], records=3)
    with pytest.raises(TraceError):
        read_all(tmp_path / "a.xdt")
    with TraceWriter(tmp_path / "b.xdt") as out, pytest.raises(TraceError):
        out.append(schema.Batch(HOSTILE_RECORDS[name], 1))


_NO = schema.empty_records()
HOSTILE_ROWS = {
    "thread id below 0": schema.Batch(_NO, 1, threads=(schema.Thread(-1, 1, "x"),)),
    "thread id too large": schema.Batch(_NO, 1, threads=(schema.Thread((1 << 22) + 1, 1, "x"),)),
    "process id too large": schema.Batch(_NO, 1, targets=(schema.Target(1 << 40, "vmm", "x"),)),
    "started before boot": schema.Batch(_NO, 1, targets=(schema.Target(1, "vmm", "x", start_ns=-1),)),
    "no such priority": schema.Batch(_NO, 1, threads=(schema.Thread(1, 1, "x", "FIFO", 1 << 40),)),
    "fd below none": schema.Batch(_NO, 1, fds=(schema.Fd(1, -2, "eventfd"),)),
    "eventfd id too large": schema.Batch(_NO, 1, fds=(schema.Fd(1, 1, "eventfd", 1 << 31),)),
    "an interval that goes back": schema.Batch(_NO, 1, fds=(schema.Fd(1, 1, "timerfd", interval_ns=-1),)),
    "an epoll that is none": schema.Batch(_NO, 1, epolls=(schema.EpollEntry(1, -9, 1, 1, 1),)),
    "a call site of nobody": schema.Batch(_NO, 1, sites=(schema.CallSite(-1, 1),)),
    "a lock of nobody": schema.Batch(_NO, 1, lock_symbols=(schema.LockSymbol(1 << 62, 1, "x", "user"),)),
}


@pytest.mark.parametrize("what", HOSTILE_ROWS)
def test_rows_that_no_kernel_gives_are_refused(what: str, tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.xdt") as out:
        out.append(HOSTILE_ROWS[what])
    with pytest.raises(TraceError, match=r"damaged: \w+ with \w+ out of range"):
        read_all(tmp_path / "a.xdt")


_HOUR = 3600 * 10**9


@pytest.mark.parametrize(
    ("times", "marks"),
    [
        ([_HOUR, _HOUR], [2 * _HOUR, _HOUR]),
        ([_HOUR, _HOUR], [_HOUR, 1 << 63]),
        ([_HOUR, 3 * _HOUR], [_HOUR, 2 * _HOUR]),
        ([_HOUR, 1 << 62], [_HOUR, _HOUR]),
        ([0, 50 * _HOUR], [40 * _HOUR, 50 * _HOUR]),
    ],
)
def test_records_from_another_time_than_their_batch_are_refused(
    times: list[int], marks: list[int], tmp_path: Path
) -> None:
    """Analysis goes through all time between records: a century of it would never end."""

    def batches(flags: int) -> Iterator[schema.Batch]:
        for at, mark in zip(times, marks, strict=True):
            records = _head(flags=flags)[1:2]
            records["enter_ns"] = at
            yield schema.Batch(records, mark)

    for name, flags in (("a.xdt", 0), ("late.xdt", schema.Flag.LATE)):
        with TraceWriter(tmp_path / name) as out:
            for batch in batches(flags):
                out.append(batch)
    with pytest.raises(TraceError, match=r"goes back|far from"):
        read_all(tmp_path / "a.xdt")
    if marks == sorted(marks) and max(marks) < 1 << 63:  # late ones are counted, and have no time
        assert len(read_all(tmp_path / "late.xdt")[0]) == 2


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    count = fmt.MAX_BATCH_RECORDS + 1
    columns = [
        pa.array(np.ones(count, column.type.to_pandas_dtype())) for column in list(fmt.SCHEMAS["events"])[:-1]
    ]
    columns.append(pa.array([b"x" * 32] * 1, type=pa.binary(32)).take(pa.array(np.zeros(count, "i4"))))
    forge(tmp_path / "a.xdt", "events", columns, fmt.SCHEMAS["events"], records=count)
    assert (tmp_path / "a.xdt/events.arrows").stat().st_size < 2 << 20
    with pytest.raises(TraceError, match="rows"):
        read_all(tmp_path / "a.xdt")


def test_a_message_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    """Arrow would allocate what is claimed here: a terabyte."""
    message = bytearray(messages.write_message("events", fmt.records_to_columns(_head())).to_pybytes())
    (header,) = struct.unpack_from("<I", message, 4)
    struct.pack_into("<q", message, 8 + header, 1 << 40)
    forge_message(tmp_path / "a.xdt", "events", bytes(message), records=3)
    with pytest.raises(TraceError, match="unpacks to more"):
        read_all(tmp_path / "a.xdt")


@pytest.mark.parametrize(
    "index",
    [
        {"records": 1 << 60},
        {"records": 2},
        {"ends": [1 << 62] * len(fmt.STREAMS)},
        {"ends": [0] * len(fmt.STREAMS)},
    ],
)
def test_an_index_that_lies_gives_no_batch(index: dict[str, object], tmp_path: Path) -> None:
    columns = fmt.records_to_columns(_head())
    forge(tmp_path / "a.xdt", "events", columns, fmt.SCHEMAS["events"], **{"records": 3, **index})
    try:
        batches, incomplete = read_all(tmp_path / "a.xdt")
    except TraceError:
        return
    assert batches == []
    assert incomplete


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_random_damage_is_a_trace_error_or_whole_batches(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed anywhere: an error we know, or batches that are exactly those written."""
    global _TEMPLATE
    if _TEMPLATE is None:
        _TEMPLATE = tmp_path_factory.mktemp("template") / "a.xdt"
        record(_TEMPLATE, 4)
        pack(_TEMPLATE, _TEMPLATE.with_suffix(".tar"))
    name = data.draw(st.sampled_from([*fmt.FILES, "archive"]))
    source = _TEMPLATE.with_suffix(".tar") if name == "archive" else _TEMPLATE / name
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=9))
        content[at : at + len(patch)] = patch
    folder = tmp_path_factory.mktemp("t")
    path = folder / "a"
    if name == "archive":
        path.write_bytes(content)
    else:
        shutil.copytree(_TEMPLATE, path)
        (path / name).write_bytes(content)
    try:
        with TraceReader(path) as reader:
            for number, batch in enumerate(reader):
                assert_equal(batch, some_batch(number))
    except TraceError as error:
        assert error.exit_code == 5
    finally:
        shutil.rmtree(folder)


_TEMPLATE: Path | None = None


@given(st.sampled_from(_STREAM_FILES), st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_messages_with_right_checksums_are_refused_or_valid(
    tmp_path_factory: pytest.TempPathFactory, file: str, data: st.DataObject
) -> None:
    """Straight at the parser, past every checksum."""
    name = file.removesuffix(fmt.SUFFIX)
    table = fmt.SCHEMAS[name]
    values = {
        "frames": [{"function": "f", "file": "g", "line": 1, "inlined": True}],
    }
    sample = [
        pa.array([values.get(c.name, ["n"] if c.name == "notes" else _default(c.type))] * 2, type=c.type)
        for c in table
    ]
    message = bytearray(messages.write_message(name, sample).to_pybytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, len(message) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=8))
        message[at : at + len(patch)] = patch[: len(message) - at]
    try:
        batch = messages.parse_message(name, bytes(message), 1000, 1 << 16)
    except TraceError:
        return
    rows = batch.to_pylist()
    assert len(rows) <= 1000


def _default(kind: pa.DataType) -> object:
    if pa.types.is_fixed_size_list(kind):
        return [0] * kind.list_size
    if pa.types.is_string(kind):
        return "text"
    if pa.types.is_fixed_size_binary(kind):
        return b"x" * kind.byte_width
    return kind.to_pandas_dtype()(1)


def test_the_largest_batch_is_read_within_the_stated_limit(tmp_path: Path) -> None:
    """In a child whose address space grows by no more than the limit: incompressible, full-size records."""
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
import numpy as np
from pathlib import Path
from tracer import schema
from tracer.trace import *
count = MAX_BATCH_RECORDS
records = np.random.default_rng(1).integers(0, 256, 56 * count, np.uint8).view(schema.RECORD)
records["kind"] = 1
records["tid"] >>= np.uint32(11)
records["enter_ns"] %= np.uint64(10**12)
records["dur_ns"] %= np.uint64(10**12)
with TraceWriter(Path(sys.argv[1])) as out:
    out.append(schema.Batch(records, 2 * 10**12))
del records
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.xdt"], check=True)
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from pathlib import Path
from tracer.trace import *

def peak_kib():  # not ru_maxrss, which a child inherits from its parent
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

before = peak_kib()
(batch,) = TraceReader(Path(sys.argv[1]))
assert len(batch.records) == MAX_BATCH_RECORDS
print((peak_kib() - before) << 10)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.xdt"], check=True, capture_output=True)
    assert 0 < int(done.stdout) < READ_LIMIT_BYTES
