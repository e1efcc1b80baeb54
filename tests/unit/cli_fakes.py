# SPDX-License-Identifier: Apache-2.0
"""A session, an analysis and a writer that do what a test says. Owns no knowledge of the real ones."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import views_data

from tracer.cli import live
from tracer.cli.main import run_command
from tracer.errors import XdtraceError
from tracer.model.analysis import Tally
from tracer.model.summary import Summary
from tracer.schema import Batch, empty_records


class FakeSession:
    """Yields batches until stopped; one more after that, as the real one does.

    Args:
        batches: how many before it ends by itself (the target's exit); None: never.
        interval_s: real time between batches.
    """

    def __init__(
        self, batches: int | None = 3, interval_s: float = 0.0, error: XdtraceError | None = None
    ) -> None:
        self._batches = batches
        self._stop = threading.Event()
        self._interval_s = interval_s
        self._error = error
        self.watched: list[tuple[int, tuple[int, ...]]] = []
        self.joined: list[tuple[int, int]] = []
        self.log: list[str] = []

    def __enter__(self) -> FakeSession:
        if self._error is not None:
            raise self._error
        self.log.append("attached")
        return self

    def __exit__(self, *exc: object) -> None:
        self.log.append("detached")

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        while not self._stop.is_set() and (self._batches is None or number < self._batches):
            yield Batch(empty_records(), number)
            number += 1
            if self._interval_s:
                self._stop.wait(self._interval_s)
        yield Batch(empty_records(), number)

    def watch(self, tgid: int, words: Sequence[int]) -> None:
        self.watched.append((tgid, tuple(words)))

    def join(self, vmm: int, tgid: int) -> None:
        self.joined.append((vmm, tgid))

    def stop(self) -> None:
        self.log.append("stopped")
        self._stop.set()


class FakeAnalysis:
    """Counts what it is fed; its summary is one of views_data's, with the count in it."""

    def __init__(self, summary: Callable[[], Summary] = views_data.missing) -> None:
        self._summary = summary()
        self.fed = 0
        self.resets = 0
        self.finished = False
        self.words: Mapping[int, tuple[int, ...]] = {}
        self.guests: list[tuple[int, int]] = []

    def feed(self, batch: Batch) -> None:
        assert not self.finished
        self.fed += 1

    def finish(self) -> None:
        self.finished = True

    def reset(self) -> None:
        self.resets += 1
        self._summary = replace(self._summary, verdict=f"reset {self.resets}")

    def words_to_watch(self) -> Mapping[int, tuple[int, ...]]:
        return self.words

    def guests_to_join(self) -> list[tuple[int, int]]:
        return self.guests

    def tally(self) -> Tally:
        return Tally(0, 0)

    def summary(self, misses: int | None = None) -> Summary:
        return replace(self._summary, records=replace(self._summary.records, total=self.fed))


class FakeWriter:
    """Remembers that it was opened, fed and closed."""

    def __init__(self) -> None:
        self.batches = 0
        self.closed = False

    def __enter__(self) -> FakeWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def append(self, batch: Batch) -> None:
        self.batches += 1


def main() -> None:
    """``cli_fakes.py N attach …``: the real command on a fake session of N batches (0: endless)."""
    session = FakeSession(int(sys.argv[1]) or None, interval_s=0.02)
    live.open_session = lambda todo: session
    live.make_analysis = lambda *rest: FakeAnalysis()
    sys.exit(run_command(sys.argv[2:]))


if __name__ == "__main__":
    main()
