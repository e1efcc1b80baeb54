# SPDX-License-Identifier: Apache-2.0
"""The Summary: the one object that every view, ``--json`` and the notebooks show.

Owns the shape of schema 1 (documented in docs/summary.md), of misses and episodes, and the JSON form. The
rows of its tables are summaryrows.py's. Computes nothing: rows.py fills it. Times are integer ns
(CLOCK_MONOTONIC); ``None`` means not known, never zero.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tracer.model.summaryrows import (
    BlameRow,
    DriverRow,
    HeldRow,
    HolderRow,
    LockRow,
    StreamRow,
    TargetRow,
    ThreadRow,
    WritePath,
)

SCHEMA = 1

#: Every cause a miss can be shown with (docs/how-it-works.md).
CAUSES = (
    "lock",
    "not_scheduled",
    "stolen",
    "slow_syscall",
    "on_cpu",
    "blocked",
    "serialised",
    "head_of_line",
    "not_rearmed",
    "guest_late",
    "host_late",
    "forward_failed",
    "mixed",
    "unknown",
)

#: Remedies judged by replay, in the order they are shown.
REMEDIES = (
    "item_state",
    "dup",
    "refcount",
    "task",
    "fair",
    "own_context",
    "realtime",
    "no_steal",
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a miss's window; ``ns`` long, in order; they sum to the window exactly.

    ``kind``: a leaf (docs/how-it-works.md); ``via``: serialised, head_of_line, not_rearmed or "";
    ``tid``: the responsible thread, 0 for an unseen one; ``object``: lock, syscall ... concerned.
    """

    kind: str
    via: str
    ns: int
    tid: int
    object: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Episode:
    """Misses of a stream (or several) from one moment with nothing pending to the next."""

    id: int
    start_ns: int
    end_ns: int | None
    streams: tuple[str, ...]
    misses: int
    cause: str
    culprit: str


@dataclass(frozen=True, slots=True)
class Miss:
    """One missed cycle of one stream, with its verdict.

    ``late_ns`` None: never closed within the grace. ``detail``: the verdict in one sentence.
    ``sufficient``, ``jointly``: "kind" or "kind:object". ``chain``: lock chain, waiter first.
    ``went_first``: what W served before, e.g. {"channel": 12}. ``kick``: exact, inferred or none.
    ``carried_from``: id of its origin.
    """

    id: int
    episode: int
    stream: str
    cycle: int
    leg: str
    deadline_ns: int
    late_ns: int | None
    cause: str
    lock: str | None
    via: str | None
    detail: str
    carried_from: int | None
    sufficient: tuple[str, ...]
    jointly: tuple[str, ...]
    chain: tuple[str, ...]
    went_first: Mapping[str, int]
    kick: str
    audible: str
    evidence: str
    segments: tuple[Segment, ...]
    start_ns: int = 0
    todo: str = ""
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Remedy:
    """What one remedy would have done: misses (and episodes) avoided, what remains by cause."""

    avoided: int
    of: int
    remaining_by_cause: Mapping[str, int]
    episodes_avoided: int = 0
    episodes_of: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something an engineer would want to be told. ``level``: info, warn or alert."""

    what: str
    why: str
    do: str
    level: str = "warn"


@dataclass(frozen=True, slots=True)
class Window:
    """Record time covered."""

    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Records lost by class."""

    ring: int = 0
    map: int = 0
    late: int = 0


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """Records analysed, and lost; ``per_s`` over the last second of record time."""

    total: int
    lost: Lost
    per_s: int = 0


@dataclass(frozen=True, slots=True)
class SelfCost:
    """Own CPU in percent of one core; ns the probes ran per second, -1 where not measured."""

    cpu_percent: float = 0.0
    probe_ns_per_s: int = -1


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything xdtrace has to say at one moment of record time.

    ``verdict``: is it still happening, since when, how often, why; ``todo``: the one thing to do about it.
    ``lead``: what each remedy alone would have avoided, in one sentence.
    """

    host: Mapping[str, str | int | float]
    targets: tuple[TargetRow, ...]
    window: Window
    records: RecordCounts
    self: SelfCost
    steal_ns: int
    verdict: str
    threads: tuple[ThreadRow, ...] = ()
    drivers: tuple[DriverRow, ...] = ()
    streams: tuple[StreamRow, ...] = ()
    locks: tuple[LockRow, ...] = ()
    blame: tuple[BlameRow, ...] = ()
    held: tuple[HeldRow, ...] = ()
    write_path: Mapping[str, WritePath] = field(default_factory=dict)
    episodes: tuple[Episode, ...] = ()
    misses: tuple[Miss, ...] = ()
    misses_by_cause: Mapping[str, int] = field(default_factory=dict)
    counterfactual: Mapping[str, Remedy] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    schema: int = SCHEMA
    todo: str = ""
    lead: str = ""
    holders: tuple[HolderRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form (schema 1): nested dicts and lists of plain values."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def to_json(self, *, kind: str | None = None) -> str:
        """One line of JSON; ``kind`` adds a leading ``"type"`` (snapshot, summary)."""
        data = self.to_dict()
        if kind is not None:
            data = {"type": kind, **data}
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """What ``dataclasses.asdict`` gives, without copying texts and numbers one by one: there are 100,000s."""
    if isinstance(value, str | int | float) or value is None:
        return value
    if isinstance(value, tuple | list):
        return type(value)([_plain(part) for part in value])
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, Segment):
        return {name: getattr(value, name) for name in _OF_SEGMENT}
    return {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}


_OF_SEGMENT: Final = tuple(part.name for part in dataclasses.fields(Segment))
