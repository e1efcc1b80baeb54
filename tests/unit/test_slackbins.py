# SPDX-License-Identifier: Apache-2.0
"""Slack over time and waits by length: bounded, and nothing is lost or counted twice."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracer.model.analysis import Analysis
from tracer.model.histogram import LogHistogram
from tracer.model.slackbins import FIRST_WIDTH_NS, MAX_BINS, SlackBins
from tracer.trace import TraceReader

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"

#: Deadlines up to a month of uptime; slack, or None with a lateness (None: never closed).
CYCLES = st.lists(
    st.tuples(
        st.integers(0, 1 << 51),
        st.one_of(
            st.tuples(st.integers(0, 1 << 34), st.none()),
            st.tuples(st.none(), st.one_of(st.none(), st.integers(1, 1 << 34))),
        ),
    ),
    min_size=1,
    max_size=80,
)


def filled(cycles: list[tuple[int, tuple[int | None, int | None]]]) -> SlackBins:
    bins = SlackBins()
    for deadline, (slack, late) in cycles:
        bins.add(deadline, slack, late)
    return bins


@given(CYCLES)
def test_every_cycle_is_in_exactly_one_bin_and_the_extremes_survive(
    cycles: list[tuple[int, tuple[int | None, int | None]]],
) -> None:
    bins = filled(cycles)
    rows = bins.rows()
    width = bins.width_ns
    assert len(rows) <= MAX_BINS
    for row in rows:
        inside = [c for at, c in cycles if row.start_ns <= at < row.start_ns + width]
        met = [slack for slack, _ in inside if slack is not None]
        assert (row.cycles, row.misses) == (len(inside), len(inside) - len(met))
        assert row.least_ns == min(met, default=None)
        assert row.mean_ns == (sum(met) // len(met) if met else None)
        assert (row.late_ns is not None) == (row.misses > 0)
    assert sum(row.cycles for row in rows) == len(cycles)
    assert max(row.late_ns or 0 for row in rows) == max((late or 0 for _, (_, late) in cycles))


@given(CYCLES, st.integers(0, 1 << 30))
def test_the_bins_do_not_depend_on_the_order_of_cycles(
    cycles: list[tuple[int, tuple[int | None, int | None]]], seed: int
) -> None:
    mixed = list(cycles)
    random.Random(seed).shuffle(mixed)
    assert filled(mixed).rows() == filled(cycles).rows()


def test_the_width_doubles_only_when_it_must() -> None:
    bins = SlackBins()
    for i in range(MAX_BINS):
        bins.add(i * FIRST_WIDTH_NS, 1)
    assert (bins.width_ns, len(bins.rows())) == (FIRST_WIDTH_NS, MAX_BINS)
    bins.add(MAX_BINS * FIRST_WIDTH_NS, 1)
    assert (bins.width_ns, len(bins.rows())) == (2 * FIRST_WIDTH_NS, MAX_BINS // 2 + 1)


def test_no_cycle_no_bin() -> None:
    assert SlackBins().rows() == ()


@given(st.lists(st.integers(1, 1 << 41), min_size=1, max_size=200), st.sampled_from([1, 2, 4, 8]))
def test_waits_by_length_hold_every_wait_and_leave_no_gap(values: list[int], per_octave: int) -> None:
    waits = LogHistogram()
    waits.add(np.array(values, dtype=np.int64))
    bins = waits.bins(per_octave)
    assert sum(n for _, _, n in bins) == len(values)
    assert bins[0][2] and bins[-1][2]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bins))
    assert bins[0][0] - 1 <= min(values) <= bins[0][1] + 1
    assert bins[-1][0] - 1 <= max(values) <= bins[-1][1] * (1 + 1e-9) + 1


def test_no_wait_no_bins() -> None:
    assert LogHistogram().bins() == []


def test_of_a_real_trace_the_pictures_add_up_to_the_tables_and_a_snapshot_has_none() -> None:
    analysis = Analysis()
    with TraceReader(CAPTURES / "lock.xdt.tar") as trace:
        for batch in trace:
            analysis.feed(batch)
    analysis.finish()
    whole, snapshot = analysis.summary(), analysis.summary(200)
    assert whole.streams and whole.locks and whole.holders
    for stream in whole.streams:
        assert sum(b.misses for b in stream.slack_bins) == stream.misses
        assert sum(b.cycles for b in stream.slack_bins) == stream.cycles
        least = min(b.least_ns for b in stream.slack_bins if b.least_ns is not None)
        assert least == stream.slack_ns.min
    for lock in whole.locks:
        assert sum(b.waits for b in lock.wait_bins) == lock.contended
    for total in ("wait_ns_total", "waits", "misses"):
        assert sum(getattr(h, total) for h in whole.holders) == sum(getattr(b, total) for b in whole.blame)
    assert not snapshot.holders
    assert not any(s.slack_bins or s.slack_bin_ns for s in snapshot.streams)
    assert not any(k.wait_bins for k in snapshot.locks)
