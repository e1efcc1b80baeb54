# SPDX-License-Identifier: Apache-2.0
"""Verdicts against truth: matching, labelling, and the figures. Pure: no process, no file.

Owns the rules: a miss is the audio server's if both name the same eventfd and the same deadline; its
cause is known if its window overlaps exactly one injection whose realised delay, as far as it lies in the
window, is at least its lateness. A cycle into which the driver caught up is the driver's fault.
A cycle that another client closed is nobody's completion miss; if ours was at work at its deadline too,
calling it late is neither right nor wrong, and counted apart.
Never looks at how a verdict was made. Times are ns, CLOCK_MONOTONIC.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

#: Causes that say nothing definite; on single-cause truth they are errors.
VAGUE: Final = ("mixed", "unknown")
#: Names of leaves as causes.
_CAUSE_OF: Final = {"guest": "guest_late", "host": "host_late"}
#: Kinds that fulfil two definitions at once: G is busy with another's command *while* W awaits its re-arm.
ALSO: Final[Mapping[str, frozenset[str]]] = {"not_rearmed.g": frozenset({"head_of_line"})}
#: The same seen from the other side: a G that is busy can keep W from its wakeup by the re-arm.
ALSO_ON_WAKE: Final[Mapping[str, frozenset[str]]] = {
    f"head_of_line.{by}": frozenset({"not_rearmed"}) for by in ("syscall", "cpu", "pipe", "blob")
}
#: Kinds whose cause is another one where the wakeup is late: W holds item_state in a turn for another
#: event. G waits for the lock with a completion; a wakeup waits for that turn, and nobody for the lock.
INSTEAD_ON_WAKE: Final[Mapping[str, str]] = {"lock.item_state": "serialised"}
#: Kinds that may go on after their victim did: a burst, a lock let go in between, a CPU taken from all, a
#: pipe that is read before that is written down.
PASSING: Final = ("serialised", "lock.barging", "not_scheduled", "head_of_line.pipe")
#: Causes that are no time spent, so that there is nothing to take out.
NO_TIME: Final = ("forward_failed", "unknown")
#: How long after its deadline an unanswered miss is looked at.
GRACE_NS: Final = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Injection:
    """What was done to a cycle. ``delay_ns`` None: without end (a write that never came).

    ``stream``: whose cycle, as the audio server numbers them; -1: whichever was in the way.
    """

    kind: str
    cause: str
    locks: frozenset[str]
    begin_ns: int
    end_ns: int
    delay_ns: int | None
    stream: int = -1


@dataclass(frozen=True, slots=True)
class Cycle:
    """One row of the audio server's own log; ``leg`` "none": in time. ``closing_ns`` 0: never.

    ``closer``: who wrote the closing completion: vmm, other, either (both were writing as it was read), ""
    for nobody. ``at_work``: the stream's own client had not finished at the deadline.
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

    @property
    def ambiguous(self) -> bool:
        """Late beside another client, which closed it; or nobody knows who closed it."""
        late = self.leg == "none" and self.at_work and self.closer == "other"
        return late or (self.leg != "wake" and self.deadline_ns > 0 and self.closer == "either")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One missed cycle as xdtrace tells it; ``segments`` as (kind, via, ns)."""

    id: int
    episode: int
    wake_eventfd: int
    cycle: int
    start_ns: int
    deadline_ns: int
    late_ns: int | None
    leg: str
    cause: str
    lock: str | None
    sufficient: tuple[str, ...]
    carried_from: int | None
    segments: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A miss whose cause is known, with the verdict on it. ``episode`` is unique over runs."""

    episode: str
    injection: Injection
    leg: str
    verdict: Verdict
    condition: str = ""


@dataclass
class Score:
    """Everything counted over runs."""

    cycles: int = 0
    hit: int = 0
    false_misses: int = 0
    not_seen: int = 0
    at_the_end: int = 0
    ambiguous: int = 0
    ambiguous_told: int = 0
    wrong_leg: int = 0
    late_bias_ns: list[int] = field(default_factory=list)
    labelled: list[Labelled] = field(default_factory=list)
    unlabelled: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    carried: int = 0
    carried_right: int = 0
    negative_cycles: int = 0
    negative_false: int = 0
    negative_locks: int = 0
    pairs: int = 0
    pairs_right: int = 0

    def add(self, other: Score) -> None:
        """Count another score in."""
        for name in (each.name for each in fields(self)):
            ours, theirs = getattr(self, name), getattr(other, name)
            if isinstance(ours, Counter):
                ours.update(theirs)
            elif isinstance(ours, list):
                ours.extend(theirs)
            else:
                setattr(self, name, ours + theirs)


def cause_of(name: str) -> str:
    """The cause that an entry of ``sufficient`` or a segment's kind stands for."""
    kind = name.partition(":")[0]
    return _CAUSE_OF.get(kind, kind)


@dataclass(frozen=True, slots=True)
class Matched:
    """Cycles against verdicts: pairs; misses nobody told; verdicts on none; pairs of no consequence."""

    pairs: list[tuple[Cycle, Verdict]]
    unseen: list[Cycle]
    invented: list[Verdict]
    ambiguous: list[tuple[Cycle, Verdict]]


def match(cycles: Sequence[Cycle], verdicts: Sequence[Verdict], tolerance_ns: int) -> Matched:
    """Pair missed cycles with verdicts one to one: same eventfd, nearest deadline within the tolerance."""
    missed = [c for c in cycles if c.leg != "none" and not c.ambiguous]
    pairs, unseen, others = _pair(missed, verdicts, tolerance_ns)
    ambiguous, _, invented = _pair([c for c in cycles if c.ambiguous], others, tolerance_ns)
    return Matched(pairs, unseen, invented, ambiguous)


def _pair(
    missed: Sequence[Cycle], verdicts: Sequence[Verdict], tolerance_ns: int
) -> tuple[list[tuple[Cycle, Verdict]], list[Cycle], list[Verdict]]:
    told: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for j, v in enumerate(verdicts):
        told[v.wake_eventfd].append((v.deadline_ns, j))
    for deadlines in told.values():
        deadlines.sort()
    near = sorted(
        (abs(c.deadline_ns - deadline_ns), i, j)
        for i, c in enumerate(missed)
        for deadline_ns, j in _around(told[c.wake_eventfd], c.deadline_ns, tolerance_ns)
    )
    ours: dict[int, int] = {}
    theirs: set[int] = set()
    for _, i, j in near:
        if i not in ours and j not in theirs:
            ours[i] = j
            theirs.add(j)
    pairs = [(missed[i], verdicts[j]) for i, j in sorted(ours.items())]
    unseen = [c for i, c in enumerate(missed) if i not in ours]
    return pairs, unseen, [v for j, v in enumerate(verdicts) if j not in theirs]


def _around(sorted_by: list[tuple[int, int]], middle: int, reach: int) -> list[tuple[int, int]]:
    return sorted_by[
        bisect_left(sorted_by, (middle - reach, 0)) : bisect_left(sorted_by, (middle + reach + 1, 0))
    ]


def overlapping(cycle: Cycle, nominal_ns: int, injections: Iterable[Injection]) -> list[Injection]:
    """Those that overlap the window [nominal start, closing] of a miss.

    What takes no time and hit another stream (a write that failed, its worker's end) is in nobody's way.
    """
    end = cycle.closing_ns or cycle.deadline_ns + GRACE_NS
    over = [i for i in injections if i.begin_ns <= end and i.end_ns >= nominal_ns]
    return [i for i in over if i.delay_ns is not None or i.stream in (-1, cycle.stream)]


def explains(injection: Injection, cycle: Cycle) -> bool:
    """Whether the realised delay, as far as it lies in the cycle, is at least the lateness.

    What took no time must have happened before the deadline: after it the cycle was late already.
    """
    if injection.delay_ns is None:
        return injection.begin_ns < cycle.deadline_ns
    end = cycle.closing_ns or cycle.deadline_ns + GRACE_NS
    inside = min(injection.end_ns, end) - max(injection.begin_ns, cycle.start_ns)
    return min(injection.delay_ns, inside) >= end - cycle.deadline_ns


def went_on(injection: Injection, cycle: Cycle) -> bool:
    """Whether a delay was still going on when the cycle was completed: then that did not wait for it."""
    lasting = not injection.kind.startswith(PASSING) and injection.delay_ns is not None
    return lasting and cycle.leg == "completion" and 0 < cycle.closing_ns < injection.end_ns


def add_run(
    score: Score,
    run: str,
    cycles: Sequence[Cycle],
    verdicts: Sequence[Verdict],
    injections: Sequence[Injection],
    tolerance_ns: int,
    negative: bool = False,
    condition: str = "",
) -> list[Labelled]:
    """Count one run in; gives the labelled misses whose label is wrong.

    Args:
        negative: no miss was provoked: what is false is counted apart as well, and locks that are blamed.
    """
    found = match(cycles, verdicts, tolerance_ns)
    score.cycles += len(cycles)
    score.ambiguous += sum(c.ambiguous for c in cycles)
    score.ambiguous_told += len(found.ambiguous)
    score.hit += len(found.pairs)
    # Whether the last cycle of a run was missed is known from what comes after it, and nothing does.
    last = max((c.cycle for c in cycles), default=0)
    ends = sum(c.cycle == last for c in found.unseen)
    score.not_seen += len(found.unseen) - ends
    score.at_the_end += ends
    score.false_misses += len(found.invented)
    if negative:
        score.negative_cycles += len(cycles)
        score.negative_false += len(found.invented)
        score.negative_locks += sum(v.cause == "lock" and v.carried_from is None for v in verdicts)
    delays: dict[int, list[Injection]] = {}
    wrong: list[Labelled] = []
    for cycle, verdict in found.pairs:
        score.wrong_leg += cycle.leg != verdict.leg
        if verdict.late_ns is not None and cycle.closing_ns:
            score.late_bias_ns.append(verdict.late_ns - (cycle.closing_ns - cycle.deadline_ns))
        delays[verdict.id] = over = overlapping(cycle, verdict.start_ns, injections)
        if verdict.carried_from is not None:
            if len(over) == 1:
                score.carried += 1
                score.carried_right += over[0] in delays.get(verdict.carried_from, [])
            continue
        reason = _why_unlabelled(cycle, verdict, over, 2 * tolerance_ns)
        if len(over) == 2 and all(explains(each, cycle) for each in over):
            score.pairs += 1
            causes = {each.cause for each in over}
            score.pairs_right += verdict.cause == "mixed" or verdict.cause in causes
        if reason:
            score.reasons[reason] += 1
            score.unlabelled[verdict.cause] += 1
            continue
        known = Labelled(
            f"{run}/{verdict.episode}", _on_leg(over[0], cycle.leg), cycle.leg, verdict, condition
        )
        score.labelled.append(known)
        if not right(known):
            wrong.append(known)
    return wrong


def _on_leg(injection: Injection, leg: str) -> Injection:
    """What an injection was to a miss of that leg."""
    instead = INSTEAD_ON_WAKE.get(injection.kind) if leg == "wake" else None
    return replace(injection, cause=instead, locks=frozenset()) if instead else injection


def _why_unlabelled(cycle: Cycle, verdict: Verdict, over: Sequence[Injection], half_period_ns: int) -> str:
    """Why the cause of a miss is not known for sure, "" if it is."""
    if cycle.deadline_ns - cycle.start_ns < half_period_ns:
        return "the driver caught up"
    if len(over) != 1:
        return "several injections" if over else "no injection"
    if over[0].stream not in (-1, cycle.stream):
        return "another stream's delay"
    if not explains(over[0], cycle):
        return "later than the injected delay"
    if went_on(over[0], cycle):
        return "completed before the delay ended"
    stolen = sum(ns for kind, _, ns in verdict.segments if kind == "stolen")
    return "stolen CPU" if stolen > (verdict.late_ns or 0) / 10 else ""


def right(known: Labelled) -> bool:
    """Whether the label is the injected cause."""
    return known.verdict.cause in accepted(known)


def in_set(known: Labelled) -> bool:
    """Whether the injected cause is among the sufficient ones."""
    named = {cause_of(name) for name in known.verdict.sufficient}
    return bool(accepted(known) & named) or (known.injection.cause in NO_TIME and right(known))


def accepted(known: Labelled) -> frozenset[str]:
    kind, none = known.injection.kind, frozenset[str]()
    also = ALSO_ON_WAKE.get(kind, none) if known.leg == "wake" else none
    return frozenset({known.injection.cause}) | ALSO.get(kind, none) | also


def saved_form(score: Score) -> dict[str, Any]:
    """A score as plain data; sets become lists when written as JSON with ``default=sorted``."""
    # asdict makes counters of a counter's items.
    return {**asdict(score), "unlabelled": dict(score.unlabelled), "reasons": dict(score.reasons)}


def score_of(saved: Mapping[str, Any]) -> Score:
    """A score from its ``saved_form``, after JSON."""
    known = []
    for one in saved["labelled"]:
        injection, verdict = one["injection"], one["verdict"]
        injection["locks"] = frozenset(injection["locks"])
        verdict["sufficient"] = tuple(verdict["sufficient"])
        verdict["segments"] = tuple((kind, via, ns) for kind, via, ns in verdict["segments"])
        known.append(Labelled(**{**one, "injection": Injection(**injection), "verdict": Verdict(**verdict)}))
    counters = {name: Counter(saved[name]) for name in ("unlabelled", "reasons")}
    return Score(**{**saved, "labelled": known, **counters})
