# SPDX-License-Identifier: Apache-2.0
"""A worker that ends: with its client, which is no news, or while its stream is signalled on."""

from __future__ import annotations

import pytest
import records as r
from world import MS, US, WAKE_ID, D, W, World

from tracer.model.analysis import Analysis
from tracer.schema import Life, end_ns


@pytest.mark.parametrize(("further", "told"), [(2, False), (60, True)])
def test_a_worker_that_exits_is_an_alert_only_where_the_server_goes_on(further: int, told: bool) -> None:
    world = World()
    for _ in range(40):
        world.cycle()
    world.add(r.life(W, world.start_of(world.number) - 1 * MS, op=Life.EXIT))
    for _ in range(further):
        start = world.start_of(world.number) + 5 * US
        world.number += 1
        world.add(r.timer_read(D, start - 2 * US, start, fd=4))
        world.add(r.write(D, start + 16 * US, start + 20 * US, fd=9, eventfd=WAKE_ID))
    later = world.start_of(world.number + 120)
    world.add(r.timer_read(D, later - 2 * US, later, fd=7))
    analysis = Analysis(profiles=())
    records = world.finish()
    analysis.feed(world.batch(records, int(end_ns(records).max()), first=True))
    summary = analysis.summary()
    alerts = [f.what for f in summary.findings if f.level == "alert"]
    assert any("exited" in what for what in alerts) is told, alerts
    analysis.finish()
    missed = [miss.cause for miss in analysis.summary().misses]
    assert missed == (["forward_failed"] * len(missed) if told else [])
    assert bool(missed) is told


def test_what_was_due_well_before_a_hung_worker_exits_was_missed() -> None:
    world = World()
    for _ in range(40):
        world.cycle()
    hung = world.number
    for _ in range(60):  # nobody answers any more; the server goes on until the program ends
        start = world.start_of(world.number) + 5 * US
        world.number += 1
        world.add(r.timer_read(D, start - 2 * US, start, fd=4))
        world.add(r.write(D, start + 16 * US, start + 20 * US, fd=9, eventfd=WAKE_ID))
    exit_ns = world.start_of(world.number) - 1 * MS
    world.add(r.life(W, exit_ns, op=Life.EXIT))
    analysis = Analysis(profiles=())
    records = world.finish()
    analysis.feed(world.batch(records, int(end_ns(records).max()), first=True))
    analysis.finish()
    due = [world.start_of(number + 1) + 5 * US for number in range(hung, world.number)]
    told = [miss.deadline_ns for miss in analysis.summary().misses]
    assert told == [deadline for deadline in due if deadline < exit_ns - 100 * MS]
    assert len(told) > 50
