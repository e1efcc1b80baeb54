# SPDX-License-Identifier: Apache-2.0
"""Which missed period explains which glitch of a capture.

Owns the alignment of two clocks: a capture counts samples from an unknown moment, misses are in ns of
CLOCK_MONOTONIC. Glitches are heard a constant time after the deadline that was missed, so the offset at which
most of both coincide is the alignment; how well it is known is part of the answer. Finds no glitches and
judges no misses. One offset serves a whole file: a sound card's clock may drift, a null sink's does not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tracer.model.summary import Miss

#: Glitches closer than this are one burst (audio.analyse), so misses that close are one group too.
JOIN_NS: Final = 50_000_000
#: Alignments that are looked at closely.
_CANDIDATES: Final = 32
#: Pairs of a burst and a group that are tried: thousands a side would be more than memory holds.
_MOST_PAIRS: Final = 4_000_000
#: Another alignment is a rival if it scores this share of the best.
_RIVAL: Final = 0.9

Times = NDArray[np.int64]


class Burst(Protocol):
    """What is needed of audio.Burst: seconds from the file's begin."""

    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where a capture lies in a trace's time.

    Attributes:
        begin_ns: the deadline, on CLOCK_MONOTONIC, that would be heard at the file's first sample.
        pairs: bursts whose begin coincides with that of a group of misses.
        spread_ns: half the width in which those pairs lie around ``begin_ns``; None for fewer than two.
        unique: no other alignment explains nearly as much.
    """

    begin_ns: int
    pairs: int
    spread_ns: int | None
    unique: bool


@dataclass(frozen=True, slots=True)
class Explained:
    """The misses behind bursts.

    Attributes:
        misses: per burst the id of the miss that began it, None if there is none.
        outside: per burst whether it lies outside the trace.
        unheard: ids of misses in the capture's time that no burst shows.
        alignment: None where there is nothing to align.
    """

    misses: tuple[int | None, ...]
    outside: tuple[bool, ...]
    unheard: tuple[int, ...]
    alignment: Alignment | None


def explain(
    bursts: Sequence[Burst],
    misses: Sequence[Miss],
    *,
    period_ns: int,
    window: tuple[int, int],
    tone_s: tuple[float, float],
) -> Explained:
    """Match bursts to misses.

    Args:
        bursts: in time. misses: of a Summary; those that are surely not audible are left out.
        period_ns: of the audio cycles, which is how far apart a burst and its miss may be.
        window: ns of CLOCK_MONOTONIC that the trace covers. tone_s: where the tone begins and ends in
            the capture: silence outside is no glitch.
    """
    heard = sorted((m.deadline_ns, m.id) for m in misses if m.audible != "no")
    deadlines = np.array([at for at, _ in heard], dtype=np.int64)
    starts = np.array([round(b.start_s * 1e9) for b in bursts], dtype=np.int64)
    ends = np.array([round(b.end_s * 1e9) for b in bursts], dtype=np.int64)
    tone = round(tone_s[0] * 1e9), round(tone_s[1] * 1e9)
    if not len(starts) or not len(deadlines):
        nothing = (None,) * len(bursts)
        return Explained(nothing, (False,) * len(bursts), (), None)
    alignment = _align(starts, ends, deadlines, period_ns, tone)
    begin = alignment.begin_ns
    found: list[int | None] = []
    covered = np.zeros(len(deadlines), dtype=bool)
    for start, end in zip((starts + begin).tolist(), (ends + begin).tolist(), strict=True):
        low, high = (int(i) for i in np.searchsorted(deadlines, (start - period_ns, end + period_ns)))
        covered[low:high] = True
        nearest = min(range(low, high), key=lambda i: abs(heard[i][0] - start), default=None)
        found.append(None if nearest is None else heard[nearest][1])
    outside = tuple(
        miss is None and not window[0] <= at <= window[1]
        for miss, at in zip(found, (starts + begin).tolist(), strict=True)
    )
    inside = (deadlines >= begin + tone[0]) & (deadlines <= begin + tone[1]) & ~covered
    unheard = tuple(heard[i][1] for i in np.flatnonzero(inside).tolist())
    return Explained(tuple(found), outside, unheard, alignment)


def _groups(deadlines: Times, period_ns: int) -> Times:
    """When groups of misses (n,) begin: a silence lasts about a period, and close ones are one burst."""
    apart = np.diff(deadlines) > period_ns + JOIN_NS
    return deadlines[np.r_[True, apart]]


def _align(starts: Times, ends: Times, deadlines: Times, period_ns: int, tone: tuple[int, int]) -> Alignment:
    groups = _groups(deadlines, period_ns)
    tried = starts[:: max(1, len(starts) * len(groups) // _MOST_PAIRS)]
    offsets = np.sort((groups[None, :] - tried[:, None]).ravel())
    votes = np.searchsorted(offsets, offsets + period_ns, side="right") - np.arange(len(offsets))
    scores: list[tuple[float, int]] = []
    for i in np.argsort(-votes, kind="stable").tolist():
        offset = int(np.median(offsets[i : i + votes[i]]))
        if all(abs(offset - other) > period_ns for _, other in scores):
            scores.append((_score(starts + offset, ends + offset, groups, period_ns, offset, tone), offset))
        if len(scores) == _CANDIDATES:
            break
    scores.sort(reverse=True)
    best, offset = scores[0]
    nearest = groups[_nearest(groups, starts + offset)]
    off = nearest - starts - offset
    off = off[np.abs(off) <= period_ns]
    middle = int(np.median(off))
    spread = int(np.abs(off - middle).max()) if len(off) > 1 else None
    unique = len(off) > 1 and (len(scores) == 1 or scores[1][0] < _RIVAL * best)
    return Alignment(offset + middle, len(off), spread, unique)


def _score(
    starts: Times, ends: Times, groups: Times, period_ns: int, offset: int, tone: tuple[int, int]
) -> float:
    """The share of bursts that begin with a group, plus that of the capture's groups that lie in a burst."""
    begun = np.abs(groups[_nearest(groups, starts)] - starts) <= period_ns
    low, high = (bisect_left(groups, at) for at in (offset + tone[0], offset + tone[1]))
    within = groups[low:high]
    if not len(within):
        return float(begun.mean())
    at = np.maximum(np.searchsorted(starts - period_ns, within, side="right") - 1, 0)
    shown = (within >= starts[at] - period_ns) & (within <= ends[at] + period_ns)
    return float(begun.mean() + shown.mean())


def _nearest(sorted_: Times, values: Times) -> NDArray[np.int64]:
    """Index of the nearest of sorted times (n,) for each value (m,)."""
    right = np.minimum(np.searchsorted(sorted_, values), len(sorted_) - 1)
    left = np.maximum(right - 1, 0)
    closer = np.abs(sorted_[left] - values) <= np.abs(sorted_[right] - values)
    return np.where(closer, left, right).astype(np.int64)
