# SPDX-License-Identifier: Apache-2.0
"""A trace for Perfetto's UI: threads, lock waits with arrows to the release, periods, misses, held words.

Draws from frames alone; decides nothing but on which track a slice lies. Written as a stream, so that
what is kept in memory is the frames, not the output. Times are real time (UTC) in ns; a clock snapshot
ties them to CLOCK_MONOTONIC.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import IO, TYPE_CHECKING, Final, Protocol

import numpy as np

from tracer.model.blame import syscall_name
from tracer.schema import Flag, Kind
from tracer.views.perfetto.packets import Packets
from tracer.views.perfetto.values import UNKNOWN, as_ints, as_ns, as_rows, as_text, superseded

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_CALLS: Final = tuple(kind for kind in Kind if kind < Kind.OFFCPU)


class Tables(Protocol):
    """What is needed of tracer.frames."""

    def df_records(self, *kinds: str | Kind) -> pd.DataFrame: ...
    def df_waits(self) -> pd.DataFrame: ...
    def df_periods(self) -> pd.DataFrame: ...
    def df_misses(self) -> pd.DataFrame: ...
    def df_segments(self) -> pd.DataFrame: ...
    def df_threads(self) -> pd.DataFrame: ...
    def df_streams(self) -> pd.DataFrame: ...
    def df_locks(self) -> pd.DataFrame: ...


def write_perfetto(tables: Tables, stream: IO[bytes], *, offset_ns: int = 0) -> int:
    """Write a trace that ui.perfetto.dev and trace_processor open.

    Args:
        tables: frames of a trace.
        stream: binary, written from its present place on.
        offset_ns: real time minus CLOCK_MONOTONIC (the frames' times are real time).

    Returns:
        How many packets were written.
    """
    out = Packets(stream)
    calls = tables.df_records(*_CALLS)
    begin = as_ns(calls, "enter_ns").min(initial=2**62) if len(calls) else 0
    out.clocks(int(begin), offset_ns)
    names = {int(tid): str(comm) for tid, comm in as_rows(tables.df_threads(), "tid", "comm")}
    _syscalls(out, calls, names)
    _off_cpu(out, tables.df_records(Kind.OFFCPU), names)
    _waits(out, tables.df_waits(), names)
    _periods(out, tables)
    _misses(out, tables, names)
    _held(out, calls, tables)
    return out.packets


# --- threads -------------------------------------------------------------------------


def _thread(out: Packets, names: Mapping[int, str], tid: int, tgid: int, comm: object = None) -> int:
    out.process(tgid, f"process {tgid}")
    return out.thread(tid, tgid, names.get(tid) or as_text(comm) or f"tid {tid}")


def _syscalls(out: Packets, calls: pd.DataFrame, names: Mapping[int, str]) -> None:
    calls = calls[~superseded(calls)].sort_values(["tid", "enter_ns"], kind="stable")
    opened = (calls["flags"].to_numpy() & int(Flag.OPEN)) != 0
    tids, starts = as_ints(calls, "tid"), as_ns(calls, "enter_ns")
    ends = starts + as_ns(calls, "dur_ns")
    follows = np.r_[tids[1:] == tids[:-1], False][: len(tids)]
    # One that never ended lasts until its thread did something else, whose record says it must have.
    ends = np.where(opened & follows, np.r_[starts[1:], 0][: len(starts)], ends)
    endless = (opened & ~follows).tolist()
    wanted = ("tid", "tgid", "comm", "kind", "op", "fd", "eventfd_id", "ret")
    for (tid, tgid, comm, kind, op, fd, eventfd, ret), start, end, still in zip(
        as_rows(calls, *wanted), starts.tolist(), ends.tolist(), endless, strict=True
    ):
        name = syscall_name(Kind[kind], op)
        if eventfd >= 0:
            name = f"{name} eventfd {eventfd}"
        elif fd >= 0:
            name = f"{name} fd {fd}"
        notes = {"error": f"errno {-ret}"} if -4096 < ret < 0 else None
        out.slice(_thread(out, names, tid, tgid, comm), start, None if still else end, name, notes=notes)


def _off_cpu(out: Packets, spans: pd.DataFrame, names: Mapping[int, str]) -> None:
    spans = spans[~superseded(spans)].sort_values(["tid", "enter_ns"], kind="stable")
    starts, ends = as_ns(spans, "enter_ns"), as_ns(spans, "enter_ns") + as_ns(spans, "dur_ns")
    rows = as_rows(spans, "tid", "tgid", "comm", "waker_tid", "instead_tid", "waker_in_irq")
    for (tid, tgid, comm, waker, instead, irq), start, woken, end in zip(
        rows, starts.tolist(), as_ns(spans, "woken_ns").tolist(), ends.tolist(), strict=True
    ):
        track = out.track(_thread(out, names, tid, tgid, comm), "off the CPU")
        runnable = start
        if woken != UNKNOWN:
            runnable = min(max(woken, start), end)
            by = "an interrupt" if irq == 1 else names.get(waker, f"tid {waker}")
            out.slice(track, start, runnable, "blocked", notes={"woken by": by})
        if end > runnable:
            who = names.get(instead, f"tid {instead}") if instead > 0 else "nobody seen"
            out.slice(track, runnable, end, "runnable", notes={"ran instead": who})


def _waits(out: Packets, waits: pd.DataFrame, names: Mapping[int, str]) -> None:
    starts, ends = as_ns(waits, "start_ns"), as_ns(waits, "start_ns") + as_ns(waits, "wait_ns")
    wanted = ("tid", "tgid", "comm", "lock", "holder_tid", "holder", "holder_operation", "holder_syscall")
    flows = count(1)
    for (tid, tgid, comm, lock, holder, name, operation, syscall), start, end in zip(
        as_rows(waits, *wanted), starts.tolist(), ends.tolist(), strict=True
    ):
        flow = next(flows) if holder > 0 else 0
        notes = {"held by": as_text(name), "holder did": as_text(operation), "in": as_text(syscall)}
        track = out.track(_thread(out, names, tid, tgid, comm), "lock waits")
        out.slice(
            track, start, end, f"waits for {as_text(lock)}", flow, {k: v for k, v in notes.items() if v}
        )
        if flow:
            release = out.track(_thread(out, names, holder, tgid, name), "lock releases")
            out.instant(release, end, f"releases {as_text(lock)}", flow)


# --- audio ----------------------------------------------------------------------------


def _streams(out: Packets, tables: Tables) -> dict[str, int]:
    """Stream id -> its track, below its VMM."""
    wanted = as_rows(tables.df_streams(), "id", "tgid", "name")
    return {
        str(id): out.track(out.process(tgid, f"process {tgid}"), f"stream {as_text(name) or id}")
        for id, tgid, name in wanted
    }


def _periods(out: Packets, tables: Tables) -> None:
    streams, periods = _streams(out, tables), tables.df_periods()
    starts, ends = as_ns(periods, "start_ns"), as_ns(periods, "deadline_ns")
    slack = as_ns(periods, "slack_ns")
    rows = as_rows(periods, "stream", "cycle", "missed", "leg")
    for (stream, cycle, missed, leg), start, end, left in zip(
        rows, starts.tolist(), ends.tolist(), slack.tolist(), strict=True
    ):
        parent = streams.get(str(stream))
        if parent is None or end < start:
            continue
        name = f"cycle missed on the {as_text(leg)} leg" if missed else "cycle"
        out.slice(out.track(parent, "periods"), start, end, name, notes={"cycle": str(cycle)})
        if left != UNKNOWN:
            out.value(out.track(parent, "slack", "ms"), end, left / 1e6)


def _misses(out: Packets, tables: Tables, names: Mapping[int, str]) -> None:
    streams, misses, segments = _streams(out, tables), tables.df_misses(), tables.df_segments()
    where: dict[int, tuple[int, str]] = {}
    lanes: dict[int, list[int]] = {}
    length = dict(zip(segments["miss"].tolist(), [0] * len(segments), strict=True))
    for miss, ns in zip(segments["miss"].tolist(), as_ns(segments, "ns").tolist(), strict=True):
        length[miss] += ns
    wanted = ("id", "stream", "cause", "detail", "carried_from", "sufficient")
    for (id, stream, cause, detail, carried, sufficient), start in zip(
        as_rows(misses, *wanted), as_ns(misses, "start_ns").tolist(), strict=True
    ):
        parent = streams.get(str(stream))
        if parent is None:
            continue
        end = start + length.get(id, 0)
        lane = _lane(lanes.setdefault(parent, []), start, end)
        lane_name = "misses" if lane == 0 else f"misses {lane + 1}"
        notes = {"verdict": as_text(detail), "sufficient": ", ".join(map(str, sufficient or ()))}
        if carried > 0:
            notes["carried from"] = str(carried)
        out.slice(out.track(parent, lane_name), start, end, f"missed: {as_text(cause)}", notes=notes)
        if carried <= 0:
            where[id] = parent, f"segments {lane + 1}" if lane else "segments"
    rows = as_rows(segments, "miss", "kind", "via", "tid", "object", "detail")
    for (miss, kind, via, tid, thing, detail), start, ns in zip(
        rows, as_ns(segments, "start_ns").tolist(), as_ns(segments, "ns").tolist(), strict=True
    ):
        if miss not in where:
            continue
        parent, name = where[miss]
        notes = {
            "of": names.get(tid, ""),
            "via": as_text(via),
            "what": as_text(thing),
            "detail": as_text(detail),
        }
        out.slice(
            out.track(parent, name),
            start,
            start + ns,
            as_text(kind),
            notes={k: v for k, v in notes.items() if v},
        )


def _lane(ends: list[int], start: int, end: int) -> int:
    """The first lane that is free at a start: slices of one track must not overlap."""
    for lane, busy_until in enumerate(ends):
        if busy_until <= start:
            ends[lane] = end
            return lane
    ends.append(end)
    return len(ends) - 1


# --- held words -----------------------------------------------------------------------


def _held(out: Packets, calls: pd.DataFrame, tables: Tables) -> None:
    """A counter per watched lock: 1 where its word was held when a syscall began, at each change."""
    announced = tables.df_records(Kind.WORDS)
    if "held_in" not in calls or not len(announced):
        return
    names = {
        (int(g), int(a)): as_text(n) for g, a, n in as_rows(tables.df_locks(), "tgid", "address", "name")
    }
    words: dict[tuple[int, int], dict[int, int]] = {}
    for tgid, generation, chunk, some in as_rows(announced, "tid", "op", "flags", "words"):
        for bit, word in enumerate(some):
            if word:
                words.setdefault((tgid, generation), {})[4 * chunk + bit] = int(word)
    tgids, generations = as_ints(calls, "tgid"), as_ints(calls, "generation")
    held, readable = as_ints(calls, "held_in"), as_ints(calls, "readable_in")
    times = as_ns(calls, "enter_ns")
    parts: dict[tuple[int, int], list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}
    for (tgid, generation), bits in words.items():
        mine = (tgids == tgid) & (generations == generation)
        for bit, word in bits.items():
            at = np.flatnonzero(mine & (readable > 0) & ((readable >> bit & 1) == 1))
            if len(at):
                parts.setdefault((tgid, word), []).append((times[at], held[at] >> bit & 1))
    for (tgid, word), samples in parts.items():
        when = np.concatenate([t for t, _ in samples])
        value = np.concatenate([v for _, v in samples])
        order = np.argsort(when, kind="stable")
        when, value = when[order], value[order]
        changes = np.flatnonzero(np.r_[True, value[1:] != value[:-1]])
        name = names.get((tgid, word), f"lock@{word:#x}")
        track = out.track(out.process(tgid, f"process {tgid}"), f"{name} held", "held")
        for at, now in zip(when[changes].tolist(), value[changes].tolist(), strict=True):
            out.value(track, at, now)
