# SPDX-License-Identifier: Apache-2.0
"""Frames as files: a folder with one file per table, and a README of their columns.

Owns how each type of column is written. Tables and columns are those of columns.py; records are written batch
by batch, so that a trace may be larger than memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tracer.errors import UsageError
from tracer.frames import TABLES, Trace
from tracer.frames.columns import Column, Table
from tracer.frames.docs import columns

FORMATS: Final = ("parquet", "csv")

_ARROW: Final = {
    "time": pa.timestamp("ns", "UTC"),
    "span": pa.duration("ns"),
    "int": pa.int64(),
    "maybe": pa.int64(),
    "word": pa.uint64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "category": pa.string(),
    "text": pa.string(),
}
#: Columns of type "texts" that hold numbers.
_NUMBERS: Final = ("eventfd_ids", "words")

_WRITTEN: Final = {
    "parquet": "Moments are timestamps in UTC and lengths of time durations, both of ns (a reader without "
    "durations sees whole numbers of ns); what is not known is null; tuples are lists.",
    "csv": "Moments are ISO 8601 in UTC, lengths of time whole numbers of ns; what is not known is empty; "
    "the parts of a tuple are separated by '; '.",
}


def export_tables(trace: Trace, folder: Path, form: str) -> dict[str, int]:
    """Write every table of a trace into a new folder.

    Args:
        folder: must not exist; is made with mode 0700, since names of programs and threads are in it.
        form: one of FORMATS.

    Returns:
        Rows written by table.

    Raises:
        UsageError: the folder exists or cannot be written (nothing of it stays). TraceError: the trace is
            damaged.
    """
    rows: dict[str, int] = {}
    trace.summary  # noqa: B018 - a damaged trace is refused before anything is made
    made = False
    try:
        folder.mkdir(mode=0o700)
        made = True
        for table in TABLES.values():
            rows[table.name] = _write(trace, table, folder, form)
        with _new(folder / "README.md") as out:
            out.write(readme(trace, rows, form).encode())
    except BaseException as error:
        if made:  # half of the tables would be taken for all
            shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise UsageError(
            f"cannot write {folder}: {error.strerror}", "choose another name with -o, or free some space"
        ) from error
    return rows


def readme(trace: Trace, rows: dict[str, int], form: str) -> str:
    """What lies in the folder, and what every column means."""
    lines = [f"# {trace.title}, as {form}", "", trace.summary.verdict, "", _WRITTEN[form], ""]
    if trace.incomplete:
        lines += [f"The trace is incomplete: {trace.incomplete}.", ""]
    lines += ["| file | rows |", "|---|---:|"]
    lines += [f"| {name}.{form} | {count} |" for name, count in rows.items()]
    return "\n".join([*lines, *columns(TABLES.values(), heading=f"## {{}}.{form}")]) + "\n"


def _new(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _write(trace: Trace, table: Table, folder: Path, form: str) -> int:
    parts = _parts(trace, table)
    with _new(folder / f"{table.name}.{form}") as out:
        return _parquet(parts, table, out) if form == "parquet" else _csv(parts, table, out)


def _parts(trace: Trace, table: Table) -> Iterator[pd.DataFrame]:
    if table.name == "records":
        yield from trace.records_by_batch()
    else:
        yield getattr(trace, f"df_{table.name}")()


def _type(column: Column) -> pa.DataType:
    if column.type == "texts":
        return pa.list_(pa.int64() if column.name in _NUMBERS else pa.string())
    return _ARROW[column.type]


def _parquet(parts: Iterator[pd.DataFrame], table: Table, out: IO[bytes]) -> int:
    schema = pa.schema([(c.name, _type(c)) for c in table.columns])
    rows = 0
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pa.table([_array(part[c.name], c) for c in table.columns], schema=schema))
            rows += len(part)
    return rows


def _array(values: Any, column: Column) -> Any:
    if column.type == "category":
        values = values.astype("str")
    return pa.array(values, type=_type(column), from_pandas=True)


def _csv(parts: Iterator[pd.DataFrame], table: Table, out: IO[bytes]) -> int:
    rows = 0
    pd.DataFrame(columns=table.names).to_csv(out, index=False, lineterminator="\n")
    for part in parts:
        for column in table.columns:
            if column.type == "span":
                part[column.name] = (
                    part[column.name].astype("int64").where(part[column.name].notna()).astype("Int64")
                )
            elif column.type == "texts":
                part[column.name] = [None if v is None else "; ".join(map(str, v)) for v in part[column.name]]
        part.to_csv(out, index=False, header=False, lineterminator="\n")
        rows += len(part)
    return rows
