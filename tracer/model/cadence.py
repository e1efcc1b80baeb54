# SPDX-License-Identifier: Apache-2.0
"""Audio periods in times alone: which one fits, and the grid that it makes.

Owns the choice among the periods that there are (quantum a power of two; rates 44.1 to 192
kHz) and the tracking of a grid's phase. Knows no stream.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from math import floor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.drivers import Driver

#: Other rates are multiples of these two: 256/96000 is 128/48000.
RATES: Final = (44_100, 48_000)
QUANTA: Final = tuple(1 << n for n in range(2, 14))
#: A period is tried if it is this close to the median time per wakeup (44.1 and 48 kHz are 8.8 % apart).
NEAR: Final = 0.12
#: The part of a period around a grid point that counts as on the grid.
TOLERANCE: Final = 1 / 8
#: Share of wakeups in one such part from which on there is a cadence; a random one has 0.3 at 24 reads.
MIN_SHARE: Final = 0.6
#: The user says that there is one.
MIN_SHARE_GIVEN: Final = 0.4
#: Offsets whose least is the phase; so many in a row that are all later are another phase.
PHASE_OF: Final = 16
LATER: Final = 4
#: A deadline is told once wakings up to this long after it would have been seen.
LAG_NS: Final = 100_000_000
#: Exact starts are kept for so many cycles.
KEEP_MARKS: Final = 4096


@dataclass(frozen=True, slots=True)
class Cadence:
    """A period of quantum/rate seconds, a time on its grid, and the share of wakeups on it."""

    quantum: int
    rate: int
    phase_ns: int
    share: float

    @property
    def period_ns(self) -> int:
        """The period in ns, rounded."""
        return round(self.quantum * 1_000_000_000 / self.rate)


def fold(at: NDArray[np.int64], period_ns: float) -> tuple[float, int]:
    """(share, start) of the eighth of a period that holds most of the times (n,), folded by the period."""
    folded = np.sort((at - at[0]) % period_ns)
    twice = np.concatenate([folded, folded + period_ns])
    inside = np.searchsorted(twice, folded + period_ns * TOLERANCE, side="right") - np.arange(len(folded))
    i = int(np.argmax(inside))
    return float(inside[i]) / len(at), int(at[0]) + int(folded[i])


def find_cadence(
    at: NDArray[np.int64], values: NDArray[np.int64], given: tuple[int, int] | None = None
) -> Cadence | None:
    """The audio period of wakeups, None if they have none.

    Folds the times by each period near the median time per wakeup and looks for the eighth of a
    period that holds most of them; late ones lie outside and do no harm.

    Args:
        at: when each wakeup came (n,), ns, ascending; values: wakeups since the one before (n,).
        given: (quantum, rate) if the user gave it: no other is tried.
    """
    if len(at) < 2:
        return None
    typical = float(np.median(np.diff(at) / np.maximum(values[1:], 1)))
    options = (given,) if given else tuple((q, r) for r in RATES for q in QUANTA)
    best: Cadence | None = None
    for quantum, rate in options:
        period = quantum * 1e9 / rate
        if abs(typical / period - 1) > (2 * NEAR if given else NEAR):
            continue
        share, phase = fold(at, period)
        if best is None or share > best.share:
            best = Cadence(quantum, rate, phase, share)
    need = MIN_SHARE_GIVEN if given else MIN_SHARE
    return best if best is not None and best.share >= need else None


@dataclass(slots=True)
class Grid(Driver):
    """A driver that is not seen: its starts lie on a grid; some of them are known by a waking.

    Slots count periods; they are its cycles' numbers.
    """

    quantum: int = 1024
    rate: int = 48_000
    base: int = 0
    phase_ns: int = 0
    marks: dict[int, int] = field(default_factory=dict)
    offsets: deque[int] = field(default_factory=lambda: deque(maxlen=PHASE_OF))
    last: int = 0

    def at(self, slot: int) -> int:
        """Where the grid has a slot."""
        return self.phase_ns + (slot - self.base) * self.quantum * 1_000_000_000 // self.rate

    def place(self, time_ns: int) -> float:
        """Where a time lies, in slots."""
        return self.base + (time_ns - self.phase_ns) * self.rate / (self.quantum * 1_000_000_000)

    def before(self, time_ns: int, margin: float) -> int:
        """The last slot at or before a time, ``margin`` slots later."""
        return floor(self.place(time_ns) + margin)

    def on_grid(self, time_ns: int) -> bool:
        """Whether a time is near a grid point."""
        place = self.place(time_ns)
        return abs(place - round(place)) <= TOLERANCE

    def mark(self, slot: int, time_ns: int) -> None:
        """A waking says when a slot began; the grid follows the least late of the last ones."""
        self.marks[slot] = min(time_ns, self.marks.get(slot, time_ns))
        self.offsets.append(time_ns - self.at(slot) + self.phase_ns)
        if len(self.offsets) >= LATER:
            late = list(self.offsets)[-LATER:]
            if min(late) - self.phase_ns > self.period_ns * TOLERANCE:
                self.offsets = deque(late, maxlen=PHASE_OF)
        self.phase_ns = min(self.offsets)
        while len(self.marks) > KEEP_MARKS:
            del self.marks[next(iter(self.marks))]

    def advance(self, by_ns: int) -> None:
        """Another stream of the driver is signalled (or served) earlier: the grid begins there."""
        if by_ns > 0:
            self.phase_ns -= by_ns
            self.offsets = deque((offset - by_ns for offset in self.offsets), maxlen=PHASE_OF)

    def rephase(self, time_ns: int) -> None:
        """After a pause: begin again with the phase of a time."""
        self.phase_ns += time_ns - self.at(round(self.place(time_ns)))
        self.offsets.clear()

    def start_of(self, slot: int) -> int:
        """When a slot began: known, or as the grid has it."""
        return self.marks.get(slot, self.at(slot))

    def use(self, slot: int) -> None:
        """A signal was given in a slot."""
        if slot > self.last:
            self.total += 1
            self.last = slot

    def deadline(self, number: int, now_ns: int, final: bool = False) -> int | None:
        """The next slot's start, once a waking at it would have been seen."""
        lag = 0 if final else LAG_NS
        return self.start_of(number + 1) if now_ns >= self.at(number + 1) + lag else None

    def windows(self, last: int) -> list[tuple[int, int]]:
        """The last slots, as (start, next start)."""
        starts = [self.start_of(slot) for slot in range(self.last - last, self.last + 1)]
        return list(pairwise(starts))
