# SPDX-License-Identifier: Apache-2.0
"""One JSON object per line: snapshots, and a last summary.

Owns the wire form of ``--json`` (docs/summary.md). Writes nothing else to its stream.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TextIO

from tracer.model.summary import Summary
from tracer.views.base import Unattended

#: A snapshot carries the newest of these only, else a long run's lines would grow without bound.
SNAPSHOT_MISSES = 200


def _plain(value: object) -> object:
    """Rows as dicts, for json's ``default`` (no deep copy: a summary may hold thousands of rows)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def to_line(summary: Summary, kind: str, extra: Mapping[str, object] | None = None) -> str:
    """``{"type": kind, …}`` and a newline; lone surrogates of hostile names stay valid JSON."""
    row: dict[str, Any] = {"type": kind}
    row.update((field.name, getattr(summary, field.name)) for field in dataclasses.fields(summary))
    row.update(extra or {})
    line = json.dumps(row, default=_plain, separators=(",", ":"), ensure_ascii=False)
    return line.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def snapshot_of(summary: Summary) -> Summary:
    """The summary with its newest misses and episodes only; all counts stay whole."""
    return dataclasses.replace(
        summary, misses=summary.misses[-SNAPSHOT_MISSES:], episodes=summary.episodes[-SNAPSHOT_MISSES:]
    )


class JsonLines(Unattended):
    """A view for programs.

    Args:
        out: where the lines go; flushed after each.
        refresh_s: seconds from one snapshot to the next.
    """

    def __init__(self, out: TextIO, refresh_s: float = 1.0) -> None:
        self._out = out
        self.refresh_s = refresh_s

    def show(self, summary: Summary) -> None:
        self._out.write(to_line(snapshot_of(summary), "snapshot"))
        self._out.flush()

    def finish(self, summary: Summary, extra: Mapping[str, object]) -> None:
        self._out.write(to_line(summary, "summary", extra))
        self._out.flush()
