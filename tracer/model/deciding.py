# SPDX-License-Identifier: Apache-2.0
"""When a cycle is decided, and whether it was missed, by how much, on which leg.

Owns the rule alone (docs/how-it-works.md says it in words); keeps nothing. Attributes nothing.
"""

from __future__ import annotations

from tracer.model import completions, others
from tracer.model.cycles import CLOSES_NS, GRACE_NS, SETTLE_NS, Cycle
from tracer.model.filing import Filing
from tracer.model.registry import Registry


def decided(cycle: Cycle, registry: Registry, filing: Filing, end_ns: int, final: bool) -> bool:
    """Fill in a cycle's events; False while it is still open."""
    stream, driver = cycle.stream, cycle.driver
    if not cycle.deadline_ns:
        deadline = driver.deadline(cycle.number, end_ns, final)
        if deadline is None:
            # A driver that has stopped leaves its last cycle without a deadline.
            cycle.leg = "ended"
            left = stream.pending[-1].driver is not driver  # nothing follows on a driver it has left
            return final or left or end_ns >= cycle.start_ns + GRACE_NS + SETTLE_NS
        cycle.deadline_ns = deadline
    cycle.leg = ""
    period = driver.interval_ns or driver.period_ns
    cycle.after_catch_up = bool(period) and cycle.deadline_ns - cycle.start_ns < period // 2
    expected = stream.completion_expected
    if not expected and not final and end_ns < stream.held_since_ns + GRACE_NS:
        return False
    read = stream.wake.read
    if stream.exact and (i := read.after(cycle.signal_enter_ns)) < len(read.end):
        cycle.read_enter_ns, cycle.read_ns, cycle.reader_tid = read.enter[i], read.end[i], read.tid[i]
    woke_in_time = cycle.read_ns is not None and cycle.read_ns <= cycle.deadline_ns
    if expected:
        completions.close(cycle)
        in_time = cycle.closing_ns is not None and cycle.closing_ns <= cycle.deadline_ns
        if not in_time and woke_in_time and cycle.closing_ns is not None and cycle.write_ns is None:
            assert cycle.read_ns is not None
            # Another finished last; the driver waited for us if we read too late even for our fastest.
            late = cycle.read_ns + (stream.fastest_ns or 0) > cycle.deadline_ns
            in_time = not late and not others.waited_for_us(cycle, filing.signalled_by(driver.tid))
            stream.others_late += in_time
        elif in_time:
            others.note(cycle)
        cycle.leg = "" if in_time else ("completion" if woke_in_time else "wake")
        if cycle.leg == "wake" and cycle.write_ns is None:
            cycle.closing_ns = cycle.read_ns  # somebody else finished last: ours is late up to its read
    else:
        cycle.closing_ns = cycle.read_ns
        in_time = woke_in_time
        cycle.leg = "" if in_time else "wake"
    cycle.missed = not in_time
    if in_time:
        if cycle.write_ns is not None and cycle.read_ns is not None and cycle.write_ns > cycle.read_ns:
            answer = cycle.write_ns - cycle.read_ns
            stream.fastest_ns = min(stream.fastest_ns or answer, answer)
        return True
    if cycle.closing_ns is not None:
        return final or end_ns >= cycle.closing_ns + SETTLE_NS
    if not final and end_ns < cycle.deadline_ns + GRACE_NS + SETTLE_NS:
        return False
    if stream.last_signal_ns <= cycle.signal_ns or _closed(cycle, registry, end_ns):
        cycle.missed, cycle.leg = False, "ended"  # the stream was not signalled again: it ended
    return True


def _closed(cycle: Cycle, registry: Registry, end_ns: int) -> bool:
    """Whether a stream's worker exited, and the server stopped signalling it: its client went.

    What was due well before that was missed by a worker that was still there.
    """
    stream = cycle.stream
    worker = registry.threads.get(stream.context)
    return (
        worker is not None
        and worker.exit_ns is not None
        and cycle.deadline_ns >= worker.exit_ns - CLOSES_NS
        and stream.last_signal_ns <= worker.exit_ns + CLOSES_NS
        and end_ns >= stream.last_signal_ns + CLOSES_NS
    )
