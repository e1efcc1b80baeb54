# SPDX-License-Identifier: Apache-2.0
"""A bench's run takes all that the session has, also what it gives after its target has ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from bench.played import play


class Ended:
    """A target that has counted up by the second batch; a session that holds two more when it is stopped."""

    def __init__(self, counted: bool) -> None:
        self.ground_truth = {"cycles": 3} if counted else None
        self.given: list[str] = []
        self.stops = 0

    def start(self) -> None:
        pass

    def tick(self, asked: bool) -> bool:
        return len(self.given) >= 2

    def stop(self) -> None:
        self.stops += 1

    def __iter__(self) -> Iterator[str]:
        for batch in ("first", "second", *(("last", "very last") if self.stops < 2 else ())):
            self.given.append(batch)
            yield batch

    def append(self, batch: str) -> None:
        pass

    def feed(self, batch: str) -> None:
        pass

    def words_to_watch(self) -> dict[int, tuple[int, ...]]:
        return {}


def test_what_comes_after_the_count_is_part_of_the_run() -> None:
    run = cast(Any, Ended(counted=True))
    play(run, run, run, 1.0, run)
    assert run.given == ["first", "second", "last", "very last"]
    assert run.stops == 1


def test_a_target_that_counted_nothing_is_an_error() -> None:
    run = cast(Any, Ended(counted=False))
    with pytest.raises(RuntimeError, match="no count"):
        play(run, run, run, 1.0)
