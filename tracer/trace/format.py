# SPDX-License-Identifier: Apache-2.0
"""What lies in NAME.xdt/, and the checks of single messages.

Owns file names, Arrow schemas, limits, and the header of an Arrow message.
Never opens a file: writer.py and reader.py do.

- ``meta.json``: format version, host, targets, settings, totals. For people and
  for other tools; of it reading needs the version only. Replaced as a whole.
- ``events.arrows``: the records, their common head in columns, the rest as 32 bytes.
- ``targets.arrows`` ... ``host.arrows``: what a batch carries beside records.
- ``index.arrows``: one row per batch. **It is the commit**: it is written last and
  says where each stream stood after this batch, and the checksum of what was added.

Each is a plain Arrow IPC stream that any Arrow reader opens. Since a row of the
index comes after everything it points to, whatever a kill leaves behind its last
whole row belongs to no batch and is passed over: no stream can be ahead of another.
After a loss of power (writes may reach the disk in any order) the checksum tells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tracer import schema
from tracer.errors import TraceError

FORMAT_VERSION = 1
FORMAT_NAME = "xdtrace"

MAX_BATCH_RECORDS = 1 << 21
"""Records in one batch (117 MB); a ring of 64 MiB holds half as many."""
MAX_SIDE_ROWS = 1 << 18
"""Rows (and nested rows) of one side table in one batch."""
MAX_SIDE_BYTES = 32 << 20
"""Bytes of one side table in one batch, unpacked."""
MAX_META_BYTES = 4 << 20
"""Bytes of meta.json."""
READ_LIMIT_BYTES = 1 << 30
"""Reading any file, however hostile, stays below this much memory: one batch's message, its columns
and its records (3 × 117 MB), and one batch's side tables as Python objects."""

META = "meta.json"
EVENTS = "events"
INDEX = "index"
SIDES = ("targets", "threads", "fds", "epolls", "sites", "lock_symbols", "host")
STREAMS = (EVENTS, *SIDES)
"""In the order in which a batch is written; the index follows."""
SUFFIX = ".arrows"
FILES = (META, *(name + SUFFIX for name in (*STREAMS, INDEX)))

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_CONTINUATION = 0xFFFFFFFF
_MAX_HEADER_BYTES = 64 << 10
_RECORD_BATCH = 3
_SCHEMA = 1


def _row(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in fields],
        metadata={"xdtrace.format": str(FORMAT_VERSION), "xdtrace.schema": str(schema.SCHEMA_VERSION)},
    )


_TEXT, _U32, _I32, _U64, _I64 = pa.string(), pa.uint32(), pa.int32(), pa.uint64(), pa.int64()
_FRAME = pa.struct(
    [
        pa.field("function", _TEXT, nullable=False),
        pa.field("file", _TEXT, nullable=False),
        pa.field("line", _I64, nullable=False),
        pa.field("inlined", pa.bool_(), nullable=False),
    ]
)

SCHEMAS: dict[str, pa.Schema] = {
    EVENTS: _row(
        ("kind", pa.uint8()),
        ("flags", pa.uint8()),
        ("op", pa.uint16()),
        ("tid", _U32),
        ("enter_ns", _U64),
        ("dur_ns", _U64),
        *((f"body{i}", _U64) for i in range(4)),
    ),
    "targets": _row(
        ("tgid", _I64),
        ("role", _TEXT),
        ("comm", _TEXT),
        ("exe", _TEXT),
        ("build_id", _TEXT),
        ("start_ns", _I64),
        ("crate", _TEXT),
        ("version", _TEXT),
        ("alive", pa.bool_()),
        ("notes", pa.list_(pa.field("item", _TEXT, nullable=False))),
    ),
    "threads": _row(
        ("tid", _I64),
        ("tgid", _I64),
        ("comm", _TEXT),
        ("policy", _TEXT),
        ("priority", _I64),
        ("cpus", _TEXT),
        ("throttled_ns", _I64),
    ),
    "fds": _row(
        ("tgid", _I64),
        ("fd", _I64),
        ("type", _TEXT),
        ("eventfd_id", _I64),
        ("path", _TEXT),
        ("value_ns", _I64),
        ("interval_ns", _I64),
    ),
    "epolls": _row(("tgid", _I64), ("epfd", _I64), ("fd", _I64), ("data", _U64), ("events", _U64)),
    "sites": _row(
        ("tgid", _I64),
        ("address", _U64),
        ("module", _TEXT),
        ("offset", _U64),
        ("build_id", _TEXT),
        ("frames", pa.list_(pa.field("item", _FRAME, nullable=False))),
    ),
    "lock_symbols": _row(("tgid", _I64), ("address", _U64), ("name", _TEXT), ("source", _TEXT)),
    "host": _row(("key", _TEXT), ("json", _TEXT)),
    INDEX: _row(
        ("watermark_ns", _U64),
        ("records", _U64),
        ("lost_ring", _U64),
        ("lost_map", _U64),
        ("lost_late", _U64),
        ("self_use", pa.bool_()),
        ("cpu_percent", pa.float64()),
        ("probe_ns_per_s", _I64),
        ("steal_ns", _I64),
        ("ends", pa.list_(pa.field("item", _U64, nullable=False), len(STREAMS))),
        ("crc32", _U32),
    ),
}
"""Columns are the fields of schema.py's dataclasses, by the same names."""

SCHEMA_MESSAGES: dict[str, bytes] = {name: table.serialize().to_pybytes() for name, table in SCHEMAS.items()}

ROW_TYPES: dict[str, type] = {
    "targets": schema.Target,
    "threads": schema.Thread,
    "fds": schema.Fd,
    "epolls": schema.EpollEntry,
    "sites": schema.CallSite,
    "lock_symbols": schema.LockSymbol,
}


def damaged(what: str) -> TraceError:
    """The error for a trace whose content cannot be right."""
    return TraceError(
        f"the trace is damaged: {what}",
        "use another copy of it, or record again; nothing in it can be trusted",
    )


def write_message(name: str, columns: list[pa.Array]) -> pa.Buffer:
    """One encapsulated, compressed Arrow message of stream *name*."""
    table = SCHEMAS[name]
    sink = pa.BufferOutputStream()
    compression = "zstd" if name == EVENTS else None
    with pa.ipc.new_stream(sink, table, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_batch(pa.record_batch(columns, schema=table))
    whole = sink.getvalue()
    start = len(SCHEMA_MESSAGES[name])
    return whole.slice(start, whole.size - start - len(_END_OF_STREAM))


def end_of_stream() -> bytes:
    """What closes an Arrow stream: without it the recording did not end by itself."""
    return _END_OF_STREAM


# --- reading, distrustfully -------------------------------------------------


class _Flat:
    """Just enough flatbuffers to look at an Arrow message before Arrow does.

    Arrow allocates what a message *says* it unpacks to; so that must be read first.
    Layout: https://flatbuffers.dev/internals and Arrow's format/Message.fbs.
    Out of bounds raises struct.error, which the callers turn into TraceError.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position
        (back,) = struct.unpack_from("<i", data, position)
        self.vtable = position - back
        if self.vtable < 0:
            raise struct.error("vtable before the message")
        (self.vtable_bytes,) = struct.unpack_from("<H", data, self.vtable)

    def _at(self, field: int) -> int:
        slot = 4 + 2 * field
        if slot + 2 > self.vtable_bytes:
            return 0
        (offset,) = struct.unpack_from("<H", self.data, self.vtable + slot)
        return self.position + int(offset) if offset else 0

    def scalar(self, field: int, code: str) -> int:
        at = self._at(field)
        return int(struct.unpack_from("<" + code, self.data, at)[0]) if at else 0

    def table(self, field: int) -> _Flat | None:
        at = self._at(field)
        return _Flat(self.data, at + int(struct.unpack_from("<I", self.data, at)[0])) if at else None

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structs of two int64."""
        at = self._at(field)
        if not at:
            return []
        start = at + int(struct.unpack_from("<I", self.data, at)[0])
        (count,) = struct.unpack_from("<I", self.data, start)
        if count > len(self.data) // 16:
            raise struct.error("vector longer than the message")
        flat = struct.unpack_from(f"<{2 * count}q", self.data, start + 4)
        return list(zip(flat[::2], flat[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class Head:
    """Where one message ends, and whether it holds rows."""

    header_bytes: int
    body_bytes: int
    is_end: bool = False

    @property
    def size_bytes(self) -> int:
        """The whole message, its prefix included."""
        return 8 + self.header_bytes + self.body_bytes


def peek(read: Callable[[int, int], bytes], at: int, limit: int) -> Head | None:
    """The message that starts at *at*; None if the file ends within it.

    Args:
        read: (offset, size) -> at most *size* bytes there.
        limit: the most bytes a message may have.
    """
    prefix = read(at, 8)
    if len(prefix) < 8:
        return None
    marker, header_bytes = struct.unpack("<II", prefix)
    if marker != _CONTINUATION:
        if prefix == bytes(8) and not any(read(at + 8, 4096)):
            return None  # space that a lost write left behind
        raise damaged(f"no Arrow message at byte {at}")
    if header_bytes == 0:
        return Head(0, 0, is_end=True)
    if header_bytes > _MAX_HEADER_BYTES:
        raise damaged(f"a message header of {header_bytes} bytes")
    header = read(at + 8, header_bytes)
    if len(header) < header_bytes:
        return None
    body_bytes = _message(header).scalar(3, "q")
    if not 0 <= body_bytes <= limit:
        raise damaged(f"a message of {body_bytes} bytes")
    return Head(header_bytes, body_bytes)


def _message(header: bytes) -> _Flat:
    try:
        return _Flat(header, int(struct.unpack_from("<I", header, 0)[0]))
    except struct.error as error:
        raise damaged("an Arrow message that is none") from error


def parse_message(name: str, message: bytes, max_rows: int, max_bytes: int) -> pa.RecordBatch:
    """One message of stream *name* as a checked RecordBatch.

    Raises:
        TraceError: it is malformed, too large, or unpacks to more than *max_bytes*.
    """
    try:
        (header_bytes,) = struct.unpack_from("<I", message, 4)
        _check_sizes(
            message[8 : 8 + header_bytes], memoryview(message)[8 + header_bytes :], max_rows, max_bytes
        )
        batch = pa.ipc.read_record_batch(pa.py_buffer(message), SCHEMAS[name])
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise damaged(f"{name} has empty fields")
    except (struct.error, pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise damaged(f"{name} has a malformed message") from error
    return batch


def _check_sizes(header: bytes, body: memoryview, max_rows: int, max_bytes: int) -> None:
    message = _message(header)
    rows = message.table(2)
    if message.scalar(1, "B") != _RECORD_BATCH or rows is None or message.scalar(3, "q") != len(body):
        raise damaged("a message that holds no rows")
    counts = [rows.scalar(0, "q"), *(length for length, _ in rows.pairs(1))]
    if any(not 0 <= count <= max_rows * len(STREAMS) for count in counts) or counts[0] > max_rows:
        raise damaged(f"a message of {max(counts)} rows")
    compressed = rows.table(3) is not None
    total = 0
    for offset, length in rows.pairs(2):
        if offset < 0 or length < 0 or offset + length > len(body):
            raise damaged("a column outside its message")
        unpacked = length
        if compressed and length:
            (unpacked,) = struct.unpack_from("<q", body, offset)
            unpacked = length if unpacked == -1 else unpacked
        total += unpacked
        if unpacked < 0 or total > max_bytes:
            raise damaged(f"a message that unpacks to more than {max_bytes} bytes")


def check_schema(name: str, message: bytes) -> None:
    """The first message of a stream names the columns we know, or TraceError."""
    if message == SCHEMA_MESSAGES[name]:
        return
    try:
        if _message(message[8:]).scalar(1, "B") != _SCHEMA:
            raise damaged(f"{name} has no schema")
        found = pa.ipc.read_schema(pa.py_buffer(message))
    except (struct.error, pa.ArrowException, OSError, ValueError) as error:
        raise damaged(f"{name} has a malformed schema") from error
    check_version(dict(found.metadata or {}).get(b"xdtrace.format"))
    if not found.equals(SCHEMAS[name]):
        raise damaged(f"{name} has other columns")


def check_version(version: object) -> None:
    """Refuse a format that is not ours to read.

    Raises:
        TraceError: newer, or no version at all.
    """
    try:
        number = (
            int(version) if isinstance(version, int | str | bytes) and not isinstance(version, bool) else 0
        )
    except ValueError:
        number = 0
    if number < 1:
        raise damaged("it names no format version")
    if number > FORMAT_VERSION:
        raise TraceError(
            f"the trace has format {number}; this xdtrace reads up to {FORMAT_VERSION}",
            "install a newer xdtrace",
        )


# --- records ----------------------------------------------------------------

_FLAT_RECORD = np.dtype([*schema.RECORD.descr[:6], *((f"body{i}", "<u8") for i in range(4))])
_PID_MAX = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_MAX_NS = 1 << 63


def records_to_columns(records: schema.Records) -> list[pa.Array]:
    """Records (n,) of dtype RECORD as the columns of events."""
    flat = np.ascontiguousarray(records).view(_FLAT_RECORD)
    return [pa.array(np.ascontiguousarray(flat[name])) for name in _FLAT_RECORD.names or ()]


def columns_to_records(batch: pa.RecordBatch) -> schema.Records:
    """The inverse of records_to_columns; dtype RECORD, shape (n,)."""
    flat = np.empty(batch.num_rows, dtype=_FLAT_RECORD)
    for name, column in zip(_FLAT_RECORD.names or (), batch.columns, strict=True):
        flat[name] = column.to_numpy(zero_copy_only=True)
    return flat.view(schema.RECORD)


def check_records(records: schema.Records) -> None:
    """Refuse what no probe writes, so that analysis need not.

    Raises:
        TraceError: an unknown kind or op, a tid no kernel gives, a time past 2**63 ns.
    """
    if not len(records):
        return
    kind = records["kind"]
    if kind.min() < min(schema.Kind) or kind.max() > max(schema.Kind):
        raise damaged("a record of unknown kind")
    if records["tid"].max() > _PID_MAX:
        raise damaged(f"a thread id above {_PID_MAX}")
    if records["enter_ns"].max() >= _MAX_NS or records["dur_ns"].max() >= _MAX_NS:
        raise damaged("a time out of range")
    for known, ops in ((schema.Kind.LIFE, schema.Life), (schema.Kind.LOSS, schema.LossClass)):
        op = records["op"][kind == known]
        if len(op) and (op.min() < min(ops) or op.max() > max(ops)):
            raise damaged(f"a {known.name} record of unknown op")
