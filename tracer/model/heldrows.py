# SPDX-License-Identifier: Apache-2.0
"""The Held table, and the rule by which a syscall is said to run under a lock.

Owns that rule. Counts nothing: held.py does.

``inside`` (this syscall runs under this lock) needs 20 samples and, at the lower 99 % Wilson
bound of the fraction, to be found free at most a third as often as bystanders find it. A lock
that is busy half the time thus needs more than 83 %; chance does not get there, and a syscall
that is under the lock only on some of its ways shows as its fraction without the mark.
"""

from __future__ import annotations

import math

from tracer.model.blame import syscall_name
from tracer.model.held import MIN_SAMPLES, Held
from tracer.model.summaryrows import HeldRow
from tracer.schema import Kind

_WILSON_Z = 2.576  # 99 %


def wilson_low(held: int, n: int, z: float = _WILSON_Z) -> float:
    """Lower bound of a fraction held/n (Wilson score interval, one tail at z)."""
    if n <= 0:
        return 0.0
    p, zz = held / n, z * z
    return max(0.0, (p + zz / (2 * n) - z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))) / (1 + zz / n))


def is_inside(held: int, n: int, base: float | None) -> bool:
    """The rule in this module's docstring; ``base`` None (no bystander seen) counts as 0."""
    return n >= MIN_SAMPLES and 1 - wilson_low(held, n) <= (1 - (base or 0.0)) / 3


def held_rows(counts: Held, limit: int = 100) -> tuple[HeldRow, ...]:
    """The Held table: inside first, then by times found held; at most ``limit`` rows."""
    locks, role = counts.locks, counts.registry.role
    bases: dict[tuple[int, int], float | None] = {}
    rows: list[tuple[int, HeldRow]] = []
    for (tgid, word, tid, kind, number, obj), held, n in counts.all():
        if (tgid, word) not in bases:
            bases[tgid, word] = counts.base(tgid, word)
        base = bases[tgid, word]
        row = HeldRow(
            lock=locks.label(tgid, word) if locks is not None else f"lock@{word:#x}",
            tid=tid,
            role=role(tid),
            syscall=syscall_name(Kind(kind), number),
            object=obj,
            samples=n,
            held_fraction=held / n,
            base=base,
            inside=is_inside(held, n, base),
        )
        rows.append((held, row))
    rows.sort(key=lambda hr: (not hr[1].inside, -hr[0], -hr[1].samples, hr[1].lock, hr[1].tid, hr[1].syscall))
    return tuple(row for _, row in rows[:limit])
