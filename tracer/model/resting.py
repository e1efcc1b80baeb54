# SPDX-License-Identifier: Apache-2.0
"""Streams at rest: ended, or paused, and what is kept of them.

Owns which streams rest, how many of them are kept, and the counts of those that are not. Finds none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from tracer.model.cycles import Stream

#: A stream without a signal for this long rests: it costs nothing until it is signalled again.
REST_NS: Final = 1_000_000_000
#: Streams at rest that are kept (for their tables, and to go on), the longest; others are kept as counts.
KEEP_RESTING: Final = 64
#: A stream of fewer cycles is not worth keeping once it rests.
MIN_CYCLES: Final = 8


@dataclass(slots=True)
class Past:
    """Streams that are kept as counts only."""

    streams: int = 0
    cycles: int = 0


class Resting:
    """Those streams that ended or pause.

    Attributes:
        streams: oldest first.
        past: what was dropped from ``streams``, as counts.
        dropped: streams dropped since somebody last emptied this list.
    """

    def __init__(self) -> None:
        self.streams: deque[Stream] = deque()
        self.past = Past()
        self.dropped: list[Stream] = []

    def wake(self, stream: Stream) -> None:
        """A stream at rest was signalled: it is not at rest any more."""
        stream.resting = False
        self.streams.remove(stream)

    def take(
        self, streams: list[Stream], exited: Set[int], end_ns: int
    ) -> tuple[list[Stream], Sequence[Stream]]:
        """Put to rest what was not signalled for long.

        Args:
            streams: those that were not at rest.
            exited: processes that are gone (tgids).
            end_ns: record time.

        Returns:
            Those that still are not at rest, and those that are dropped for good.
        """
        for stream in streams:
            if stream.driver.tgid in exited and stream.last_signal_ns < end_ns - REST_NS:
                stream.alive = False  # its server has exited
        resting = {
            s.serial
            for s in streams
            if not s.pending and (not s.alive or s.last_signal_ns < end_ns - REST_NS)
        }
        if not resting:
            return streams, ()
        for stream in streams:
            if stream.serial in resting:
                stream.resting = True
                self.streams.append(stream)
        short = [s for s in self.streams if not s.alive and s.cycles < MIN_CYCLES]
        excess = sorted(self.streams, key=lambda s: s.cycles)[: max(0, len(self.streams) - KEEP_RESTING)]
        gone = {s.serial: s for s in (*short, *excess)}
        if gone:
            self.streams = deque(s for s in self.streams if s.serial not in gone)
            self.dropped += gone.values()
        for stream in gone.values():
            self.past.streams += 1
            self.past.cycles += stream.cycles
        return [s for s in streams if s.serial not in resting], list(gone.values())
