# SPDX-License-Identifier: Apache-2.0
"""What each remedy alone would have avoided, per missed cycle and per episode.

Owns the counting over origins; the replay itself is counterfactual.py's. A carried miss
is avoided iff its origin is. Results are cached per origin: lock names and roles may still
change, so a result is kept for those it was made with, as far as they concern it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tracer.model.counterfactual import Names, remedied
from tracer.model.leaves import Word
from tracer.model.summary import REMEDIES, Remedy
from tracer.model.verdicts import EpisodeState, MissState

#: item_state words, movable threads and G's among those of a case.
_Relevant = tuple[frozenset[Word], frozenset[int], frozenset[int]]


class Remedies:
    """Replays of origins under every remedy."""

    def __init__(self) -> None:
        self._cache: dict[int, dict[str, tuple[_Relevant, bool]]] = {}  # by origin, in the order of their ids

    def __len__(self) -> int:
        """Origins of which results are kept."""
        return len(self._cache)

    def avoids(self, origin: MissState, remedy: str, names: Names) -> bool:
        """Whether an origin would have met its deadline under a remedy."""
        case = origin.case
        results = self._cache.get(origin.id, {})
        cached = results.get(remedy)
        if case is None:
            return cached[1] if cached is not None else False
        relevant = names.item_state & case.words, names.movable & case.tids, names.gpu & case.tids
        if cached is not None and cached[0] == relevant:
            return cached[1]
        met = origin.judgement is not None and remedied(case, remedy, names) <= case.path.deadline_ns
        self._cache.setdefault(origin.id, results)[remedy] = (relevant, met)
        return met

    def table(
        self, misses: Iterable[MissState], episodes: Iterable[Sequence[EpisodeState]], names: Names
    ) -> dict[str, Remedy]:
        """Misses and episodes that each remedy avoids, and what remains by cause.

        Args:
            episodes: each as the streams' episodes that were merged into it.
        """
        misses = list(misses)
        origins = [[o for e in merged for o in e.origins] for merged in episodes]
        origins = [members for members in origins if members]
        table: dict[str, Remedy] = {}
        for remedy in REMEDIES:
            gone: dict[int, bool] = {}
            for miss in misses:
                if miss.origin is None:
                    gone[miss.id] = self.avoids(miss, remedy, names)
            avoided = 0
            remaining: dict[str, int] = {}
            for miss in misses:
                origin = miss.origin or miss
                if gone.get(origin.id, False):
                    avoided += 1
                else:
                    remaining[miss.cause] = remaining.get(miss.cause, 0) + 1
            table[remedy] = Remedy(
                avoided=avoided,
                of=len(misses),
                remaining_by_cause=dict(sorted(remaining.items(), key=lambda i: (-i[1], i[0]))),
                episodes_avoided=sum(all(gone.get(o.id, False) for o in members) for members in origins),
                episodes_of=len(origins),
            )
        return table

    def forget(self, before_id: int) -> None:
        """Drop results of misses that are no longer kept: costs what is dropped."""
        while self._cache:
            oldest = next(iter(self._cache))
            if oldest >= before_id:
                return
            del self._cache[oldest]
