# SPDX-License-Identifier: Apache-2.0
"""From decided cycles to misses: episodes, which misses are origins, which are carried, what is kept.

Owns the list of misses and the statistics of streams. An origin is judged once (judging.py); a carried
miss names its origin and is not cut again. Everything depends on record time alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tracer.model.baselines import OnTime
from tracer.model.cycles import Cycle, Stream
from tracer.model.judging import Judge
from tracer.model.misses import EpisodeState, MissState, StreamState


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept of misses; older ones are counts only. No verdict depends on it.

    Attributes:
        misses: with their evidence (2.5 to 3 KB each), and as many episodes.
        cases: whose path is kept for replay under remedies.
        leaves: of such paths in all, which bounds their memory (300 bytes each).
    """

    misses: int = 20_000
    cases: int = 2_000
    leaves: int = 500_000


#: For a report: all that anybody would look through. About 200 MB.
WHOLE: Final = Keep()
#: For who only counts and has the records judged again, as a flight recorder does for weeks. About 10 MB.
BRIEF: Final = Keep(misses=1_000, cases=100, leaves=25_000)
#: Origins kept of one episode; of one with more no remedy is said to avoid it.
KEEP_ORIGINS: Final = 1_000


class Verdicts:
    """Takes decided cycles in order; keeps misses, episodes and per-stream statistics."""

    def __init__(self, judge: Judge, keep: Keep = WHOLE) -> None:
        self._judge = judge
        self._keep = keep
        self.settle: Callable[[MissState], None] = lambda miss: None
        self._cases: deque[MissState] = deque()
        self._leaves = 0
        self.misses: deque[MissState] = deque(maxlen=keep.misses)
        self.episodes: deque[EpisodeState] = deque(maxlen=keep.misses)
        self.states: dict[int, StreamState] = {}
        self.past = StreamState()
        self.total_misses = 0
        self._next_episode = 1

    @property
    def total_episodes(self) -> int:
        """Episodes of single streams so far."""
        return self._next_episode - 1

    @property
    def gone_episodes(self) -> int:
        """Of them, no longer kept."""
        return self.total_episodes - len(self.episodes)

    def state(self, stream: Stream) -> StreamState:
        """The state of a stream, made when first asked for."""
        state = self.states.get(stream.serial)
        if state is None:
            state = self.states[stream.serial] = StreamState()
        return state

    def by_cause(self) -> dict[str, int]:
        """Misses by cause, of all streams there ever were; the driver's own faults have none."""
        causes: dict[str, int] = {}
        for state in (self.past, *self.states.values()):
            for cause, n in state.by_cause.items():
                causes[cause] = causes.get(cause, 0) + n
        return causes

    def forget(self, stream: Stream) -> None:
        """A stream is no longer kept: its state goes into ``past`` as counts."""
        state = self.states.pop(stream.serial, None)
        if state is None:
            return
        past = self.past
        past.misses += state.misses
        past.carried += state.carried
        past.episodes += state.episodes
        slacks = [s for s in (state.min_slack, past.min_slack) if s is not None]
        past.min_slack = min(slacks, default=None)
        for counts, more in ((past.by_leg, state.by_leg), (past.by_cause, state.by_cause)):
            for name, n in more.items():
                counts[name] = counts.get(name, 0) + n

    def take(self, cycles: list[Cycle]) -> None:
        """Take over decided cycles, ordered by deadline."""
        self._judge.forget()
        for cycle in cycles:
            state = self.state(cycle.stream)
            if cycle.missed:
                self._miss(cycle, state)
            else:
                self._met(cycle, state)

    def _met(self, cycle: Cycle, state: StreamState) -> None:
        if cycle.closing_ns is not None:
            slack = cycle.deadline_ns - cycle.closing_ns
            if cycle.signal_ns < state.pending_until:
                state.pending_until = max(state.pending_until, cycle.closing_ns)
            if slack < 0:
                return  # late, but the miss is named on another stream of the same completion
            state.slack.append(slack)
            state.recent.append(slack)
            state.bins.add(cycle.deadline_ns, slack)
            state.min_slack = slack if state.min_slack is None else min(state.min_slack, slack)
            if cycle.read_ns is not None and (
                not cycle.stream.completion_expected or cycle.write_ns is not None
            ):
                state.on_time.append(OnTime(cycle))

    def _miss(self, cycle: Cycle, state: StreamState) -> None:
        self.total_misses += 1
        episode = state.episode
        joined = episode is not None and cycle.signal_ns < state.pending_until
        if episode is None or not joined:
            episode = EpisodeState(self._next_episode, cycle.stream, cycle.start_ns, None)
            self._next_episode += 1
            self.episodes.append(episode)
            state.episode, state.last = episode, None
            state.episodes += 1
        state.pending_until = max(state.pending_until, cycle.end_ns)
        miss = MissState(self.total_misses, cycle, episode.id, cycle.leg)
        if not cycle.stream.exact:
            miss.evidence = "degraded"
        before = state.last
        if before is not None and _carried_over(before.cycle, cycle):
            miss.origin = before.origin or before
            miss.cause, miss.evidence = miss.origin.cause, miss.origin.evidence
            miss.driver_fault = miss.origin.driver_fault or cycle.after_catch_up
            state.carried += 1
        else:
            self._judge.judge(miss, state.on_time)
            if len(episode.origins) < KEEP_ORIGINS:
                episode.origins.append(miss)
            else:
                episode.more = True
        state.last = miss
        episode.misses += 1
        episode.end_ns = cycle.closing_ns
        state.misses += 1
        state.recent.append(None)
        state.bins.add(cycle.deadline_ns, None, cycle.late_ns)
        state.by_leg[miss.leg] = state.by_leg.get(miss.leg, 0) + 1
        if not miss.driver_fault:
            state.by_cause[miss.cause] = state.by_cause.get(miss.cause, 0) + 1
        self.misses.append(miss)
        if miss.case is not None:
            self._cases.append(miss)
            self._leaves += miss.case.size
        while self._cases and (
            self._cases[0].id <= miss.id - self._keep.cases
            or (self._leaves > self._keep.leaves and len(self._cases) > 1)
        ):
            self._drop(self._cases.popleft())

    def _drop(self, miss: MissState) -> None:
        """Let go of a miss's path, after whoever needs it has had a last look."""
        if miss.case is None:
            return
        self.settle(miss)
        self._leaves -= miss.case.size
        miss.case = None


def _carried_over(before: Cycle, cycle: Cycle) -> bool:
    """Whether a miss would have been none had the previous cycle closed at its deadline.

    Closed by the same event: carried. Else the part of the wait that lies before the previous
    closing is moved up by the previous lateness.
    """
    if before.closing_ns is None or cycle.closing_ns is None:
        return before.closing_ns == cycle.closing_ns
    if before.closing_ns == cycle.closing_ns:
        return True
    late = before.closing_ns - before.deadline_ns
    moved = min(late, max(0, before.closing_ns - cycle.signal_ns))
    return cycle.closing_ns - moved <= cycle.deadline_ns
