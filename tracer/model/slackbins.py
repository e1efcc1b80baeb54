# SPDX-License-Identifier: Apache-2.0
"""A stream's slack over the whole recording, in fixed memory.

Owns the bins: at most MAX_BINS, of a width that doubles whenever they no longer suffice, aligned to
multiples of it, so that what comes out depends on the cycles alone. Knows nothing of verdicts.
"""

from __future__ import annotations

from typing import Final

from tracer.model.summaryrows import SlackBin

MAX_BINS: Final = 256
#: The first width, ns: a power of two, so that bins merge without remainder.
FIRST_WIDTH_NS: Final = 1 << 22


class SlackBins:
    """Counts cycles by the time of their deadline: how many, how many missed, the extremes of slack."""

    __slots__ = ("_bins", "_first", "width_ns")

    def __init__(self) -> None:
        self.width_ns = FIRST_WIDTH_NS
        self._first = 0
        #: cycles, misses, least slack, slack in all, on-time cycles, worst lateness; per bin from _first.
        self._bins: list[_Bin | None] = []

    def add(self, deadline_ns: int, slack_ns: int | None, late_ns: int | None = None) -> None:
        """Count one cycle.

        Args:
            slack_ns: deadline minus closing read; None: the cycle was missed.
            late_ns: of a missed cycle, None where it never closed.
        """
        bin_ = self._bin(deadline_ns)
        bin_.cycles += 1
        if slack_ns is None:
            bin_.misses += 1
            bin_.late = max(bin_.late, late_ns or 0)
            return
        bin_.met += 1
        bin_.total += slack_ns
        bin_.least = slack_ns if bin_.least is None else min(bin_.least, slack_ns)

    def rows(self) -> tuple[SlackBin, ...]:
        """The bins that hold cycles, in time."""
        return tuple(
            SlackBin(
                start_ns=(self._first + i) * self.width_ns,
                cycles=b.cycles,
                misses=b.misses,
                least_ns=b.least,
                mean_ns=b.total // b.met if b.met else None,
                late_ns=b.late if b.misses else None,
            )
            for i, b in enumerate(self._bins)
            if b is not None
        )

    def _bin(self, at_ns: int) -> _Bin:
        if not self._bins:
            self._first = at_ns // self.width_ns
        number = at_ns // self.width_ns
        while max(number, self._first + len(self._bins) - 1) - min(number, self._first) >= MAX_BINS:
            self._halve()
            number = at_ns // self.width_ns
        if number < self._first:
            self._bins[:0] = [None] * (self._first - number)
            self._first = number
        at = number - self._first
        if at >= len(self._bins):
            self._bins.extend([None] * (at + 1 - len(self._bins)))
        found = self._bins[at]
        if found is None:
            found = self._bins[at] = _Bin()
        return found

    def _halve(self) -> None:
        """Twice the width: neighbours become one."""
        merged: dict[int, _Bin] = {}
        for i, b in enumerate(self._bins):
            if b is None:
                continue
            number = (self._first + i) // 2
            if number in merged:
                merged[number].take(b)
            else:
                merged[number] = b
        self.width_ns *= 2
        self._first = min(merged)
        self._bins = [merged.get(n) for n in range(self._first, max(merged) + 1)]


class _Bin:
    __slots__ = ("cycles", "late", "least", "met", "misses", "total")

    def __init__(self) -> None:
        self.cycles = self.misses = self.met = self.total = self.late = 0
        self.least: int | None = None

    def take(self, other: _Bin) -> None:
        self.cycles += other.cycles
        self.misses += other.misses
        self.met += other.met
        self.total += other.total
        self.late = max(self.late, other.late)
        known = [x for x in (self.least, other.least) if x is not None]
        self.least = min(known, default=None)
