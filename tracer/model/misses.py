# SPDX-License-Identifier: Apache-2.0
"""Misses, their episodes and their streams: what verdicts remember.

Owns the shape of these records alone. verdicts.py fills them, judging.py tells a miss's cause.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tracer.model.baselines import BASELINE_CYCLES, OnTime
from tracer.model.counterfactual import Case, Judgement
from tracer.model.cycles import Cycle, Stream
from tracer.model.slackbins import SlackBins


@dataclass(slots=True)
class StreamState:
    """What verdicts remember of a stream."""

    on_time: deque[OnTime] = field(default_factory=lambda: deque(maxlen=BASELINE_CYCLES))
    slack: deque[int] = field(default_factory=lambda: deque(maxlen=4096))
    recent: deque[int | None] = field(default_factory=lambda: deque(maxlen=64))
    bins: SlackBins = field(default_factory=SlackBins)
    min_slack: int | None = None
    pending_until: int = 0
    episode: EpisodeState | None = None
    last: MissState | None = None
    misses: int = 0
    carried: int = 0
    episodes: int = 0
    by_leg: dict[str, int] = field(default_factory=lambda: {"wake": 0, "completion": 0})
    by_cause: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class EpisodeState:
    """A run of misses of one stream from nothing pending to nothing pending.

    Attributes:
        origins: the first ``verdicts.KEEP_ORIGINS`` of them.
    """

    id: int
    stream: Stream
    start_ns: int
    end_ns: int | None
    misses: int = 0
    origins: list[MissState] = field(default_factory=list)
    more: bool = False  # origins beyond ``verdicts.KEEP_ORIGINS``


@dataclass(slots=True)
class MissState:
    """One missed cycle with its verdict (origins) or its origin (carried).

    ``episode``: the id of its own; the episode holds its origins, and a circle would outlive both.
    """

    id: int
    cycle: Cycle
    episode: int
    leg: str
    cause: str = "unknown"
    judgement: Judgement | None = None
    case: Case | None = None
    origin: MissState | None = None
    evidence: str = "complete"
    reason: str = ""
    driver_fault: bool = False
    baseline: str = ""
