# SPDX-License-Identifier: Apache-2.0
"""What each remedy alone would have avoided, per missed cycle and per episode.

Owns the counting; the replay itself is counterfactual.py's. A carried miss is avoided if its origin's
replayed closing meets its own deadline: of a starvation that a remedy shortens the first cycles stay
missed, the rest do not. An episode is avoided if its origins are. Results are cached per origin: lock
names and roles may still change, so a result is kept for those it was made with, as far as they concern it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import and_
from typing import Final

from tracer.model.counterfactual import Names, remedied
from tracer.model.leaves import Word
from tracer.model.misses import EpisodeState, MissState
from tracer.model.summary import REMEDIES, Remedy

#: item_state words, movable threads and G's among those of a case.
_Relevant = tuple[frozenset[Word], frozenset[int], frozenset[int]]
#: In the order of REMEDIES, ns.
_Closings = tuple[int, ...]
_BIT: Final = {remedy: 1 << i for i, remedy in enumerate(REMEDIES)}


class Remedies:
    """Replays of origins under every remedy; of each miss a number, with the bits of those that avoid it."""

    def __init__(self) -> None:
        # Both by origin, in the order of their ids. Those with a path can still be asked under other names.
        self._open: dict[int, tuple[Names, _Relevant, _Closings]] = {}
        self._closed: dict[int, _Closings] = {}
        # By miss, with the closings they were made of.
        self._bits: dict[int, tuple[_Closings, int]] = {}

    def __len__(self) -> int:
        """Origins of which results are kept."""
        return len(self._open) + len(self._closed)

    def avoids(self, miss: MissState, remedy: str, names: Names) -> bool:
        """Whether a missed cycle would have met its deadline under a remedy."""
        return bool(self._avoiding(miss, self._closings(miss.origin or miss, names)) & _BIT[remedy])

    def _avoiding(self, miss: MissState, closings: _Closings) -> int:
        known = self._bits.get(miss.id)
        if known is not None and known[0] is closings:
            return known[1]
        deadline_ns, bits = miss.cycle.deadline_ns, 0
        if closings and miss.cycle.signal_ns <= deadline_ns:  # no completion comes before its signal
            replayed = zip(_BIT.values(), closings, strict=True)
            bits = sum(bit for bit, closing_ns in replayed if closing_ns <= deadline_ns)
        self._bits[miss.id] = closings, bits
        return bits

    def _closings(self, origin: MissState, names: Names) -> _Closings:
        """When an origin would have closed under each remedy; () of one that was not judged."""
        case = origin.case
        if case is None or origin.judgement is None:
            return self._closed.get(origin.id, ())
        known = self._open.get(origin.id)
        if known is not None and known[0] is names:
            return known[2]
        relevant = names.item_state & case.words, names.movable & case.tids, names.gpu & case.tids
        if known is not None and known[1] == relevant:
            found = known[2]
        else:
            end = case.path.end_ns  # one int for all remedies that change nothing
            replayed = [remedied(case, remedy, names) for remedy in REMEDIES]
            found = tuple([at if at != end else end for at in replayed])
        self._open[origin.id] = names, relevant, found
        return found

    def close(self, origin: MissState, names: Names) -> None:
        """An origin's path is about to be let go: what is found now stays."""
        self._closed[origin.id] = self._closings(origin, names)
        self._open.pop(origin.id, None)

    def table(
        self, misses: Iterable[MissState], episodes: Iterable[Sequence[EpisodeState]], names: Names
    ) -> dict[str, Remedy]:
        """Misses and episodes that each remedy avoids, and what remains by cause.

        Args:
            episodes: each as the streams' episodes that were merged into it.
        """
        misses = list(misses)
        closings = {miss.id: self._closings(miss, names) for miss in misses if miss.origin is None}
        of = {miss.id: self._avoiding(miss, closings.get((miss.origin or miss).id, ())) for miss in misses}
        alike = Counter((of[miss.id], miss.cause) for miss in misses)
        merged = Counter(
            reduce(and_, [of.get(o.id, 0) if not e.more else 0 for e in members for o in e.origins])
            for members in episodes
            if any(e.origins for e in members)
        )
        table: dict[str, Remedy] = {}
        for remedy, bit in _BIT.items():
            remaining: Counter[str] = Counter()
            for (avoiding, cause), n in alike.items():
                if not avoiding & bit:
                    remaining[cause] += n
            table[remedy] = Remedy(
                avoided=len(misses) - remaining.total(),
                of=len(misses),
                remaining_by_cause=dict(sorted(remaining.items(), key=lambda i: (-i[1], i[0]))),
                episodes_avoided=sum(n for avoiding, n in merged.items() if avoiding & bit),
                episodes_of=merged.total(),
            )
        return table

    def forget(self, before_id: int) -> None:
        """Drop results of misses that are no longer kept: costs what is dropped."""
        for results in (self._open, self._closed, self._bits):
            while results and (oldest := next(iter(results))) < before_id:
                del results[oldest]
