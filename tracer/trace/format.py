# SPDX-License-Identifier: Apache-2.0
"""What lies in NAME.xdt/, and the checks of single messages.

Owns file names, Arrow schemas, limits, and what a record may hold.
Never opens a file: writer.py and reader.py do. messages.py takes Arrow messages apart.

- ``meta.json``: format version, host, targets, settings, totals. For people and
  for other tools; of it reading needs the versions of format and records only. Replaced as a whole.
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

import numpy as np
import pyarrow as pa

from tracer import schema
from tracer.errors import TraceError

FORMAT_VERSION = 1
FORMAT_NAME = "xdtrace"

MAX_BATCH_RECORDS = 1 << 21
"""Records in one batch (117 MB); a ring of 64 MiB holds half as many."""
MAX_EVENTS_BYTES = MAX_BATCH_RECORDS * schema.RECORD_BYTES + 4096
"""The columns of one batch's records, unpacked."""
MAX_INDEX_BYTES = 4096
"""One row of the index."""
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
        ("body", pa.binary(schema.RECORD["body"].itemsize)),
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
"""Columns are the fields of the dataclasses in tracer/schema, by the same names."""

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


def check_version(version: object) -> None:
    """Refuse a format that is not ours to read.

    Raises:
        TraceError: newer, or no version at all.
    """
    _refuse_newer(version, FORMAT_VERSION, "format")


def check_record_schema(version: object) -> None:
    """Refuse records whose meaning is not known here: they would be read as something else.

    Raises:
        TraceError: newer, or no version at all.
    """
    _refuse_newer(version, schema.SCHEMA_VERSION, "record schema")


def _refuse_newer(version: object, newest: int, what: str) -> None:
    try:
        number = (
            int(version) if isinstance(version, int | str | bytes) and not isinstance(version, bool) else 0
        )
    except ValueError:
        number = 0
    if number < 1:
        raise damaged(f"it names no {what} version")
    if number > newest:
        raise TraceError(
            f"the trace has {what} {number}; this xdtrace reads up to {newest}", "install a newer xdtrace"
        )


# --- records ----------------------------------------------------------------

_HEAD = (schema.RECORD.names or ())[:-1]
_BODY = schema.RECORD["body"]
_PID_MAX = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_MAX_NS = 1 << 63
#: Records of a batch end at most so long before its watermark (a recorder that was stopped), and after it
#: (it is read just before the records are).
_BEFORE_NS = 86_400 * 10**9
_AFTER_NS = 60 * 10**9


def records_to_columns(records: schema.Records) -> list[pa.Array]:
    """Records (n,) of dtype RECORD as the columns of events.

    Measured on 500,000 mixed records, one thread, per record: this layout with zstd 1 is 9.6 bytes,
    133 ns to write and 90 to read; one column of 56 bytes 12.1, 180 and 77; lz4 17.7, 85 and 73.
    """
    body = pa.py_buffer(np.ascontiguousarray(records["body"]))
    return [
        *(pa.array(np.ascontiguousarray(records[name])) for name in _HEAD),
        pa.Array.from_buffers(pa.binary(_BODY.itemsize), len(records), [None, body]),
    ]


def columns_to_records(batch: pa.RecordBatch) -> schema.Records:
    """The inverse of records_to_columns; dtype RECORD, shape (n,)."""
    records = np.empty(batch.num_rows, dtype=schema.RECORD)
    for name in _HEAD:
        records[name] = batch.column(name).to_numpy(zero_copy_only=True)
    body = batch.column("body").buffers()[1]
    records["body"] = np.frombuffer(body, dtype=_BODY, count=batch.num_rows)
    return records


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


_ID = (0, _PID_MAX)
_FD = (-1, (1 << 31) - 1)  # also of ids of eventfds; -1: none
_WHEN = (0, _MAX_NS - 1)
_SIDE_RANGES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("tid", "tgid"), _ID),
    **dict.fromkeys(("fd", "epfd", "eventfd_id"), _FD),
    **dict.fromkeys(("start_ns", "value_ns", "interval_ns"), _WHEN),
    "priority": (-20, 99),
    "throttled_ns": (-1, _MAX_NS - 1),
}


def check_rows(name: str, rows: pa.RecordBatch) -> None:
    """Refuse side rows with numbers that no kernel gives.

    Args:
        name: of the side table.

    Raises:
        TraceError: an id, fd, time or priority out of range.
    """
    for column, (least, most) in _SIDE_RANGES.items():
        if len(rows) and column in rows.schema.names:
            values = rows.column(column).to_numpy()
            if values.min() < least or values.max() > most:
                raise damaged(f"{name} with {column} out of range")


def check_times(records: schema.Records, watermark_ns: int, earlier_ns: int) -> None:
    """Refuse a batch from another time than its own: analysis goes through all time between records.

    Args:
        earlier_ns: the watermark of the batch before.

    Raises:
        TraceError: watermarks that go back, or records far from theirs.
    """
    if not earlier_ns <= watermark_ns < _MAX_NS:
        raise damaged("a watermark that goes back or is out of range")
    ends = schema.end_ns(records)[(records["flags"] & schema.Flag.LATE) == 0]
    if len(ends) and not (
        watermark_ns - _BEFORE_NS <= int(ends.min()) and int(ends.max()) <= watermark_ns + _AFTER_NS
    ):
        raise damaged("records far from the time of their batch")
