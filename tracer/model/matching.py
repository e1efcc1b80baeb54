# SPDX-License-Identifier: Apache-2.0
"""Which completion eventfd is which stream's, told by the order in which they are written and read.

The completion eventfd belongs to the target, and only the last finisher writes it. Owns the matching of
streams with eventfds, and when it is done again. What closes a cycle is completions.py's.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from statistics import median_low
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.cycles import GRACE_NS, MIN_COMPLETIONS, Stream
from tracer.model.eventfds import Completion, Series
from tracer.model.filing import Filing

#: Cycles looked back on, at least, to tell several completion eventfds apart.
RANKED_CYCLES: Final = 64
#: And at most, where a stream has been there for so long and its eventfd is still not certain.
MOST_CYCLES: Final = 1024
#: A guess is made on so many cycles, or so much time: half of that for which cycles wait for it.
GUESS_NS: Final = GRACE_NS // 2
#: A guess stays unless it is broken in one of so many cycles more often than another.
STICKS: Final = 100
#: A completion eventfd that was not written for so long may have been replaced (shorter than the grace).
SILENT_NS: Final = 500_000_000


def look_again(streams: Sequence[Stream], filing: Filing, end_ns: int) -> None:
    """Match the streams for which there are cycles enough to know more, or whose eventfd fell silent.

    Args:
        streams: those that are signalled; of each VMM and driver all are looked at together.
        filing: the eventfds; those that the driver reads and the VMM writes may be completions.
        end_ns: record time.
    """
    groups: dict[tuple[int, int], list[Stream]] = {}
    wanted: dict[tuple[int, int], int] = {}  # by how many signals of the longest one that is looked at
    silent: set[tuple[int, int]] = set()
    for stream in streams:
        if stream.exact and stream.alive:
            key = (stream.tgid, id(stream.driver))
            groups.setdefault(key, []).append(stream)
            certain = stream.completion_expected and not stream.guessed
            if not certain and stream.taken_over >= stream.match_at:
                stream.match_at = stream.taken_over * 3 // 2 + 1
                wanted[key] = max(wanted.get(key, 0), stream.taken_over)
            elif stream.completion_expected and stream.pending and not stream.pending[0].closing_ns:
                silent.add(key)
    for key in sorted(wanted.keys() | silent, key=lambda k: groups[k][0].serial):
        peers = groups[key]
        fits = _answered(filing, peers[0].tgid, peers[0].driver.tid)
        if key not in wanted:
            moved = [s for s in peers if went_elsewhere(s, fits, end_ns)]
            if not moved:
                continue
            gone = {s.completion.id for s in moved if s.completion is not None}
            peers, fits = moved, [e for e in fits if e.id not in gone]
        match(peers, fits, cycles_for(wanted.get(key, 0)))


def _answered(filing: Filing, tgid: int, loop: int) -> list[Completion]:
    """Eventfds that a VMM writes and a data loop reads."""
    found = (filing.eventfds[number] for number in sorted(filing.answered))
    return [Completion.of(e, tgid) for e in found if tgid in e.written and e.taken.main_tid() == loop]


def match(peers: Sequence[Stream], fits: Sequence[Completion], cycles: int = RANKED_CYCLES) -> None:
    """Give the streams of one VMM and driver their completion eventfds, as far as they can be told.

    Ranks settle it. Where they tell nothing (some never complete, or others complete for them), the best
    guess is taken, and looked at again with more cycles: by ``match``, until ranks settle it.

    Args:
        fits: eventfds that the VMM writes and the driver reads. Where the driver cannot be seen, even a
            single one must be written in step with the streams.
        cycles: so many are looked back on. A guess that was made on many more of them stays.
    """
    if len(fits) == 1 and peers[0].exact:
        for stream in peers:
            if len(peers) == 1 or waits_for(fits[0], stream):
                stream.completion, stream.guessed = fits[0], len(peers) > 1
        return
    windows = peers[0].driver.windows(cycles)
    by_id = {e.id: e for e in fits}
    votes = _votes(peers, by_id, windows)
    found: dict[int, int] = {}
    held = Counter(s.completion.id for s in peers if s.completion is not None)
    for stream in peers:
        if stream.completion is not None and stream.completion_expected and not stream.guessed:
            found[stream.serial] = stream.completion.id
            if len(windows) > RANKED_CYCLES:
                continue  # so far back it may have been another
        mine = votes.get(stream.serial, {})
        best = max(mine, key=lambda number: (mine[number], -number), default=-1)
        if best >= 0 and mine[best] >= MIN_COMPLETIONS and mine[best] * 10 >= sum(mine.values()) * 7:
            found[stream.serial] = best
            stream.completion, stream.guessed = by_id[best], False
    if not peers[0].exact or not _may_guess(windows):
        return
    certain = set(found.values())
    shared = {number for number, streams in held.items() if streams > 1}  # ranks alone tell them apart
    rest = [
        s
        for s in peers
        if s.serial not in found
        and not (s.completion is not None and s.completion.id in shared)
        and _is_open(s, len(windows), certain)
    ]
    certain |= {s.completion.id for s in peers if s.completion is not None and s not in rest}
    left = [e for e in fits if e.id not in certain]
    guesses = _by_votes(rest, left, votes)
    others = [s for s in rest if s.serial not in guesses]
    guesses |= _guess(others, [e for e in left if e.id not in guesses.values()], windows)
    gone = certain.union(guesses.values())
    for stream in rest:
        if stream.serial in guesses:
            stream.completion, stream.guessed = by_id[guesses[stream.serial]], True
        elif stream.completion is not None and stream.completion.id in gone:
            stream.completion, stream.guessed = None, False  # it has turned out to be another's


def cycles_for(signals: int) -> int:
    """How many cycles ``match`` looks back on for a stream that was signalled so often."""
    return min(max(signals, RANKED_CYCLES), MOST_CYCLES)


def _may_guess(windows: Sequence[tuple[int, int]]) -> bool:
    """Whether there are cycles enough for a guess; those that wait for it wait longer."""
    return len(windows) >= RANKED_CYCLES or bool(windows and windows[-1][1] - windows[0][0] >= GUESS_NS)


def _is_open(stream: Stream, cycles: int, certain: set[int]) -> bool:
    """Whether a stream has no completion eventfd, or a guess of which so many cycles may tell more."""
    if stream.completion is None or not stream.completion_expected:
        return True
    more = cycles * 2 >= min(stream.taken_over, MOST_CYCLES)
    return stream.guessed and (more or stream.completion.id in certain)


def _by_votes(
    peers: Sequence[Stream], fits: Sequence[Completion], votes: Mapping[int, Mapping[int, int]]
) -> dict[int, int]:
    """Completions (ids) of streams (serials) whose ranks are disturbed: some cycle is always late.

    A late answer shifts the ranks of all after it, so no eventfd may have most of a stream's votes. The
    right one still has more than any other, and no other stream has more of it.
    """
    if not peers or not fits:
        return {}
    table = np.array([[votes.get(s.serial, {}).get(e.id, 0) for e in fits] for s in peers])
    most = (table == table.max(axis=1, keepdims=True)) & (table == table.max(axis=0))
    alone = (most.sum(axis=1, keepdims=True) == 1) & (most.sum(axis=0) == 1)
    pairs = np.argwhere(most & alone & (table >= MIN_COMPLETIONS))
    return {peers[i].serial: fits[j].id for i, j in pairs.tolist()}


def _guess(
    peers: Sequence[Stream], fits: Sequence[Completion], windows: Sequence[tuple[int, int]]
) -> dict[int, int]:
    """Completions (ids) of streams (serials) some of which never complete, so that ranks tell nothing.

    What is written before a stream was served does not answer it, unless late: a pair that is broken less
    often comes first. W serves on while the guest answers, so the nearest write need not be the answer;
    but answers come in the order of what they answer. Hence the squares: their sum is least without
    crossings.
    """
    reads = {s.serial: _firsts(s.wake.read, windows) for s in peers}
    writes = {e.id: _firsts(e.written, windows) for e in fits}
    costs: dict[tuple[int, int], float] = {}
    for stream, done in itertools.product(peers, fits):
        gaps = _gaps(reads[stream.serial], writes[done.id])
        before = int((gaps < 0).sum())
        if len(gaps) < MIN_COMPLETIONS or before * 10 > len(gaps):
            continue
        share = median_low(gaps.tolist()) / max(1, windows[0][1] - windows[0][0])
        other = stream.completion is None or stream.completion.id != done.id
        costs[stream.serial, done.id] = STICKS * before / len(gaps) + share * share + other
    pairs: dict[int, int] = {}
    for serial, number in sorted(costs, key=lambda pair: (costs[pair], pair)):
        if serial not in pairs and number not in pairs.values():
            pairs[serial] = number
    crossed = True
    while crossed:
        crossed = False
        for one, two in itertools.combinations(sorted(pairs), 2):
            now = costs[one, pairs[one]] + costs[two, pairs[two]]
            if costs.get((one, pairs[two]), inf) + costs.get((two, pairs[one]), inf) < now - 1e-9:
                pairs[one], pairs[two] = pairs[two], pairs[one]
                crossed = True
    return pairs


def _gaps(read: NDArray[np.int64], wrote: NDArray[np.int64]) -> NDArray[np.int64]:
    """From read to write where a cycle has both; from the last cycle's read if that is not answered yet."""
    gaps = wrote[1:] - read[1:]
    owed = (read[:-1] > 0) & (wrote[:-1] < read[:-1])
    gaps = np.where((gaps < 0) & owed, wrote[1:] - read[:-1], gaps)
    return gaps[(wrote[1:] > 0) & (read[1:] > 0)]


def _firsts(series: Series, windows: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Ends of the first event in each (low, high], 0 without one."""
    ends = np.array([*series.end, np.iinfo(np.int64).max], dtype=np.int64)
    low, high = np.array(windows, dtype=np.int64).T
    first = ends[np.searchsorted(ends, low, side="right")]
    return np.where(first <= high, first, 0)


def waits_for(done: Completion, stream: Stream) -> bool:
    """Whether a completion eventfd may be a stream's among others: it is written only once that was served.

    A target has its trigger when all that it waits for have finished. An eventfd that is written again
    and again while a stream starves is another's, whose own has not been written yet.
    """
    written, read = done.written.end[-RANKED_CYCLES:], stream.wake.read
    gaps = list(itertools.pairwise(written))
    served = sum(_within(read, low, high) > 0 for low, high in gaps)
    return len(written) >= MIN_COMPLETIONS and served * 10 >= len(gaps) * 7


def went_elsewhere(stream: Stream, fits: Sequence[Completion], now_ns: int) -> bool:
    """Whether a stream's target changed: it is served, its completion eventfd fell silent, another took over.

    A stream that is not served starves, and its target with it, whatever others do meanwhile.
    """
    done = stream.completion
    if done is None or not done.written.end:
        return False
    silent = done.written.end[-1]
    read = stream.wake.read
    if silent > now_ns - SILENT_NS or len(read.end) - read.after(silent) < MIN_COMPLETIONS:
        return False
    return any(
        len(e.written.end) - e.written.after(silent) >= MIN_COMPLETIONS for e in fits if e.id != done.id
    )


def keeps_step(done: Completion, windows: Sequence[tuple[int, int]]) -> bool:
    """Whether the VMM wrote an eventfd in at least half of the windows since it first did."""
    since = [w for w in windows if done.written.end and w[1] > done.written.end[0]]
    return sum(_within(done.written, low, high) > 0 for low, high in since) * 2 >= max(len(since), 1)


def _votes(
    peers: Sequence[Stream], fits: dict[int, Completion], windows: Sequence[tuple[int, int]]
) -> dict[int, dict[int, int]]:
    """Per stream (serial), how often each eventfd's rank among writes was the stream's among reads.

    G is a serial server, so within a cycle completions are written in the order in which W served
    the streams. Cycles in which the counts differ do not vote; a single eventfd shared by all is
    written once, after the last read. A cycle without any write votes for none (-1).
    """
    votes: dict[int, dict[int, int]] = {}
    for low, high in windows:
        reads = sorted((at, s.serial) for s in peers if (at := _within(s.wake.read, low, high)))
        writes = sorted((at, number) for number, e in fits.items() if (at := _within(e.written, low, high)))
        if len(writes) == 1 and len(fits) == 1:
            writes *= len(reads)
        if not writes:
            writes = [(0, -1)] * len(reads)
        if len(reads) != len(writes):
            continue
        for (_, serial), (_, done) in zip(reads, writes, strict=True):
            mine = votes.setdefault(serial, {})
            mine[done] = mine.get(done, 0) + 1
    return votes


def _within(series: Series, low: int, high: int) -> int:
    """End of the first event in (low, high], 0 without one."""
    i = series.after(low)
    return series.end[i] if i < len(series.end) and series.end[i] <= high else 0
