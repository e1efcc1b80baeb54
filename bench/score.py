# SPDX-License-Identifier: Apache-2.0
"""Verdicts against truth: matching, labelling, and the figures. Pure: no process, no file.

Owns the rules of counting: a miss is the audio server's if both name the same eventfd and the same
deadline; whether its cause is known is labels.py's.
A cycle that another client closed is nobody's completion miss; if ours was at work at its deadline too,
calling it late is neither right nor wrong, and counted apart.
Never looks at how a verdict was made. Times are ns, CLOCK_MONOTONIC.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from bench.labels import (
    CPU_TOO,
    NO_TIME,
    Cycle,
    Injection,
    Waits,
    explains,
    in_the_way,
    on_leg,
    overlapping,
    why_unknown,
)

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
    not_recorded: int = 0
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


def add_run(
    score: Score,
    run: str,
    cycles: Sequence[Cycle],
    verdicts: Sequence[Verdict],
    injections: Sequence[Injection],
    tolerance_ns: int,
    negative: bool = False,
    condition: str = "",
    until_ns: int | None = None,
    waits: Waits | None = None,
) -> list[Labelled]:
    """Count one run in; gives the labelled misses whose label is wrong.

    Args:
        tolerance_ns: between deadlines that are the same: a quarter of a period.
        waits: how long threads waited for a CPU, by the injector's log.
        until_ns: where the recording ends; a later cycle is counted nowhere.
        negative: no miss was provoked: what is false is counted apart as well, and locks that are blamed.
    """
    if until_ns is not None:
        score.not_recorded += sum(max(c.start_ns, c.deadline_ns) > until_ns for c in cycles)
        cycles = [c for c in cycles if max(c.start_ns, c.deadline_ns) <= until_ns]
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
        delays[verdict.id] = near = overlapping(cycle, verdict.start_ns, injections)
        if verdict.carried_from is not None:
            if len(near) == 1:
                score.carried += 1
                score.carried_right += near[0] in delays.get(verdict.carried_from, [])
            continue
        over = in_the_way(cycle, near)
        reason = _why_unlabelled(cycle, verdict, over, 4 * tolerance_ns, waits or Waits())
        both = len(over) == 2 and all(explains(each, cycle) for each in over)
        if both or reason == CPU_TOO:
            score.pairs += 1
            causes = {each.cause for each in over} | ({"not_scheduled"} if reason == CPU_TOO else set())
            score.pairs_right += verdict.cause == "mixed" or verdict.cause in causes
        if reason:
            score.reasons[reason] += 1
            score.unlabelled[verdict.cause] += 1
            continue
        known = Labelled(
            f"{run}/{verdict.episode}", on_leg(over[0], cycle.leg), cycle.leg, verdict, condition
        )
        score.labelled.append(known)
        if not right(known):
            wrong.append(known)
    return wrong


def _why_unlabelled(
    cycle: Cycle, verdict: Verdict, over: Sequence[Injection], period_ns: int, waits: Waits
) -> str:
    """Why the cause of a miss is not known for sure, "" if it is."""
    reason = why_unknown(cycle, over, period_ns, waits)
    if reason:
        return reason
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
