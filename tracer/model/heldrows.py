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
from tracer.model.held import MIN_SAMPLES, Held, Key
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
    """The Held table: inside first, then by times found held; only the ``limit`` rows listed are made."""
    locks, role = counts.locks, counts.registry.role
    counted = list(counts.all())
    bases = _bases(counts, counted)
    names = {
        (tgid, word): locks.label(tgid, word) if locks is not None else f"lock@{word:#x}"
        for tgid, word in bases
    }
    ranked: list[tuple[bool, int, int, str, int, str, str, Key]] = []
    for key, held, n in counted:
        lock, syscall = key[:2], syscall_name(Kind(key[3]), key[4])
        inside = is_inside(held, n, bases[lock])
        ranked.append((not inside, -held, -n, names[lock], key[2], syscall, key[5], key))
    ranked.sort()
    return tuple(
        HeldRow(
            lock=lock,
            tid=tid,
            role=role(tid),
            syscall=syscall,
            object=obj,
            samples=-n,
            held_fraction=-held / -n,
            base=bases[key[:2]],
            inside=not outside,
        )
        for outside, held, n, lock, tid, syscall, obj, key in ranked[:limit]
    )


def _bases(counts: Held, counted: list[tuple[Key, int, int]]) -> dict[tuple[int, int], float | None]:
    """``Held.base`` of every word among counts (key, held, samples), in one pass."""
    sums: dict[tuple[int, int], list[int]] = {}
    users: dict[tuple[int, int], set[int]] = {}
    for (tgid, word, tid, *_), held, n in counted:
        key = tgid, word
        seen = sums.get(key)
        if seen is None:
            seen = sums[key] = [0, 0]
            known = counts.locks.words.get(key) if counts.locks is not None else None
            users[key] = known.participants if known is not None else set()
        if tid not in users[key]:
            seen[0] += held
            seen[1] += n
    return {key: held / n if n >= MIN_SAMPLES else None for key, (held, n) in sums.items()}
