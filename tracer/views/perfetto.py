# SPDX-License-Identifier: Apache-2.0
"""A trace for Perfetto's UI: threads, lock waits with arrows to the release, periods, misses, held words.

Draws from frames alone; decides nothing but on which track a slice lies. Written as a stream, so that
what is kept in memory is the frames, not the output. Times are real time (UTC) in ns; a clock snapshot
ties them to CLOCK_MONOTONIC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from tracer.model.blame import syscall_name
from tracer.schema import Flag, Kind
from tracer.views.fmt import clean

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_CALLS: Final = tuple(kind for kind in Kind if kind < Kind.OFFCPU)
_SEQUENCE: Final = 1
#: Perfetto's numbers of clocks (BuiltinClock).
_REALTIME, _MONOTONIC, _BOOTTIME = 1, 3, 6
_CLEARED, _NEEDED = 1, 2  # SequenceFlags: interned names begin here, or are needed
_UNKNOWN: Final = -(2**63)  # NaT and <NA> as integers


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


class _Out:
    """Packets of one sequence. Tracks are made when first asked for; names are sent once."""

    def __init__(self, stream: IO[bytes]) -> None:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

        self._builder = StreamingTraceProtoBuilder(stream)
        self._kinds = TrackEvent
        self._names: dict[str, int] = {}
        self._uuids = count(1)
        self._tracks: dict[tuple[object, ...], int] = {}
        self.packets = 0

    def clocks(self, real_ns: int, offset_ns: int) -> None:
        """Say that our timestamps are real time, and what CLOCK_MONOTONIC was then."""
        packet = self._packet(_CLEARED)
        for clock, at in ((_BOOTTIME, real_ns), (_REALTIME, real_ns), (_MONOTONIC, real_ns - offset_ns)):
            packet.clock_snapshot.clocks.add(clock_id=clock, timestamp=at)
        self._builder.write_packet(packet)

    def process(self, tgid: int, name: str) -> int:
        """The track of a process."""

        def describe(track: Any) -> None:
            track.process.pid = tgid
            track.process.process_name = clean(name)

        return self._track(("process", tgid), describe)

    def thread(self, tid: int, tgid: int, name: str) -> int:
        """The track of a thread."""

        def describe(track: Any) -> None:
            track.thread.pid, track.thread.tid = tgid, tid
            track.thread.thread_name = clean(name)

        return self._track(("thread", tid), describe)

    def track(self, parent: int, name: str, unit: str | None = None) -> int:
        """A track below another; with a unit it is a counter."""

        def describe(track: Any) -> None:
            track.name, track.parent_uuid = clean(name), parent
            if unit is not None:
                track.counter.unit_name = unit

        return self._track(("track", parent, name), describe)

    def _track(self, key: tuple[object, ...], describe: Any) -> int:
        uuid = self._tracks.get(key)
        if uuid is None:
            uuid = self._tracks[key] = next(self._uuids)
            packet = self._packet(_NEEDED)
            packet.track_descriptor.uuid = uuid
            describe(packet.track_descriptor)
            self._builder.write_packet(packet)
        return uuid

    def slice(
        self,
        track: int,
        start_ns: int,
        end_ns: int | None,
        name: str,
        flow: int = 0,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """A slice; ``end_ns`` None: it never ended."""
        event = self._event(track, start_ns, self._kinds.TYPE_SLICE_BEGIN, name, flow, notes)
        self._builder.write_packet(event)
        if end_ns is not None:
            end = self._event(track, max(end_ns, start_ns), self._kinds.TYPE_SLICE_END)
            self._builder.write_packet(end)

    def instant(self, track: int, at_ns: int, name: str, flow: int = 0) -> None:
        """A moment."""
        self._builder.write_packet(self._event(track, at_ns, self._kinds.TYPE_INSTANT, name, flow))

    def value(self, track: int, at_ns: int, value: float) -> None:
        """A counter's value from here on."""
        packet = self._event(track, at_ns, self._kinds.TYPE_COUNTER)
        packet.track_event.double_counter_value = value
        self._builder.write_packet(packet)

    def _event(
        self,
        track: int,
        at_ns: int,
        kind: int,
        name: str = "",
        flow: int = 0,
        notes: Mapping[str, str] | None = None,
    ) -> Any:
        packet = self._packet(_NEEDED)
        packet.timestamp = at_ns
        event = packet.track_event
        event.type, event.track_uuid = kind, track
        if name:
            iid = self._names.get(name)
            if iid is None:
                iid = self._names[name] = len(self._names) + 1
                packet.interned_data.event_names.add(iid=iid, name=clean(name))
            event.name_iid = iid
        if flow:
            event.flow_ids.append(flow)
        for key, text in (notes or {}).items():
            event.debug_annotations.add(name=key, string_value=clean(text))
        return packet

    def _packet(self, flags: int) -> Any:
        self.packets += 1
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id, packet.sequence_flags = _SEQUENCE, flags
        return packet


def write_perfetto(tables: Tables, stream: IO[bytes], *, offset_ns: int = 0) -> int:
    """Write a trace that ui.perfetto.dev and trace_processor open.

    Args:
        tables: frames of a trace.
        stream: binary, written from its present place on.
        offset_ns: real time minus CLOCK_MONOTONIC (the frames' times are real time).

    Returns:
        How many packets were written.
    """
    out = _Out(stream)
    calls = tables.df_records(*_CALLS)
    begin = _ns(calls, "enter_ns").min(initial=2**62) if len(calls) else 0
    out.clocks(int(begin), offset_ns)
    names = {int(tid): str(comm) for tid, comm in _rows(tables.df_threads(), "tid", "comm")}
    _syscalls(out, calls, names)
    _off_cpu(out, tables.df_records(Kind.OFFCPU), names)
    _waits(out, tables.df_waits(), names)
    _periods(out, tables)
    _misses(out, tables, names)
    _held(out, calls, tables)
    return out.packets


# --- threads -------------------------------------------------------------------------


def _thread(out: _Out, names: Mapping[int, str], tid: int, tgid: int, comm: object = None) -> int:
    out.process(tgid, f"process {tgid}")
    return out.thread(tid, tgid, names.get(tid) or _text(comm) or f"tid {tid}")


def _syscalls(out: _Out, calls: pd.DataFrame, names: Mapping[int, str]) -> None:
    calls = calls[~_superseded(calls)].sort_values(["tid", "enter_ns"], kind="stable")
    opened = (calls["flags"].to_numpy() & int(Flag.OPEN)) != 0
    tids, starts = _ints(calls, "tid"), _ns(calls, "enter_ns")
    ends = starts + _ns(calls, "dur_ns")
    follows = np.r_[tids[1:] == tids[:-1], False][: len(tids)]
    # One that never ended lasts until its thread did something else, whose record says it must have.
    ends = np.where(opened & follows, np.r_[starts[1:], 0][: len(starts)], ends)
    endless = (opened & ~follows).tolist()
    wanted = ("tid", "tgid", "comm", "kind", "op", "fd", "eventfd_id", "ret")
    for (tid, tgid, comm, kind, op, fd, eventfd, ret), start, end, still in zip(
        _rows(calls, *wanted), starts.tolist(), ends.tolist(), endless, strict=True
    ):
        name = syscall_name(Kind[kind], op)
        if eventfd >= 0:
            name = f"{name} eventfd {eventfd}"
        elif fd >= 0:
            name = f"{name} fd {fd}"
        notes = {"error": f"errno {-ret}"} if -4096 < ret < 0 else None
        out.slice(_thread(out, names, tid, tgid, comm), start, None if still else end, name, notes=notes)


def _off_cpu(out: _Out, spans: pd.DataFrame, names: Mapping[int, str]) -> None:
    spans = spans[~_superseded(spans)].sort_values(["tid", "enter_ns"], kind="stable")
    starts, ends = _ns(spans, "enter_ns"), _ns(spans, "enter_ns") + _ns(spans, "dur_ns")
    rows = _rows(spans, "tid", "tgid", "comm", "waker_tid", "instead_tid", "waker_in_irq")
    for (tid, tgid, comm, waker, instead, irq), start, woken, end in zip(
        rows, starts.tolist(), _ns(spans, "woken_ns").tolist(), ends.tolist(), strict=True
    ):
        track = out.track(_thread(out, names, tid, tgid, comm), "off the CPU")
        runnable = start
        if woken != _UNKNOWN:
            runnable = min(max(woken, start), end)
            by = "an interrupt" if irq == 1 else names.get(waker, f"tid {waker}")
            out.slice(track, start, runnable, "blocked", notes={"woken by": by})
        if end > runnable:
            who = names.get(instead, f"tid {instead}") if instead > 0 else "nobody seen"
            out.slice(track, runnable, end, "runnable", notes={"ran instead": who})


def _waits(out: _Out, waits: pd.DataFrame, names: Mapping[int, str]) -> None:
    starts, ends = _ns(waits, "start_ns"), _ns(waits, "start_ns") + _ns(waits, "wait_ns")
    wanted = ("tid", "tgid", "comm", "lock", "holder_tid", "holder", "holder_operation", "holder_syscall")
    flows = count(1)
    for (tid, tgid, comm, lock, holder, name, operation, syscall), start, end in zip(
        _rows(waits, *wanted), starts.tolist(), ends.tolist(), strict=True
    ):
        flow = next(flows) if holder > 0 else 0
        notes = {"held by": _text(name), "holder did": _text(operation), "in": _text(syscall)}
        track = out.track(_thread(out, names, tid, tgid, comm), "lock waits")
        out.slice(track, start, end, f"waits for {_text(lock)}", flow, {k: v for k, v in notes.items() if v})
        if flow:
            release = out.track(_thread(out, names, holder, tgid, name), "lock releases")
            out.instant(release, end, f"releases {_text(lock)}", flow)


# --- audio ----------------------------------------------------------------------------


def _streams(out: _Out, tables: Tables) -> dict[str, int]:
    """Stream id -> its track, below its VMM."""
    wanted = _rows(tables.df_streams(), "id", "tgid", "name")
    return {
        str(id): out.track(out.process(tgid, f"process {tgid}"), f"stream {id} {_text(name)}".rstrip())
        for id, tgid, name in wanted
    }


def _periods(out: _Out, tables: Tables) -> None:
    streams, periods = _streams(out, tables), tables.df_periods()
    starts, ends = _ns(periods, "start_ns"), _ns(periods, "deadline_ns")
    slack = _ns(periods, "slack_ns")
    rows = _rows(periods, "stream", "cycle", "missed", "leg")
    for (stream, cycle, missed, leg), start, end, left in zip(
        rows, starts.tolist(), ends.tolist(), slack.tolist(), strict=True
    ):
        parent = streams.get(str(stream))
        if parent is None or end < start:
            continue
        name = f"cycle missed on the {_text(leg)} leg" if missed else "cycle"
        out.slice(out.track(parent, "periods"), start, end, name, notes={"cycle": str(cycle)})
        if left != _UNKNOWN:
            out.value(out.track(parent, "slack", "ms"), end, left / 1e6)


def _misses(out: _Out, tables: Tables, names: Mapping[int, str]) -> None:
    streams, misses, segments = _streams(out, tables), tables.df_misses(), tables.df_segments()
    where: dict[int, tuple[int, str]] = {}
    lanes: dict[int, list[int]] = {}
    length = dict(zip(segments["miss"].tolist(), [0] * len(segments), strict=True))
    for miss, ns in zip(segments["miss"].tolist(), _ns(segments, "ns").tolist(), strict=True):
        length[miss] += ns
    wanted = ("id", "stream", "cause", "detail", "carried_from", "sufficient")
    for (id, stream, cause, detail, carried, sufficient), start in zip(
        _rows(misses, *wanted), _ns(misses, "start_ns").tolist(), strict=True
    ):
        parent = streams.get(str(stream))
        if parent is None:
            continue
        end = start + length.get(id, 0)
        lane = _lane(lanes.setdefault(parent, []), start, end)
        lane_name = "misses" if lane == 0 else f"misses {lane + 1}"
        notes = {"verdict": _text(detail), "sufficient": ", ".join(map(str, sufficient or ()))}
        if carried > 0:
            notes["carried from"] = str(carried)
        out.slice(out.track(parent, lane_name), start, end, f"missed: {_text(cause)}", notes=notes)
        if carried <= 0:
            where[id] = parent, f"segments {lane + 1}" if lane else "segments"
    rows = _rows(segments, "miss", "kind", "via", "tid", "object", "detail")
    for (miss, kind, via, tid, thing, detail), start, ns in zip(
        rows, _ns(segments, "start_ns").tolist(), _ns(segments, "ns").tolist(), strict=True
    ):
        if miss not in where:
            continue
        parent, name = where[miss]
        notes = {"of": names.get(tid, ""), "via": _text(via), "what": _text(thing), "detail": _text(detail)}
        out.slice(
            out.track(parent, name),
            start,
            start + ns,
            _text(kind),
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


def _held(out: _Out, calls: pd.DataFrame, tables: Tables) -> None:
    """A counter per watched lock: 1 where its word was held when a syscall began, at each change."""
    announced = tables.df_records(Kind.WORDS)
    if "held_in" not in calls or not len(announced):
        return
    names = {(int(g), int(a)): _text(n) for g, a, n in _rows(tables.df_locks(), "tgid", "address", "name")}
    words: dict[tuple[int, int], dict[int, int]] = {}
    for tgid, generation, chunk, some in _rows(announced, "tid", "op", "flags", "words"):
        for bit, word in enumerate(some):
            if word:
                words.setdefault((tgid, generation), {})[4 * chunk + bit] = int(word)
    tgids, generations = _ints(calls, "tgid"), _ints(calls, "generation")
    held, readable = _ints(calls, "held_in"), _ints(calls, "readable_in")
    times = _ns(calls, "enter_ns")
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


# --- frames to plain values -----------------------------------------------------------


def _superseded(spans: pd.DataFrame) -> NDArray[np.bool_]:
    """OPEN spans (n,) that a later record of the same thread and begin replaces."""
    opened: NDArray[np.bool_] = (spans["flags"].to_numpy() & int(Flag.OPEN)) != 0
    if not opened.any():
        return opened
    keys = list(zip(spans["tid"].tolist(), _ns(spans, "enter_ns").tolist(), strict=True))
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


def _ns(frame: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """A column of times or spans as ns (n,); NaT is ``_UNKNOWN``."""
    values = frame[column]
    if getattr(values.dt, "tz", None) is not None:
        values = values.dt.tz_localize(None)
    numbers: NDArray[np.int64] = values.to_numpy().view(np.int64)
    return numbers


def _ints(frame: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """A column of whole numbers (n,); <NA> is -1."""
    numbers: NDArray[np.int64] = frame[column].fillna(-1).to_numpy(dtype=np.int64)
    return numbers


def _rows(frame: pd.DataFrame, *columns: str) -> Iterable[tuple[Any, ...]]:
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


def _text(value: object) -> str:
    """A text, "" for None and NaN."""
    return value if isinstance(value, str) else ""
