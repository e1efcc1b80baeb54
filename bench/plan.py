# SPDX-License-Identifier: Apache-2.0
"""How many labelled episodes of each cause and leg a plan of runs will give, before any of them is run. Pure.

Owns how much of what is injected was labelled when it was last recorded. Only a forecast: the figures
count what came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from bench.labels import INSTEAD_ON_WAKE
from bench.matrix import ANSWERS_LATE, LATE_WAKEUPS, OWN, Trial

#: Cycles from one injection to the next (15 to 18, on 112 runs), and before the first.
SPACING: Final = 17
WARM_UP: Final = 40
#: Of several streams' delays, those that were the hit stream's own.
OF_SEVERAL: Final = 0.7
#: Workers that end before the run does, of those that are to.
ENDED: Final = 0.9
#: Share of injections that gave a labelled miss, by word of an option or by kind, and by leg. 112 runs, two
#: at a time (2026-11-28); what answers late, and late wakeups, as on a loaded machine.
_SHARES: Final[Mapping[str, Mapping[str, float]]] = {
    **dict(zip(ANSWERS_LATE, ({"completion": 0.55}, {"completion": 0.8}, {"completion": 0.25}), strict=True)),
    LATE_WAKEUPS: {"wake": 0.75},
    "blocked.g": {"completion": 0.99},
    "blocked.w": {"completion": 0.83},
    "blocked.w.wake": {"wake": 0.99},
    "forward_failed": {"completion": 1.0},
    "forward_failed.exit": {"wake": 1.0},
    "guest_late": {"completion": 0.66},
    "head_of_line.blob": {"wake": 0.96},
    "head_of_line.cpu": {"completion": 0.85},
    "head_of_line.pipe": {"completion": 0.27, "wake": 0.44},
    "head_of_line.syscall": {"completion": 0.99},
    "host_late": {"completion": 0.22, "wake": 0.21},
    "host_late.read": {"completion": 0.9},
    "lock.barging": {"completion": 0.57},
    "lock.control_queue": {"completion": 0.94},
    "lock.control_queue.wake": {"wake": 0.92},
    "lock.fence_state": {"completion": 0.92},
    "lock.fence_state.wake": {"wake": 0.95},
    "lock.intc": {"completion": 0.89},
    "lock.intc.wake": {"wake": 0.88},
    "lock.item_state": {"completion": 0.56, "wake": 0.15},
    "lock.item_state.wake": {"wake": 0.83},
    "lock.nested": {"completion": 0.48, "wake": 0.14},
    "lock.nested.two": {"completion": 0.42, "wake": 0.09},
    "no_write": {"completion": 1.0},
    "not_rearmed.g": {"wake": 0.59},
    "not_rearmed.guest": {"wake": 0.73},
    "not_scheduled.d": {"completion": 0.7, "wake": 0.3},
    "not_scheduled.g": {"completion": 0.99},
    "not_scheduled.g.hogs": {"completion": 0.98},
    "not_scheduled.g.holder": {"wake": 0.95},
    "not_scheduled.holder": {"completion": 0.77},
    "not_scheduled.vcpu": {"completion": 1.0},
    "not_scheduled.vcpu.hogs": {"completion": 0.95},
    "not_scheduled.w": {"wake": 0.99},
    "not_scheduled.w.hogs": {"wake": 0.77},
    "on_cpu.g": {"completion": 0.65},
    "on_cpu.w": {"completion": 0.64},
    "on_cpu.w.wake": {"wake": 0.79},
    "serialised": {"wake": 0.45},
    "slow_syscall.g": {"completion": 0.98},
    "slow_syscall.w": {"completion": 0.74},
    "slow_syscall.w.wake": {"wake": 0.86},
}


def _cause(kind: str, leg: str) -> str:
    """What a miss that this kind of delay made is to be called."""
    instead = INSTEAD_ON_WAKE.get(kind) if leg == "wake" else None
    return instead or ("unknown" if kind == "no_write" else kind.partition(".")[0])


def _injections(trial: Trial, kind: str) -> float:
    """How many delays of one of the trial's words can be expected."""
    streams = int(trial.extra[trial.extra.index("--streams") + 1]) if "--streams" in trial.extra else 1
    if kind == "forward_failed.exit":  # each worker once
        return ENDED * streams
    cycles = trial.seconds * 1_000_000_000 / trial.period_ns
    drawn = max(0.0, cycles - WARM_UP) / SPACING
    return drawn * OF_SEVERAL if streams > 1 and kind in OWN else drawn


def expected(trials: Iterable[Trial]) -> Counter[tuple[str, str]]:
    """Labelled episodes of each (cause, leg) to be expected of runs, rounded down."""
    found: dict[tuple[str, str], float] = {}
    for trial in trials:
        words = trial.inject.split("+") if trial.inject and not trial.negative else []
        for word in words:
            kind = word.partition(":")[0]
            for leg, share in _SHARES.get(word, _SHARES.get(kind, {})).items():
                cell = _cause(kind, leg), leg
                found[cell] = found.get(cell, 0.0) + share * _injections(trial, kind) / len(words)
    return Counter({cell: int(n) for cell, n in found.items()})
