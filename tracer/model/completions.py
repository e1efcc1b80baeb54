# SPDX-License-Identifier: Apache-2.0
"""Completions: whose eventfd they are, which one closes a cycle, whose miss a late one is.

The completion eventfd belongs to the target, and only the last finisher writes it. Owns
the matching of streams with completion eventfds and of cycles with completions.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from statistics import median_low
from typing import Final

from tracer.model.cycles import MIN_COMPLETIONS, Cycle, Stream
from tracer.model.eventfds import Completion, Series

#: Cycles looked back on to tell several completion eventfds apart.
RANKED_CYCLES: Final = 64
#: A completion eventfd that was not written for so long may have been replaced (shorter than the grace).
SILENT_NS: Final = 500_000_000


def match(peers: Sequence[Stream], fits: Sequence[Completion]) -> None:
    """Give the streams of one VMM and driver their completion eventfds, as far as they can be told.

    Args:
        fits: eventfds that the VMM writes and the driver reads. Where the driver cannot be seen, even a
            single one must be written in step with the streams.
    """
    if len(fits) == 1 and peers[0].exact:
        for stream in peers:
            if len(peers) == 1 or waits_for(fits[0], stream):
                stream.completion = fits[0]
        return
    votes = _votes(peers, {e.id: e for e in fits})
    matched: dict[int, Completion] = {}
    for stream in peers:
        mine = votes.get(stream.serial, {})
        best = max(mine, key=lambda number: (mine[number], -number), default=-1)
        if best >= 0 and mine[best] >= MIN_COMPLETIONS and mine[best] * 10 >= sum(mine.values()) * 7:
            matched[stream.serial] = next(e for e in fits if e.id == best)
    if peers[0].exact:
        taken = {s.completion.id for s in peers if s.completion is not None} | {
            e.id for e in matched.values()
        }
        rest = [s for s in peers if s.serial not in matched and not s.completion_expected]
        matched |= _soonest_after(rest, [e for e in fits if e.id not in taken])
    for stream in peers:
        if stream.serial in matched:
            stream.completion = matched[stream.serial]


def _soonest_after(peers: Sequence[Stream], fits: Sequence[Completion]) -> dict[int, Completion]:
    """Completions of streams some of which never complete, so that ranks tell nothing.

    What is written before a stream was served does not answer it, and what answers it comes soon after:
    pairs are made in the order of how often the first is broken, then of how long the second takes.
    """
    pairs: list[tuple[float, int, int, Completion]] = []
    for stream in peers:
        windows = stream.driver.windows(RANKED_CYCLES)
        for done in fits:
            gaps = []
            for low, high in windows:
                read, wrote = _within(stream.wake.read, low, high), _within(done.written, low, high)
                if read and wrote:
                    gaps.append(wrote - read)
            before = sum(gap < 0 for gap in gaps)
            if len(gaps) < MIN_COMPLETIONS or before * 10 > len(gaps):
                continue
            share = median_low(gaps) / max(1, windows[0][1] - windows[0][0])
            pairs.append((10 * before / len(gaps) + share, stream.serial, done.id, done))
    matched: dict[int, Completion] = {}
    for _, serial, _, done in sorted(pairs, key=lambda pair: pair[:3]):
        if serial not in matched and done not in matched.values():
            matched[serial] = done
    return matched


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


def _votes(peers: Sequence[Stream], fits: dict[int, Completion]) -> dict[int, dict[int, int]]:
    """Per stream (serial), how often each eventfd's rank among writes was the stream's among reads.

    G is a serial server, so within a cycle completions are written in the order in which W served
    the streams. Cycles in which the counts differ do not vote; a single eventfd shared by all is
    written once, after the last read. A cycle without any write votes for none (-1).
    """
    votes: dict[int, dict[int, int]] = {}
    for low, high in peers[0].driver.windows(RANKED_CYCLES):
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


def close(cycle: Cycle) -> None:
    """Find what closes a cycle: the driver's read that covers a completion written after the signal.

    A read that covers no write of this VMM closes too: another client finished last. Where
    the driver cannot be seen, the write itself closes.
    """
    done = cycle.stream.completion
    assert done is not None
    taken, written = done.taken, done.written
    if not cycle.stream.exact:
        i = written.after(cycle.signal_ns)
        if i < len(written.end):
            cycle.write_enter_ns, cycle.write_ns = written.enter[i], written.end[i]
            cycle.writer_tid, cycle.closing_ns = written.tid[i], written.end[i]
        return
    i = taken.after(cycle.signal_ns)
    while i < len(taken.end):
        j = bisect_right(written.enter, taken.end[i]) - 1
        previous = taken.end[i - 1] if i else 0
        if j < 0 or written.enter[j] <= previous:
            cycle.closing_ns = taken.end[i]
            return
        if written.end[j] > cycle.signal_enter_ns:
            while j > 0 and written.end[j - 1] > cycle.signal_enter_ns and written.enter[j - 1] > previous:
                j -= 1
            cycle.closing_ns = taken.end[i]
            cycle.write_enter_ns, cycle.write_ns = written.enter[j], written.end[j]
            cycle.writer_tid = written.tid[j]
            return
        i += 1


def merge_misses(decided: Sequence[Cycle]) -> None:
    """A completion miss belongs to (driver, cycle): keep the VMM's stream last served before the write."""
    groups: dict[tuple[int, int, int, int], list[Cycle]] = {}
    for cycle in decided:
        done = cycle.stream.completion
        if cycle.missed and done is not None and cycle.stream.completion_expected:
            groups.setdefault((id(cycle.driver), done.id, done.tgid, cycle.number), []).append(cycle)
    for cycles in groups.values():
        if len(cycles) < 2:
            continue
        late = [c for c in cycles if c.leg == "completion"]
        if not late:
            continue
        if len(late) < len(cycles):
            spare = late  # somebody missed the wake: the completion waited for that one
        else:
            before = [c for c in late if c.read_ns is not None]
            keep = max(before, key=lambda c: (c.read_ns or 0, c.stream.wake.id)) if before else late[0]
            spare = [c for c in late if c is not keep]
        for cycle in spare:
            cycle.missed, cycle.leg = False, ""
