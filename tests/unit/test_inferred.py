# SPDX-License-Identifier: Apache-2.0
"""Streams whose audio server is not seen: found, counted, and never made up."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import records as r
from world import AUDIO, HOG, MS, START, US, VMM, D, Delays, G, V, W, World

from tracer.model.analysis import Analysis
from tracer.model.cadence import find_cadence
from tracer.model.summary import Summary
from tracer.schema import Batch, Records, Target, Thread, end_ns

LATE = 40 * MS
TIMER_ID = 77
VMM_ONLY = (Target(VMM, "vmm", "minivmm"),)
THREADS = (
    Thread(W, VMM, "cross domain"),
    Thread(G, VMM, "gpu worker"),
    Thread(V, VMM, "fc_vcpu 0"),
    Thread(D, AUDIO, "data-loop.0"),
    Thread(HOG, 900, "hog"),
)


def blind(records: Records, period: tuple[int, int] | None = None, cuts: tuple[int, ...] = ()) -> Summary:
    """What is said of records if those of the audio server are missing."""
    records = records[records["tid"] != D]
    analysis = Analysis(period=period)
    bounds = [0, *cuts, len(records)]
    ends = end_ns(records)
    for i, (low, high) in enumerate(pairwise(bounds)):
        first = {"targets": VMM_ONLY, "threads": THREADS} if i == 0 else {}
        watermark = int(ends[high - 1]) - (high < len(records))
        analysis.feed(Batch(records[low:high], watermark, **first))  # type: ignore[arg-type]
    analysis.finish()
    return analysis.summary()


def seen(world: World, records: Records) -> Summary:
    """What is said of them if all is there."""
    analysis = Analysis()
    analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
    analysis.finish()
    return analysis.summary()


def play(
    *plan: Delays | None, period: int | None = None, warm: int = 60, tail: int = 30
) -> tuple[World, Records]:
    world = World() if period is None else World(period=period)
    for delays in [*([None] * warm), *plan, *([None] * tail)]:
        world.cycle(delays)
    return world, world.finish()


def timer(times: list[int], *, waker: int = D, waker_tgid: int = AUDIO, value: int = 1) -> Records:
    """An eventfd that W sleeps for and reads at some times."""
    parts = []
    before = times[0] - 5 * MS
    for at in times:
        parts.append(r.offcpu(W, before + 2 * US, at + 5 * US, woken=at, waker=waker, waker_tgid=waker_tgid))
        parts.append(r.epoll_wait(W, before + 1 * US, at + 7 * US, data=3))
        parts.append(r.read(W, at + 8 * US, at + 9 * US, eventfd=TIMER_ID, value=value))
        before = at + 10 * US
    return r.trace(parts)


def every(period_ns: float, count: int = 200) -> list[int]:
    return [START + int(k * period_ns) for k in range(count)]


def test_a_stream_of_an_unseen_server_is_inferred() -> None:
    world, records = play(warm=100)
    summary = blind(records)
    (stream,) = summary.streams
    assert (stream.source, stream.misses) == ("inferred", 0)
    assert abs(stream.period_ns - world.period) <= 1
    assert abs(stream.cycles - 130) <= 1
    assert 0.9 < stream.confidence < 1.0
    assert stream.completion_eventfd == 42
    assert any("inferred" in f.what and "--audio PID" in f.do for f in summary.findings)
    assert not any("inferred" in f.what for f in seen(world, records).findings)


@pytest.mark.parametrize(
    ("delays", "cause"),
    [
        (Delays(lock=LATE), "lock"),
        (Delays(guest=LATE), "guest_late"),
        (Delays(channel_turns=12, turn=3 * MS), "serialised"),
        (Delays(gpu_syscall=LATE), "head_of_line"),
        (Delays(worker_off=LATE), "not_scheduled"),
        (Delays(guest=130 * MS), "guest_late"),
    ],
)
def test_misses_are_those_that_the_server_saw(delays: Delays, cause: str) -> None:
    world, records = play(delays)
    exact, inferred = seen(world, records), blind(records)
    assert exact.misses
    assert [m.leg for m in inferred.misses] == [m.leg for m in exact.misses]
    for mine, truth in zip(inferred.misses, exact.misses, strict=True):
        assert abs(mine.deadline_ns - truth.deadline_ns) < 100 * US
        assert (mine.evidence, mine.cause) == ("degraded", cause)
    assert len(inferred.episodes) == len(exact.episodes)


def test_a_late_read_by_the_server_is_not_seen() -> None:
    world, records = play(Delays(host_read=LATE))
    assert {m.cause for m in seen(world, records).misses} == {"host_late"}
    assert all(m.cause != "host_late" for m in blind(records).misses)


@pytest.mark.parametrize("period_ms", [100.0, 20.0, 16.667, 10.0, 5.0, 1.0])
def test_a_timer_at_no_audio_period_is_no_stream(period_ms: float) -> None:
    summary = blind(timer(every(period_ms * MS, max(200, int(1200 / period_ms)))))  # a second and more
    assert summary.streams == ()
    assert summary.verdict == "no audio stream seen"
    # Advice that a trace can follow too: nothing to be started now.
    assert summary.todo.startswith("trace while audio plays in the guest, with the audio server traced")


def test_before_a_second_has_passed_no_stream_is_said_to_be_absent() -> None:
    """Nothing could have been seen yet: that it is not there cannot be known."""
    early = blind(timer(every(20 * MS, 40)))
    watched_ns = early.window.end_ns - early.window.start_ns
    assert 0 < watched_ns < 1_000 * MS
    assert early.verdict == f"watched for {watched_ns / MS:.0f} ms; no audio stream yet"
    assert early.todo == "watch for 1.0 s or longer"
    assert early.findings == () and early.streams == ()

    late = blind(timer(every(20 * MS, 60)))
    assert late.window.end_ns - late.window.start_ns >= 1_000 * MS
    assert late.verdict == "no audio stream seen" == late.findings[0].what


def test_the_same_timer_at_an_audio_period_is_one() -> None:
    assert len(blind(timer(every(1024e9 / 44_100))).streams) == 1


def test_an_irregular_eventfd_is_no_stream() -> None:
    rng = random.Random(7)
    at, times = START, []
    for _ in range(400):
        at += int(rng.expovariate(1 / (21.33 * MS))) + 20 * US
        times.append(at)
    assert blind(timer(times)).verdict == "no audio stream seen"


def test_what_the_vmm_wakes_itself_for_is_no_stream() -> None:
    """A kick comes at the audio's period too, and a real one is no syscall."""
    records = timer(every(1024e9 / 48_000), waker=V, waker_tgid=VMM)
    assert blind(records).verdict == "no audio stream seen"


def test_what_a_traced_thread_writes_is_no_stream() -> None:
    times = every(1024e9 / 48_000)
    writes = [r.write(G, t - 3 * US, t + 1 * US, eventfd=TIMER_ID) for t in times]
    assert blind(r.trace(timer(times), writes)).verdict == "no audio stream seen"


def test_a_short_stream_is_none() -> None:
    assert blind(timer(every(1024e9 / 48_000, 12))).streams == ()


def test_a_given_period_excludes_others() -> None:
    _, records = play()
    assert blind(records, period=(256, 48_000)).streams == ()
    assert [s.source for s in blind(records, period=(1024, 48_000)).streams] == ["inferred"]


def test_a_pause_is_no_miss() -> None:
    period = 1024e9 / 48_000
    times = every(period, 60)
    again = [times[-1] + int(100.4 * period) + t - START for t in every(period, 60)]
    summary = blind(timer(times + again))
    (stream,) = summary.streams
    assert stream.misses == 0
    assert abs(stream.cycles - 120) <= 1


@pytest.mark.parametrize(("before", "after"), [(1024, 256), (256, 1024), (1024, 512)])
def test_a_new_quantum_is_no_miss(before: int, after: int) -> None:
    times = every(before * 1e9 / 48_000, 80)
    times += [times[-1] + int((k + 1) * after * 1e9 / 48_000) for k in range(160)]
    (stream,) = blind(timer(times)).streams
    assert stream.misses == 0
    assert stream.period_ns == round(after * 1e9 / 48_000)
    assert abs(stream.cycles - 240) <= 2


def test_a_value_above_one_is_as_many_missed_wakeups() -> None:
    period = 1024e9 / 48_000
    times = every(period, 60)
    slow = r.read(
        W, times[-1] + int(4.5 * period), times[-1] + int(4.5 * period) + US, eventfd=TIMER_ID, value=4
    )
    chosen = r.epoll_wait(W, times[-1] + 11 * US, times[-1] + int(4.5 * period) - US, data=3)
    later = timer([times[-1] + int((5 + k) * period) for k in range(60)])
    (stream,) = blind(r.trace(timer(times), chosen, slow, later)).streams
    assert stream.misses_by_leg["wake"] == 3


def test_the_same_id_received_anew_is_another_stream() -> None:
    period = 1024e9 / 48_000
    times = every(period, 60)
    gap = times[-1] + int(20.3 * period)
    again = [gap + t - START for t in every(period, 60)]
    summary = blind(
        r.trace(timer(times), r.recvmsg(W, gap - 50 * MS, gap - 49 * MS, eventfds=(TIMER_ID,)), timer(again))
    )
    assert [(s.alive, s.misses) for s in summary.streams] == [(False, 0), (True, 0)]


def test_verdicts_do_not_depend_on_where_batches_are_cut() -> None:
    _, records = play(Delays(guest=130 * MS), Delays(lock=LATE))
    whole = blind(records)
    n = int((records["tid"] != D).sum())
    for seed in range(5):
        cuts = tuple(sorted(random.Random(seed).sample(range(1, n), 7)))
        assert blind(records, cuts=cuts).to_dict() == whole.to_dict()


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
@pytest.mark.parametrize("quantum", [32, 256, 1024, 4096])
def test_each_audio_period_is_told(quantum: int, rate: int) -> None:
    rng = np.random.default_rng(quantum + rate)
    period = quantum * 1e9 / rate
    at = (START + np.arange(48) * period + rng.exponential(period / 20, 48)).astype(np.int64)
    found = find_cadence(np.sort(at), np.ones(48, dtype=np.int64))
    assert found is not None
    assert abs(found.period_ns - period) <= 1


def test_a_process_of_another_kind_is_told_that_nothing_shows_a_vmm() -> None:
    """Whoever named the wrong PID learns it; a VMM without audio is not told so."""
    analysis = Analysis()
    batch = World().batch(r.trace(timer(every(20 * MS, 60))), START + 2_000 * MS, first=True)
    analysis.feed(replace(batch, threads=tuple(replace(t, comm="worker") for t in batch.threads)))
    analysis.finish()
    said = [f for f in analysis.summary().findings if "nothing shows that" in f.what]
    assert len(said) == 1 and "xdtrace list" in said[0].do
    named = Analysis()
    named.feed(batch)
    named.finish()
    assert named.summary().verdict == "no audio stream seen"
    assert not [f for f in named.summary().findings if "nothing shows that" in f.what]
