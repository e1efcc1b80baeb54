# SPDX-License-Identifier: Apache-2.0
"""Single Arrow messages: made, and taken apart without trust.

Owns the checks that must come before Arrow reads a message (sizes, what it says it
unpacks to) and after (validity). Never opens a file, knows nothing of batches.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from tracer.trace import format as fmt

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_CONTINUATION = 0xFFFFFFFF
_MAX_HEADER_BYTES = 64 << 10
_SCHEMA = 1
_RECORD_BATCH = 3


def write_message(name: str, columns: list[pa.Array]) -> pa.Buffer:
    """One encapsulated, compressed Arrow message of stream *name*."""
    table = fmt.SCHEMAS[name]
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1) if name == fmt.EVENTS else None)
    with pa.ipc.new_stream(sink, table, options=options) as stream:
        stream.write_batch(pa.record_batch(columns, schema=table))
    whole = sink.getvalue()
    start = len(fmt.SCHEMA_MESSAGES[name])
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
        raise fmt.damaged(f"no Arrow message at byte {at}")
    if header_bytes == 0:
        return Head(0, 0, is_end=True)
    if header_bytes > _MAX_HEADER_BYTES:
        raise fmt.damaged(f"a message header of {header_bytes} bytes")
    header = read(at + 8, header_bytes)
    if len(header) < header_bytes:
        return None
    try:
        body_bytes = _message(header).scalar(3, "q")
    except struct.error as error:
        raise fmt.damaged(f"no Arrow message at byte {at}") from error
    if not 0 <= body_bytes <= limit:
        raise fmt.damaged(f"a message of {body_bytes} bytes")
    return Head(header_bytes, body_bytes)


def _message(header: bytes) -> _Flat:
    try:
        return _Flat(header, int(struct.unpack_from("<I", header, 0)[0]))
    except struct.error as error:
        raise fmt.damaged("an Arrow message that is none") from error


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
        batch = pa.ipc.read_record_batch(pa.py_buffer(message), fmt.SCHEMAS[name])
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise fmt.damaged(f"{name} has empty fields")
    except (struct.error, pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise fmt.damaged(f"{name} has a malformed message") from error
    return batch


def _check_sizes(header: bytes, body: memoryview, max_rows: int, max_bytes: int) -> None:
    message = _message(header)
    rows = message.table(2)
    if message.scalar(1, "B") != _RECORD_BATCH or rows is None or message.scalar(3, "q") != len(body):
        raise fmt.damaged("a message that holds no rows")
    counts = [rows.scalar(0, "q"), *(length for length, _ in rows.pairs(1))]
    if any(not 0 <= count <= max(max_rows, len(fmt.STREAMS)) for count in counts) or counts[0] > max_rows:
        raise fmt.damaged(f"a message of {max(counts)} rows")
    compressed = rows.table(3) is not None
    total = 0
    for offset, length in rows.pairs(2):
        if offset < 0 or length < 0 or offset + length > len(body):
            raise fmt.damaged("a column outside its message")
        unpacked = length
        if compressed and length:
            (unpacked,) = struct.unpack_from("<q", body, offset)
            unpacked = length if unpacked == -1 else unpacked
        total += unpacked
        if unpacked < 0 or total > max_bytes:
            raise fmt.damaged(f"a message that unpacks to more than {max_bytes} bytes")


def check_schema(name: str, message: bytes) -> None:
    """The first message of a stream names the columns we know, or TraceError."""
    if message == fmt.SCHEMA_MESSAGES[name]:
        return
    try:
        if _message(message[8:]).scalar(1, "B") != _SCHEMA:
            raise fmt.damaged(f"{name} has no schema")
        found = pa.ipc.read_schema(pa.py_buffer(message))
    except (struct.error, pa.ArrowException, OSError, ValueError) as error:
        raise fmt.damaged(f"{name} has a malformed schema") from error
    fmt.check_version(dict(found.metadata or {}).get(b"xdtrace.format"))
    if not found.equals(fmt.SCHEMAS[name]):
        raise fmt.damaged(f"{name} has other columns")
