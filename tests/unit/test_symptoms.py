# SPDX-License-Identifier: Apache-2.0
"""Findings from syscalls alone: what stands still, what leaks, what sleeps under a lock, what starves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import records as r

from tracer.model.analysis import Analysis
from tracer.model.held import Held
from tracer.model.locks import Locks
from tracer.model.misses import MissState
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.symptoms import Symptoms
from tracer.schema import Batch, Fd, Flag, Records, Target, Thread

VMM = 100
W, G = 1, 2
ITEM = 0x1000
SECOND = 1_000_000_000


class World:
    def __init__(self) -> None:
        self.known = Registry()
        self.known.learn(
            targets=[Target(VMM, "vmm", "vmm")],
            threads=[Thread(W, VMM, "cross domain"), Thread(G, VMM, "gpu worker")],
            fds=[Fd(VMM, 5, "pipe")],
        )
        self.known.threads[W].role, self.known.threads[G].role = "W", "G"
        self.locks = Locks(self.known)
        self.held = Held(self.known, self.locks)
        self.symptoms = Symptoms(self.known, self.held)

    def step(self, end: int, *parts: Records) -> None:
        step = Step(r.trace(*parts), end)
        self.locks.step(step)
        self.held.step(step)
        self.symptoms.step(step)

    def said(self, *misses: object) -> list[str]:
        return [f.what for f in self.symptoms.findings(self.locks, cast(list[MissState], misses))]


def test_a_thread_that_stands_in_a_write_under_a_lock_is_told_with_the_lock() -> None:
    world = World()
    world.step(SECOND, r.words(VMM, 1, 1, [0x900, ITEM]))
    write = r.write(G, SECOND, SECOND + 1, generation=1, held_in=2, readable_in=3)
    world.step(4 * SECOND, r.opened(write, 4 * SECOND))
    assert world.said() == [
        "'gpu worker' (tid 2) stood in write(pipe) for 3.0 s while lock@0x1000 stayed held"
    ]


def test_a_worker_that_blocks_in_an_eventfds_read_is_told_and_why_it_may() -> None:
    world = World()
    world.step(4 * SECOND, r.opened(r.read(W, SECOND, SECOND + 1, eventfd=7, flags=64), 4 * SECOND))
    (finding,) = world.symptoms.findings(world.locks, ())
    assert finding.what == "'cross domain' (tid 1) stood in read(eventfd) for 3.0 s"
    assert finding.level == "alert" and "collide" in finding.do


def test_an_idle_g_and_an_idle_w_stand_in_nothing() -> None:
    world = World()
    idle = r.opened(r.read(G, SECOND, SECOND + 1, eventfd=7, flags=64), 9 * SECOND)
    waiting = r.opened(r.epoll_wait(W, SECOND, SECOND + 1), 9 * SECOND)
    world.step(9 * SECOND, idle, waiting)
    assert world.said() == []


def _stuck(*parts: Records, clipped: bool = False) -> list[str]:
    """Alerts of a trace in which W has waited for 3 s for a word."""
    analysis = Analysis()
    known = analysis.registry
    known.learn(
        targets=[Target(VMM, "vmm", "vmm")],
        threads=[Thread(W, VMM, "cross domain"), Thread(G, VMM, "gpu worker")],
    )
    waits = r.opened(r.wait(W, ITEM, SECOND, SECOND + 1), 4 * SECOND)
    waits["flags"] |= int(Flag.CLIPPED) * clipped
    batch = Batch(r.trace(*parts, waits), watermark_ns=4 * SECOND + 1)
    analysis.feed(batch)
    analysis.finish()
    return [f.what for f in analysis.summary().findings if "has waited" in f.what]


def test_a_lock_that_is_waited_for_once_and_for_ever_is_told() -> None:
    assert _stuck() == ["'cross domain' (tid 1) has waited 3.0 s for lock@0x1000"]


def test_a_wait_for_a_condvar_whose_counter_is_two_is_none() -> None:
    assert _stuck(r.wake(G, ITEM, SECOND // 2)) == []  # a notify of it was seen
    assert _stuck(r.wait(W, ITEM, SECOND // 4, SECOND // 2, expected=1)) == []
    assert _stuck(clipped=True) == []  # it may be as old as the process


def _seconds(world: World, received: int, closed: int) -> None:
    for second in range(1, 14):
        at = second * SECOND
        parts = [r.recvmsg(W, at - 900 + i, at - 899 + i, eventfds=(50, 51)) for i in range(received // 2)]
        parts += [r.close(G, at - 500 + i, at - 499 + i, fd=9) for i in range(closed)]
        world.step(at, *parts)


def test_fds_that_are_taken_in_and_not_closed_are_a_leak() -> None:
    world = World()
    _seconds(world, received=100, closed=60)
    assert world.said() == ["pid 100 took in 400 fds more than it closed in the last 10 s"]


def test_fds_that_are_closed_again_are_none() -> None:
    world = World()
    _seconds(world, received=100, closed=99)
    assert world.said() == []


def test_a_holder_that_sleeps_in_a_syscall_is_told_with_its_lock() -> None:
    world = World()
    for t in range(SECOND, SECOND + 300_000_000, 60_000_000):
        world.step(
            t + 50_000_000,
            r.write(G, t, t + 30_000_000),
            r.wait(W, ITEM, t + 1_000, t + 30_100_000),
            r.wake(G, ITEM, t + 30_050_000),
            r.wake(W, ITEM, t + 31_000_000),
        )
    world.step(4 * SECOND, r.loss(4 * SECOND, 0))
    (said,) = world.said()
    assert said.startswith("lock@0x1000 is held by 'gpu worker' over write(pipe): waited for 150 ms in all")


def test_a_stream_served_after_the_channel_again_and_again_is_starved() -> None:
    def miss(channel: int) -> Any:
        path = SimpleNamespace(went_first={"channel": channel, "other streams": 2})
        cycle = SimpleNamespace(stream=SimpleNamespace(title="eventfd 7"))
        return SimpleNamespace(case=SimpleNamespace(path=path), cause="serialised", cycle=cycle)

    world = World()
    assert world.said(miss(9), miss(9)) == []
    assert world.said(miss(1), miss(1), miss(1)) == []
    assert world.said(miss(9), miss(9), miss(9)) == [
        "eventfd 7 is starved by its context's channel: 3 times W served arriving fds first"
    ]
