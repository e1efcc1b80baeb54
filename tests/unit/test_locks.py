# SPDX-License-Identifier: Apache-2.0
"""Lock words from futex records: kinds, acquisitions, holders, blame, bounds."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
import records as r
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model import holders
from tracer.model.holders import MOST_HOLDERS
from tracer.model.learning import MAX_WORDS
from tracer.model.locks import Locks
from tracer.model.ownlocks import watch_order
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.schema import Fd, Records, Thread, empty_records

VMM = 100
WORD = 0x7F00_0000_1000


def registry(threads: int = 9) -> Registry:
    known = Registry()
    known.learn(threads=[Thread(tid, VMM, f"thread {tid}") for tid in range(1, threads)])
    return known


def run(trace: Records, cuts: tuple[int, ...] = (), known: Registry | None = None) -> Locks:
    locks = Locks(known or registry())
    for part, end in r.steps(trace, cuts):
        locks.step(Step(part, end))
    return locks


def row(locks: Locks, word: int = WORD) -> object:
    return next(row for row in locks.rows() if row.address == word)


@dataclass
class Simulated:
    """A std mutex acted out by threads at random, and what truly happened."""

    parts: list[Records] = field(default_factory=list)
    contended: int = 0
    barged: int = 0
    wait_ns: int = 0
    acquisitions: list[tuple[int, int, int]] = field(default_factory=list)


def simulate(seed: int, threads: int, rounds: int) -> Simulated:
    """Threads lock, hold and unlock one word in an event loop; wakes take time and may lose the race."""
    rng = random.Random(seed)
    out = Simulated()
    now = 1_000_000
    word, holder = 0, 0
    asleep: list[int] = []
    waiting_since: dict[int, int] = {}
    first: dict[int, int] = {}
    slept: dict[int, int] = {}
    left = dict.fromkeys(range(1, threads + 1), rounds)

    def take(tid: int, value: int) -> None:
        nonlocal word, holder
        word, holder = value, tid
        if tid in first:
            out.acquisitions.append((tid, first.pop(tid), now))
            out.barged += slept.pop(tid) - 1

    def sleep(tid: int) -> None:
        waiting_since[tid] = now
        if tid not in first:
            out.contended += 1
            first[tid] = now
            slept[tid] = 0
        slept[tid] += 1
        asleep.append(tid)

    while any(left.values()) or holder:
        now += rng.randrange(2_000, 60_000)
        idle = [t for t in left if left[t] and t != holder and t not in waiting_since]
        if holder and (not idle or rng.random() < 0.4):
            tid, value = holder, word
            word = holder = 0
            left[tid] -= 1
            if rng.random() < 0.5:
                out.parts.append(r.write(tid, now - 900, now - 400, eventfd=3))
            if value == 2:
                woken = asleep.pop(rng.randrange(len(asleep))) if asleep else 0
                length = rng.randrange(300, 90_000)  # the waker may be preempted in its wake
                out.parts.append(r.wake(tid, WORD, now + length, dur=length, ret=int(bool(woken))))
                now += 200
                if woken:
                    barger = next((t for t in idle if t != tid and rng.random() < 0.4), 0)
                    if barger:
                        take(barger, 1)
                    now += rng.randrange(100, 1_000)
                    out.parts.append(r.wait(woken, WORD, waiting_since.pop(woken), now, caller=0x40))
                    now += 50
                    if holder:
                        word = 2
                        sleep(woken)
                    else:
                        now_taken = now - 50
                        start = first[woken]
                        out.wait_ns += now_taken - start
                        take(woken, 2)
                now += length
        elif idle:
            tid = rng.choice(idle)
            if not holder:
                take(tid, 1)
            else:
                word = 2
                sleep(tid)
    return out


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 6),
    st.integers(1, 12),
    st.lists(st.integers(1_000_000, 9_000_000), max_size=8),
)
def test_acquisitions_are_counted_exactly_wherever_batches_are_cut(
    seed: int, threads: int, rounds: int, cuts: list[int]
) -> None:
    truth = simulate(seed, threads, rounds)
    trace = r.trace(truth.parts)
    whole, cut = run(trace), run(trace, tuple(cuts))
    if truth.contended:
        found = row(cut)
        assert found.contended == truth.contended  # type: ignore[attr-defined]
        assert found.barged == truth.barged  # type: ignore[attr-defined]
        assert found.wait_ns.total == truth.wait_ns  # type: ignore[attr-defined]
    assert whole.rows() == cut.rows()
    assert whole.blame() == cut.blame()
    assert sum(b.waits for b in cut.blame(limit=10_000)) == truth.contended
    for tid in range(1, threads + 1):
        got = cut.waits_of(tid, 0, 1 << 62)
        assert got == whole.waits_of(tid, 0, 1 << 62)
        assert [a.start_ns for a in got] == [start for who, start, _ in truth.acquisitions if who == tid]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(1, 300), st.integers(1, 5)), max_size=20),
    st.integers(0, 1_900),
    st.integers(1, 900),
)
def test_pieces_partition_a_wait_exactly(wakes: list[tuple[int, int, int]], start: int, length: int) -> None:
    trace = r.trace(
        r.wait(5, WORD, 0, 5_000), *(r.wake(tid, WORD, at + dur, dur=dur) for at, dur, tid in wakes)
    )
    pieces = run(trace).holder_pieces(VMM, WORD, 5, start, start + length)
    assert pieces[0].start_ns == start and pieces[-1].end_ns == start + length
    for left, right in itertools.pairwise(pieces):
        assert left.end_ns == right.start_ns
    assert all(p.end_ns > p.start_ns and p.holder_tid != 5 for p in pieces)


def test_a_wait_is_cut_at_every_wake_and_the_rest_has_no_holder() -> None:
    trace = r.trace(
        r.wake(4, WORD, 1_300, dur=300),  # released before the wait began
        r.wake(1, WORD, 1_500, dur=100),
        r.wake(2, WORD, 1_700, dur=100),
        r.wait(3, WORD, 1_200, 1_900),
    )
    pieces = run(trace).holder_pieces(VMM, WORD, 3, 1_200, 1_900)
    assert [(p.end_ns, p.holder_tid) for p in pieces] == [(1_500, 1), (1_700, 2), (1_900, 0)]


def test_a_waker_preempted_in_its_wake_still_is_the_holder() -> None:
    trace = r.trace(r.wait(2, WORD, 1_000, 9_000), r.wake(1, WORD, 80_000, dur=72_000))
    pieces = run(trace).holder_pieces(VMM, WORD, 2, 1_000, 9_000)
    assert [(p.end_ns, p.holder_tid) for p in pieces] == [(9_000, 1)]


def test_own_wake_ends_an_acquisition_and_dates_its_hold() -> None:
    trace = r.trace(
        r.wait(1, WORD, 1_000, 2_000),
        r.wake(1, WORD, 5_500, dur=500),
        r.wait(1, WORD, 6_000, 7_000),
    )
    found = row(run(trace))
    assert found.contended == 2 and found.barged == 0  # type: ignore[attr-defined]
    assert found.hold_ns.n == 1 and found.hold_ns.source == "wakes"  # type: ignore[attr-defined]
    assert run(trace).waits_of(1, 0, 3_000)[0].hold_ns == 3_000


def test_kinds_of_words() -> None:
    trace = r.trace(
        r.wait(1, 0x10, 0, 10),
        r.wait(1, 0x20, 20, 30, op=r.PTHREAD_WAIT),
        r.wait(1, 0x30, 40, 50, expected=1),
        r.wait(1, 0x30, 60, 70, expected=2),
        r.wait(1, 0x40, 80, 90, op=r.SHARED_WAIT),
        r.wait(1, 0x50, 100, 110, op=r.PTHREAD_WAIT, expected=7),
    )
    locks = run(trace)
    kinds = [locks.kind(VMM, word) for word in (0x10, 0x20, 0x30, 0x40, 0x50, 0x60)]
    assert kinds == ["mutex", "pthread", "condvar", "shared", "other", "other"]
    assert locks.is_mutex(VMM, 0x10) and not locks.is_mutex(VMM, 0x20)
    assert {row.address for row in locks.rows()} == {0x10, 0x20}


def test_an_open_wait_is_shown_and_superseded_by_its_end() -> None:
    closed = r.wait(1, WORD, 1_000, 900_000)
    early = r.opened(closed, 300_000)
    locks = run(r.trace(early))
    waits = locks.waits_of(1, 0, 1_000_000)
    assert [(a.end_ns, a.open) for a in waits] == []  # never seen closed: its kind is not known yet
    locks = run(r.trace(r.wait(2, WORD, 0, 500), early))
    assert [(a.end_ns, a.open) for a in locks.waits_of(1, 0, 1_000_000)] == [(300_000, True)]
    locks.step(Step(closed, 900_000))
    assert [a.end_ns for a in locks.waits_of(1, 0, 1_000_000)] == [900_000]
    assert row(locks).contended == 2  # type: ignore[attr-defined]


def test_the_relock_of_a_condvar_is_told_from_a_lock_taken_later() -> None:
    cond = 0x7F00_0000_2000
    relock = r.trace(
        r.wait(1, cond, 0, 1_000, expected=7, caller=0x99),
        r.wait(1, WORD, 1_100, 2_000),
        r.wake(1, WORD, 3_000),
    )
    locks = run(relock)
    assert row(locks).kind == "condvar_relock"  # type: ignore[attr-defined]
    assert locks.words[VMM, WORD].conds == {(cond, 0x99): 1}
    later = r.trace(relock[:1], r.epoll_wait(1, 1_020, 1_080), relock[1:])
    assert row(run(later)).kind == "mutex"  # type: ignore[attr-defined]


def test_blame_names_the_holders_longest_syscall_and_counts_misses() -> None:
    known = registry()
    known.learn(fds=[Fd(VMM, 9, "pipe")])
    trace = r.trace(
        r.write(1, 1_100, 8_000, fd=9),
        r.read(1, 8_100, 8_300, eventfd=4),
        r.wake(1, WORD, 9_000),
        r.wait(2, WORD, 1_000, 9_100, caller=0x40),
        r.wake(2, WORD, 12_000),
    )
    locks = run(trace, known=known)
    locks.note_miss(VMM, WORD, 1, 2)
    (blamed,) = locks.blame()
    assert (blamed.holder_operation, blamed.holder_syscall, blamed.victim_operation) == (
        "thread 1",
        "write(pipe)",
        "thread 2",
    )
    assert (blamed.waits, blamed.wait_ns_total, blamed.wait_ns_max, blamed.misses) == (1, 8_000, 8_000, 1)
    assert row(locks).misses_caused == 1  # type: ignore[attr-defined]


def test_of_a_convoy_the_last_holders_are_told_and_no_nanosecond_is_lost() -> None:
    """A wait during which a lock went through hundreds of hands: thousands of such waits are many pieces."""
    handed = [r.wake(1 + i % 8, WORD, 1_000 * (i + 1), dur=100) for i in range(400)]
    locks = run(r.trace(r.wait(9, WORD, 500, 400_050, caller=0x40), *handed), known=registry(10))
    blamed = locks.blame()
    told = [b for b in blamed if b.holder_operation != "unknown"]
    assert sum(b.wait_ns_total for b in blamed) == 400_000 - 500  # to the last wake
    assert sum(b.wait_ns_total for b in told) == pytest.approx(1_000 * MOST_HOLDERS, abs=1_000)
    assert sum(b.waits for b in blamed) == 1


def test_locks_rank_by_misses_then_by_time_never_by_count() -> None:
    many = [r.trace(r.wait(1, 0x10, t, t + 5), r.wake(1, 0x10, t + 8, dur=1)) for t in range(0, 500, 10)]
    trace = r.trace(*many, r.wait(2, 0x20, 0, 9_000), r.wait(3, 0x30, 0, 100))
    locks = run(trace)
    assert [row.address for row in locks.rows()] == [0x20, 0x10, 0x30]
    locks.note_miss(VMM, 0x30)
    assert locks.rows()[0].address == 0x30


def test_memory_is_bounded_for_endless_new_words() -> None:
    locks = Locks(registry())
    for step in range(60):
        at = step * 1_000_000
        parts = [r.wait(1, 0x1000 + 4 * (step * 100 + i), at + 10 * i, at + 10 * i + 5) for i in range(100)]
        locks.step(Step(r.trace(parts), at + 1_000_000))
    assert len(locks.words) <= MAX_WORDS
    assert locks.evicted > 0


def test_an_exited_thread_keeps_its_acquisition() -> None:
    locks = run(r.trace(r.wait(1, WORD, 0, 500), r.life(1, 600, op=4)))
    assert row(locks).contended == 1  # type: ignore[attr-defined]
    assert len(locks.waits_of(1, 0, 1_000)) == 1


def test_nothing_comes_of_no_records() -> None:
    locks = run(empty_records())
    assert locks.rows() == () and locks.blame() == () and watch_order(locks, VMM) == []


def test_of_a_crowd_s_waits_as_many_pieces_are_told_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = []
    for i in range(10):  # the i-th waits through i wakes of others
        parts.append(r.wait(10 + i, 0x1000, 1_000_000 + i, 2_000_000 + 100_000 * i))
        parts.append(r.wake(20 + i, 0x1000, 2_000_000 + 100_000 * i - 1_000))
        parts.append(r.wake(10 + i, 0x1000, 9_000_000 + 10_000 * i))
    trace = r.trace(*parts)

    whole = run(trace).blame(1000)
    monkeypatch.setattr(holders, "MAX_PIECES", 10)
    monkeypatch.setattr(holders, "MAX_THREADS", 2)
    told = run(trace).blame(1000)
    assert len(told) < len(whole)
    assert sum(row.waits for row in told) == sum(row.waits for row in whole) == 10
