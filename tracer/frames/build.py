# SPDX-License-Identifier: Apache-2.0
"""DataFrames of the types that columns.py names.

Owns the way from integers of ns, None and "" to pandas types. Analyses nothing: rows come from the
Summary, from a Collector, or are the records themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
import pandas as pd

from tracer.frames.collect import Collector
from tracer.frames.columns import TABLES, TYPES, Column, Table
from tracer.model.acquire import ACQ
from tracer.model.analysis import Analysis
from tracer.model.summary import Summary
from tracer.model.tap import PIECE
from tracer.model.words import join
from tracer.schema import FAMILY, Batch, Kind, view

_NAT: Final = np.iinfo(np.int64).min
#: Columns of df_records that are called otherwise in the record.
_RENAMED: Final = {"comm": "new_comm", "tgid": "new_tgid"}


def frame(table: Table, values: Mapping[str, Any], offset_ns: int) -> pd.DataFrame:
    """A typed frame.

    Args:
        values: per column a sequence (n,), None where not known; times in ns of CLOCK_MONOTONIC.
        offset_ns: real time minus CLOCK_MONOTONIC.
    """
    data = {c.name: _typed(c, values[c.name], offset_ns) for c in table.columns if c.name in values}
    return pd.DataFrame(data)


def _typed(column: Column, values: Any, offset_ns: int) -> Any:
    kind = column.type
    if kind in ("time", "span"):
        return _times(values, offset_ns if kind == "time" else None)
    if kind == "category":
        if isinstance(values, pd.Categorical):
            return values
        return pd.Categorical([None if v in (None, "") else v for v in values])
    if kind == "texts":
        out = np.empty(len(values), dtype=object)
        out[:] = [None if v is None else tuple(v) for v in values]
        return pd.Series(out)
    return pd.Series(values, dtype=TYPES[kind][0])


def _times(values: Any, offset_ns: int | None) -> Any:
    if isinstance(values, np.ndarray) and values.dtype != object:
        numbers = values.astype(np.int64)
    else:
        numbers = np.array([_NAT if v is None else v for v in values], dtype=np.int64)
    if offset_ns is None:
        return pd.Series(numbers.view("m8[ns]"))
    known = numbers != _NAT
    moments = np.where(known, numbers + offset_ns * known, _NAT).view("M8[ns]")
    return pd.Series(moments).dt.tz_localize("UTC")


def of_rows(name: str, rows: Iterable[Any], offset_ns: int) -> pd.DataFrame:
    """A table of the summary, from its rows."""
    table, rows = TABLES[name], list(rows)
    values = {c.name: list(map(attrgetter(c.source or c.name), rows)) for c in table.columns}
    if name == "threads":
        values["throttled_ns"] = [None if ns < 0 else ns for ns in values["throttled_ns"]]
    if name == "misses":
        values["went_first"] = [
            ", ".join(f"{k} {n}" for k, n in went.items()) for went in values["went_first"]
        ]
    return frame(table, values, offset_ns)


def segments(summary: Summary, comm: Callable[[int], str], offset_ns: int) -> pd.DataFrame:
    """df_segments: the misses' windows, piece by piece."""
    rows = []
    for miss in summary.misses:
        at = miss.start_ns
        for n, s in enumerate(miss.segments):
            rows.append(
                (miss.id, n, at, s.ns, s.kind, s.via, s.tid, comm(s.tid) if s.tid else "", s.object, s.detail)
            )
            at += s.ns
    return _of_tuples("segments", rows, offset_ns)


def remedies(summary: Summary) -> pd.DataFrame:
    """df_remedies: the counterfactual."""
    rows = [
        (name, r.avoided, r.of, r.episodes_avoided, r.episodes_of)
        for name, r in summary.counterfactual.items()
    ]
    return _of_tuples("remedies", rows, 0)


def periods(kept: Collector, offset_ns: int) -> pd.DataFrame:
    """df_periods: every decided cycle."""
    rows = [row for step in kept.periods for row in step]
    rows.sort(key=lambda row: (row[9], row[0]))  # by deadline
    return _of_tuples("periods", rows, offset_ns)


def _of_tuples(name: str, rows: Sequence[tuple[Any, ...]], offset_ns: int) -> pd.DataFrame:
    table = TABLES[name]
    columns = list(zip(*rows, strict=True)) or [()] * len(table.columns)
    return frame(table, dict(zip(table.names, columns, strict=True)), offset_ns)


class _Names:
    """Names for arrays of ids, each asked for once."""

    def __init__(self, analysis: Analysis) -> None:
        self._a = analysis

    def of(self, ask: Callable[..., str], *keys: Any) -> pd.Categorical:
        """A category per row of parallel arrays (n,)."""
        if not len(keys[0]):
            return pd.Categorical([])
        unique, inverse = np.unique(np.rec.fromarrays(keys), return_inverse=True)
        names = [ask(*(int(v) for v in key.item())) for key in unique]
        known = sorted({name for name in names if name})
        at = {name: i for i, name in enumerate(known)}
        codes = np.array([at.get(name, -1) for name in names])[inverse.reshape(-1)]
        return pd.Categorical.from_codes(codes, categories=pd.Index(known, dtype="str"))

    def who(self, tids: Any) -> dict[str, Any]:
        """The columns tgid, tid, comm, role."""
        a = self._a.registry
        tids = np.ascontiguousarray(tids)
        return {
            "tgid": a.tgids_of(tids).astype(np.int64),
            "tid": tids.astype(np.int64),
            "comm": self.of(self.comm, tids),
            "role": self.of(a.role, tids),
        }

    def comm(self, tid: int) -> str:
        return self._a.registry.comm(tid) if tid else ""

    def lock(self, tgid: int, word: int) -> str:
        return self._a.locks.label(tgid, word)

    def operation(self, tgid: int, word: int, caller: int, tid: int, sign: int = 0) -> str:
        return self._a.locks.operation(tgid, word, caller, tid, sign) if tid else ""


def _locks_only(analysis: Analysis, rows: Any) -> Any:
    """Which rows (n,) are of lock words, and their kinds (n,)."""
    kinds = _Names(analysis).of(analysis.locks.kind, rows["tgid"], rows["word"])
    return kinds.isin(["mutex", "pthread"]), kinds


def acquisitions(analysis: Analysis, kept: Collector, offset_ns: int) -> pd.DataFrame:
    """df_acquisitions: contended acquisitions of locks, by start."""
    names, rows = _Names(analysis), join(list(kept.acquired), ACQ)
    if len(rows):
        rows = rows.take(np.flatnonzero(_locks_only(analysis, rows)[0]))
        rows = rows.take(np.lexsort((rows["tid"], rows["start_ns"])))
    hold = rows["hold_ns"].astype(np.int64)
    values = {
        "start_ns": rows["start_ns"],
        "wait_ns": rows["end_ns"] - rows["start_ns"],
        "lock": names.of(names.lock, rows["tgid"], rows["word"]),
        "address": rows["word"],
        "lock_kind": _locks_only(analysis, rows)[1],
        **names.who(rows["tid"]),
        "tgid": rows["tgid"],
        "operation": names.of(names.operation, rows["tgid"], rows["word"], rows["caller"], rows["tid"]),
        "waits": rows["waits"],
        "barged": rows["barged"],
        "hold_ns": np.where(hold < 0, _NAT, hold),
        "relock": rows["cond"] != 0,
    }
    return frame(TABLES["acquisitions"], values, offset_ns)


def waits(analysis: Analysis, kept: Collector, offset_ns: int) -> pd.DataFrame:
    """df_waits: waits for locks, cut by holder, by start."""
    names = _Names(analysis)
    rows = join([pieces for pieces, _ in kept.held], PIECE)
    syscalls = np.array([call for _, calls in kept.held for call in calls], dtype=object)
    if len(rows):
        order = np.flatnonzero(_locks_only(analysis, rows)[0])
        order = order[np.lexsort((rows["tid"][order], rows["start_ns"][order]))]
        rows, syscalls = rows.take(order), syscalls[order]
    of_lock = rows["tgid"], rows["word"]
    values = {
        "start_ns": rows["start_ns"],
        "wait_ns": rows["end_ns"] - rows["start_ns"],
        "acquisition_ns": rows["acq_ns"],
        "lock": names.of(names.lock, rows["tgid"], rows["word"]),
        "address": rows["word"],
        **names.who(rows["tid"]),
        "tgid": rows["tgid"],
        "operation": names.of(names.operation, *of_lock, rows["caller"], rows["tid"], rows["sign"]),
        "holder_tid": rows["holder"],
        "holder": names.of(names.comm, rows["holder"]),
        "holder_operation": names.of(
            names.operation, *of_lock, rows["holder_caller"], rows["holder"], rows["holder_sign"]
        ),
        "holder_syscall": syscalls,
    }
    return frame(TABLES["waits"], values, offset_ns)


def records(
    source: Iterable[Batch], analysis: Analysis, kinds: Sequence[Kind], offset_ns: int
) -> pd.DataFrame:
    """df_records: records of these kinds with the columns that they have."""
    table, names = TABLES["records"], _Names(analysis)
    wanted = np.zeros(256, dtype=bool)
    wanted[[int(kind) for kind in kinds]] = True
    parts = [batch.records.take(np.flatnonzero(wanted[batch.records["kind"]])) for batch in source]
    rows = join(parts, FAMILY[Kind.READ] if not parts else parts[0].dtype)
    kind = rows["kind"]
    values: dict[str, Any] = {
        "enter_ns": rows["enter_ns"],
        "dur_ns": rows["dur_ns"],
        "kind": names.of(lambda k: Kind(k).name, kind),
        **names.who(rows["tid"]),
        "op": rows["op"],
        "flags": rows["flags"],
    }
    fields = {_RENAMED.get(name, name) for k in kinds for name in FAMILY[k].names or ()} - {"pad"}
    for column in table.columns:
        if column.name in fields and column.name not in values:
            values[column.name] = _field(column, rows, kind, kinds)
    return frame(table, values, offset_ns)


def _field(column: Column, rows: Any, kind: Any, kinds: Sequence[Kind]) -> Any:
    """A family's field as a column (n,): not known where a record's family has none of that name."""
    old = {new: name for name, new in _RENAMED.items()}.get(column.name, column.name)
    having = [k for k in kinds if old in (FAMILY[k].names or ())]
    at = np.flatnonzero(np.isin(kind, [int(k) for k in having]))
    if column.type in ("text", "texts"):
        out = np.full(len(rows), None, dtype=object)
    else:
        out = np.zeros(len(rows), dtype=np.uint64 if column.type == "word" else np.int64)
    known = np.zeros(len(rows), dtype=bool)
    for k in having:
        mine = at[kind[at] == int(k)]
        values = view(rows.take(mine), FAMILY[k])[old]
        if column.type == "texts":
            out[mine] = [tuple(v) for v in values.tolist()]
        elif column.type == "text":
            out[mine] = [bytes(v).split(b"\0", 1)[0].decode("utf-8", "replace") for v in values]
        else:
            out[mine] = values
        known[mine] = True
    if column.name == "eventfd_id":
        known &= out >= 0
    if column.name == "woken_ns":
        known &= out > 0
    if column.type in ("time", "span"):
        return np.where(known, out, _NAT)
    if column.type == "maybe":
        return pd.arrays.IntegerArray(out, ~known)
    if column.type == "word":
        return pd.arrays.IntegerArray(out, ~known)
    return out
