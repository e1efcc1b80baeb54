# SPDX-License-Identifier: Apache-2.0

"""When the flight recorder writes: what ``--on`` means, and how often at most.

Owns the little grammar (``misses>=3/10s``) and the counting over record time. Writes nothing.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Final

from tracer.errors import UsageError

NS: Final = 1_000_000_000
_UNITS: Final = {"ms": 10**6, "s": NS, "min": 60 * NS, "h": 3600 * NS}
_FORM: Final = re.compile(
    r"\s*(misses|episodes)\s*(>=|>)\s*(\d{1,9})\s*(?:/\s*(\d{1,6})\s*(ms|s|min|h)\s*)?", re.ASCII
)
#: Without a time of its own a condition looks at so much record time.
DEFAULT_WITHIN_NS: Final = 10 * NS


@dataclass(frozen=True, slots=True)
class Condition:
    """``what`` (misses or episodes) at least ``count`` times within ``within_ns`` of record time."""

    what: str
    count: int
    within_ns: int
    text: str


def parse_condition(text: str) -> Condition:
    """``misses>=3/10s`` -> Condition. Raises UsageError."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--on {text!r} is no condition",
            "write misses>=N/TIME or episodes>=N/TIME, such as misses>=3/10s",
        )
    what, relation, number, time, unit = match.groups()
    count = int(number) + (relation == ">")
    within = int(time) * _UNITS[unit] if time else DEFAULT_WITHIN_NS
    if count < 1 or within < 1:
        raise UsageError(f"--on {text!r} is always true", "give a count of at least 1 and a time above 0")
    return Condition(what, count, within, text.strip())


class Counter:
    """Whether a condition holds, from running totals. What was counted for one dump counts for no other."""

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self._seen: deque[tuple[int, int]] = deque()
        self._before = 0

    def holds(self, now_ns: int, total: int) -> bool:
        """Take a running total at a record time (neither ever goes back)."""
        if total != (self._seen[-1][1] if self._seen else self._before):
            self._seen.append((now_ns, total))
        while self._seen and self._seen[0][0] <= now_ns - self.condition.within_ns:
            self._before = self._seen.popleft()[1]
        return bool(self._seen) and self._seen[-1][1] - self._before >= self.condition.count

    def restart(self) -> None:
        """Count from now on only."""
        if self._seen:
            self._before = self._seen[-1][1]
            self._seen.clear()


@dataclass(slots=True)
class Limit:
    """At least ``gap_ns`` between two dumps that nobody asked for by hand, and ``most`` of them in all."""

    gap_ns: int
    most: int
    _count: int = 0
    _last_ns: int | None = None

    def allows(self, now_ns: int) -> bool:
        """Whether a dump may be written now; if so it is counted."""
        if self._count >= self.most or (self._last_ns is not None and now_ns - self._last_ns < self.gap_ns):
            return False
        self._count, self._last_ns = self._count + 1, now_ns
        return True

    @property
    def exhausted(self) -> bool:
        """Whether no further dump will be written."""
        return self._count >= self.most
