# SPDX-License-Identifier: Apache-2.0
"""What `bench attribution` measures is what it says: so many episodes of so many turns each."""

from __future__ import annotations

import pytest

from bench.attribution import cost, starving
from tracer.model.analysis import Analysis


@pytest.mark.parametrize("turns", [1, 10, 100])
def test_each_episode_has_its_turns_and_one_origin(turns: int) -> None:
    analysis = Analysis()
    for batch in starving(turns, 3):
        analysis.feed(batch)
    analysis.finish()
    origins = [m for m in analysis.summary().misses if m.carried_from is None]
    assert [(m.cause, m.went_first) for m in origins] == [("serialised", {"channel": turns})] * 3


def test_cost_counts_every_miss_and_what_it_took() -> None:
    found = cost(starving(100, 2))
    assert (found["origins"], found["misses"]) == (2, 20)
    assert found["misses_per_cpu_s"] > 0
    assert found["cpu_s"] > 0
