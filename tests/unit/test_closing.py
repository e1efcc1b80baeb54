# SPDX-License-Identifier: Apache-2.0
"""Which of the driver's reads closes a cycle, where a write goes on while the driver reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tracer.model.completions import close
from tracer.model.eventfds import Completion, Series


def series(*events: tuple[int, int, int]) -> Series:
    """Of (enter, end, value)."""
    made = Series()
    for enter, end, value in events:
        made.append([enter], [end], [1], [value], [False])
    return made


def closed(writes: Series, reads: Series, signal: int) -> SimpleNamespace:
    """A cycle signalled at a time, its completion written and read so."""
    stream = SimpleNamespace(completion=Completion(9, 20, reads, writes), exact=True)
    cycle = SimpleNamespace(stream=stream, signal_enter_ns=signal, signal_ns=signal + 2)
    cycle.closing_ns = cycle.write_ns = cycle.write_enter_ns = None
    close(cast(Any, cycle))
    return cycle


#: Three answers to cycles before, the last of them written while the driver reads; the fourth answers.
WRITES = series((1, 8, 1), (65, 66, 1), (80, 86, 1), (320, 325, 1))


@pytest.mark.parametrize(
    ("value", "closing"),
    [
        (2, 400),  # the read took two of three: the next read has the third, which is older than the signal
        (3, 111),  # it took all three: the next read's completion is another client's
    ],
)
def test_what_a_read_left_over_is_no_answer_of_another_client(value: int, closing: int) -> None:
    reads = series((79, 84, value), (110, 111, 1), (399, 400, 1))
    assert closed(WRITES, reads, signal=90).closing_ns == closing


def test_a_write_left_over_that_was_begun_before_the_signal_and_ended_after_it_closes() -> None:
    """Nobody can say whether it was added before: where it ended decides, as ever."""
    reads = series((79, 84, 2), (110, 111, 1), (399, 400, 1))
    cycle = closed(WRITES, reads, signal=85)
    assert (cycle.closing_ns, cycle.write_ns) == (111, 86)
