# SPDX-License-Identifier: Apache-2.0
"""From missed cycles to verdicts: episodes, origins, carried misses, baselines.

Owns the list of misses. Each origin's window is cut (path, leaves) and judged by
replay once, when its closing event has settled; a carried miss names its origin and is
not cut again. Everything depends on record time alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tracer.model.baselines import BASELINE_CYCLES, Baselines, OnTime, Usual
from tracer.model.counterfactual import Case, Judgement, judge
from tracer.model.cutter import LeafCutter
from tracer.model.failures import Failures
from tracer.model.habits import Answers
from tracer.model.locks import Locks
from tracer.model.path import PathFinder
from tracer.model.phases import Path
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.slackbins import SlackBins
from tracer.model.streams import Cycle, Stream
from tracer.model.timeline import Timeline
from tracer.model.window import Window
from tracer.schema import LOSS, Kind, Records, view

#: Misses kept with their evidence; older ones are kept as counts only.
KEEP_MISSES: Final = 20_000
#: Misses whose path is kept for replay under remedies.
KEEP_CASES: Final = 2_000
#: ... and leaves of such paths in all, which bounds their memory (about 150 MB).
KEEP_LEAVES: Final = 500_000
#: Origins kept of one episode; of one with more no remedy is said to avoid it.
KEEP_ORIGINS: Final = 1_000


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
        origins: the first ``KEEP_ORIGINS`` of them.
    """

    id: int
    stream: Stream
    start_ns: int
    end_ns: int | None
    misses: int = 0
    origins: list[MissState] = field(default_factory=list)
    more: bool = False  # origins beyond ``KEEP_ORIGINS``


@dataclass(slots=True)
class MissState:
    """One missed cycle with its verdict (origins) or its origin (carried)."""

    id: int
    cycle: Cycle
    episode: EpisodeState
    leg: str
    cause: str = "unknown"
    judgement: Judgement | None = None
    case: Case | None = None
    origin: MissState | None = None
    evidence: str = "complete"
    reason: str = ""
    driver_fault: bool = False
    baseline: str = ""


class Verdicts:
    """Takes decided cycles in order; keeps misses, episodes and per-stream statistics."""

    def __init__(
        self,
        registry: Registry,
        timeline: Timeline,
        locks: Locks,
        finder: PathFinder,
        cutter: LeafCutter,
        roles: Roles,
    ) -> None:
        self._registry = registry
        self._timeline = timeline
        self._finder = finder
        self._cutter = cutter
        self._roles = roles
        self._baselines = Baselines(finder, cutter, Answers(timeline, roles), self._vcpu)
        self._failures = Failures(registry, timeline, locks, roles)
        self.settle: Callable[[MissState], None] = lambda miss: None
        self._cases: deque[MissState] = deque()
        self._leaves = 0
        self.misses: deque[MissState] = deque(maxlen=KEEP_MISSES)
        self.episodes: deque[EpisodeState] = deque(maxlen=KEEP_MISSES)
        self.states: dict[int, StreamState] = {}
        self.past = StreamState()
        self.total_misses = 0
        self._losses: deque[tuple[int, int]] = deque(maxlen=1024)
        self._next_episode = 1

    @property
    def total_episodes(self) -> int:
        """Episodes of single streams so far."""
        return self._next_episode - 1

    def state(self, stream: Stream) -> StreamState:
        """The state of a stream, made when first asked for."""
        return self.states.setdefault(stream.serial, StreamState())

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

    def note_losses(self, records: Records) -> None:
        """Take over LOSS records: windows that overlap them are degraded."""
        lost = view(records[records["kind"] == Kind.LOSS], LOSS)
        for row in lost:
            self._losses.append((int(row["enter_ns"]), int(row["enter_ns"]) + int(row["dur_ns"])))

    def take(self, cycles: list[Cycle]) -> None:
        """Take over decided cycles, ordered by deadline."""
        self._cutter.forget()
        self._finder.forget()
        self._baselines.forget()
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
        miss = MissState(self.total_misses, cycle, episode, cycle.leg)
        if not cycle.stream.exact:
            miss.evidence = "degraded"
        before = state.last
        if before is not None and _carried_over(before.cycle, cycle):
            miss.origin = before.origin or before
            miss.cause, miss.evidence = miss.origin.cause, miss.origin.evidence
            miss.driver_fault = miss.origin.driver_fault or cycle.after_catch_up
            state.carried += 1
        else:
            self._judge(miss, state)
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
            self._cases[0].id <= miss.id - KEEP_CASES or (self._leaves > KEEP_LEAVES and len(self._cases) > 1)
        ):
            self._drop(self._cases.popleft())

    def _drop(self, miss: MissState) -> None:
        """Let go of a miss's path, after whoever needs it has had a last look."""
        if miss.case is None:
            return
        self.settle(miss)
        self._leaves -= miss.case.size
        miss.case = None

    # --- one origin ---------------------------------------------------------------

    def _judge(self, miss: MissState, state: StreamState) -> None:
        cycle = miss.cycle
        if cycle.after_catch_up:
            miss.driver_fault, miss.cause = True, "host_late"
            miss.reason = "the driver caught up: two cycles started back to back"
            return
        if cycle.nominal_ns < self._timeline.begin_ns:
            miss.evidence, miss.reason = "degraded", "the window began before the records that are kept"
            return
        usual = self._baselines.usual(state.on_time, self._timeline.begin_ns)
        miss.baseline = usual.kind
        window = self._finder.window(cycle)
        case = self._case(cycle, window, usual)
        miss.case = case
        if any(a <= cycle.end_ns and b >= cycle.nominal_ns for a, b in self._losses):
            miss.evidence, miss.reason = "degraded", "records were lost in the window"
            return
        failed = self._failures.forwarding(cycle)
        if failed:
            miss.cause, miss.reason = "forward_failed", failed
            return
        if cycle.end_ns > self._timeline.end_ns:
            miss.evidence, miss.reason = "degraded", "the recording ends before the window does"
            return
        if case.path.problem:
            miss.reason = case.path.problem
            return
        if self._unanswered(miss, state):
            return
        if case.path.foreign and not case.hopeless():
            case.relieve_by(self._cutter.others(case.path, window))
        judgement = judge(case, usual.of)
        if case.path.kick == "inferred":
            judgement = self._within_bounds(cycle, window, usual, case, judgement)
        miss.judgement, miss.cause = judgement, judgement.cause

    def _unanswered(self, miss: MissState, state: StreamState) -> bool:
        """Whether G took the command and wrote nothing; then that is the reason, and no cause is told."""
        miss.reason = self._failures.unanswered(miss.cycle, [entry.cycle for entry in state.on_time])
        return bool(miss.reason)

    def _case(self, cycle: Cycle, window: Window, usual: Usual) -> Case:
        path = self._finder.find(cycle, window, usual)
        return Case(path, cuts=self._cutter.cut(path, window, self._vcpu(cycle, path)))

    def _moved(self, case: Case, cycle: Cycle, window: Window, usual: Usual, kick_ns: int) -> Case:
        """A case with its inferred kick elsewhere; what does not depend on that is not done again."""
        path = self._finder.with_kick(case.path, cycle, window, usual, kick_ns)
        moved = self._cutter.cut(path, window, self._vcpu(cycle, path), since=path.fixed)
        return Case(path, same=case, cuts=[*case.cuts[: path.fixed], *moved])

    def _within_bounds(
        self, cycle: Cycle, window: Window, usual: Usual, case: Case, found: Judgement
    ) -> Judgement:
        """The label must not depend on where within its bounds an inferred kick lies."""
        path = case.path
        for kick in (path.kick_low_ns, path.kick_high_ns):
            other = judge(self._moved(case, cycle, window, usual, kick), usual.of)
            if other.cause != found.cause:
                either = dict.fromkeys((*found.sufficient, *other.sufficient))
                return Judgement("mixed", None, tuple(either), found.jointly, found.excess, open_kick=True)
        return found

    def _vcpu(self, cycle: Cycle, path: Path) -> int:
        """The vCPU that plays the guest: the one that woke G for this command, else who mostly does."""
        if self._registry.role(path.kicker) == "vcpu":
            return path.kicker
        tids = self._registry.with_role("vcpu", cycle.stream.tgid)
        votes = self._roles.vcpu_votes
        return max(tids, key=lambda t: (votes.get(t, 0), -t)) if tids else 0


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
