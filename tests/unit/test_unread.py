# SPDX-License-Identifier: Apache-2.0
"""Eventfds that are signalled and never read: a stream that was dead before we came."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from world import VMM, WAKE_ID, Delays, G, W, World, feed, play_on

from tracer.schema import Batch, Fd, Kind, Records


class Holds(World):
    """The VMM holds an eventfd of that id, as /proc says."""

    held = WAKE_ID

    def batch(self, records: Records, watermark: int, *, first: bool) -> Batch:
        batch = super().batch(records, watermark, first=first)
        fds = (*batch.fds, Fd(VMM, 30, "eventfd", self.held)) if first else batch.fds
        return dataclasses.replace(batch, fds=fds)


def told(world: World, records: Records) -> list[str]:
    return [f.what for f in feed(world, records).summary().findings if "nobody there reads it" in f.what]


def without_readers(world: World, cycles: int) -> Records:
    records = play_on(world, warm=cycles, tail=0)
    readers = np.isin(records["tid"], (W, G)) & (records["kind"] == Kind.READ)
    return records.take(np.flatnonzero(~readers))


def test_a_stream_that_nobody_reads_is_told() -> None:
    world = Holds()
    (what,) = told(world, without_readers(world, 80))
    assert what == f"eventfd {WAKE_ID} of pid {VMM} is signalled every 21.3 ms, and nobody there reads it"


@pytest.mark.parametrize(("cycles", "held"), [(20, WAKE_ID), (80, WAKE_ID + 1000)])
def test_one_that_was_just_made_or_is_somebody_elses_is_not(cycles: int, held: int) -> None:
    world = Holds()
    world.held = held
    assert told(world, without_readers(world, cycles)) == []


def test_a_stream_that_is_served_late_is_a_stream() -> None:
    world = Holds()
    assert told(world, play_on(world, Delays(worker_cpu=2_000_000_000), warm=48)) == []
