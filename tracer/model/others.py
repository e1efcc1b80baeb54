# SPDX-License-Identifier: Apache-2.0
"""Other clients of an audio server, which are not traced: did a driver wait for one of them, or for us?

Where a client that is not traced finishes last, the VMM's own answer is written nowhere: if the cycle
was late, either may have been. Two things are seen of the others: the driver's signals to them, which tell
whether the one before had been read, and how soon after a start they usually answer. Owns that judgement.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from statistics import median
from typing import Final

from tracer.model.cycles import Cycle
from tracer.model.eventfds import Eventfd

#: The fewest cycles in time that tell how soon all are usually done.
LEAST: Final = 8
#: Parts of a period: others that usually take longer may be late although they are awake.
USUAL: Final = 16
#: An answer that comes this soon after a start is one to it; a late one comes at any time.
SOON: Final = 8


def note(cycle: Cycle) -> None:
    """Learn from a cycle in time: by its answer all others were done, whoever was last."""
    if cycle.closing_ns is not None:
        cycle.stream.usual_ns.append(cycle.closing_ns - cycle.start_ns)


def waited_for_us(cycle: Cycle, eventfds: Iterable[Eventfd]) -> bool:
    """Whether a late cycle was late for our stream, although another client finished last.

    So it is if all others that the driver signals had read the cycle's signal by its deadline, usually are
    done soon after they are woken, and the answer that came at last came as soon after a start. Where they
    take long, or none is seen, it is not told: False.
    """
    driver, usual = cycle.driver, cycle.stream.usual_ns
    period = driver.interval_ns or driver.period_ns
    if len(usual) < LEAST or median(usual) > period / USUAL or cycle.closing_ns is None:
        return False
    answered = driver.cycle_at(cycle.closing_ns)
    if answered is None or cycle.closing_ns - answered[2] > period / SOON:
        return False
    found = False
    for eventfd in eventfds:
        signals = eventfd.signals
        if not signals.tid or signals.tid[-1] != driver.tid:
            continue
        if eventfd.id == cycle.stream.wake.id or eventfd.taken.end:
            continue  # ours, or one that the driver itself reads
        i = bisect_right(signals.enter, cycle.deadline_ns)
        if not 0 < i < len(signals.enter) or signals.enter[i - 1] < cycle.start_ns:
            continue  # not signalled in both cycles
        if signals.unread[i]:
            return False
        found = True
    return found
