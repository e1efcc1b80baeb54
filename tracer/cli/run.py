# SPDX-License-Identifier: Apache-2.0

"""The one loop: batches from a session or a trace, through the analysis, to a view.

Owns when things happen (refresh, duration, the end) and the signals that end a run.
Never looks into a batch or a summary.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from tracer.views.base import Action, View

if TYPE_CHECKING:
    from tracer.model.summary import Summary
    from tracer.schema import Batch

#: At most this share of the time goes into summaries and drawing, however much there is to show ...
DRAW_SHARE = 0.05
#: ... but a screen that stands still for longer than this is not live.
MOST_S = 2.0

#: Of the moment, the newest misses and episodes are listed only; the last summary has all.
SHOWN_MISSES = 200

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Engine(Protocol):
    """What the loop needs of tracer.model.analysis.Analysis."""

    def feed(self, batch: Batch) -> None: ...

    def finish(self) -> None: ...

    def summary(self, misses: int | None = None) -> Summary: ...

    def words_to_watch(self) -> Mapping[int, tuple[int, ...]]: ...

    def guests_to_join(self) -> Sequence[tuple[int, int]]: ...

    def reset(self) -> None: ...


class Writer(Protocol):
    """What the loop needs of tracer.trace.TraceWriter."""

    def append(self, batch: Batch) -> None: ...


class Ending:
    """Whether somebody asked for the end, by a signal or otherwise."""

    def __init__(self) -> None:
        self.requested = False
        self._seen: set[int] = set()

    def request(self) -> None:
        """Ask the loop to end after the present batch."""
        self.requested = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in self._seen:
            raise KeyboardInterrupt  # asked twice: the orderly way takes too long for the user
        self._seen.add(number)
        self.requested = True


@contextmanager
def ending_by_signal() -> Iterator[Ending]:
    """Ctrl-C, SIGTERM and SIGHUP (not under nohup) ask for the end instead of tearing the process down."""
    ending = Ending()
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    wanted = [number for number in _SIGNALS if number is not signal.SIGHUP or hangs_up]
    old = {number: signal.signal(number, ending._on_signal) for number in wanted}
    try:
        yield ending
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def collect_seldom() -> None:
    """Look for garbage in cycles seldom: what an analysis keeps makes the default pace a fifth of all CPU.

    What an analysis lets go is in no cycle (tests/unit/test_letting_go.py): there is next to nothing to find.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


def run(
    source: Iterable[Batch],
    analysis: Engine,
    view: View,
    *,
    ending: Ending,
    writer: Writer | None = None,
    watch: Callable[[int, tuple[int, ...]], Any] | None = None,
    join: Callable[[int, int], Any] | None = None,
    stop: Callable[[], Any] | None = None,
    duration_s: float | None = None,
    may_end: Callable[[bool], bool] = bool,
    clock: Callable[[], float] = time.monotonic,
    cpu: Callable[[], float] = time.thread_time,
) -> Summary:
    """Feed every batch, show a summary when one is due, and return the last one.

    Args:
        ending: asked for by signals; ``q`` and ``duration_s`` use it too.
        writer: gets each batch before the analysis does.
        watch: told the words (tgid, addresses) to watch, whenever they change.
        join: told of a VMM's guest that runs in another process: (tgid of the VMM, of the process).
        stop: ends the source in an orderly way; what it still yields is analysed.
            Without it the loop leaves the source where it is.
        duration_s: seconds of wall clock until the end.
        may_end: asked after each batch, told whether the end was asked for; True ends the run
            (also unasked). So a caller can wind down first.
        cpu: seconds of CPU used, which is what a summary is charged with: on a busy host it waits for long.

    Raises:
        BrokenPipeError: nobody reads the view's output any more.
        Whatever source, writer and analysis raise.
    """
    collect_seldom()
    words: Mapping[int, tuple[int, ...]] = {}
    end = None if duration_s is None else clock() + duration_s
    due = clock()
    stopping = False
    for batch in source:
        if writer is not None:
            writer.append(batch)
        analysis.feed(batch)
        if stopping:
            continue
        if watch is not None and (wanted := dict(analysis.words_to_watch())) != words:
            for tgid in {**words, **wanted}:
                if wanted.get(tgid, ()) != words.get(tgid, ()):
                    watch(tgid, wanted.get(tgid, ()))
            words = wanted
        if join is not None:
            for vmm, process in analysis.guests_to_join():
                join(vmm, process)
        for action in view.poll():
            if action is Action.QUIT:
                ending.request()
            else:
                analysis.reset()
                due = clock()
        now = clock()
        if end is not None and now >= end:
            ending.request()
        if may_end(ending.requested):
            if stop is None:
                break
            stop()
            stopping = True
        elif now >= due:
            before = cpu()
            view.show(analysis.summary(SHOWN_MISSES))
            spent = cpu() - before
            due = now + max(view.refresh_s, min(spent / DRAW_SHARE, MOST_S))
    analysis.finish()
    return analysis.summary()


def replay(source: Iterable[Batch], analysis: Engine) -> Summary:
    """All of a trace through the analysis at once; raises whatever the two raise."""
    collect_seldom()
    for batch in source:
        analysis.feed(batch)
    analysis.finish()
    return analysis.summary()
