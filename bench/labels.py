# SPDX-License-Identifier: Apache-2.0
"""Which missed cycles' cause is known from the logs of the injector and of the audio server. Pure.

Owns what one injection can have done to a cycle. The cause is known if exactly one injection was in the
cycle's way and explains its lateness, and nothing else is known to explain it as well. Never looks at a
verdict. Times are ns, CLOCK_MONOTONIC.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

#: How long after its deadline an unanswered miss is looked at.
GRACE_NS: Final = 2_000_000_000
#: Causes that are no time spent, so that there is nothing to take out.
NO_TIME: Final = ("forward_failed", "unknown")
#: Why a miss has two causes although one thing was injected.
CPU_TOO: Final = "a CPU was missing as well"
#: Leaves of the thread's own: taken out is what was asked for, not what the thread waited for besides.
OWN_TIME: Final = frozenset({"on_cpu", "slow_syscall", "blocked", "guest_late", "host_late"})
#: A delay this much longer than asked for is as exact as timers and bursts of turns are.
INEXACT: Final = 0.1
#: Kinds whose cause is another one where the wakeup is late: W holds item_state in a turn for another
#: event. G waits for the lock with a completion; a wakeup waits for that turn, and nobody for the lock.
INSTEAD_ON_WAKE: Final[Mapping[str, str]] = {"lock.item_state": "serialised"}
#: Kinds that may go on after their victim did: a burst, a lock let go in between, a CPU taken from all, a
#: pipe that is read before that is written down.
PASSING: Final = ("serialised", "lock.barging", "not_scheduled", "head_of_line.pipe")
#: Only keep W from reading the wakeup; what begins when W has read it is in the way of other cycles.
BEFORE_THE_READ: Final = frozenset(
    {"serialised", "not_rearmed.guest", "slow_syscall.w.wake", "on_cpu.w.wake", "blocked.w.wake"}
)


@dataclass(frozen=True, slots=True)
class Injection:
    """What was done to a cycle. ``delay_ns`` None: without end (a write that never came).

    ``asked_ns``: how long it was to last, 0: not known. ``stream``: whose cycle, as the audio server
    numbers them; -1: whichever was in the way.
    """

    kind: str
    cause: str
    locks: frozenset[str]
    begin_ns: int
    end_ns: int
    delay_ns: int | None
    stream: int = -1
    asked_ns: int = 0


@dataclass(frozen=True, slots=True)
class Cycle:
    """One row of the audio server's own log; ``leg`` "none": in time. ``closing_ns`` 0: never.

    ``closer``: who wrote the closing completion: vmm, other, either (both were writing as it was read), ""
    for nobody. ``at_work``: the stream's own client had not finished at the deadline. ``signal_ns``: when its
    wakeup was written, ``read_ns``: when W began to read that, ``written_ns``: when the completion that
    closed it had been written, 0: not known.
    """

    wake_eventfd: int
    cycle: int
    start_ns: int
    deadline_ns: int
    closing_ns: int
    leg: str
    stream: int = 0
    closer: str = ""
    at_work: bool = False
    read_ns: int = 0
    signal_ns: int = 0
    written_ns: int = 0

    @property
    def ambiguous(self) -> bool:
        """Late beside another client, which closed it; or nobody knows who closed it."""
        late = self.leg == "none" and self.at_work and self.closer == "other"
        return late or (self.leg != "wake" and self.deadline_ns > 0 and self.closer == "either")

    @property
    def end_ns(self) -> int:
        """Its closing; of a cycle that was never closed, until when it is looked at."""
        return self.closing_ns or self.deadline_ns + GRACE_NS

    @property
    def late_ns(self) -> int:
        """How late it was closed."""
        return self.end_ns - self.deadline_ns


def overlapping(cycle: Cycle, nominal_ns: int, injections: Iterable[Injection]) -> list[Injection]:
    """Those that overlap the window [nominal start, closing] of a miss.

    What takes no time and hit another stream (a write that failed, its worker's end) is in nobody's way.
    """
    return [
        one
        for one in injections
        if one.begin_ns <= cycle.end_ns
        and one.end_ns >= nominal_ns
        and (one.delay_ns is not None or one.stream in (-1, cycle.stream))
    ]


def in_the_way(cycle: Cycle, injections: Iterable[Injection]) -> list[Injection]:
    """Of those that overlap its window: what can have made a cycle miss.

    That is not what began after its deadline, nor what only keeps W from reading the wakeup and began
    when W had read it.
    """
    return [
        one
        for one in injections
        if one.begin_ns < cycle.deadline_ns
        and not (one.kind in BEFORE_THE_READ and 0 < cycle.read_ns <= one.begin_ns)
    ]


def explains(injection: Injection, cycle: Cycle) -> bool:
    """Whether the realised delay, as far as it lies in the cycle, is at least the lateness."""
    if injection.delay_ns is None:
        return True
    inside = min(injection.end_ns, cycle.end_ns) - max(injection.begin_ns, cycle.start_ns)
    delay = min(injection.delay_ns, inside)
    if injection.asked_ns and injection.cause in OWN_TIME:
        delay = min(delay, round(injection.asked_ns * (1 + INEXACT)))
    return delay >= cycle.late_ns


def went_on(injection: Injection, cycle: Cycle) -> bool:
    """Whether a delay was still going on when the cycle was completed: then that did not wait for it."""
    lasting = not injection.kind.startswith(PASSING) and injection.delay_ns is not None
    return lasting and cycle.leg == "completion" and 0 < cycle.closing_ns < injection.end_ns


def chosen_first(injection: Injection, cycle: Cycle) -> bool:
    """Whether W may have chosen, with the wakeup there, the turn whose re-arm the guest then sent late.

    Then it is `serialised`; not if the wakeup came between the interrupt of that turn and the delay,
    which no log tells.
    """
    late_rearm = injection.kind == "not_rearmed.guest" and cycle.leg == "wake"
    return late_rearm and 0 < cycle.signal_ns < injection.begin_ns


def on_leg(injection: Injection, leg: str) -> Injection:
    """What an injection was to a miss of that leg."""
    instead = INSTEAD_ON_WAKE.get(injection.kind) if leg == "wake" else None
    return replace(injection, cause=instead, locks=frozenset()) if instead else injection


def stretched(injection: Injection, cycle: Cycle) -> bool:
    """Whether what the injection took beyond what was asked of it is enough to make the cycle late.

    A burst of forty turns in which a CPU was missing for longer than the cycle was late would have
    been harmless with that CPU: two causes, of which the log knows one.
    """
    if not injection.asked_ns or injection.delay_ns is None or injection.cause == "not_scheduled":
        return False
    asked = injection.asked_ns * (1 + INEXACT)
    return injection.end_ns - injection.begin_ns - asked >= cycle.late_ns


@dataclass(frozen=True, slots=True)
class Waits:
    """By the kernel's own count, how long each thread on a cycle's way had waited for a CPU by then."""

    at_ns: Sequence[int] = ()
    waited_ns: Sequence[Sequence[int]] = ()

    def within(self, start_ns: int, end_ns: int) -> int:
        """The most that all of them together can have waited in an interval; 0 where nobody looked."""
        if not self.at_ns:
            return 0
        low = max(0, bisect_right(self.at_ns, start_ns) - 1)
        high = min(len(self.at_ns) - 1, bisect_left(self.at_ns, end_ns))
        return sum(b - a for a, b in zip(self.waited_ns[low], self.waited_ns[high], strict=True))


def not_looking(injection: Injection, cycle: Cycle) -> bool:
    """Whether D was kept past its next start by another source while the completion was there already.

    Whoever waited for a CPU before that had written in time. D itself, if it waits for one behind the
    delay, begins to look later, and so does the deadline with it.
    """
    return injection.kind == "host_late.read" and 0 < cycle.written_ns < injection.end_ns


def without_cpu(injection: Injection, cycle: Cycle, waits: Waits) -> bool:
    """Whether threads waited for a CPU in the cycle's window for at least as long as it was late.

    All together: several threads' missing CPU is one cause (docs/decisions.md).
    """
    if injection.cause in ("not_scheduled", *NO_TIME) or not_looking(injection, cycle):
        return False
    return waits.within(cycle.start_ns, cycle.end_ns) >= cycle.late_ns


def why_unknown(cycle: Cycle, over: Sequence[Injection], period_ns: int, waits: Waits) -> str:
    """Why the cause of a miss is not known for sure from the logs, "" if it is; of ``over`` in its way."""
    if cycle.deadline_ns - cycle.start_ns < period_ns // 2:
        return "the driver caught up"
    if len(over) != 1:
        return "several injections" if over else "no injection"
    if over[0].stream not in (-1, cycle.stream):
        return "another stream's delay"
    if not explains(over[0], cycle):
        return "later than the injected delay"
    if went_on(over[0], cycle):
        return "completed before the delay ended"
    if chosen_first(over[0], cycle):
        return "begun after the wakeup was there"
    if without_cpu(over[0], cycle, waits):
        return CPU_TOO
    return "longer than asked for" if stretched(over[0], cycle) else ""
