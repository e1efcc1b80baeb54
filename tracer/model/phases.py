# SPDX-License-Identifier: Apache-2.0
"""The shape of a critical path: phases with one responsible thread each.

Owns the types that path.py and commands.py fill in and leaves.py cuts. Computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

#: Guest latency and own-command time assumed until the stream has shown its own.
DEFAULT_GUEST_NS: Final = 100_000
DEFAULT_COMMAND_NS: Final = 20_000

HOST, WORKER, GUEST, GPU, TASK = "host", "worker", "guest", "gpu", "task"
#: Of a phase in which the driver sleeps till a time of its own: it does not listen for ours.
CLOCK = "clock"
SERIALISED, HEAD_OF_LINE, NOT_REARMED = "serialised", "head_of_line", "not_rearmed"


@dataclass(slots=True)
class Phase:
    """[start_ns, end_ns) with one responsible thread.

    Attributes:
        who: HOST, WORKER, GUEST, GPU or TASK.
        tid: the responsible thread, 0 where unseen.
        via: SERIALISED, HEAD_OF_LINE, NOT_REARMED or "".
        sub: sub-label of via (in_progress, round, chosen, own, guest, G, irq_by_G ...); round: chosen, though
            e_n was ready, for the first time since: a fair worker serves each other ready fd once too.
        queued: G may be busy with foreign commands when the kick comes: replay decides its length.
    """

    start_ns: int
    end_ns: int
    who: str
    tid: int
    via: str = ""
    sub: str = ""
    queued: bool = False


@dataclass(slots=True)
class Path:
    """The phases of one cycle, in order, without gaps, from nominal start to closing event.

    ``kicker``: the vCPU thread that woke an idle G for our command, 0 unknown.
    ``handed_ns``: when W itself gave the command to G, without a guest in between; 0: a guest kicks.
    ``fixed``: so many phases do not depend on where an inferred kick lies.
    ``within``: when W's futex waits within its turns began (no waits for a re-arm).
    ``foreign``: G's commands that are not ours, (start, end) in ns, sorted.
    ``computed``: one of them that only computing shows, right before ours; (0, 0): none.
    """

    phases: list[Phase]
    deadline_ns: int
    kick: str = "none"
    kick_ns: int = 0
    kick_low_ns: int = 0
    kick_high_ns: int = 0
    irq_ns: int = 0
    handed_ns: int = 0
    command_ns: int = 0
    foreign: list[tuple[int, int]] = field(default_factory=list)
    went_first: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    gpu_tid: int = 0
    kicker: int = 0
    fixed: int = 0
    within: frozenset[int] = frozenset()
    computed: tuple[int, int] = (0, 0)

    @property
    def start_ns(self) -> int:
        """Start of the window."""
        return self.phases[0].start_ns

    @property
    def end_ns(self) -> int:
        """End of the window."""
        return self.phases[-1].end_ns

    @property
    def at_ns(self) -> int:
        """Where the phases found so far end."""
        return self.phases[-1].end_ns


class Habitual(Protocol):
    """What a stream usually takes, ns; may be measured only when asked for."""

    @property
    def guest_ns(self) -> int:
        """From interrupt to kick."""

    @property
    def soon_ns(self) -> int:
        """From interrupt to kick where that is as short as in one cycle of twenty; 0: too few are known."""

    @property
    def command_ns(self) -> int:
        """G's time on one command of ours."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What a stream usually takes (medians over on-time cycles), ns."""

    guest_ns: int = DEFAULT_GUEST_NS
    command_ns: int = DEFAULT_COMMAND_NS
    soon_ns: int = 0
