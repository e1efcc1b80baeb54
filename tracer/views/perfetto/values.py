# SPDX-License-Identifier: Apache-2.0
"""Columns of frames as plain values, as fast as rows can be had. Owns what stands for "not known"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tracer.schema import Flag

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

#: NaT as a number.
UNKNOWN: Final = -(2**63)


def superseded(spans: pd.DataFrame) -> NDArray[np.bool_]:
    """OPEN spans (n,) that a later record of the same thread and begin replaces."""
    opened: NDArray[np.bool_] = (spans["flags"].to_numpy() & int(Flag.OPEN)) != 0
    if not opened.any():
        return opened
    keys = list(zip(spans["tid"].tolist(), as_ns(spans, "enter_ns").tolist(), strict=True))
    last = {key: i for i, key in enumerate(keys)}
    closed = {key for key, still in zip(keys, opened.tolist(), strict=True) if not still}
    gone: NDArray[np.bool_] = np.array(
        [
            still and (key in closed or last[key] != i)
            for i, (key, still) in enumerate(zip(keys, opened.tolist(), strict=True))
        ],
        dtype=bool,
    )
    return gone


def as_ns(frame: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """A column of times or spans as ns (n,); NaT is ``UNKNOWN``."""
    values = frame[column]
    if getattr(values.dt, "tz", None) is not None:
        values = values.dt.tz_localize(None)
    numbers: NDArray[np.int64] = values.to_numpy().view(np.int64)
    return numbers


def as_ints(frame: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """A column of whole numbers (n,); <NA> is -1."""
    numbers: NDArray[np.int64] = frame[column].fillna(-1).to_numpy(dtype=np.int64)
    return numbers


def as_rows(frame: pd.DataFrame, *columns: str) -> Iterable[tuple[Any, ...]]:
    """Rows of some columns as plain values; a missing column and <NA> are -1."""
    lists: list[Sequence[Any]] = []
    for name in columns:
        if name not in frame:
            lists.append([-1] * len(frame))
            continue
        values = frame[name]
        if str(values.dtype) in ("Int64", "UInt64"):
            lists.append(values.fillna(-1 if str(values.dtype) == "Int64" else 0).tolist())
        else:
            lists.append(values.tolist())
    return zip(*lists, strict=True)


def as_text(value: object) -> str:
    """A text, "" for None and NaN."""
    return value if isinstance(value, str) else ""
