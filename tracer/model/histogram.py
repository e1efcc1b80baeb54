# SPDX-License-Identifier: Apache-2.0
"""Durations in fixed memory.

Owns one log-bucket histogram (8 buckets an octave: quantiles within 4.5 %).
Knows nothing of what it counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PER_OCTAVE = 8
BUCKETS = 42 * PER_OCTAVE  # up to 2^42 ns, more than an hour


class LogHistogram:
    """Counts durations in ns; exact count, total and maximum."""

    __slots__ = ("_counts", "max", "n", "total")

    def __init__(self) -> None:
        self.n = 0
        self.total = 0
        self.max = 0
        self._counts: NDArray[np.int64] | None = None

    def add(self, values: NDArray[np.int64]) -> None:
        """Count durations (n,), ns."""
        if not len(values):
            return
        if self._counts is None:
            self._counts = np.zeros(BUCKETS, dtype=np.int64)
        at = (np.log2(np.maximum(values, 1)) * PER_OCTAVE).astype(np.int64)
        if len(at) < 8:
            for bucket in np.minimum(at, BUCKETS - 1).tolist():
                self._counts[bucket] += 1
        else:
            self._counts += np.bincount(np.minimum(at, BUCKETS - 1), minlength=BUCKETS)
        self.n += len(values)
        self.total += int(values.sum())
        self.max = max(self.max, int(values.max()))

    def copy(self) -> LogHistogram:
        """An independent copy."""
        other = LogHistogram()
        other.n, other.total, other.max = self.n, self.total, self.max
        other._counts = None if self._counts is None else self._counts.copy()
        return other

    def quantile(self, q: float) -> int | None:
        """The q-quantile in ns (middle of its bucket, never above the maximum); None without data."""
        if self._counts is None or not self.n:
            return None
        rank = min(self.n, max(1, int(np.ceil(q * self.n))))
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(self.max, int(2.0 ** ((bucket + 0.5) / PER_OCTAVE)))

    def bins(self, per_octave: int = 2) -> list[tuple[int, int, int]]:
        """(from ns, to ns, count) of each part of an octave, from the first to the last that counts any.

        Args:
            per_octave: a divisor of PER_OCTAVE.
        """
        if self._counts is None or not self.n:
            return []
        counts = self._counts.reshape(-1, PER_OCTAVE // per_octave).sum(axis=1)
        filled = np.flatnonzero(counts)
        return [
            (round(2.0 ** (i / per_octave)), round(2.0 ** ((i + 1) / per_octave)), int(counts[i]))
            for i in range(int(filled[0]), int(filled[-1]) + 1)
        ]
