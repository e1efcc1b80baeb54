# SPDX-License-Identifier: Apache-2.0
"""One run in figures: what ``compare`` takes from a summary.

Owns the measures of a run, each one number, and the refusal of a summary that is none. Takes the JSON form
(schema 1), so a saved summary and a trace give the same figures. Compares nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tracer.errors import TraceError
from tracer.model.summary import SCHEMA

_MINUTE_NS: Final = 60e9
_BIGGEST: Final = 2**63


@dataclass(frozen=True, slots=True)
class Measure:
    """What is compared.

    Attributes:
        unit: "/min", "ns", "ms/min"; exploratory: all but the primary measure and episodes.
        zoomed: drawn between its own ends, not from 0.
    """

    name: str
    title: str
    unit: str
    exploratory: bool = True
    zoomed: bool = False


PRIMARY: Final = Measure("misses", "missed cycles per minute of audio", "/min", exploratory=False)
EPISODES: Final = Measure("episodes", "episodes per minute of audio", "/min", exploratory=False)
COST: Final = Measure("write_cost", "one write, raw (p50)", "ns")
COST_CORRECTED: Final = Measure("write_cost_corrected", "one write, without the probes' share (p50)", "ns")
EXTRA: Final = Measure("write_extra", "what a write takes beyond write(2), raw (p50)", "ns")
EXTRA_CORRECTED: Final = Measure("write_extra_corrected", "the same without the probes' share (p50)", "ns")
MEASURES: Final = (
    PRIMARY,
    EPISODES,
    Measure("item_state_waits", "waits for item_state", "/min"),
    Measure("item_state_wait", "time waited for item_state", "ms/min"),
    Measure("item_state_wait_p99", "a wait for item_state, p99", "ns"),
    Measure("item_state_hold", "a hold of item_state, p99", "ns"),
    Measure("lock_wait", "time waited for any lock", "ms/min"),
    Measure("slack_p50", "slack, median", "ns", zoomed=True),
    Measure("slack_p1", "slack, 1st percentile", "ns", zoomed=True),
    COST,
    COST_CORRECTED,
    EXTRA,
    EXTRA_CORRECTED,
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        seconds: of record time; audio_s: watched, summed over streams.
        values: by measure; None where the run does not know it.
        records_per_s, lost, steal_percent (of all CPUs), load: how busy the machine was (load -1: not known).
        correction_ns: the probes' share of one write, None where it was not calibrated.
    """

    name: str
    seconds: float
    audio_s: float
    streams: int
    cycles: int
    misses: int
    episodes: int
    periods_ns: tuple[int, ...]
    inferred: bool
    by_cause: Mapping[str, int]
    write_paths: tuple[str, ...]
    devices: tuple[str, ...]
    kernel: str
    cpus: int
    schema: int
    records_per_s: float
    lost: int
    steal_percent: float
    load: float
    correction_ns: float | None
    values: Mapping[str, float | None]
    note: str = ""


class _Node:
    """A JSON object of which nothing is taken for granted."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise _bad(where, "is no object")
        self._data, self._where = data, where

    def number(self, name: str, default: float | None = None) -> float:
        value = self._data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_BIGGEST < value < _BIGGEST:
            raise _bad(f"{self._where}.{name}", "is no number")
        return value

    def maybe(self, name: str) -> float | None:
        return None if self._data.get(name) is None else self.number(name)

    def text(self, name: str) -> str:
        value = self._data.get(name, "")
        if not isinstance(value, str):
            raise _bad(f"{self._where}.{name}", "is no text")
        return value

    def node(self, name: str) -> _Node:
        return _Node(self._data.get(name, {}), f"{self._where}.{name}")

    def rows(self, name: str) -> Iterator[_Node]:
        value = self._data.get(name, [])
        if not isinstance(value, list | tuple):
            raise _bad(f"{self._where}.{name}", "is no list")
        return (_Node(row, f"{self._where}.{name}[{at}]") for at, row in enumerate(value))

    def items(self) -> Iterator[tuple[str, _Node]]:
        return ((str(key), _Node(value, f"{self._where}.{key}")) for key, value in self._data.items())

    def counts(self, name: str) -> dict[str, int]:
        node = self.node(name)
        return {str(key): int(node.number(key)) for key in node._data}


def _bad(where: str, what: str) -> TraceError:
    return TraceError(
        f"{where} {what}", "give a trace folder, or what `xdtrace report --format json` printed"
    )


def run_of(name: str, summary: Any, note: str = "") -> Run:
    """The figures of one run.

    Args:
        name: for people; summary: as ``Summary.to_dict`` or its JSON; note: what is missing in its trace.

    Raises:
        TraceError: it is no summary, one of a newer schema, or one that cannot be right.
    """
    root = _Node(summary, name)
    schema = int(root.number("schema", 0))
    if schema > SCHEMA:
        raise TraceError(f"{name} has schema {schema}; this xdtrace knows {SCHEMA}", "use a newer xdtrace")
    if schema < 1:
        raise _bad(name, "is no summary")
    window, records, host = root.node("window"), root.node("records"), root.node("host")
    lost = records.node("lost")
    elapsed_ns = window.number("end_ns", 0) - window.number("start_ns", 0)
    streams = list(root.rows("streams"))
    audio_ns = sum(s.number("cycles") * s.number("period_ns") for s in streams)
    misses = sum(int(s.number("misses")) for s in streams)
    episodes = len(list(root.rows("episodes")))  # one of several streams is one, as in the run's own report
    paths = [path for _, path in root.node("write_path").items()]
    corrections = [c for path in paths if (c := path.maybe("correction_ns")) is not None]
    cpus = int(host.number("cpus", 0))
    minutes, audio_minutes = elapsed_ns / _MINUTE_NS, audio_ns / _MINUTE_NS
    return Run(
        name=name,
        seconds=max(0.0, elapsed_ns / 1e9),
        audio_s=audio_ns / 1e9,
        streams=len(streams),
        cycles=sum(int(s.number("cycles")) for s in streams),
        misses=misses,
        episodes=episodes,
        periods_ns=tuple(sorted({int(s.number("period_ns")) for s in streams})),
        inferred=any(s.text("source") == "inferred" for s in streams),
        by_cause=root.counts("misses_by_cause"),
        write_paths=tuple(sorted({path.text("kind") for path in paths})),
        devices=tuple(sorted({f"{p.text('crate')} {p.text('version')}".strip() for p in paths} - {""})),
        kernel=host.text("kernel"),
        cpus=cpus,
        schema=schema,
        records_per_s=records.number("total", 0) / (elapsed_ns / 1e9) if elapsed_ns > 0 else 0.0,
        lost=int(sum(lost.number(key, 0) for key in ("ring", "map", "late"))),
        steal_percent=100 * root.number("steal_ns", 0) / (elapsed_ns * max(1, cpus))
        if elapsed_ns > 0
        else 0.0,
        load=host.number("load_average", -1),
        correction_ns=max(corrections, default=None),
        values={
            PRIMARY.name: _rate(misses, audio_minutes),
            EPISODES.name: _rate(episodes, audio_minutes),
            **_lock_values(list(root.rows("locks")), minutes),
            **_slack_values(streams),
            COST.name: _worst(path.node("cost_ns").maybe("p50") for path in paths),
            COST_CORRECTED.name: _worst(path.maybe("cost_corrected_ns") for path in paths),
            EXTRA.name: _worst(path.node("extra_ns").maybe("p50") for path in paths),
            EXTRA_CORRECTED.name: _worst(_extra_corrected(path) for path in paths),
        },
        note=note,
    )


def _extra_corrected(path: _Node) -> float | None:
    raw, correction = path.node("extra_ns").maybe("p50"), path.maybe("correction_ns")
    return None if raw is None or correction is None else max(0.0, raw - correction)


def _rate(count: int, minutes: float) -> float | None:
    """To five digits: periods are measured, and equal counts must stay ties."""
    return float(f"{count / minutes:.5g}") if minutes > 0 else None


def _lock_values(locks: list[_Node], minutes: float) -> dict[str, float | None]:
    mine = [lock for lock in locks if lock.text("name") == "item_state"]
    mutexes = [lock for lock in locks if lock.text("kind") != "other"]

    def per_minute(total: float) -> float | None:
        return total / minutes if minutes > 0 else None

    return {
        "item_state_waits": per_minute(sum(lock.number("contended") for lock in mine)),
        "item_state_wait": per_minute(sum(lock.node("wait_ns").number("total") for lock in mine) / 1e6),
        "item_state_wait_p99": _worst(lock.node("wait_ns").maybe("p99") for lock in mine),
        "item_state_hold": _worst(lock.node("hold_ns").maybe("p99") for lock in mine),
        "lock_wait": per_minute(sum(lock.node("wait_ns").number("total") for lock in mutexes) / 1e6),
    }


def _slack_values(streams: list[_Node]) -> dict[str, float | None]:
    """The worst stream's: one late stream is not made good by others."""
    slack = [stream.node("slack_ns") for stream in streams]
    found = {name: [v for s in slack if (v := s.maybe(name)) is not None] for name in ("p50", "p1")}
    return {f"slack_{name}": min(values, default=None) for name, values in found.items()}


def _worst(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return max(known, default=None)
