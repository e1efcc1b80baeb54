# SPDX-License-Identifier: Apache-2.0
"""The tables of streams and of threads.

Owns their columns, order and notes. Computes nothing but text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.text import Text

from tracer.model.summary import Summary
from tracer.model.summaryrows import StreamRow, ThreadRow
from tracer.views.fmt import BAD, DIM, GOOD, NONE, WARN, clean, count, duration, sparkline
from tracer.views.grid import Block, Cell, Column, table, table_wants

_SPARK, _SPARK_NARROW = 24, 12  # cells; narrow under 100

#: The orders that the key s goes through; in every table the worst comes first.
SORTS = ("harm", "time", "name")


def tally(counts: Mapping[str, int]) -> str:
    """``serialised 12, lock 3``: the largest first, zeros left out."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{clean(name)} {count(n)}" for name, n in rows if n)


def _least(stream: StreamRow) -> int:
    return stream.slack_ns.min if stream.slack_ns.min is not None else 1 << 62


def sort_streams(rows: tuple[StreamRow, ...], order: str) -> list[StreamRow]:
    """By misses, then least slack; by least slack; or by name. Streams that ended come last."""
    if order == "name":
        return sorted(rows, key=lambda s: (not s.alive, s.name, s.id))
    if order == "time":
        return sorted(rows, key=lambda s: (not s.alive, _least(s), s.id))
    return sorted(rows, key=lambda s: (-s.misses, not s.alive, _least(s), s.id))


def _misses(stream: StreamRow) -> Cell:
    return (count(stream.misses), BAD if stream.misses else GOOD)


def _slack(value: int | None) -> Cell:
    return (duration(value), BAD if value is not None and value < 0 else "")


def _seen(stream: StreamRow) -> Cell:
    if stream.source == "exact":
        return ("exact", DIM)
    return (f"{clean(stream.source)} {stream.confidence:.0%}", WARN)


def _legs(stream: StreamRow) -> str:
    legs = stream.misses_by_leg
    return f"{count(legs.get('wake', 0))}/{count(legs.get('completion', 0))}" if stream.misses else ""


def _audible(stream: StreamRow) -> str:
    return tally({k: v for k, v in stream.audible.items() if k != "unknown"})


def _spark(width: int) -> Callable[[StreamRow], Text]:
    cells = _SPARK if width >= 100 else _SPARK_NARROW
    return lambda stream: sparkline(stream.recent, stream.period_ns, cells)


def render_streams(summary: Summary, *, sort: str = "harm") -> Block:
    """One row per stream: misses and episodes by cause, slack, the last cycles."""
    several = len({stream.tgid for stream in summary.streams}) > 1
    rows = sort_streams(summary.streams, sort)

    def build(width: int, height: int | None) -> list[Text]:
        columns: list[Column[StreamRow]] = [
            Column("stream", lambda s: (clean(s.title), "" if s.alive else DIM), least=18, most=32),
            Column("", lambda s: "" if s.alive else ("ended", DIM), 2),
            Column("missed", _misses, right=True),
            Column("episodes", lambda s: count(s.episodes), 1, right=True),
            Column("causes", lambda s: tally(s.misses_by_cause), 1, least=24, most=44),
            Column("slack min", lambda s: _slack(s.slack_ns.min), 2, right=True),
            Column("p1", lambda s: _slack(s.slack_ns.p1), 5, right=True),
            Column("p50", lambda s: _slack(s.slack_ns.p50), 4, right=True),
            Column("period", lambda s: duration(s.period_ns), 3, right=True),
            Column("cycles", lambda s: count(s.cycles), 4, right=True),
            Column("carried", lambda s: count(s.carried) if s.carried else "", 7, right=True),
            Column("wake/compl", _legs, 8, right=True),
            Column("audible", _audible, 7),
            Column("context", lambda s: str(s.context), 6, right=True),
            Column("vmm", lambda s: str(s.tgid) if several else "", 3, right=True),
            Column("seen", _seen, 9),
            Column("last cycles", _spark(width), 2),
        ]
        note = f"sorted by {_ORDER[sort]}"
        return table("Streams", note, columns, rows, width, height, empty=clean(summary.verdict))

    return Block(build, table_wants(rows, clean(summary.verdict)))


_ORDER = {"harm": "misses, then least slack", "time": "least slack", "name": "name"}


def render_threads(summary: Summary) -> Block:
    """What the scheduler knows of the threads on the path; those with a role first."""
    columns: list[Column[ThreadRow]] = [
        Column("role", lambda t: t.role or NONE),
        Column("thread", lambda t: clean(t.comm), least=8, most=20),
        Column("tid", lambda t: str(t.tid), right=True),
        Column("process", lambda t: str(t.tgid), 4, right=True),
        Column("policy", lambda t: t.policy, 1),
        Column("prio", lambda t: str(t.priority) if t.policy else "", 1, right=True),
        Column("cpus", lambda t: clean(t.cpus), 2, least=4, most=16),
        Column(
            "throttled", lambda t: NONE if t.throttled_ns < 0 else duration(t.throttled_ns), 3, right=True
        ),
        Column("role seen by", lambda t: (clean(t.role_by), DIM), 5),
    ]
    rows = sorted(summary.threads, key=lambda t: (not t.role, t.tgid, t.role, t.tid))
    return Block(lambda width, height: table("Threads", "", columns, rows, width, height), table_wants(rows))
