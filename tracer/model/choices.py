# SPDX-License-Identifier: Apache-2.0
"""What epoll threads chose, and who woke them for it.

Owns the matching of reads with the epoll_wait before them. Judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.model.step import Step
from tracer.schema import Kind, Records, end_ns


class Choice(NamedTuple):
    """How an epoll_wait ended: when, and by whose waking (``woken_ns`` 0: it did not sleep)."""

    end_ns: int
    woken_ns: int
    waker: int
    waker_tgid: int
    in_irq: int


@dataclass(slots=True)
class Choices:
    """Remembers each thread's last choice from step to step."""

    _last: dict[int, Choice] = field(default_factory=dict)

    def before(self, step: Step, tids: NDArray[np.uint32], enters: NDArray[np.uint64]) -> list[Choice | None]:
        """The choice before each read of a step (tids, enters: (n,)), None for threads that did not epoll."""
        found: list[Choice | None] = [None] * len(tids)
        for tid in np.unique(tids).tolist():
            spans = step.threads.of(tid)
            wait = spans.take(np.flatnonzero(spans["kind"] == Kind.EPOLL_WAIT))
            off = step.sleeps(tid)
            sleeps = off.take(np.flatnonzero(off["woken_ns"] > 0))
            ends = end_ns(wait)
            which = np.searchsorted(ends, enters[tids == tid], side="right") - 1
            for i, at in zip(np.flatnonzero(tids == tid).tolist(), which.tolist(), strict=True):
                found[i] = self._choice(wait, ends, sleeps, at) if at >= 0 else self._last.get(tid)
            if len(wait):
                self._last[tid] = self._choice(wait, ends, sleeps, len(wait) - 1)
        return found

    @staticmethod
    def _choice(waits: Records, ends: NDArray[np.uint64], sleeps: Records, at: int) -> Choice:
        end = int(ends[at])
        i = int(np.searchsorted(end_ns(sleeps), end, side="right")) - 1
        if i < 0 or sleeps["enter_ns"][i] < waits["enter_ns"][at]:
            return Choice(end, 0, 0, 0, 0)
        row = sleeps[i]
        return Choice(
            end, int(row["woken_ns"]), int(row["waker_tid"]), int(row["waker_tgid"]), int(row["waker_in_irq"])
        )

    def forget(self, before_ns: int) -> None:
        """Forget threads that have not chosen since."""
        for tid in [t for t, c in self._last.items() if c.end_ns < before_ns]:
            del self._last[tid]
