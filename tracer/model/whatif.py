# SPDX-License-Identifier: Apache-2.0
"""Which cycles would have been on time under a remedy, or several at once, cycle by cycle.

Owns the counting; the replay is counterfactual.py's, the same that verdicts and remedies use. A carried
miss is held against its origin's replayed closing and its own deadline: an origin that a remedy moves
from 2 s late to 0.1 s late is still missed, its followers are not. What a change makes newly late is
not predicted: only what was missed is replayed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tracer.model.counterfactual import CAUSE_OF, GROUPS, Case, Key, Removal, remedy_keys, remedy_removal
from tracer.model.leaves import Word
from tracer.model.phases import HEAD_OF_LINE

if TYPE_CHECKING:
    from tracer.model.analysis import Analysis
    from tracer.model.misses import MissState

SCHEMA: Final = 1
#: Remaining origins of which is asked what else would have to go; each costs a replay per candidate.
ASKED: Final = 200


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What is changed.

    Attributes:
        remedies: names of summary.REMEDIES but item_state; locks: names of locks that nobody waits for.
    """

    remedies: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CycleRow:
    """One missed cycle.

    Attributes:
        late_ns: as recorded, None: not closed within the grace; predicted_late_ns: under the remedy
            (negative: on time), None: not judged, so it counts as remaining.
        stream: its id; name: what views call it.
    """

    miss: int
    stream: str
    name: str
    cycle: int
    leg: str
    cause: str
    carried: bool
    late_ns: int | None
    predicted_late_ns: int | None
    avoided: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a remedy would have done to the missed cycles of a trace.

    Attributes:
        cycles_watched: of all streams; misses, episodes: as recorded; of them avoided (an episode if its
            origins are; one of several streams counts once, as in a report).
        unjudged: missed cycles without a verdict, counted as remaining.
        remaining_by_cause: by the recorded label.
        then: of ``then_of`` remaining origins: how many each further cause would save, beside the remedy.
        removed_ns, gained_ns: taken out of all origins' paths, and by how much they close earlier; the rest
            (``moved_ns``) comes back as waiting for G's other commands. What is gained beyond what was taken
            out (``passed_ns``) comes from commands of others that went first and now do not.
        notes: what makes the prediction weak, in words.
    """

    what: WhatIf
    cycles_watched: int
    misses: int
    avoided: int
    episodes: int
    episodes_avoided: int
    unjudged: int
    remaining_by_cause: Mapping[str, int]
    then: Mapping[str, int]
    then_of: int
    removed_ns: int
    gained_ns: int
    moved_ns: int
    passed_ns: int
    cycles: tuple[CycleRow, ...]
    notes: tuple[str, ...]
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: nested dicts and lists of plain values."""
        return {"type": "whatif", **dataclasses.asdict(self)}


@dataclass(frozen=True, slots=True)
class _Replayed:
    closing_ns: int
    removed_ns: int
    gained_ns: int


class Predictor:
    """Replays a trace's origins under a change; made before the trace is fed.

    Paths that the analysis lets go of while it is fed are replayed just before.
    """

    def __init__(self, analysis: Analysis, what: WhatIf) -> None:
        self._a = analysis
        self._what = what
        self._replayed: dict[int, _Replayed] = {}
        self._before = analysis.verdicts.settle
        analysis.verdicts.settle = self._settle

    def _settle(self, miss: MissState) -> None:
        self._before(miss)
        self._take(miss)

    def _take(self, miss: MissState) -> None:
        case = miss.case
        if case is None or miss.judgement is None:
            return
        removed, keys = self._removal(case)
        closing = case.replay(removed, freed=case.freed(keys))
        whole = sum(round(case.ns(i) * share) for i, share in removed.items())
        self._replayed[miss.id] = _Replayed(closing, whole, case.path.end_ns - closing)

    def _removal(self, case: Case) -> tuple[Removal, list[Key]]:
        """All that the changes take out together: of each leaf the larger share; candidates that are gone."""
        names = self._a.remedy_names()
        parts = [remedy_removal(case, remedy, names) for remedy in self._what.remedies]
        keys = [key for remedy in self._what.remedies for key in remedy_keys(remedy, names)]
        for name in self._what.locks:
            words = frozenset(word for word in _words(case) if self._a.names.lock(*word)[0] == name)
            named = dataclasses.replace(names, item_state=words)
            parts.append(remedy_removal(case, "item_state", named))
            keys += remedy_keys("item_state", named)
        together: dict[int, float] = {}
        for part in parts:
            for i, share in part.items():
                together[i] = max(together.get(i, 0.0), share)
        return together, keys

    def seen(self) -> list[str]:
        """Names of the locks that somebody waited for."""
        return sorted({self._a.names.lock(*word)[0] for word in self._a.locks.words})

    def prediction(self) -> Prediction:
        """The answer, once all of the trace was fed."""
        misses = list(self._a.verdicts.misses)
        for miss in misses:
            if miss.case is not None:
                self._take(miss)
        rows = [self._row(miss) for miss in misses]
        left: dict[str, int] = {}
        for row in rows:
            if not row.avoided:
                left[row.cause] = left.get(row.cause, 0) + 1
        saved = {row.miss for row in rows if row.avoided}
        episodes = [members for _, members in self._a.episodes() if any(e.origins for e in members)]
        gained = [r for r in self._replayed.values() if r.removed_ns]
        then, asked = self._then([m for m, r in zip(misses, rows, strict=True) if not r.avoided])
        return Prediction(
            what=self._what,
            cycles_watched=sum(stream.cycles for stream in self._a.streams.streams),
            misses=len(misses),
            avoided=sum(row.avoided for row in rows),
            episodes=len(episodes),
            episodes_avoided=sum(
                all(not e.more and all(o.id in saved for o in e.origins) for e in members)
                for members in episodes
            ),
            unjudged=sum(row.predicted_late_ns is None for row in rows),
            remaining_by_cause=_ordered(left),
            then=then,
            then_of=asked,
            removed_ns=sum(r.removed_ns for r in gained),
            gained_ns=sum(r.gained_ns for r in gained),
            moved_ns=sum(max(0, r.removed_ns - r.gained_ns) for r in gained),
            passed_ns=sum(max(0, r.gained_ns - r.removed_ns) for r in gained),
            cycles=tuple(rows),
            notes=tuple(self._notes(rows)),
        )

    def _row(self, miss: MissState) -> CycleRow:
        cycle = miss.cycle
        replayed = self._replayed.get((miss.origin or miss).id)
        predicted = None
        if replayed is not None:  # no completion comes before the signal that it answers
            predicted = max(replayed.closing_ns, cycle.signal_ns) - cycle.deadline_ns
        return CycleRow(
            miss=miss.id,
            stream=cycle.stream.id,
            name=cycle.stream.title,
            cycle=cycle.number,
            leg=miss.leg,
            cause=miss.cause,
            carried=miss.origin is not None,
            late_ns=cycle.late_ns,
            predicted_late_ns=predicted,
            avoided=predicted is not None and predicted <= 0,
        )

    def _then(self, remaining: Sequence[MissState]) -> tuple[dict[str, int], int]:
        """What else would have to go, of origins that remain (the newest of them)."""
        counts: dict[str, int] = {}
        origins = [m for m in remaining if m.case is not None and m.judgement is not None][-ASKED:]
        for miss in origins:
            case, judgement = miss.case, miss.judgement
            assert case is not None
            assert judgement is not None
            (removed, keys), totals = self._removal(case), case.totals()
            found = set()
            for key, total in totals.items():
                # What is usual of a candidate was not asked for where its whole time was not enough.
                share = judgement.excess.get(key, total) / total if total else 1.0
                more = _also(case, removed, key, share)
                freed = case.freed([*keys, key])
                if more is not None and case.meets(more, unqueued=key[0] == HEAD_OF_LINE, freed=freed):
                    found.add(CAUSE_OF.get(str(key[0]), str(key[0])))
            for cause in found:
                counts[cause] = counts.get(cause, 0) + 1
        return _ordered(counts), len(origins)

    def _notes(self, rows: Sequence[CycleRow]) -> list[str]:
        seen = self.seen()
        notes = [f"no wait for a lock named {name} was seen" for name in self._what.locks if name not in seen]
        for tgid, path in self._a.write_paths.rows(self._a.facts.host).items():
            if path.kind in self._what.remedies:
                notes.append(f"process {tgid} writes that way already ({path.why})")
        if "fair" in self._what.remedies:
            notes.append("fair: each other event that W served meanwhile still goes first, once")
        if "realtime" in self._what.remedies:
            notes.append(
                "realtime leaves arrivals as recorded: less than real where it holds the sender back, "
                "more in a burst"
            )
        if set(self._what.remedies) & {"dup", "refcount", "task"}:
            notes.append("only the write path is changed; a device that has it may differ in more")
        if any(row.predicted_late_ns is None for row in rows):
            notes.append("missed cycles without a verdict count as remaining")
        return notes


def _also(case: Case, removed: Removal, key: Key, share: float) -> Removal | None:
    """A candidate taken out beside what is gone already; None where nothing of it is left."""
    more = dict(removed)
    for i in case.members_of(key):
        more[i] = max(more.get(i, 0.0), share)
    return more if more != removed or key[0] in GROUPS else None


def _words(case: Case) -> set[Word]:
    return case.words


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
