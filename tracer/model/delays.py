# SPDX-License-Identifier: Apache-2.0
"""Threads that wait, missed period or not: for a CPU, and for a lock without an end so far.

Owns these two counts; findings.py tells of them. Bounded by the threads of interest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tracer.model.step import Step
from tracer.model.words import bump
from tracer.schema import Flag, Kind

#: A lock wait older than this is told as stuck.
STUCK_NS: Final = 1_000_000_000
#: So many of those that ran instead are told apart.
_INSTEAD: Final = 64


@dataclass(slots=True)
class RunDelay:
    """Time that threads of interest were runnable without a CPU, and who ran instead."""

    total_ns: dict[int, int] = field(default_factory=dict)
    instead_ns: dict[int, dict[int, int]] = field(default_factory=dict)

    def step(self, step: Step, tids: set[int]) -> None:
        """Take over the off-CPU spans of ``tids``."""
        if len(self.total_ns) > 2 * len(tids) + _INSTEAD:  # threads come and go for weeks
            for tid in self.total_ns.keys() - tids:
                del self.total_ns[tid], self.instead_ns[tid]
        for tid in tids:
            off = step.sleeps(tid)
            if not len(off):
                continue
            enter = off["enter_ns"]
            slept = (off["preempted"] == 0) & ((off["op"] & 3) != 0)
            since = np.where(slept, np.maximum(off["woken_ns"], enter), enter)
            delay = np.maximum(enter + off["dur_ns"], since) - since
            delay[slept & (off["woken_ns"] == 0)] = 0
            self.total_ns[tid] = self.total_ns.get(tid, 0) + int(delay.sum())
            by = self.instead_ns.setdefault(tid, {})
            who = off["instead_tid"]
            order = np.argsort(who, kind="stable")
            who, delay = who[order], delay[order]
            starts = np.flatnonzero(np.concatenate(([True], who[1:] != who[:-1])))
            sums = np.add.reduceat(delay, starts)
            for instead, ns in zip(who[starts].tolist(), sums.tolist(), strict=True):
                if instead:
                    bump(by, instead, ns, limit=_INSTEAD)


@dataclass(slots=True)
class Stuck:
    """Lock waits that have not ended, from OPEN records: word, start, age, and whether the start was seen."""

    waits: dict[int, tuple[int, int, int, bool]] = field(default_factory=dict)

    def step(self, step: Step) -> None:
        """Take over futex records: an OPEN one is remembered until its thread says more."""
        opened = step.opened(Kind.FUTEX)
        if self.waits:
            for tid in {*step.of(Kind.FUTEX)["tid"].tolist(), *opened["tid"].tolist()} & set(self.waits):
                del self.waits[tid]
        stuck = (opened["expected"] == 2) & (opened["dur_ns"] >= STUCK_NS)
        for row in opened.take(np.flatnonzero(stuck)):
            seen = not int(row["flags"]) & Flag.CLIPPED
            self.waits[int(row["tid"])] = (int(row["word"]), int(row["enter_ns"]), int(row["dur_ns"]), seen)
