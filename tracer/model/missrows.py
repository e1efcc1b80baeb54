# SPDX-License-Identifier: Apache-2.0
"""The rows of missed cycles: a verdict with its segments, and the names that things have now.

Owns the shape of one row, and which lock a miss is about; keeps rows made before, since a judged miss
does not change but by its names. Decides no cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tracer.model.leaves import LOCK
from tracer.model.misses import MissState
from tracer.model.registry import Registry
from tracer.model.replay import Case
from tracer.model.summary import Miss, Segment
from tracer.model.wording import (
    TODO,
    LockName,
    chain_of,
    key_object,
    key_text,
    leaf_detail,
    leaf_object,
    sentence,
)

#: A lock is named with a miss if it was waited for at least 1/LOCK_MATTERS of the lateness.
LOCK_MATTERS: Final = 4


class MissRows:
    """Makes rows of misses.

    Args:
        registry: names of threads.
        name: the name that a lock word has now.
    """

    def __init__(self, registry: Registry, name: LockName) -> None:
        self._registry = registry
        self._name = name
        self._rows: dict[int, tuple[tuple[str, ...], Miss]] = {}

    def keep(self, ids: Iterable[int]) -> None:
        """Keep the rows made of these misses (ids) alone: rows have thousands of segments."""
        self._rows = {number: self._rows[number] for number in ids}

    def row(self, miss: MissState, episode: int) -> Miss:
        """The row of a miss in an episode (its id); the one made before if all names are as they were."""
        words = miss.case.words if miss.case is not None else set()
        version = (str(episode), *sorted(self._name(w) for w in words))
        cached = self._rows.get(miss.id)
        if cached is not None and cached[0] == version:
            return cached[1]
        row = self._made(miss, episode)
        self._rows[miss.id] = (version, row)
        return row

    def _made(self, miss: MissState, episode: int) -> Miss:
        registry, cycle, found = self._registry, miss.cycle, miss.judgement
        name = self._name
        window = cycle.end_ns - cycle.nominal_ns
        if miss.origin is not None or miss.case is None:
            kind = "carried" if miss.origin is not None else "unknown"
            segments: tuple[Segment, ...] = (Segment(kind, "", window, 0, "", ""),)
        else:
            segments = tuple(self._segments(miss.case))
        key = found.key if found is not None else None
        lock = self._lock_of(miss.origin or miss)
        via = (
            str(key[0])
            if key is not None and key[0] in ("serialised", "head_of_line", "not_rearmed")
            else None
        )
        if miss.driver_fault:
            via = "driver"
        thing = key_object(key, registry, name)
        return Miss(
            id=miss.id,
            episode=episode,
            stream=cycle.stream.id,
            cycle=cycle.number,
            leg=miss.leg,
            deadline_ns=cycle.deadline_ns,
            late_ns=cycle.late_ns,
            cause=miss.cause,
            lock=lock,
            via=via,
            detail=sentence(miss, registry, name, cycle.driver.period_ns),
            carried_from=miss.origin.id if miss.origin is not None else None,
            sufficient=tuple(key_text(k, registry, name) for k in found.sufficient) if found else (),
            jointly=tuple(key_text(k, registry, name) for k in found.jointly) if found else (),
            chain=chain_of(miss, registry, name),
            went_first=dict(miss.case.path.went_first) if miss.case is not None else {},
            kick=miss.case.path.kick if miss.case is not None else "none",
            audible="yes" if miss.leg == "wake" else "unknown",
            evidence=miss.evidence,
            segments=segments,
            start_ns=cycle.nominal_ns,
            todo=TODO.get(miss.cause, "").format(object=thing or "the threads concerned"),
            candidates=tuple(s.id for s in cycle.candidates),
        )

    def _segments(self, case: Case) -> Iterator[Segment]:
        """The leaves of a path, in words; once for leaves that are alike."""
        registry, name, columns = self._registry, self._name, case.columns
        told: dict[object, tuple[str, int, str, str]] = {}
        for index, phase in enumerate(case.path.phases):
            for i in columns.of_interval(index):
                alike = columns.alike(i)
                found = told.get(alike)
                if found is None:
                    leaf = columns.leaf(i)
                    what, detail = leaf_object(leaf, registry, name), leaf_detail(leaf, registry, name)
                    found = told[alike] = (leaf.kind, leaf.tid, what, detail)
                kind, tid, what, detail = found
                yield Segment(kind, phase.via, case.ns(i), tid, what, detail or phase.sub)

    def _lock_of(self, origin: MissState) -> str | None:
        """The lock a miss is about: its cause, else the one waited for longest if that matters."""
        found, case = origin.judgement, origin.case
        if found is not None and found.key is not None and found.key[0] == LOCK and len(found.key) > 1:
            return self._name((int(found.key[1]), int(found.key[2])))
        if case is None:
            return None
        waits = case.waited()
        if not waits:
            return None
        word = max(waits, key=lambda w: (waits[w], w))
        late = origin.cycle.end_ns - origin.cycle.deadline_ns
        return self._name(word) if waits[word] * LOCK_MATTERS >= late else None
