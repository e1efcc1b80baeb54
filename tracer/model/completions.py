# SPDX-License-Identifier: Apache-2.0
"""Completions: which one closes a cycle, and whose miss a late one is.

Owns the matching of cycles with completions. Whose eventfd a completion is, is matching.py's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from tracer.model.cycles import Cycle
from tracer.model.eventfds import Completion


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
        if (j < 0 or written.enter[j] <= previous) and not _left_over(done, i - 1, j):
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


def _left_over(done: Completion, i: int, j: int) -> bool:
    """Whether the driver's read left a write that went on beside it to the next read, by its value.

    A write that began before a read ended was mostly taken by it: it is what woke the driver.
    """
    taken, written = done.taken, done.written
    if i < 0 or j < 0 or written.end[j] <= taken.enter[i]:
        return False
    low = bisect_right(written.enter, taken.end[i - 1] if i else 0)
    return sum(written.value[low : j + 1]) > taken.value[i]


def merge_misses(decided: Sequence[Cycle]) -> None:
    """A completion miss belongs to (driver, cycle): keep the VMM's stream last served before the write.

    Any of those that were served and share the completion may have been late: they are its candidates.
    """
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
            keep.candidates = tuple(sorted((c.stream for c in late), key=lambda s: s.serial))
        for cycle in spare:
            cycle.missed, cycle.leg = False, ""
