# SPDX-License-Identifier: Apache-2.0
"""What Perfetto is given, parsed back: tracks, slices that nest, arrows, counters."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent
from test_captures import DATA

import tracer
from tracer.schema import Flag
from tracer.views.perfetto import _lane, write_perfetto
from tracer.views.perfetto.values import superseded


@dataclass
class Event:
    """One event with its name and its track's."""

    kind: int
    at: int
    name: str
    flows: tuple[int, ...]
    value: float


@dataclass
class Parsed:
    """Events by track: (name of the thread or process above, name of the track)."""

    tracks: dict[tuple[str, str], list[Event]] = field(default_factory=lambda: defaultdict(list))
    clocks: dict[int, int] = field(default_factory=dict)

    def slices(self, track: tuple[str, str]) -> list[tuple[int, int, str]]:
        """(start, end, name) of each; slices of a track do not overlap."""
        found: list[tuple[int, int, str]] = []
        begun: Event | None = None
        for event in self.tracks[track]:
            if event.kind == TrackEvent.TYPE_SLICE_BEGIN:
                assert begun is None, (track, begun, event)
                assert not found or event.at >= found[-1][1], (track, found[-1], event)
                begun = event
            elif event.kind == TrackEvent.TYPE_SLICE_END:
                assert begun is not None
                found.append((begun.at, event.at, begun.name))
                begun = None
        return found


def parse(data: bytes) -> Parsed:
    trace = Trace()
    trace.ParseFromString(data)
    above: dict[int, tuple[str, str]] = {}
    names: dict[int, str] = {}
    parsed = Parsed()
    for packet in trace.packet:
        for told in packet.interned_data.event_names:
            names[told.iid] = told.name
        if packet.HasField("clock_snapshot"):
            parsed.clocks = {c.clock_id: c.timestamp for c in packet.clock_snapshot.clocks}
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            if track.HasField("thread"):
                above[track.uuid] = (track.thread.thread_name, "")
            elif track.HasField("process"):
                above[track.uuid] = (track.process.process_name, "")
            else:
                parent = " ".join(part for part in above[track.parent_uuid] if part)
                above[track.uuid] = (parent, track.name)
        if packet.HasField("track_event"):
            e = packet.track_event
            event = Event(
                e.type, packet.timestamp, names.get(e.name_iid, ""), tuple(e.flow_ids), e.double_counter_value
            )
            parsed.tracks[above[e.track_uuid]].append(event)
    return parsed


@pytest.fixture(scope="module")
def frames() -> Any:
    return tracer.open(DATA / "lock.xdt.tar")


@pytest.fixture(scope="module")
def parsed(frames: Any) -> Parsed:
    out = io.BytesIO()
    packets = write_perfetto(frames, out, offset_ns=7)
    found = parse(out.getvalue())
    assert packets > sum(len(events) for events in found.tracks.values()) > 10_000
    return found


def test_slices_of_every_track_nest(parsed: Parsed) -> None:
    assert sum(len(parsed.slices(track)) for track in list(parsed.tracks)) > 10_000


def test_every_period_of_a_stream_is_there_and_its_misses_are_named(parsed: Parsed, frames: Any) -> None:
    periods = frames.df_periods()
    (track,) = [t for t in parsed.tracks if t[1] == "periods"]
    slices = parsed.slices(track)
    assert len(slices) == len(periods)
    missed = [name for _, _, name in slices if "missed" in name]
    assert len(missed) == int(periods["missed"].sum()) > 0
    (slack,) = [events for t, events in parsed.tracks.items() if t[1] == "slack"]
    assert len(slack) == int(periods["slack_ns"].notna().sum())
    assert slack[0].value == pytest.approx(periods["slack_ns"].iloc[0].total_seconds() * 1e3)


def test_segments_fill_their_misses_window(parsed: Parsed, frames: Any) -> None:
    (track,) = [t for t in parsed.tracks if t[1] == "misses"]
    (parts,) = [t for t in parsed.tracks if t[1] == "segments"]
    windows, pieces = parsed.slices(track), parsed.slices(parts)
    assert len(windows) == len(frames.df_misses())
    assert sum(end - start for start, end, _ in pieces) == sum(end - start for start, end, _ in windows)
    assert any(name.startswith("missed: lock") for _, _, name in windows)


def test_a_wait_points_to_the_release_that_ended_it(parsed: Parsed) -> None:
    begins = {
        e.flows[0]: e.at
        for t, events in parsed.tracks.items()
        if t[1] == "lock waits"
        for e in events
        if e.flows
    }
    releases = {
        e.flows[0]: e.at for t, events in parsed.tracks.items() if t[1] == "lock releases" for e in events
    }
    assert begins and begins.keys() == releases.keys()
    assert all(begins[flow] <= releases[flow] for flow in begins)


def test_threads_have_their_names_and_syscalls(parsed: Parsed) -> None:
    worker = {name.split()[0] for _, _, name in parsed.slices(("cross domain", ""))}
    assert {"epoll_wait", "read", "write"} <= worker
    assert {name for _, _, name in parsed.slices(("gpu worker", "off the CPU"))} == {"blocked", "runnable"}


def test_clocks_tie_real_time_to_monotonic(parsed: Parsed) -> None:
    assert parsed.clocks[1] - parsed.clocks[3] == 7


def test_held_words_are_counters_of_changes() -> None:
    out = io.BytesIO()
    write_perfetto(tracer.open(DATA / "serialised.xdt.tar"), out)
    held = [events for t, events in parse(out.getvalue()).tracks.items() if t[1].endswith(" held")]
    assert held
    for events in held:
        values = [e.value for e in events]
        assert set(values) <= {0.0, 1.0}
        assert all(a != b for a, b in pairwise(values))
        assert [e.at for e in events] == sorted(e.at for e in events)


def test_lanes_keep_overlapping_windows_apart() -> None:
    lanes: list[int] = []
    assert [_lane(lanes, a, b) for a, b in ((0, 10), (5, 7), (6, 20), (7, 8), (10, 11))] == [0, 1, 2, 1, 0]


def test_an_open_span_is_shown_only_while_nothing_replaces_it() -> None:
    import pandas as pd

    opened = int(Flag.OPEN)
    spans = pd.DataFrame(
        {
            "tid": [1, 1, 1, 2, 2],
            "enter_ns": pd.to_datetime([5, 5, 9, 5, 5], unit="ns", utc=True),
            "flags": [opened, 0, opened, opened, opened],
        }
    )
    assert superseded(spans).tolist() == [True, False, False, True, False]
    assert not superseded(spans[spans["flags"] == 0]).any()
    assert np.asarray(superseded(spans)).dtype == bool
