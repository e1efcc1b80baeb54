# SPDX-License-Identifier: Apache-2.0
"""One origin's verdict: its window cut and judged by replay, or the reason why no cause can be told.

Owns the order of these questions, and which records were lost. Which misses are origins is verdicts.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tracer.model.baselines import Baselines, OnTime, Usual
from tracer.model.counterfactual import Case, Judgement, judge
from tracer.model.cutter import LeafCutter
from tracer.model.cycles import Cycle
from tracer.model.failures import Failures
from tracer.model.habits import Answers
from tracer.model.locks import Locks
from tracer.model.misses import MissState
from tracer.model.path import PathFinder
from tracer.model.phases import Path
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.timeline import Timeline
from tracer.model.window import Window
from tracer.schema import LOSS, Kind, Records, view


class Judge:
    """Judges origins, once each, when their closing events have settled."""

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
        self._baselines = Baselines(finder, cutter, Answers(timeline, roles, finder.readers), self._vcpu)
        self._failures = Failures(registry, timeline, locks, roles)
        self._losses: deque[tuple[int, int]] = deque(maxlen=1024)

    def note_losses(self, records: Records) -> None:
        """Take over LOSS records: windows that overlap them are degraded."""
        lost = view(records[records["kind"] == Kind.LOSS], LOSS)
        for row in lost:
            self._losses.append((int(row["enter_ns"]), int(row["enter_ns"]) + int(row["dur_ns"])))

    def forget(self) -> None:
        """Records follow: what was read of the present ones is not good any more."""
        self._cutter.forget()
        self._finder.forget()

    def judge(self, miss: MissState, on_time: Sequence[OnTime]) -> None:
        """Fill in a miss's path, its cause, and why the cause is not known where it is not.

        Args:
            on_time: the stream's latest cycles that were on time, oldest first.
        """
        cycle = miss.cycle
        if cycle.after_catch_up:
            miss.driver_fault, miss.cause = True, "host_late"
            miss.reason = "the driver caught up: two cycles started back to back"
            return
        if cycle.nominal_ns < self._timeline.begin_ns:
            miss.evidence, miss.reason = "degraded", "the window began before the records that are kept"
            return
        usual = self._baselines.usual(on_time, self._timeline.begin_ns)
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
        if self._unanswered(miss, on_time):
            return
        if case.path.foreign:
            case.relieve(self._cutter.others(case.path, window))
        judgement = judge(case, usual.of)
        if case.path.kick == "inferred":
            judgement = self._within_bounds(cycle, window, usual, case, judgement)
        miss.judgement, miss.cause = judgement, judgement.cause

    def _unanswered(self, miss: MissState, on_time: Sequence[OnTime]) -> bool:
        """Whether G took the command and wrote nothing; then that is the reason, and no cause is told."""
        miss.reason = self._failures.unanswered(miss.cycle, [entry.cycle for entry in on_time])
        return bool(miss.reason)

    def _case(self, cycle: Cycle, window: Window, usual: Usual) -> Case:
        path = self._finder.find(cycle, window, usual)
        return Case(path, self._cutter.cut(path, window, self._vcpu(cycle, path)))

    def _moved(self, case: Case, cycle: Cycle, window: Window, usual: Usual, kick_ns: int) -> Case:
        """A case with its inferred kick elsewhere; what does not depend on that is not done again."""
        path = self._finder.with_kick(case.path, cycle, window, usual, kick_ns)
        moved = self._cutter.cut(path, window, self._vcpu(cycle, path), same=case.columns)
        return Case(path, moved, same=case)

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
        tids = self._roles.vcpus(cycle.stream.tgid)
        votes = self._roles.vcpu_votes
        return max(tids, key=lambda t: (votes.get(t, 0), -t)) if tids else 0
