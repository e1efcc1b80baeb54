# SPDX-License-Identifier: Apache-2.0
"""What is known of threads stays bounded however many come and go."""

from __future__ import annotations

import records as r

from tracer.model.registry import KEEP_EXITED, Registry
from tracer.model.step import Step
from tracer.schema import Life


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
