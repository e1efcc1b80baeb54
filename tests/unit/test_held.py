# SPDX-License-Identifier: Apache-2.0
"""Counts of words held at syscall entry."""

from __future__ import annotations

import pytest
import records as r
from hypothesis import given
from hypothesis import strategies as st

from tracer.model.held import MIN_SAMPLES, Held
from tracer.model.heldrows import held_rows, is_inside, wilson_low
from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.schema import Kind, Records, Thread

VMM = 100
WORD, OTHER = 0x1000, 0x2000
W, BYSTANDER = 1, 2


def feed(trace: Records, *, cuts: tuple[int, ...] = (), objects: dict[int, str] | None = None) -> Held:
    known = Registry()
    known.learn(threads=[Thread(tid, VMM, f"thread {tid}") for tid in (W, BYSTANDER)])
    locks = Locks(known)
    named = objects or {}
    held = Held(known, locks, lambda tgid, kind, fd, eventfd: named.get(eventfd, "other"))
    for part, end in r.steps(trace, cuts):
        locks.step(Step(part, end))
        held.step(Step(part, end))
    return held


def reads(
    tid: int, n: int, masks: list[int], *, generation: int = 1, eventfd: int = 7, at: int = 1_000
) -> Records:
    return r.trace(
        r.read(
            tid, at + 10 * i, at + 10 * i + 5, eventfd=eventfd, generation=generation,
            held_in=masks[i % len(masks)], readable_in=3,
        )
        for i in range(n)
    )  # fmt: skip


def test_counts_per_word_thread_syscall_and_object() -> None:
    trace = r.trace(
        r.words(VMM, 10, 1, [WORD, OTHER]),
        reads(W, 30, [0b01, 0b11, 0b00]),
        r.write(W, 2_000, 2_010, eventfd=8, generation=1, held_in=2, readable_in=2),
    )
    held = feed(trace, objects={7: "stream", 8: "irq"})
    assert held.fraction(VMM, WORD, (W,), Kind.READ, "stream") == (20 / 30, 30)
    assert held.fraction(VMM, OTHER, (W,), Kind.READ, "stream") == (10 / 30, 30)
    assert held.fraction(VMM, OTHER, (W,), Kind.WRITE, "irq") == (1.0, 1)
    assert held.fraction(VMM, WORD, (W,), Kind.WRITE, "irq") == (None, 0)  # the word could not be read
    assert held.eventfds == {"stream", "irq"}


def test_a_generation_says_which_word_a_bit_is() -> None:
    trace = r.trace(
        r.words(VMM, 10, 1, [WORD, OTHER]),
        reads(W, 10, [1]),
        r.words(VMM, 1_500, 2, [OTHER, 0, 0, 0, WORD]),
        reads(W, 10, [1], generation=2, at=2_000),
        reads(W, 10, [1], generation=9, at=3_000),  # a generation nobody announced
    )
    held = feed(trace)
    assert held.count(VMM, WORD) == (10, 10)
    assert held.count(VMM, OTHER) == (10, 20)
    assert held.words_of(VMM, 2)[4] == WORD


def test_open_spans_are_not_counted() -> None:
    closed = r.read(W, 1_000, 9_000, eventfd=7, generation=1, held_in=1)
    held = feed(r.trace(r.words(VMM, 10, 1, [WORD]), r.opened(closed, 5_000), closed))
    assert held.count(VMM, WORD) == (1, 1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.lists(st.integers(0, 2_000), max_size=6))
def test_batch_cuts_do_not_matter(masks: list[int], cuts: list[int]) -> None:
    trace = r.trace(r.words(VMM, 10, 1, [WORD, OTHER]), reads(W, len(masks), masks))
    held = feed(trace, cuts=tuple(cuts))
    assert held_rows(held) == held_rows(feed(trace))
    assert held.count(VMM, WORD) == (sum(m & 1 for m in masks), len(masks))
    assert held.count(VMM, OTHER) == (sum(m >> 1 for m in masks), len(masks))


def test_the_base_is_that_of_threads_that_never_use_the_lock() -> None:
    trace = r.trace(
        r.words(VMM, 10, 1, [WORD]),
        r.wait(W, WORD, 100, 900),
        r.wake(W, WORD, 950, dur=10),
        reads(W, 100, [1]),
        reads(BYSTANDER, 100, [1, 0, 0, 0], eventfd=9),
    )
    rows = held_rows(feed(trace, objects={7: "stream", 9: "kick"}))
    first, second = rows
    assert (first.object, first.held_fraction, first.base, first.inside) == ("stream", 1.0, 0.25, True)
    assert (second.object, second.held_fraction, second.inside) == ("kick", 0.25, False)


@pytest.mark.parametrize(
    ("held", "n", "base", "inside"),
    [
        (MIN_SAMPLES, MIN_SAMPLES, 0.0, True),
        (MIN_SAMPLES - 1, MIN_SAMPLES - 1, 0.0, False),  # too few
        (150, 1_000, 0.02, False),  # above chance, but not what the syscall runs under
        (990, 1_000, 0.5, True),
        (700, 1_000, 0.5, False),
        (1_000, 1_000, None, True),
        (99, 100, 0.97, False),  # a lock that is always held says nothing
    ],
)
def test_inside_needs_samples_and_a_fraction_far_above_base(
    held: int, n: int, base: float | None, inside: bool
) -> None:
    assert is_inside(held, n, base) is inside


@given(st.integers(0, 500), st.integers(1, 500))
def test_the_bound_lies_below_the_fraction(held: int, n: int) -> None:
    held = min(held, n)
    assert 0.0 <= wilson_low(held, n) <= held / n + 1e-12


def test_rows_are_bounded_under_endless_new_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracer.model.held._MAX_ROWS", 100)
    known = Registry()
    known.learn(threads=[Thread(W, VMM, "w")])
    held = Held(known, None, lambda tgid, kind, fd, eventfd: f"object {eventfd}")
    held.step(Step(r.words(VMM, 1, 1, [WORD]), 1))
    for i in range(300):
        read = r.read(W, 10 * i, 10 * i + 5, eventfd=i, generation=1, held_in=1)
        held.step(Step(read, 1_000_000 * i + 5))
    rows = held_rows(held, limit=1_000)
    assert len(rows) <= 101
    assert "object 299" in {row.object for row in rows}
    assert all(row.samples == 1 and row.held_fraction == 1.0 for row in rows)
