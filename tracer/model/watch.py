# SPDX-License-Identifier: Apache-2.0
"""Which lock words the session should watch: those of which something is still to be learnt.

Owns the choice and its turns. A process has few watched words at a time and may have more locks (every
context has an item_state), so they take turns: first what may be an item_state and is not told yet, then
each item_state (the write path is told by it), then the rest. Reads locks, names and turns; decides
nothing about a trace: only what a live session samples next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tracer.model.behaviour import ITEM_STATE
from tracer.model.locks import Locks
from tracer.model.names import Names
from tracer.model.ownlocks import core_words, watch_order

#: A choice stands so long, and the longer the older the session is: generations are 65,535 in all.
_STAND_NS: Final = 1_000_000_000
_SLOWER: Final = 32
#: A word that stays untold for so long under watch gives way: its worker has nothing to do.
_PATIENCE_NS: Final = 5_000_000_000

_UNTOLD, _ITEM_STATE, _OTHER, _TOLD = range(4)


@dataclass(slots=True)
class _Choice:
    """What is watched in one process, and for how long each word was."""

    words: tuple[int, ...] = ()
    since_ns: int = 0
    first_ns: int = 0
    known: set[int] = field(default_factory=set)
    watched_ns: dict[int, int] = field(default_factory=dict)


class Watch:
    """The choice for each process; ``locks`` and ``names`` are of the same analysis."""

    def __init__(self, locks: Locks, names: Names) -> None:
        self.locks = locks
        self.names = names
        self._choices: dict[int, _Choice] = {}

    def words(self, tgid: int, n: int) -> tuple[int, ...]:
        """The at most ``n`` lock words of a process to watch now; each keeps its place while it stays."""
        now = self.locks.now_ns
        order = watch_order(self.locks, tgid)
        choice = self._choices.setdefault(tgid, _Choice(first_ns=now, since_ns=now))
        kept = [word for word in choice.words if word in order]
        stood = now - choice.since_ns >= max(_STAND_NS, (now - choice.first_ns) // _SLOWER)
        if len(kept) == len(choice.words) == min(n, len(order)) and not stood and choice.known >= set(order):
            return choice.words
        for word in choice.words:
            choice.watched_ns[word] = choice.watched_ns.get(word, 0) + now - choice.since_ns
        choice.watched_ns = {word: ns for word, ns in choice.watched_ns.items() if word in order}
        choice.since_ns, choice.known = now, set(order)
        if len(order) <= n:
            best = order
        else:
            place = {word: i for i, word in enumerate(order)}
            core = set(core_words(self.locks, tgid))
            best = sorted(order, key=lambda word: (*self._need(tgid, word, core, choice), place[word]))[:n]
        kept = [word for word in kept if word in best]
        fresh = [word for word in best if word not in kept]
        choice.words = _in_places(choice.words, set(kept), fresh)
        return choice.words

    def _need(self, tgid: int, word: int, core: set[int], choice: _Choice) -> tuple[int, int]:
        """What is to be learnt of a word, most urgent first; of equals the one watched least."""
        watched = choice.watched_ns.get(word, 0)
        name, _, named_by, evidence = self.names.lock(tgid, word)
        if name == ITEM_STATE:
            return _ITEM_STATE, watched
        if named_by != "none":
            return _TOLD, watched
        if word in core and not evidence and watched < _PATIENCE_NS:
            return _UNTOLD, watched
        return _OTHER, watched


def _in_places(before: tuple[int, ...], kept: set[int], fresh: list[int]) -> tuple[int, ...]:
    """``before`` with what is not kept replaced by the fresh ones, further ones behind."""
    rest = iter(fresh)
    words = [word if word in kept else next(rest, 0) for word in before]
    return tuple(word for word in (*words, *rest) if word)
