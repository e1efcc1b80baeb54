# SPDX-License-Identifier: Apache-2.0
"""What a stream usually takes: its last on-time cycles, measured only when somebody asks.

Owns the medians that a late cycle is held against. Most verdicts need none: only where a
candidate that has a baseline would be enough with its whole time taken out does it matter how much of
that time is usual. How long the guest and our commands take is asked for more often: habits.py
measures that for many cycles at once, and what it cannot measure is measured here, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Final

from tracer.model.candidates import Key
from tracer.model.cutter import LeafCutter
from tracer.model.habits import Answers
from tracer.model.path import PathFinder
from tracer.model.phases import DEFAULT_COMMAND_NS, DEFAULT_GUEST_NS, Habits, Path
from tracer.model.streams import Cycle
from tracer.model.window import Window

#: On-time cycles that a baseline looks back on, and how many it needs to be a median.
BASELINE_CYCLES: Final = 64
BASELINE_MIN: Final = 8
#: Sooner than in one cycle of so many is no usual time.
SELDOM: Final = 20
#: How far before an on-time cycle spans are looked at: enough for a turn and a kick.
BASELINE_BEFORE_NS: Final = 5_000_000


@dataclass(slots=True)
class OnTime:
    """An on-time cycle, with its times once they were needed.

    Attributes:
        guest_ns, command_ns: from the interrupt to the kick, and G's time on our command; None if the
            kick was not seen exactly.
        totals: its time per candidate, outside of all via groups.
    """

    cycle: Cycle
    path_known: bool = False
    guest_ns: int | None = None
    command_ns: int | None = None
    totals: dict[Key, int] | None = None


class Usual:
    """What a stream usually takes, as of one late cycle.

    Args:
        samples: on-time cycles before it that can be measured (or have been).
        measure: fills in entries; with ``True`` their totals too.
    """

    def __init__(self, samples: Sequence[OnTime], measure: Callable[[Sequence[OnTime], bool], None]) -> None:
        self._samples = samples
        self._measure = measure
        self._habits: Habits | None = None

    @property
    def kind(self) -> str:
        """``median``, ``smallest`` (of too few cycles) or ``none``."""
        if not self._samples:
            return "none"
        return "median" if len(self._samples) >= BASELINE_MIN else "smallest"

    @property
    def guest_ns(self) -> int:
        """The guest's usual time from interrupt to kick."""
        return self._known().guest_ns

    @property
    def soon_ns(self) -> int:
        """The guest's time where it is as short as in one cycle of ``SELDOM``, 0 where too few are known."""
        return self._known().soon_ns

    @property
    def command_ns(self) -> int:
        """G's usual time on a command of ours."""
        return self._known().command_ns

    def _known(self) -> Habits:
        if self._habits is None:
            self._measure(self._samples, False)
            guests = sorted(s.guest_ns for s in self._samples if s.guest_ns is not None)
            commands = [s.command_ns for s in self._samples if s.command_ns is not None]
            self._habits = Habits(
                median_low(guests) if guests else DEFAULT_GUEST_NS,
                median_low(commands) if commands else DEFAULT_COMMAND_NS,
                guests[len(guests) // SELDOM] if len(guests) >= BASELINE_MIN else 0,
            )
        return self._habits

    def of(self, key: Key) -> int:
        """The usual time of a candidate, 0 where nothing can be said."""
        if not self._samples:
            return 0
        self._measure(self._samples, True)
        pick = median_low if len(self._samples) >= BASELINE_MIN else min
        return int(pick([(s.totals or {}).get(key, 0) for s in self._samples]))


class Baselines:
    """Measures on-time cycles.

    Args:
        vcpu: gives the thread that plays the guest in a cycle.
    """

    def __init__(
        self,
        finder: PathFinder,
        cutter: LeafCutter,
        answers: Answers,
        vcpu: Callable[[Cycle, Path], int],
    ) -> None:
        self._finder = finder
        self._cutter = cutter
        self._answers = answers
        self._vcpu = vcpu

    def usual(self, on_time: Sequence[OnTime], since_ns: int) -> Usual:
        """What is usual after these cycles; records of those that began before ``since_ns`` are gone."""
        samples = [e for e in on_time if e.totals is not None or e.cycle.nominal_ns > since_ns]
        return Usual(samples, self._fill)

    def _fill(self, samples: Sequence[OnTime], totals: bool) -> None:
        if totals:
            for entry in samples:
                if entry.totals is None:
                    self._cut(entry, self._find(entry))
            return
        unknown = [entry for entry in samples if not entry.path_known]
        found = self._answers.measure([entry.cycle for entry in unknown])
        for entry, answer in zip(unknown, found, strict=True):
            if answer is None:
                self._find(entry)
                continue
            entry.path_known = True
            if answer.exact:
                entry.guest_ns, entry.command_ns = answer.guest_ns, answer.command_ns

    def _find(self, entry: OnTime) -> tuple[Path, Window]:
        window = self._finder.window(entry.cycle, BASELINE_BEFORE_NS)
        path = self._finder.find(entry.cycle, window, Habits(), direct=True)
        entry.path_known = True
        if path.kick == "exact":
            entry.guest_ns = path.kick_ns - path.irq_ns
            entry.command_ns = path.command_ns
        return path, window

    def _cut(self, entry: OnTime, found: tuple[Path, Window]) -> None:
        path, window = found
        entry.totals = self._cutter.direct(path, window, self._vcpu(entry.cycle, path)).totals()
