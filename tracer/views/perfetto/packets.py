# SPDX-License-Identifier: Apache-2.0
"""Packets of a Perfetto trace: tracks, slices, instants and counters, written as a stream.

Owns the protobuf side: one sequence, names sent once, clocks. Knows nothing of what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import IO, Any, Final

from tracer.views.fmt import clean

_SEQUENCE: Final = 1
#: Perfetto's numbers of clocks (BuiltinClock).
_REALTIME, _MONOTONIC, _BOOTTIME = 1, 3, 6
_CLEARED, _NEEDED = 1, 2  # SequenceFlags: interned names begin here, or are needed


class Packets:
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

    def _track(self, key: tuple[object, ...], describe: Callable[[Any], None]) -> int:
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
