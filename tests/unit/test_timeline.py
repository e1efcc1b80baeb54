# SPDX-License-Identifier: Apache-2.0
"""Steps of record time: the same however batches were cut, and no more of them than there is to do."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracer.model.timeline import QUIET_NS, RETENTION_NS, STEP_NS, Sequencer
from tracer.schema import RECORD, Kind, Records, empty_records

LONG_NS = 10 * 365 * 86_400 * 10**9


def at(*ends: int) -> Records:
    """Reads that end then."""
    records = np.zeros(len(ends), RECORD)
    records["kind"] = Kind.READ
    records["enter_ns"] = ends
    return records


def steps(*batches: tuple[Records, int]) -> list[tuple[int, list[int]]]:
    """Ends of the steps, with those of their records."""
    sequencer = Sequencer()
    found = [step for batch in batches for step in sequencer.feed(*batch)]
    found += sequencer.finish()
    return [(end, records["enter_ns"].tolist()) for records, end in found]


def test_years_without_records_are_passed_over() -> None:
    found = steps((at(STEP_NS, LONG_NS + 1), LONG_NS + STEP_NS))
    assert len(found) < QUIET_NS // STEP_NS + 5
    assert [end for end, of in found if of] == [2 * STEP_NS, LONG_NS + STEP_NS]
    assert [one for _, of in found for one in of] == [STEP_NS, LONG_NS + 1]


def test_after_the_last_record_steps_go_on_until_all_of_it_is_decided() -> None:
    found = steps((at(0), 10 * QUIET_NS))
    assert found[-1][0] >= QUIET_NS > 2 * RETENTION_NS
    assert [end for end, _ in found] == list(range(STEP_NS, found[-1][0] + 1, STEP_NS))


@given(
    st.lists(
        st.integers(0, 3 * STEP_NS) | st.integers(0, 3 * QUIET_NS) | st.just(LONG_NS),
        min_size=1,
        max_size=12,
    ),
    st.data(),
)
def test_steps_depend_on_records_only_however_batches_are_cut(gaps: list[int], data: st.DataObject) -> None:
    ends = np.cumsum(np.array(gaps, dtype=np.uint64)).tolist()
    last = ends[-1] + data.draw(st.integers(0, 2 * QUIET_NS), "last watermark")
    whole = steps((at(*ends), last))
    cuts = data.draw(st.lists(st.integers(0, last), max_size=8).map(sorted), "watermarks")
    batches, done = [], 0
    for mark in [*cuts, last]:
        more = [end for end in ends[done:] if end <= mark]
        done += len(more)
        batches.append((at(*more) if more else empty_records(), mark))
    assert steps(*batches) == whole
    kept = [(end, of) for end, of in whole if of]
    assert [one for _, of in kept for one in of] == ends
    assert all(end - STEP_NS < one <= end or one == ends[0] for end, of in kept for one in of)
