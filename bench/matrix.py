# SPDX-License-Identifier: Apache-2.0
"""What is injected where: the runs of ``bench accuracy``, in an order that spreads each over the whole time.

Owns the matrix alone. A run is a line of the mini-VMM's options; its seed fixes everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

LOCKS: Final = (
    "lock.control_queue",
    "lock.fence_state",
    "lock.intc",
    "lock.control_queue.wake",
    "lock.fence_state.wake",
    "lock.intc.wake",
    "lock.item_state",
    "lock.nested",
    "lock.nested.two",
    "lock.barging",
)
#: Done in a stream's own turn: where several streams play, the truth knows which one is hit.
OWN: Final = (
    "guest_late",
    "slow_syscall.w.wake",
    "slow_syscall.w",
    "slow_syscall.g",
    "on_cpu.w.wake",
    "on_cpu.w",
    "on_cpu.g",
    "blocked.w.wake",
    "blocked.w",
    "blocked.g",
    "host_late",
    "forward_failed",
    "no_write",
)
OTHERS: Final = (
    *OWN,
    "head_of_line.syscall",
    "head_of_line.cpu",
    "head_of_line.pipe",
    "head_of_line.blob",
    "serialised",
    "not_rearmed.guest",
    "not_rearmed.g",
    "host_late.read",
)
#: Two in one cycle: `mixed` or either is right.
PAIRS: Final = (
    ("slow_syscall.w", "guest_late"),
    ("slow_syscall.w.wake", "on_cpu.w"),
    ("blocked.w", "host_late"),
    ("guest_late", "on_cpu.g"),
)
#: The wake leg alone, where nobody waits for a completion: G and its hold of item_state hurt nobody else.
WAKE_ONLY: Final = (
    "lock.item_state.wake",
    "lock.control_queue.wake",
    "lock.fence_state.wake",
    "lock.intc.wake",
    "slow_syscall.w.wake",
    "on_cpu.w.wake",
    "blocked.w.wake",
    "serialised",
    "not_rearmed.guest",
)
#: W reads in time, and the answer comes late: what is delayed ends before the deadline, and the client then
#: waits (and a burst's guest is slow, so that few turns make it).
ANSWERS_LATE: Final = ("serialised:0.5..0.9", "not_rearmed.g:0.85..1.12", "not_rearmed.guest:0.8..1.05")
WAITS: Final = ("--guest-waits-us", "2000,2200")
#: The driver's eventfd comes so late that W cannot read it in time.
LATE_WAKEUPS: Final = "host_late:0.98..0.998"
VICTIMS: Final = ("w", "g", "vcpu", "d", "holder", "g.holder", "w.hogs", "g.hogs", "vcpu.hogs")
NEGATIVES: Final = (
    "pause",
    "suspend",
    "reuse",
    "quantum",
    "async",
    "condvar",
    "idle",
    "shared-futex",
    "driver",
    "follower",
)
PATHS: Final = ("locked", "dup", "refcount", "task")
#: Drawn more often than the rest, so that each cause and leg gets about as many.
_TIMES: Final = {
    "guest_late": 2,
    "slow_syscall.w.wake": 2,
    "on_cpu.w.wake": 2,
    "blocked.w.wake": 2,
    "host_late": 2,
    "host_late.read": 2,
    "forward_failed": 2,
    "no_write": 2,
    "serialised": 5,
}
_DRIVERS_OWN: Final = ("host_late", "host_late.read", "not_scheduled.d")


@dataclass(frozen=True)
class Trial:
    """One run: what is injected, how the mini-VMM is run besides, for how long."""

    inject: str
    write_path: str
    period: str
    seconds: float
    seed: int
    extra: tuple[str, ...] = ()
    negative: bool = False

    @property
    def period_ns(self) -> int:
        """Of a cycle."""
        quantum, rate = self.period.split("/")
        return int(quantum) * 1_000_000_000 // int(rate)

    def asked_ns(self, kind: str) -> int:
        """The most that a kind of delay was to last: the injector draws from what its option allows."""
        most = 0.0
        for word in self.inject.split("+"):
            names, _, range_ = word.partition(":")
            if kind in names.split("&"):
                # A driver that reads late does so up to its next start, whatever was drawn.
                default = 1.0 if kind in _DRIVERS_OWN else 1.8
                most = max(most, float(range_.partition("..")[2]) if range_ else default)
        return round(most * self.period_ns)

    @property
    def condition(self) -> str:
        """What it is counted with in the table of conditions."""
        return " ".join((self.period.partition("/")[0], *self.extra))


def _everything(range_: str = "") -> str:
    """All kinds but the victims'; those of the driver itself cannot last longer than a period."""
    kinds = [kind for kind in (*LOCKS, *OTHERS) for _ in range(_TIMES.get(kind, 1))]
    return "+".join(kind + ("" if kind in _DRIVERS_OWN else range_) for kind in kinds)


def _trial(inject: str, period: str, seconds: float, *extra: str, negative: bool = False) -> Trial:
    return Trial(inject, "", period, seconds, 0, extra, negative)


def _round(quick: bool) -> list[Trial]:
    """Every condition once, without path and seed."""
    contended = "+".join(f"{kind}:0.05..0.3" for kind in LOCKS)
    own = "+".join(OWN)
    pairs = "+".join(f"{one}&{other}:0.6..0.9" for one, other in PAIRS)
    short = "256/48000"
    workers = ("--streams", "12", "--topology", "per-client")
    several = ("--streams", "4", "--guest-us", "5,40")
    scale = 0.4 if quick else 1.0
    trials = [_trial(_everything(), short, 20 * scale)] * (2 if quick else 4)
    trials += [_trial(f"not_scheduled.{victim}", short, (4 if quick else 3) * scale) for victim in VICTIMS]
    trials += [
        _trial(_everything(":2..5"), "64/48000", 6 * scale, "--guest-us", "5,40"),
        _trial(own, short, 6 * scale, *several, "--vmms", "2"),
        *[_trial("forward_failed.exit", "512/48000", 2.8, *workers)] * (1 if quick else 4),
        _trial("+".join(WAKE_ONLY), short, 6 * scale, "--async"),
        _trial(ANSWERS_LATE[0], short, 9 * scale, "--guest-us", "1200,1400", *WAITS),
        _trial("+".join(ANSWERS_LATE[1:]), short, 8 * scale, *WAITS),
        _trial(LATE_WAKEUPS, short, 5 * scale, *WAITS),
        _trial(pairs, short, 4 * scale),
    ]
    if not quick:
        trials += [
            *[_trial(_everything(), "1024/48000", 20)] * 2,
            _trial(_everything(), short, 10, "--churn", "20"),
            _trial(own, short, 6, "--streams", "3", "--topology", "per-client"),
            *[_trial(f"not_scheduled.{victim}", "1024/48000", 5) for victim in VICTIMS[:5]],
        ]
    period = "128/48000"
    trials += [
        _trial("", period, 5 * scale, *several, "--negative", kind, negative=True) for kind in NEGATIVES
    ]
    trials.append(_trial(contended, "1024/48000", 10 * scale, negative=True))
    return trials


def trials(quick: bool, seed: int) -> Iterator[Trial]:
    """Runs without end; seeds from ``seed`` on. A round's write paths move on by one from the last's."""
    conditions = _round(quick)
    paths = ("locked", "dup") if quick else PATHS
    for number in count():
        for at, trial in enumerate(conditions):
            path = paths[(at + number) % len(paths)]
            yield Trial(trial.inject, path, trial.period, trial.seconds, seed, trial.extra, trial.negative)
            seed += 1


def in_a_round(quick: bool) -> int:
    """How many runs it takes to have had every condition once."""
    return len(_round(quick))
