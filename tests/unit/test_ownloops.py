# SPDX-License-Identifier: Apache-2.0
"""An audio server inside the VMM's process: its data loop is told by the timer that wakes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import records as r
from test_inferred import LATE, THREADS, VMM_ONLY, play, seen
from world import MS, US, VMM, D, Delays, W, World

from tracer.model.analysis import Analysis
from tracer.model.ownloops import MIN_SIGNALS
from tracer.model.summary import Summary
from tracer.schema import Batch, Flag, Kind, Records, end_ns


def one_process(records: Records) -> Summary:
    """What is said if the server's thread is the VMM's own, and nameless."""
    analysis = Analysis()
    threads = tuple(replace(t, tgid=VMM, comm="vmm") if t.tid == D else t for t in THREADS)
    analysis.feed(Batch(records, int(end_ns(records)[-1]), targets=VMM_ONLY, threads=threads))
    analysis.finish()
    return analysis.summary()


def test_a_loop_of_the_vmms_own_is_followed_as_another_processs_is() -> None:
    world, records = play(None, Delays(gpu_syscall=LATE), None, None, None, Delays(worker_cpu=LATE))
    alone, apart = one_process(records), seen(world, records)
    (stream,), (other,) = alone.streams, apart.streams
    assert (stream.source, stream.period_ns) == ("exact", other.period_ns)
    assert other.cycles - stream.cycles < 2 * MIN_SIGNALS  # before the loop was known nothing is judged
    assert [(m.deadline_ns, m.leg, m.cause, m.late_ns) for m in alone.misses] == [
        (m.deadline_ns, m.leg, m.cause, m.late_ns) for m in apart.misses
    ]
    assert len(alone.misses) >= 2
    assert {t.tid: t.role for t in alone.threads}[D] == "D"


def without_timer(records: Records) -> Records:
    keep = (records["tid"] != D) | ((records["flags"] & Flag.TIMERFD) == 0)
    return records.take(np.flatnonzero(keep))


@pytest.mark.parametrize(("irq", "streams"), [(True, 1), (False, 0)])
def test_a_loop_that_reads_no_timer_is_told_by_who_wakes_it(irq: bool, streams: int) -> None:
    """All write at the audio period, W and G too; only the driver is woken by a timer."""
    world, _ = play()
    for k in range(world.number):
        start = world.start_of(k) + 5 * US
        world.add(r.offcpu(D, start - MS, start, woken=start - 5 * US, waker=W, waker_tgid=VMM, irq=irq))
    assert len(one_process(without_timer(world.finish())).streams) == streams


def test_a_timer_that_is_not_answered_drives_no_audio() -> None:
    _, records = play()
    answers = (records["tid"] == D) & (records["kind"] == int(Kind.READ))
    answers &= (records["flags"] & Flag.TIMERFD) == 0
    assert answers.any()
    assert one_process(records.take(np.flatnonzero(~answers))).streams == ()


@pytest.mark.parametrize("cycles", [MIN_SIGNALS - 2])
def test_too_few_signals_are_no_stream(cycles: int) -> None:
    world = World()
    for _ in range(cycles):
        world.cycle()
    assert one_process(world.finish()).streams == ()
