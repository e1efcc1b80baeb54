# SPDX-License-Identifier: Apache-2.0
"""Devices built otherwise than libkrun's: the same delays, the same causes.

Owns variations of the scripted world in who takes commands, where it idles, and who writes completions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import records as r
from test_verdicts import analyse, origins
from world import (
    DONE_ID,
    IRQ_ID,
    KICK_ID,
    LATE,
    START,
    US,
    V2,
    VMM,
    D,
    Delays,
    F,
    G,
    V,
    W,
    World,
    feed,
    play_on,
)

from tracer.model.analysis import Analysis
from tracer.schema import OFFCPU, RW, Batch, Kind, Records, Target, end_ns, view

QUEUE, HALT = 0x7100, 0x7200  # condvars that G and the vCPU wait for
JOB_ID = 50
CAUSES = [
    (Delays(guest=LATE), "guest_late"),
    (Delays(gpu_syscall=LATE), "head_of_line"),
    (Delays(write=LATE), "slow_syscall"),
    (Delays(worker_cpu=LATE), "on_cpu"),
]


def polled(records: Records) -> Records:
    """G polls its kick eventfd and then reads it."""
    kicks = (records["tid"] == G) & (records["kind"] == Kind.READ)
    parts = [records[~kicks]]
    for row in records[kicks]:
        begin, end = int(row["enter_ns"]), int(row["enter_ns"] + row["dur_ns"])
        poll = r.epoll_wait(G, begin, end - 600)
        poll["op"] = r.NR_POLL
        parts += [poll, r.read(G, end - 400, end, fd=13, eventfd=KICK_ID)]
    return r.trace(parts)


def parked(records: Records) -> Records:
    """G waits in a condvar for its list of commands: a vCPU thread puts them there itself."""
    kicks = (records["tid"] == G) & (records["kind"] == Kind.READ)
    parts = [records[~kicks]]
    for i, row in enumerate(records[kicks]):
        begin, end = int(row["enter_ns"]), int(row["enter_ns"] + row["dur_ns"])
        parts.append(r.wait(G, QUEUE, begin, end, expected=3 + i))
    return r.trace(parts)


def without_irqs(records: Records) -> Records:
    """As ``parked``; and a vCPU thread that halts is woken out of a condvar, not by an eventfd."""
    records = parked(records)
    irqs = (records["kind"] == Kind.WRITE) & (records["tid"] == W)
    parts = [
        records[~irqs & ~((records["kind"] == Kind.WRITE) & (view(records, RW)["eventfd_id"] == IRQ_ID))]
    ]
    parts += [r.wake(W, HALT, int(row["enter_ns"]), dur=int(row["dur_ns"]), count=1) for row in records[irqs]]
    return r.trace(parts)


def pooled(records: Records) -> Records:
    """F takes the commands of every other cycle, from the same eventfd."""
    records = records.copy()
    number = (
        records["enter_ns"].astype(np.int64) + records["dur_ns"].astype(np.int64) - START
    ) // World().period
    odd = number % 2 == 1
    off = view(records, OFFCPU)
    off["waker_tid"][(records["kind"] == Kind.OFFCPU) & odd & (off["waker_tid"] == G)] = F
    records["tid"][odd & (records["tid"] == G)] = F
    return r.trace(records)


@pytest.mark.parametrize("built", [polled, parked, without_irqs, pooled])
@pytest.mark.parametrize(("delays", "cause"), CAUSES)
def test_a_cause_is_told_however_commands_are_taken(
    built: Callable[[Records], Records], delays: Delays, cause: str
) -> None:
    world = World()
    (miss,) = origins(analyse(world, built(play_on(world, delays))))
    assert miss.cause == cause, (miss.detail, miss.sufficient, miss.segments)


def test_threads_that_take_commands_from_one_eventfd_are_all_g() -> None:
    world = World()
    analysis = feed(world, pooled(play_on(world, warm=48)))
    assert set(analysis.registry.with_role("G", VMM)) == {G, F}


def test_a_guest_in_another_process_may_have_kicked_at_any_time_while_g_was_busy() -> None:
    """Its threads are not traced, so that it slept shows nowhere: that is said, not "several causes"."""
    world = World()
    records = play_on(world, Delays(gpu_syscall=LATE))
    off = view(records, OFFCPU)
    off["waker_tgid"][(records["kind"] == Kind.OFFCPU) & np.isin(off["waker_tid"], (V, V2))] = 999
    records = records.take(np.flatnonzero(~np.isin(records["tid"], (V, V2))))
    (miss,) = origins(analyse(world, records))
    assert (miss.cause, "head_of_line" in miss.sufficient) == ("mixed", True), miss.sufficient
    assert "when the guest kicked is not known" in miss.detail


GUEST = 999


def guest_apart(records: Records) -> Records:
    """The vCPUs are threads of a process of their own, as far as records say."""
    records = records.copy()
    off = view(records, OFFCPU)
    off["waker_tgid"][(records["kind"] == Kind.OFFCPU) & np.isin(off["waker_tid"], (V, V2))] = GUEST
    return records


def with_guest(world: World, records: Records) -> Analysis:
    """Both processes traced: the devices' and the guest's."""
    batch = world.batch(records, int(end_ns(records)[-1]), first=True)
    threads = [dataclasses.replace(t, tgid=GUEST) if t.tid in (V, V2) else t for t in batch.threads]
    targets = (*batch.targets, Target(GUEST, "vmm", "crosvm"))
    analysis = Analysis()
    analysis.feed(dataclasses.replace(batch, threads=tuple(threads), targets=targets))
    analysis.finish()
    return analysis


@pytest.mark.parametrize(("delays", "cause"), CAUSES)
def test_a_guest_in_another_process_is_as_good_as_one_in_the_same_if_that_is_traced_too(
    delays: Delays, cause: str
) -> None:
    world = World()
    analysis = with_guest(world, guest_apart(play_on(world, delays)))
    (miss,) = origins(analysis.summary())
    assert miss.cause == cause, (miss.detail, miss.sufficient, miss.segments)
    assert analysis.roles.vcpus(VMM) == [V, V2]


def test_a_process_that_only_plays_the_guest_is_no_vmm_of_its_own() -> None:
    world = World()
    summary = with_guest(world, guest_apart(play_on(world, Delays(guest=LATE), warm=48))).summary()
    assert list(summary.write_path) == [str(VMM)]
    assert not [f.what for f in summary.findings if "not traced" in f.what or "whose cause" in f.what]


def test_interrupts_that_the_guest_s_process_takes_are_no_stream_of_its_own() -> None:
    """A thread of it waits for them by epoll, and W wakes it in every cycle."""
    world = World()
    records = guest_apart(play_on(world, warm=200))
    off = view(records, OFFCPU)
    woken = records[(records["kind"] == Kind.OFFCPU) & (records["tid"] == V) & (off["waker_tid"] == W)]
    parts = [records]
    for row in woken:
        begin, end = int(row["enter_ns"]), int(row["enter_ns"] + row["dur_ns"])
        parts.append(r.epoll_wait(V, begin - 1 * US, end + 1 * US, data=1))
        parts.append(r.read(V, end + 2 * US, end + 3 * US, fd=3, eventfd=IRQ_ID))
    analysis = with_guest(world, r.trace(parts))
    assert [(s.tgid, s.exact) for s in analysis.streams.all_kept()] == [(VMM, True)]


@pytest.mark.parametrize(("apart", "told"), [(True, True), (False, False)])
def test_that_the_guest_runs_in_a_process_that_is_not_traced_is_said(apart: bool, told: bool) -> None:
    world = World()
    records = play_on(world, warm=48)
    if apart:
        records = guest_apart(records)
        records = records.take(np.flatnonzero(~np.isin(records["tid"], (V, V2))))
    said = [f.do for f in feed(world, records).summary().findings if "not traced" in f.what]
    assert said == [f"trace it as well: xdtrace attach {VMM} {GUEST}"] * told


class WorkerCompletes(World):
    """G hands completions to W, by an eventfd in W's epoll set."""

    def _completed(self, rearm: int, write: int = 0) -> int:
        hand = rearm + 30 * US
        self.add(r.write(G, hand - 2 * US, hand, fd=16, eventfd=JOB_ID))
        self.free[G] = hand + 2 * US
        begin = self.free[W]
        self.sleep(W, hand, hand + 4 * US, G, VMM)
        self.add(r.epoll_wait(W, begin, hand + 6 * US, data=2))
        self.add(r.read(W, hand + 7 * US, hand + 8 * US, fd=17, eventfd=JOB_ID))
        done = hand + 12 * US + write
        self.add(r.write(W, hand + 10 * US, done, fd=14, eventfd=DONE_ID))
        self.free[W] = done + 2 * US
        return done


@pytest.mark.parametrize(("delays", "cause"), CAUSES)
def test_a_cause_is_told_where_w_writes_what_g_hands_it(delays: Delays, cause: str) -> None:
    world = WorkerCompletes()
    (miss,) = origins(analyse(world, play_on(world, delays)))
    assert miss.cause == cause, (miss.detail, miss.sufficient, miss.segments)


class SlowPoll(World):
    """W waits in ppoll while it serves e_n; it does not wait for a re-arm (``free``: of its next event)."""

    def _serve(self, t: int, d: Delays) -> int:
        if not d.worker_cpu:
            return super()._serve(t, d)
        back = t + d.worker_cpu
        poll = r.epoll_wait(W, t + 3 * US, back, ret=0)
        poll["op"] = r.NR_POLL
        self.add(poll, r.offcpu(W, t + 4 * US, back - 2 * US, woken=back - 4 * US, waker=1, irq=True))
        return super()._serve(t, d)

    def _rearmed(self, rearm: int) -> None:
        self.free[W] += 2 * US


def test_a_worker_that_polls_in_the_middle_of_a_turn_is_at_work() -> None:
    world = SlowPoll()
    (miss,) = origins(analyse(world, play_on(world, Delays(worker_cpu=LATE))))
    assert miss.cause == "slow_syscall", (miss.detail, miss.sufficient, miss.segments)


class Lone(World):
    """One thread serves wakeups and executes commands, as an event loop; nobody re-arms it."""

    def batch(self, records: Records, watermark: int, *, first: bool) -> Batch:
        batch = super().batch(records, watermark, first=first)
        return dataclasses.replace(batch, threads=tuple(t for t in batch.threads if t.tid != G))

    def _complete(self, irq: int, d: Delays) -> int:
        kick = self._guest(irq, d.guest)
        begin = self.free[W]
        self.sleep(W, kick, kick + 4 * US, V, VMM)
        self.add(r.epoll_wait(W, begin, kick + 6 * US, data=3))
        self.add(r.read(W, kick + 7 * US, kick + 8 * US, fd=13, eventfd=KICK_ID))
        done = kick + 12 * US + d.write
        self.add(r.write(W, kick + 10 * US, done, fd=14, eventfd=DONE_ID))
        self.free[W] = done + 2 * US
        return done


def test_who_wakes_a_loop_that_is_worker_and_command_thread_is_a_vcpu() -> None:
    world = Lone()
    analysis = feed(world, play_on(world))
    assert analysis.roles.vcpu_votes[V] >= 24
    assert analysis.registry.with_role("G", VMM) == []


@pytest.mark.parametrize(("delays", "cause"), [case for case in CAUSES if not case[0].gpu_syscall])
def test_a_cause_is_told_of_a_loop_that_is_both(delays: Delays, cause: str) -> None:
    world = Lone()
    (miss,) = origins(analyse(world, play_on(world, delays)))
    assert miss.cause == cause, (miss.detail, miss.sufficient, miss.segments)


def test_that_the_guest_of_a_loop_that_is_both_runs_elsewhere_is_said() -> None:
    """The audio server wakes that loop as well; it is no guest, and where it is not traced nobody is told."""
    world = Lone()
    records = guest_apart(play_on(world, warm=48))
    records = records.take(np.flatnonzero(~np.isin(records["tid"], (V, V2))))
    said = [f.do for f in feed(world, records).summary().findings if "not traced" in f.what]
    assert said == [f"trace it as well: xdtrace attach {VMM} {GUEST}"]
    batch = world.batch(
        records.take(np.flatnonzero(records["tid"] != D)), int(end_ns(records)[-1]), first=True
    )
    analysis = Analysis()
    analysis.feed(dataclasses.replace(batch, targets=batch.targets[1:]))
    analysis.finish()
    summary = analysis.summary()
    assert {s.source for s in summary.streams} == {"inferred"}
    assert not [f.what for f in summary.findings if "not traced" in f.what]


@pytest.mark.parametrize(("threads", "told"), [((W, F), True), ((W, W), False)])
def test_a_worker_that_moves_between_threads_is_said_to(threads: tuple[int, int], told: bool) -> None:
    world = World()
    records = play_on(world, warm=48)
    served = (records["tid"] == W) & (records["kind"] == Kind.READ)
    records["tid"][served] = np.resize(threads, int(served.sum()))
    findings = feed(world, r.trace(records)).summary().findings
    assert any("served by 2 threads in turn" in f.what for f in findings) == told
