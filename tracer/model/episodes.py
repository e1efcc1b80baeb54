# SPDX-License-Identifier: Apache-2.0
"""Episodes as a summary shows them: those of several streams that one delay made are one.

Owns when episodes are the same. Which misses make one, stream by stream, is verdicts.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tracer.model.misses import EpisodeState
from tracer.model.registry import Registry
from tracer.model.summary import Episode
from tracer.model.wording import LockName, key_object


def culprit(state: EpisodeState, registry: Registry, name: LockName) -> tuple[str, str]:
    """The cause of an episode's first origin, and what that is about, in words."""
    if not state.origins:
        return "unknown", ""
    first = state.origins[0]
    if first.cause == "forward_failed":  # nothing took time: whose worker or descriptor it was
        context = first.cycle.reader_tid or state.stream.context
        return first.cause, f"{registry.comm(context)} {context}"
    key = first.judgement.key if first.judgement is not None else None
    return first.cause, key_object(key, registry, name)


def merged(
    states: Iterable[EpisodeState], culprit: Callable[[EpisodeState], tuple[str, str]]
) -> list[tuple[Episode, list[EpisodeState]]]:
    """Episodes of several streams with overlapping delay and the same culprit are one.

    Args:
        states: episodes of single streams, in the order in which they began.
        culprit: (cause, what it is about) of one.

    Returns:
        The rows, each with the episodes it is made of.
    """
    merged: list[list[EpisodeState]] = []
    open_: dict[tuple[str, str], tuple[float, list[EpisodeState]]] = {}
    for state in states:
        key = culprit(state)
        end = float("inf") if state.end_ns is None else state.end_ns
        before = open_.get(key)
        known = key[0] != "unknown" or state.end_ns is None
        if (
            known
            and before is not None
            and before[0] > state.start_ns
            and before[1][-1].stream is not state.stream
        ):
            before[1].append(state)
            open_[key] = (max(before[0], end), before[1])
            continue
        group = [state]
        merged.append(group)
        open_[key] = (end, group)
    rows = []
    for group in merged:
        cause, about = culprit(group[0])
        ends = [s.end_ns for s in group]
        rows.append(
            (
                Episode(
                    id=group[0].id,
                    start_ns=min(s.start_ns for s in group),
                    end_ns=None if any(e is None for e in ends) else max(e for e in ends if e is not None),
                    streams=tuple(dict.fromkeys(s.stream.id for s in group)),
                    misses=sum(s.misses for s in group),
                    cause=cause,
                    culprit=about,
                ),
                group,
            )
        )
    return rows
