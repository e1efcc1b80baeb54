# SPDX-License-Identifier: Apache-2.0
"""Waits that are no lock are listed as what they are, in programs without a worker only."""

from __future__ import annotations

import pytest
import records as r

from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summaryrows import LockRow
from tracer.model.waits import Waits
from tracer.schema import Records, Target, Thread

TGID, A, B = 100, 1, 2
WORD = 0x1000


def rows(
    trace: Records, worker: bool = False, locks: set[tuple[int, int]] | None = None
) -> tuple[LockRow, ...]:
    registry = Registry()
    registry.learn(
        targets=[Target(TGID, "vmm", "program")], threads=[Thread(A, TGID, "a"), Thread(B, TGID, "b")]
    )
    registry.threads[B].role = "W" if worker else ""
    waits = Waits(registry)
    for part, end in r.steps(r.trace(trace, r.loss(10_000_000_000, 0)), (500_000,)):
        waits.step(Step(part, end))
    return waits.rows(locks or set(), 50)


@pytest.mark.parametrize(
    ("op", "expected", "kind"),
    [
        (128, 0, "park"),  # Go: futexsleep
        (137, 0xFFFFFFFF, "park"),  # Rust: std::thread::park
        (393, 0, "semaphore_or_condvar"),  # glibc: sem_wait, by CLOCK_REALTIME
        (137, 0, "semaphore_or_condvar"),
        (137, 7, "condvar"),  # Rust: Condvar's counter
        (265, 4711, "shared"),  # glibc: pthread_join
        (128, 5, "other"),
    ],
)
def test_a_wait_is_called_what_its_operation_and_value_say(op: int, expected: int, kind: str) -> None:
    spans = [r.wait(A, WORD, t, t + 200_000, op=op, expected=expected) for t in (1_000, 400_000, 900_000)]
    (row,) = rows(r.trace(*spans, *[r.wake(B, WORD, t) for t in (200_900, 599_900)]))
    assert (row.kind, row.contended, row.wait_ns.total, row.is_lock) == (kind, 3, 600_000, False)
    assert (row.top_waiter, row.top_holder) == ("a", "b") and row.evidence


@pytest.mark.parametrize("op", [128, 137])
def test_a_wait_for_two_is_a_lock_s_and_not_counted_here(op: int) -> None:
    assert rows(r.trace(r.wait(A, WORD, 1_000, 2_000, op=op, expected=2), r.wake(B, WORD, 1_900))) == ()


def test_a_worker_s_idling_is_not_listed_and_a_lock_s_word_not_twice() -> None:
    trace = r.trace(r.wait(A, WORD, 1_000, 2_000, op=128, expected=0), r.wake(B, 0x2000, 3_000))
    assert rows(trace, worker=True) == ()
    assert rows(trace, locks={(TGID, WORD)}) == ()
    assert len(rows(trace)) == 1
