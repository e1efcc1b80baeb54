# SPDX-License-Identifier: Apache-2.0
"""What is known of threads stays bounded however many come and go, and whatever they are called."""

from __future__ import annotations

import numpy as np
import records as r

from tracer.model.registry import KEEP_EXITED, Registry
from tracer.model.step import Step
from tracer.schema import Life, Thread


def test_threads_that_exited_long_ago_are_forgotten_and_living_ones_are_not() -> None:
    known = Registry()
    for tid in range(1, 3 * KEEP_EXITED):
        at = 1_000 * tid
        parts = [r.life(tid, at, op=Life.START, comm="short", tgid=7)]
        if tid != 1:
            parts.append(r.life(tid, at + 500, op=Life.EXIT, comm="short", tgid=7))
        known.step(Step(r.trace(parts), at + 900))
    assert len(known.threads) == KEEP_EXITED + 1
    assert known.comm(1) == known.comm(3 * KEEP_EXITED - 1) == "short"
    assert known.comm(2) == "tid 2"


def test_the_processes_of_threads_are_found_as_they_come_and_go() -> None:
    known = Registry()
    known.learn(threads=(Thread(5, 1, "a"), Thread(4_000_000, 2, "far"), Thread(5, 3, "again")))
    asked = np.array((5, 6, 4_000_000, 4_000_001, 2**32 - 1), dtype=np.uint32)
    assert known.tgids_of(asked).tolist() == [3, 0, 2, 0, 0]
    for tid in range(100, 101 + KEEP_EXITED):
        at = 1_000 * tid
        parts = [r.life(tid, at, op=op, comm="short", tgid=7) for op in (Life.START, Life.EXIT)]
        known.step(Step(r.trace(parts), at + 900))
    assert known.tgids_of(np.array((100, 101), dtype=np.uint32)).tolist() == [0, 7]


def test_a_thread_that_cannot_be_takes_no_memory_and_has_no_process() -> None:
    known = Registry()
    known.learn(threads=(Thread(2**50, 1, "too far"), Thread(-3, 1, "before"), Thread(9, -1, "nobody's")))
    assert known.tgids_of(np.array((9, 2**32 - 3, 0), dtype=np.uint32)).tolist() == [0, 0, 0]
    assert known.comm(2**50) == "too far"
