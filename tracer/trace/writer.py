# SPDX-License-Identifier: Apache-2.0
"""Writes a trace folder, batch by batch.

Owns the order of writes (side tables, events, index: format.py says why); nothing
in the folder (folder.py) is ever reached through a symbolic link. Never reads a trace.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from tracer import schema
from tracer.errors import OutputError, TraceError
from tracer.trace import folder, messages
from tracer.trace import format as fmt

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def index_checksum(row: Mapping[str, Any], crc: int) -> int:
    """CRC-32 over a batch's messages (*crc*) and then over its own row of the index."""
    scalars = [int(row[name]) for name in ("watermark_ns", "records", "lost_ring", "lost_map", "lost_late")]
    packed = struct.pack(
        f"<5Q?d2q{len(fmt.STREAMS)}Q",
        *scalars,
        row["self_use"],
        row["cpu_percent"],
        row["probe_ns_per_s"],
        row["steal_ns"],
        *row["ends"],
    )
    return zlib.crc32(packed, crc)


class TraceWriter:
    """Appends batches to a new trace folder.

    Args:
        path: NAME.xdt; its parent must exist.
        force: replace an existing trace folder (its known files only).
        settings: what to keep in meta.json beside the facts (profile, options).

    Raises:
        OutputError: the folder exists, is a link, or cannot be made.
    """

    def __init__(self, path: Path, *, force: bool = False, settings: Mapping[str, Any] | None = None) -> None:
        self.path = path = Path(os.path.abspath(path))
        self._fds: dict[str, int] = {}
        self._ends = {name: len(fmt.SCHEMA_MESSAGES[name]) for name in fmt.STREAMS}
        self._owner = folder.owner()
        self._broken = False
        self._targets: dict[int, schema.Target] = {}
        self._losses = schema.Losses()
        self._meta: dict[str, Any] = {
            "format": fmt.FORMAT_NAME,
            "version": fmt.FORMAT_VERSION,
            "record_schema": schema.SCHEMA_VERSION,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "closed": False,
            "settings": dict(settings or {}),
            "host": {},
            "targets": [],
            "batches": 0,
            "records": 0,
            "watermark_ns": 0,
        }
        self._dir = folder.make_trace_folder(path, self._owner, force=force)
        try:
            self._write_meta()
            for name in (*fmt.STREAMS, fmt.INDEX):
                self._fds[name] = self._create(name + fmt.SUFFIX)
                self._write(name, fmt.SCHEMA_MESSAGES[name])
        except BaseException:
            self._close_fds()
            raise

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, batch: schema.Batch) -> None:
        """Keep one batch; after this returns, a kill cannot lose it.

        Raises:
            TraceError: the disk is full, or the batch holds what no trace may hold
                (see format.check_records and the limits there).
        """
        if self._broken or self._dir < 0:
            raise TraceError(
                f"{self.path} takes no more batches", "it was closed, or a write to it failed before"
            )
        added = self._messages(batch)
        ends = dict(self._ends)
        crc = 0
        for name, message in added:
            ends[name] += len(message)
            crc = zlib.crc32(message, crc)
        use = batch.self_use or schema.SelfUse()
        row: dict[str, Any] = {
            "watermark_ns": batch.watermark_ns,
            "records": len(batch.records),
            "lost_ring": batch.losses.ring,
            "lost_map": batch.losses.map,
            "lost_late": batch.losses.late,
            "self_use": batch.self_use is not None,
            "cpu_percent": use.cpu_percent,
            "probe_ns_per_s": use.probe_ns_per_s,
            "steal_ns": use.steal_ns,
            "ends": [ends[name] for name in fmt.STREAMS],
        }
        row["crc32"] = index_checksum(row, crc)
        table = fmt.SCHEMAS[fmt.INDEX]
        commit = messages.write_message(fmt.INDEX, [pa.array([row[c.name]], type=c.type) for c in table])
        for name, message in added:
            self._write(name, message)
        self._write(fmt.INDEX, commit)
        self._ends = ends
        self._note(batch)

    def close(self) -> None:
        """Mark the trace complete and make it durable. May be called twice."""
        if self._dir < 0:
            return
        try:
            if not self._broken:
                for name, fd in self._fds.items():
                    self._write(name, messages.end_of_stream())
                    os.fsync(fd)
                self._meta["closed"] = True
                self._write_meta(durable=True)
        finally:
            self._close_fds()

    # --- what goes in ---

    def _messages(self, batch: schema.Batch) -> list[tuple[str, memoryview]]:
        if len(batch.records) > fmt.MAX_BATCH_RECORDS:
            raise TraceError(
                f"a batch of {len(batch.records)} records; a trace takes {fmt.MAX_BATCH_RECORDS} at once",
                "hand over smaller batches",
            )
        fmt.check_records(batch.records)
        columns = []
        if len(batch.records):
            columns.append((fmt.EVENTS, fmt.records_to_columns(batch.records)))
        for name in fmt.ROW_TYPES:
            if rows := getattr(batch, name):
                columns.append((name, _columns(name, rows)))
        if batch.host:
            pairs = [{"key": key, "json": json.dumps(value)} for key, value in batch.host.items()]
            columns.append(("host", _dict_columns("host", pairs)))
        written = [(name, memoryview(messages.write_message(name, column))) for name, column in columns]
        for name, message in written:
            if name != fmt.EVENTS and (len(message) > fmt.MAX_SIDE_BYTES):
                raise TraceError(
                    f"{name} of one batch take {len(message)} bytes", "hand over smaller batches"
                )
        return written

    def _note(self, batch: schema.Batch) -> None:
        meta = self._meta
        meta["batches"] += 1
        meta["records"] += len(batch.records)
        meta["watermark_ns"] = batch.watermark_ns
        meta["losses"] = asdict(batch.losses)
        if batch.host or batch.targets:
            meta["host"] = {**meta["host"], **batch.host}
            self._targets.update((target.tgid, target) for target in batch.targets)
            meta["targets"] = [asdict(target) for target in self._targets.values()]
            self._write_meta()

    # --- files ---

    def _create(self, name: str) -> int:
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=self._dir)
        except OSError as error:
            kind = TraceError if fmt.INDEX in self._fds else OutputError  # while recording, the disk is full
            raise kind(f"cannot make {self.path}/{name}: {error.strerror}", "choose another name") from error
        folder.give(fd, self._owner)
        return fd

    def _write(self, name: str, data: bytes | memoryview | pa.Buffer) -> None:
        try:
            _write_all(self._fds[name], data)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> TraceError:
        self._broken = True
        return TraceError(
            f"cannot write to {self.path}: {error.strerror}",
            "free some space; what was recorded until now can be read",
        )

    def _write_meta(self, *, durable: bool = False) -> None:
        temporary = fmt.META + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=self._dir)
        fd = self._create(temporary)
        try:
            _write_all(fd, json.dumps(self._meta, indent=1).encode())
            if durable:
                os.fsync(fd)
            os.rename(temporary, fmt.META, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            os.close(fd)

    def _close_fds(self) -> None:
        for fd in (*self._fds.values(), self._dir):
            os.close(fd)
        self._fds, self._dir = {}, -1


def _write_all(fd: int, data: bytes | memoryview | pa.Buffer) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _columns(name: str, rows: Iterable[Any]) -> list[pa.Array]:
    names = [field.name for field in fields(fmt.ROW_TYPES[name])]
    return _dict_columns(name, [{field: getattr(row, field) for field in names} for row in rows])


def _dict_columns(name: str, rows: list[dict[str, Any]]) -> list[pa.Array]:
    if name == "sites":
        rows = [{**row, "frames": [asdict(frame) for frame in row["frames"]]} for row in rows]
    count = max(len(rows), sum(len(row.get("frames", ())) + len(row.get("notes", ())) for row in rows))
    if count > fmt.MAX_SIDE_ROWS:
        raise TraceError(f"{count} rows of {name} in one batch", "hand over smaller batches")
    try:
        return [pa.array([_text(row[c.name]) for row in rows], type=c.type) for c in fmt.SCHEMAS[name]]
    except (pa.ArrowException, OverflowError) as error:
        raise TraceError(f"{name} holds a number that no trace can hold", "report this as a bug") from error


def _text(value: Any) -> Any:
    """Text that UTF-8 can hold: bytes that were none (surrogates) are shown escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return value
