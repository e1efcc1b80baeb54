# SPDX-License-Identifier: Apache-2.0
"""Reads a trace, folder or packed file, trusting nothing in it.

Owns what a damaged or unfinished trace still gives. Never writes, never follows a
link inside the folder, holds one batch at a time (format.READ_LIMIT_BYTES).
Reads by pread, not mmap: a file cut while it is read must not kill the reader.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tracer import schema
from tracer.errors import TraceError
from tracer.trace import format as fmt
from tracer.trace import messages
from tracer.trace.archive import Part, open_parts
from tracer.trace.writer import index_checksum


class TraceReader:
    """A source of batches, equal to those that were recorded.

    May be iterated several times. A trace that ends early gives its whole batches.

    Args:
        path: NAME.xdt, or the single file that ``pack`` made of one.

    Attributes:
        meta: meta.json.
        incomplete: what is missing, in words; None for a whole trace. What only
            reading can show (a lost write in the middle) is added while iterating.

    Raises:
        TraceError: no trace, a newer one, one of which no batch is left, or one that
            cannot be right; while iterating too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = Path(path)
        self.meta: Mapping[str, Any] = {}
        self.incomplete: str | None = None
        self._parts = open_parts(path)
        try:
            self._read_meta()
            self._starts = {name: self._check_stream(name) for name in (*fmt.STREAMS, fmt.INDEX)}
            self._say_headless()
            self._batches = self._survey()
            if self.incomplete and not self._batches:
                raise self._nothing()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. May be called twice."""
        for part in self._parts.values():
            part.close()
        self._parts = {}

    def __iter__(self) -> Iterator[schema.Batch]:
        if not self._parts:
            raise TraceError(f"{self.path} was closed", "open it again")
        at = self._starts[fmt.INDEX]
        ends = [self._starts[name] for name in fmt.STREAMS]
        watermark_ns = 0
        for number in range(self._batches):
            row, at = self._index_row(at)
            batch = self._batch(number, row, ends)
            if batch is None:
                if not number:
                    raise self._nothing()
                return
            fmt.check_times(batch.records, batch.watermark_ns, watermark_ns)
            ends, watermark_ns = row["ends"], batch.watermark_ns
            yield batch

    # --- opening ---

    def _part(self, name: str) -> Part:
        return self._parts.get(name) or Part.nothing()

    def _missing(self, what: str) -> None:
        known = self.incomplete
        if known is None or what not in known:
            self.incomplete = f"{known}; {what}" if known else what

    def _nothing(self) -> TraceError:
        first = (self.incomplete or "").partition("; ")[0]  # the rest follows from it
        return TraceError(
            f"{self.path} holds no whole batch of records: {first}",
            "use another copy of it, or record again",
        )

    def _read_meta(self) -> None:
        part = self._part(fmt.META)
        if part.size_bytes > fmt.MAX_META_BYTES:
            raise fmt.damaged(f"{fmt.META} of {part.size_bytes} bytes")
        try:
            meta = json.loads(part.read(0, part.size_bytes))
        except (ValueError, RecursionError):
            if not self._parts:
                raise TraceError(
                    f"{self.path} is no trace", "name a folder made by `xdtrace record`"
                ) from None
            raise fmt.damaged(f"{fmt.META} cannot be read, and with it the version of the format") from None
        if not isinstance(meta, dict) or meta.get("format") != fmt.FORMAT_NAME:
            raise TraceError(f"{self.path} is no trace", "name a folder made by `xdtrace record`")
        fmt.check_version(meta.get("version"))
        fmt.check_record_schema(meta.get("record_schema"))
        self.meta = meta
        settings = meta.get("settings")
        if isinstance(settings, dict) and isinstance(settings.get("incomplete"), str):
            self._missing(settings["incomplete"])  # of the trace that this one was made from

    def _check_stream(self, name: str) -> int:
        """Check the schema; the offset of the first message."""
        part = self._part(name + fmt.SUFFIX)
        head = messages.peek(part.read, 0, 0)
        if head is None:
            return 0
        messages.check_schema(name, part.read(0, head.size_bytes))
        return head.size_bytes

    def _say_headless(self) -> None:
        headless = [name + fmt.SUFFIX for name, start in self._starts.items() if not start]
        if headless:
            more = f" and {len(headless) - 1} more files" if len(headless) > 1 else ""
            verb = "are" if more else "is"
            self._missing(f"{headless[0]}{more} {verb} missing or cut off before the first batch")

    def _survey(self) -> int:
        """How many batches are whole; says in ``incomplete`` why not all."""
        part = self._part(fmt.INDEX + fmt.SUFFIX)
        starts: list[int] = []
        at = self._starts[fmt.INDEX]
        closed = False
        while head := messages.peek(part.read, at, fmt.MAX_INDEX_BYTES):
            if head.is_end:
                closed = True
                break
            if at + head.size_bytes > part.size_bytes:
                break
            starts.append(at)
            at += head.size_bytes
        whole = len(starts)
        sizes = [self._part(name + fmt.SUFFIX).size_bytes for name in fmt.STREAMS]
        while whole and any(
            end > size for end, size in zip(self._index_row(starts[whole - 1])[0]["ends"], sizes, strict=True)
        ):
            whole -= 1
        if not closed:
            was_closed = self.meta.get("closed") is True
            self._missing(
                "the index is cut off"
                if was_closed
                else "the recording was not closed: what came after its last whole batch is missing"
            )
        if cut := len(starts) - whole:
            which, verb = (f"{cut} of", "are") if cut > 1 else ("of", "is")
            self._missing(f"the last {which} {len(starts)} batches {verb} cut off")
        promised = self.meta.get("batches") if self.meta.get("closed") is True else None
        if isinstance(promised, int) and promised > len(starts):
            self._missing(f"{promised - len(starts)} of {promised} batches are not in the index")
        return whole

    # --- reading ---

    def _index_row(self, at: int) -> tuple[dict[str, Any], int]:
        part = self._part(fmt.INDEX + fmt.SUFFIX)
        head = messages.peek(part.read, at, fmt.MAX_INDEX_BYTES)
        if head is None:
            raise fmt.damaged("the index shrank while it was read")
        message = part.read(at, head.size_bytes)
        rows = messages.parse_message(fmt.INDEX, message, 1, fmt.MAX_INDEX_BYTES).to_pylist()
        if len(rows) != 1:
            raise fmt.damaged("a row of the index that is none")
        return rows[0], at + head.size_bytes

    def _batch(self, number: int, row: dict[str, Any], starts: list[int]) -> schema.Batch | None:
        found: dict[str, bytes] = {}
        crc = 0
        for name, start, end in zip(fmt.STREAMS, starts, row["ends"], strict=True):
            limit = fmt.MAX_EVENTS_BYTES * 65 // 64 if name == fmt.EVENTS else fmt.MAX_SIDE_BYTES
            if not 0 <= end - start <= limit:
                raise fmt.damaged(f"{name} of batch {number} would take {end - start} bytes")
            if end > start:
                found[name] = data = self._part(name + fmt.SUFFIX).read(start, end - start)
                crc = zlib.crc32(data, crc)
        if index_checksum(row, crc) != row["crc32"]:
            if self.meta.get("closed") is True:
                raise fmt.damaged(f"batch {number} does not match its checksum")
            left_out = self._batches - number
            self._missing(f"batch {number} was not wholly written; {left_out} batches are left out")
            return None
        records = schema.empty_records()
        if fmt.EVENTS in found:
            events = messages.parse_message(
                fmt.EVENTS, found.pop(fmt.EVENTS), fmt.MAX_BATCH_RECORDS, fmt.MAX_EVENTS_BYTES
            )
            records = fmt.columns_to_records(events)
        if len(records) != row["records"]:
            raise fmt.damaged(f"batch {number} has {len(records)} records, not {row['records']}")
        fmt.check_records(records)
        sides = {name: _side(name, message) for name, message in found.items()}
        use = schema.SelfUse(row["cpu_percent"], row["probe_ns_per_s"], row["steal_ns"])
        return schema.Batch(
            records=records,
            watermark_ns=row["watermark_ns"],
            losses=schema.Losses(row["lost_ring"], row["lost_map"], row["lost_late"]),
            self_use=use if row["self_use"] else None,
            **sides,
        )


def _side(name: str, message: bytes) -> Any:
    table = messages.parse_message(name, message, fmt.MAX_SIDE_ROWS, fmt.MAX_SIDE_BYTES)
    fmt.check_rows(name, table)
    rows = table.to_pylist()
    if name == "host":
        return {row["key"]: _host_value(row["json"]) for row in rows}
    for row in rows:
        if name == "sites":
            row["frames"] = tuple(schema.Frame(**frame) for frame in row["frames"])
        elif name == "targets":
            row["notes"] = tuple(row["notes"])
    return tuple(fmt.ROW_TYPES[name](**row) for row in rows)


def _host_value(text: str) -> str | int | float:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise fmt.damaged("a host fact that is none") from error
    if not isinstance(value, str | int | float):
        raise fmt.damaged("a host fact that is none")
    return value
