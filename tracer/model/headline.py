# SPDX-License-Identifier: Apache-2.0
"""The verdict of a whole run in one sentence, and the one thing to do about it.

Owns that sentence. Counts nothing but what is in it; what remedies avoid is lead.py's sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracer.model.facts import Facts
from tracer.model.findings import PATIENCE_NS
from tracer.model.lead import REMEDY_TEXT
from tracer.model.registry import Registry
from tracer.model.streams import Streams
from tracer.model.summary import Episode, Remedy
from tracer.model.verdicts import Verdicts
from tracer.model.wording import PLAY, TODO, LockName, duration, key_object


def headline(
    registry: Registry,
    facts: Facts,
    streams: Streams,
    verdicts: Verdicts,
    episodes: Sequence[Episode],
    table: Mapping[str, Remedy],
    name: LockName,
) -> tuple[str, str]:
    """Still happening? Since when? How often? Why? And the one thing to do.

    Args:
        registry, facts, streams, verdicts: of one analysis.
        episodes: of all its streams; table: what each remedy avoids; name: of a lock word.

    Returns:
        The sentence, and what to do ("": nothing).
    """
    past = streams.rest.past
    kept = [s for s in streams.all_kept() if s.cycles]
    if not kept and not past.cycles:
        if facts.elapsed_ns < PATIENCE_NS:
            watched = f"watched for {duration(facts.elapsed_ns)}" if facts.elapsed_ns else "just attached"
            return f"{watched}; no audio stream yet", f"watch for {duration(PATIENCE_NS)} or longer"
        return "no audio stream seen", PLAY
    cycles, n = past.cycles + sum(s.cycles for s in kept), past.streams + len(kept)
    causes, misses = verdicts.by_cause(), verdicts.misses
    if not misses:
        states = (verdicts.past, *verdicts.states.values())
        slacks = [x.min_slack for x in states if x.min_slack is not None]
        least = f", least slack {duration(min(slacks))}" if slacks else ""
        return f"no miss in {cycles} cycles of {_n(n, 'stream')}{least}", ""
    now = facts.end_ns
    last = misses[-1].cycle.deadline_ns
    recent = sum(e.start_ns > now - 60_000_000_000 for e in episodes)
    when = "still happening" if now - last < 5_000_000_000 else f"last {duration(now - last)} ago"
    top = max(causes, key=lambda c: (causes[c], c)) if causes else "unknown"
    share = 100 * causes.get(top, 0) // max(1, sum(causes.values()))
    best, avoided, total = "", 0, 0
    for remedy, row in table.items():
        n, of = row.episodes_avoided, row.episodes_of
        total = of
        if n > avoided:
            best, avoided = remedy, n
    lock = table.get("item_state")
    without = lock.episodes_avoided if lock is not None else 0
    text = (
        f"{when}: {verdicts.total_misses} of {cycles} cycles missed in "
        f"{_n(len(episodes) + verdicts.gone_episodes, 'episode')} "
        f"({recent} in the last minute); mostly {top} ({share} %)"
    )
    if not causes:
        text = text.partition("; mostly")[0] + "; the driver's own fault"
    newest = "the last " if verdicts.gone_episodes else ""
    if best:
        text += f"; {REMEDY_TEXT[best]} alone would have avoided {avoided} of {newest}{total}"
        if best != "item_state":
            text += f", no waits on item_state {without}"
    origin = next((m for m in reversed(misses) if m.cause == top and m.origin is None), None)
    thing = ""
    if origin is not None and origin.judgement is not None:
        thing = key_object(origin.judgement.key, registry, name)
    return text, TODO.get(top, "").format(object=thing or "the threads concerned")


def _n(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
