# SPDX-License-Identifier: Apache-2.0
"""Data loops that read no timer: their cycles begin at the first follower write."""

from __future__ import annotations

import random

import pytest
import records as r
from test_streams import DONE, WAKE, complete, decided, misses, one, serve, signal, taken, tick
from world import AUDIO, MS, START, US, D

from tracer.model.untimed import MIN_SIGNALS, period_of
from tracer.schema import Records

T = 480 * 1_000_000_000 // 44_100  # no power of two
WAKE2 = 43
SIGNAL = 10 * US  # a signal begins so long after what signal() is told


def answered(at: int, *wakes: int) -> list[Records]:
    """A cycle in time whose server reads no timer."""
    parts = [part for wake in wakes or (WAKE,) for part in (signal(at, wake), serve(at + 50 * US, wake))]
    return [*parts, complete(at + MS, DONE), taken(at + MS + 5 * US, DONE)]


def late(at: int, until: int) -> list[Records]:
    return [signal(at), serve(at + 50 * US), complete(until), taken(until + 5 * US)]


def run(first: int, count: int, *wakes: int) -> list[Records]:
    return [part for k in range(first, first + count) for part in answered(START + k * T, *wakes)]


def test_a_cycle_is_missed_if_its_completion_is_not_read_before_the_next_signal() -> None:
    missed = START + 40 * T
    overlapping = [*late(missed, missed + T + 3 * MS), signal(missed + T), serve(missed + T + 4 * MS)]
    streams, found = decided(*run(0, 40), *overlapping, *run(42, 20))
    (cycle,) = [c for c in found if c.missed]
    assert (cycle.leg, cycle.start_ns, cycle.deadline_ns) == (
        "completion",
        missed + SIGNAL,
        missed + T + SIGNAL,
    )
    assert one(streams).source == "exact"


def test_what_was_signalled_before_the_loop_was_known_is_judged_too() -> None:
    missed = START + 4 * T
    overlapping = [*late(missed, missed + T + 3 * MS), signal(missed + T), serve(missed + T + 4 * MS)]
    streams, found = decided(*run(0, 4), *overlapping, *run(6, 60))
    assert misses(found) == ["completion"]
    assert found[4].deadline_ns == missed + T + SIGNAL
    assert one(streams).cycles == len(found) == 65


def test_all_followers_of_one_cycle_have_one_start() -> None:
    streams, found = decided(*run(0, 60, WAKE, WAKE2))
    (driver,) = streams.all_drivers()
    assert (driver.tgid, driver.fd, driver.total, driver.period_ns) == (AUDIO, -1, 60, T)
    assert sorted({c.start_ns for c in found}) == [START + k * T + SIGNAL for k in range(59)]
    assert len(found) == 2 * 59
    assert misses(found) == []


@pytest.mark.parametrize("seed", range(5))
def test_writes_without_a_period_are_no_stream(seed: int) -> None:
    rng, at, parts = random.Random(seed), START, []
    for _ in range(200):
        at += int(T * rng.uniform(0.05, 4))
        parts += answered(at)
    assert decided(*parts)[0].all_kept() == []


def test_too_few_signals_are_no_stream() -> None:
    assert decided(*run(0, MIN_SIGNALS - 1))[0].all_kept() == []


def test_a_timer_that_the_loop_reads_starts_its_cycles() -> None:
    streams, _ = decided(*[tick(START + k * T) for k in range(60)], *run(0, 60))
    (driver,) = streams.all_drivers()
    assert (driver.fd, driver.total) == (4, 60)


def test_a_period_needs_most_distances_near_the_median() -> None:
    regular = [k * T for k in range(40)]
    assert period_of(regular) == T
    assert period_of(regular[: MIN_SIGNALS - 1]) == 0
    assert period_of([k * 200_000 for k in range(40)]) == 0
    assert period_of([k * 300_000_000 for k in range(40)]) == 0
    assert period_of([k * T + (k % 2) * T // 2 for k in range(40)]) == 0


def skipping(k: int, busy: int, poll: int) -> list[Records]:
    """A server that polls until the next cycle is due, and signals nobody who has not answered: cycle k's
    answer takes so many periods, and the poll runs out where the cycles without a signal are due."""
    at = START + k * T
    done = at + busy * T + T // 2
    parts = [signal(at), serve(at + 50 * US), complete(done), taken(done + 5 * US)]
    waits = [(at + 20 * US, at + T), *((at + i * T + 5 * US, at + (i + 1) * T) for i in range(1, busy))]
    waits += [(at + busy * T + 5 * US, done), (done + 10 * US, at + (busy + 1) * T)]
    for start, end in waits:
        call = r.epoll_wait(D, start, end, ret=int(end == done))
        call["op"] = poll
        parts.append(call)
    return parts


@pytest.mark.parametrize("busy", [1, 2, 5])
def test_a_server_that_signals_nobody_who_still_owes_an_answer_starts_its_cycles_all_the_same(
    busy: int,
) -> None:
    plan = [*[0] * 40, busy, *[0] * 10, busy, *[0] * 30]
    parts: list[Records] = []
    k, late = 0, []
    for n in plan:
        late += [k] if n else []
        parts += skipping(k, n, 271)
        k += n + 1
    streams, found = decided(*parts)
    missed = [c for c in found if c.missed]
    assert [c.start_ns for c in missed] == [START + k * T + SIGNAL for k in late]
    assert [abs(c.deadline_ns - c.start_ns - T) < 50 * US for c in missed] == [True, True]
    assert [c.leg for c in missed] == ["completion", "completion"]
    assert one(streams).cycles == len(plan) - 1
    (driver,) = streams.all_drivers()
    assert driver.events == {"late_start": 0, "skipped": 0, "catch_up": 0}


def test_a_signal_that_comes_late_after_a_sleep_is_one_cycle() -> None:
    """The server slept in time, and then computed: no cycle was left out."""
    parts: list[Records] = []
    for k in range(60):
        at = START + k * T
        late = 17 * T // 10 if k == 50 else 0
        if k != 51:
            asleep = START + 50 * T + 18 * T // 10 if k == 52 else at - T + 2 * MS
            parts += [r.syscall(D, asleep, at, number=230), *answered(at + late)]
    streams, found = decided(*parts)
    (driver,) = streams.all_drivers()
    assert (misses(found), driver.total, driver.events["late_start"]) == ([], 59, 1)


def test_a_server_that_overslept_and_reads_what_was_there_before_it_signals_left_out_no_cycle() -> None:
    parts: list[Records] = []
    for k in [*range(51), *range(52, 60)]:
        at = START + (17 * T // 10 + 50 * T if k == 52 else k * T)
        back = START + (17 * T // 10 + 50 * T if k == 50 else (k + 1) * T)
        parts += [signal(at + 20 * US), serve(at + 50 * US), complete(at + MS)]
        if k == 50:  # something in between took 1.7 periods; the sleep after it was over at once
            parts.append(r.syscall(D, at + 60 * US, back - 10 * US, number=230))
        asleep = back - 8 * US if k == 50 else at + 60 * US
        parts += [r.syscall(D, asleep, back, number=230), taken(back + 10 * US)]
    streams, found = decided(*parts)
    (driver,) = streams.all_drivers()
    assert (misses(found), driver.total, driver.events["late_start"]) == ([], 59, 1)
