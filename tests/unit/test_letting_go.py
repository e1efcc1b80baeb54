# SPDX-License-Identifier: Apache-2.0
"""What is let go is gone at once, without the collector of garbage, and nothing grows for weeks."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tracer.model.gpureading import GpuReading
from tracer.model.misses import MissState
from tracer.model.registry import Registry, ThreadState
from tracer.model.roles import Roles
from tracer.model.step import Step
from tracer.model.timeline import RETENTION_NS, STEP_NS, Timeline
from tracer.model.track import Track
from tracer.model.verdicts import Keep, Verdicts
from tracer.model.window import Window
from tracer.schema import OFFCPU, RECORD, RW, Flag, Kind, Records, view

MS = 1_000_000
G = 7


@pytest.fixture(autouse=True)
def _without_the_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def _reads_and_writes(step: int, count: int = 50) -> Records:
    """What a busy G does in a step: it reads its eventfd and writes another, in turn."""
    rows = np.zeros(count, dtype=RECORD)
    rows["tid"], rows["flags"], rows["dur_ns"] = G, Flag.EVENTFD, 1_000
    rows["kind"] = np.where(np.arange(count) % 2 == 0, Kind.READ, Kind.WRITE)
    rows["enter_ns"] = 1_000 * MS + step * STEP_NS + np.arange(count) * MS
    values = view(rows, RW)
    values["eventfd_id"], values["ret"] = 5, 8
    return rows


def test_a_reading_forgets_with_its_track() -> None:
    track, sizes = Track(0), []
    for k in range(200):
        track.add(_reads_and_writes(k))
        track.forget(1_000 * MS + (k - 40) * STEP_NS)
        if track.gpu is None:
            track.gpu = GpuReading(track, lambda _word: False)
        track.gpu.read_on()
        sizes.append((len(track.gpu.acts), len(track.gpu.busy), len(track.gpu.woken)))
    assert sizes[100] == sizes[-1]
    assert sizes[-1][0] <= len(track.calls)


def test_a_track_and_its_reading_are_freed_together() -> None:
    def is_lock(_word: int) -> bool:
        return False

    kept, timeline = weakref.ref(is_lock), Timeline()
    track = timeline.track(G, 1_000)
    track.gpu = GpuReading(track, is_lock)
    del track, is_lock
    timeline.track(G, 10 * RETENTION_NS)
    assert kept() is None


def test_misses_that_are_not_kept_are_freed() -> None:
    judge = cast(Any, SimpleNamespace(forget=lambda: None, judge=lambda miss, on_time: None))
    verdicts = Verdicts(judge, Keep(misses=10, cases=2, leaves=100))
    stream = SimpleNamespace(serial=1, exact=True)
    gc.collect()
    before = sum(isinstance(o, MissState) for o in gc.get_objects())
    for i in range(1, 101):
        at = i * 20 * MS
        times = {"signal_ns": at, "start_ns": at, "nominal_ns": at, "deadline_ns": at + 5 * MS}
        ends = {"closing_ns": at + 7 * MS, "end_ns": at + 7 * MS, "late_ns": 2 * MS}
        cycle = SimpleNamespace(stream=stream, missed=True, leg="wake", after_catch_up=False, **times, **ends)
        verdicts.take([cast(Any, cycle)])
    assert sum(isinstance(o, MissState) for o in gc.get_objects()) - before == len(verdicts.misses) == 10


def test_a_device_that_was_reset_has_another_g() -> None:
    """The one before it served for an uptime, and has all its votes."""
    registry = Registry()
    for tid, role, by, exit_ns in ((10, "G", "behaviour", 5), (20, "G", "name", None)):
        thread = registry._enlist(ThreadState(tid, 1, "gpu"))
        thread.role, thread.role_by, thread.exit_ns = role, by, exit_ns
    roles = Roles(registry)
    roles.gpu_votes = {1: Counter({10: 100_000, 20: 5_000})}
    roles._decide(cast(Any, SimpleNamespace(streams=[])))
    assert (roles.gpu_worker(1), registry.role(20)) == (20, "G")


@pytest.mark.parametrize("first", [None, (110 * MS, 130 * MS)])
def test_pieces_have_no_hole_whatever_was_asked_for_before(first: tuple[int, int] | None) -> None:
    rows = np.zeros(3, dtype=RECORD)
    rows["tid"], rows["kind"] = G, [Kind.OFFCPU, Kind.SYSCALL, Kind.SYSCALL]
    rows["enter_ns"], rows["dur_ns"] = np.array([70, 80, 120]) * MS, np.array([1, 10, 1]) * MS
    off = rows.view(OFFCPU)
    off["stolen_ns"][0], off["op"][0] = 5 * MS, 1
    timeline = Timeline()
    timeline.step(Step(rows, 200 * MS))
    window = Window(timeline, 100 * MS, 150 * MS)
    if first is not None:
        window.pieces(G, *first)
    pieces = window.pieces(G, 75 * MS, 130 * MS)
    assert sum(piece.end - piece.start for piece in pieces) == 55 * MS
    assert pieces[0].start == 75 * MS


def test_what_is_as_old_as_what_is_kept_is_not_read_anew() -> None:
    timeline = Timeline()
    tracks: set[int] = set()
    for k in range(1, 120):
        rows = np.zeros(20, dtype=RECORD)
        rows["tid"], rows["kind"], rows["dur_ns"] = G, Kind.SYSCALL, 1_000
        rows["enter_ns"] = (k - 1) * STEP_NS + np.arange(1, 21) * 9 * MS
        timeline.step(Step(rows, k * STEP_NS))
        if k > 50:
            tracks.update(id(timeline.track(G, timeline.begin_ns - back * MS)) for back in (1, -3, -4))
    assert len(tracks) == 1
