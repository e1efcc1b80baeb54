# SPDX-License-Identifier: Apache-2.0
"""Streams and their cycles, as everybody in model/ sees them.

Owns the shapes. Who finds streams is streams.py's and inferred.py's, what decides a
cycle is deciding.py's. Times are ns.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from tracer.model.drivers import Driver
from tracer.model.eventfds import Completion, Eventfd, Series

#: A completion is expected only of (eventfd, VMM) pairs seen this often.
MIN_COMPLETIONS: Final = 8
#: How long an open cycle is waited for, in record time after its deadline.
GRACE_NS: Final = 2_000_000_000
#: A verdict uses records that end up to this long after the closing event: a sweep of OPEN records, and more.
SETTLE_NS: Final = 200_000_000

#: A client that goes takes its worker along; the server signals its stream no longer than this after that.
CLOSES_NS: Final = 100_000_000


@dataclass(slots=True)
class Cycle:
    """One cycle of one stream, decided.

    ``signal_*`` is the driver's write of e_n, ``read_*`` W's read of it, ``write_*`` the
    completion's write that the closing read covers, ``closing_ns`` the end of that read (of that
    write, where the driver cannot be seen). ``candidates``: streams that share the completion and were
    all pending, any of which may have been late; none where it is known.
    """

    stream: Stream
    driver: Driver
    number: int
    nominal_ns: int
    start_ns: int
    signal_enter_ns: int
    signal_ns: int
    deadline_ns: int = 0
    read_enter_ns: int | None = None
    read_ns: int | None = None
    reader_tid: int = 0
    write_enter_ns: int | None = None
    write_ns: int | None = None
    writer_tid: int = 0
    closing_ns: int | None = None
    missed: bool = False
    leg: str = ""
    after_catch_up: bool = False
    candidates: tuple[Stream, ...] = ()

    @property
    def end_ns(self) -> int:
        """End of the window: the closing event, else the deadline plus the grace."""
        return self.closing_ns if self.closing_ns is not None else self.deadline_ns + GRACE_NS

    @property
    def late_ns(self) -> int | None:
        """Closing minus deadline; None if it never closed."""
        return None if self.closing_ns is None else self.closing_ns - self.deadline_ns


@dataclass(slots=True, eq=False)
class Stream:
    """One eventfd that the audio server signals every cycle and a VMM reads.

    Attributes:
        serial: counts streams up from 1; never used twice.
        source: ``exact`` from the driver's own events, ``inferred`` from the VMM's.
        confidence: 1 if exact, else as inferred.py states.
        overruns: wakeups that a read found beside the first, a lower bound of missed ones.
        last_signal_ns: the last signal seen (or inferred).
        guessed: its completion eventfd is the likeliest of several, and may yet turn out to be another.
        usual_ns: from start to answer of its last cycles in time.
        others_late: late cycles that another client finished last, and that may have been late for it.
        fastest_ns: shortest time from W's read to the completion's write in a cycle on time.
    """

    serial: int
    name: str
    tgid: int
    wake: Eventfd
    driver: Driver
    context: int = 0
    source: str = "exact"
    confidence: float = 1.0
    completion: Completion | None = None
    guessed: bool = False
    held_since_ns: int = 0
    last_signal_ns: int = 0
    usual_ns: deque[int] = field(default_factory=lambda: deque(maxlen=64))
    others_late: int = 0
    fastest_ns: int | None = None
    cycles: int = 0
    overruns: int = 0
    alive: bool = True
    resting: bool = False
    pending: list[Cycle] = field(default_factory=list)
    taken_over: int = 0  # signals turned into cycles so far (over the whole lifetime)
    match_at: int = MIN_COMPLETIONS  # at so many signals the completion eventfd is looked for (again)

    def let_go(self) -> None:
        """It is kept for its names alone, by misses that were: forget its events, which nobody trims."""
        self.wake = Eventfd(self.wake.id, self.wake.born_ns)
        done = self.completion
        if done is not None:
            total = done.written.total
            self.completion = Completion(done.id, done.tgid, Series(), Series(total=total))
        self.usual_ns.clear()

    @property
    def id(self) -> str:
        """What it is called in a Summary."""
        return f"s{self.serial}"

    @property
    def title(self) -> str:
        """What it is called in sentences: as the tables show it."""
        return self.name or self.id

    @property
    def exact(self) -> bool:
        """Whether the driver itself was seen."""
        return self.source == "exact"

    @property
    def completion_expected(self) -> bool:
        """Whether completions of this target by this VMM were seen often enough."""
        return self.completion is not None and self.completion.written.total >= MIN_COMPLETIONS
