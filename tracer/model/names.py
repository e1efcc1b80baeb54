# SPDX-License-Identifier: Apache-2.0
"""Names of lock words and of operations, with who says so and why.

Owns the order of trust: the user's word and symbols; the call site's frames through a
profile; behaviour; else the address. Behaviour names only what it can tell apart, on a
stripped binary too: a wrong name would put the blame on the wrong lock, so in doubt a word
stays ``lock@0x...``, and ``parked@0x...`` where only the waiter's own word is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from tracer.model.behaviour import CONTEXT_RESOURCES, ITEM_STATE, JOBS, Behaviour, relock_evidence
from tracer.model.held import Held
from tracer.model.locks import Locks
from tracer.model.operations import tell
from tracer.model.registry import Registry
from tracer.model.turns import Turns
from tracer.model.words import Word
from tracer.schema import CallSite, Frame, Target


class Site(Protocol):
    """What a profile knows of a call site."""

    @property
    def lock(self) -> str:
        """Name of the lock taken there, "" unknown."""

    @property
    def operation(self) -> str:
        """What the program does there, "" unknown."""

    @property
    def evidence(self) -> str:
        """The function that says so."""


class Profile(Protocol):
    """Functions to locks and operations (tracer/profile/)."""

    def site(self, frames: Sequence[Frame], /) -> Site | None:
        """What is known of a call site with these frames, innermost first."""


Named = tuple[str, str, str, str]  # name, instance, named_by, evidence


class Names:
    """Names at summary time; implements ``locks.Namer``.

    Args:
        registry, locks, held, turns: of one analysis; profile: None where none fits the target.
    """

    def __init__(
        self,
        registry: Registry,
        locks: Locks,
        held: Held | None = None,
        profile: Profile | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.registry = registry
        self.locks = locks
        self.profile = profile
        self._behaviour = Behaviour(registry, held, turns)
        self._cache: dict[tuple[int, int], Named] = {}
        self._cached_at = -1
        self._found: dict[tuple[int, int], tuple[str, str, str]] = {}
        # With the frames they were found for: a call site's frames are rarely learned anew.
        self._sites: dict[tuple[int, int], tuple[CallSite, Site | None]] = {}
        self._targets: tuple[Target, ...] = ()

    # ---- Namer

    def lock(self, tgid: int, word: int) -> Named:
        """(name, instance, named_by, evidence) of a lock word; ``lock@0x...`` where unknown."""
        if self._cached_at != self.locks.now_ns:
            self._cache.clear()
            self._found.clear()
            self._cached_at = self.locks.now_ns
            if self._targets != (targets := tuple(self.registry.targets.values())):
                self._sites.clear()  # another profile may fit now
                self._targets = targets
        found = self._cache.get((tgid, word))
        if found is None:
            name, named_by, evidence = self._find(tgid, word)
            found = self._cache[tgid, word] = (name, "", named_by, evidence)
            if named_by != "none":
                found = self._cache[tgid, word] = (name, self._instance(tgid, word, name), named_by, evidence)
        return found

    def operation(self, tgid: int, word: int, caller: int, tid: int, sign: str) -> tuple[str, str]:
        """What a thread did with a lock, and by whom it is named (symbols, behaviour, none).

        By profile, else the innermost function outside std, else by the sign of its syscalls.
        """
        site = self._site(tgid, caller) if caller else None
        if site is not None and site.operation:
            return site.operation, "symbols"
        known = self.registry.sites.get((tgid, caller)) if caller else None
        for frame in known.frames if known is not None else ():
            if not frame.function.startswith(("std::", "core::", "alloc::", "<std::", "<core::", "<alloc::")):
                return frame.function, "symbols"
        lock, role = self.lock(tgid, word)[0], self.registry.role
        told = tell(lock, role(tid), sign)
        if not told and caller:
            told = self.locks.sites.tell(tgid, caller, lock, role)
        return told, "behaviour" if told else "none"

    def item_states(self, tgid: int) -> set[int]:
        """Words of a process that are named item_state."""
        words = [w.word for w in self.locks.words.values() if w.tgid == tgid and self.locks.is_own(w)]
        words += [address for owner, address in self.registry.lock_symbols if owner == tgid]
        return {word for word in words if self.lock(tgid, word)[0] == ITEM_STATE}

    # ---- by whom

    def _find(self, tgid: int, word: int) -> tuple[str, str, str]:
        found = self._found.get((tgid, word))
        if found is None:
            found = self._found[tgid, word] = self._look(tgid, word)
        return found

    def _look(self, tgid: int, word: int) -> tuple[str, str, str]:
        symbol = self.registry.lock_symbols.get((tgid, word))
        if symbol is not None:
            said = "given by --lock" if symbol.source == "user" else "the symbol at this address"
            return symbol.name, symbol.source, said
        known = self.locks.words.get((tgid, word))
        if known is not None:
            by_site = self._by_site(known)
            if by_site is not None:
                return by_site[0], "symbols", by_site[1]
            own = self.locks.is_own(known)
            if own and self.registry.is_vmm(tgid):
                name, evidence = self._behaviour.name(known)
                return (name or _bare(word)), ("behaviour" if name else "none"), evidence
            if own and known.is_relock:
                return _bare(word), "none", relock_evidence(known)
            if known.kind not in ("mutex", "pthread"):
                return f"parked@{word:#x}", "none", "a waiter's own word (parking.py); the lock's is no futex"
        return _bare(word), "none", ""

    def _site(self, tgid: int, caller: int) -> Site | None:
        key = tgid, caller
        known = self.registry.sites.get(key)
        if known is None or self.profile is None or not known.frames:
            return None
        found = self._sites.get(key)
        if found is None or found[0] is not known:
            found = self._sites[key] = known, self.profile.site(known.frames)
        return found[1]

    def _by_site(self, word: Word) -> tuple[str, str] | None:
        """The lock that (nearly) all known call sites of a word name; disagreement names nothing.

        Of a re-lock the site lies inside std: the condvar's caller speaks for it.
        """
        votes: Counter[str] = Counter()
        said: dict[str, str] = {}
        places = [*word.callers.items()] + [((0, caller), n) for (_, caller), n in word.conds.items()]
        for (_, caller), n in places:
            site = self._site(word.tgid, caller) if caller else None
            if site is not None and site.lock:
                votes[site.lock] += n
                said.setdefault(site.lock, site.evidence)
        if not votes:
            return None
        name, most = votes.most_common(1)[0]
        return (name, said[name]) if most >= 0.9 * votes.total() else None

    def _instance(self, tgid: int, word: int, name: str) -> str:
        """Which of several locks of one name: its context's worker, else a number by age."""
        known = self.locks.words.get((tgid, word))
        workers = [tid for tid in known.participants if self.registry.role(tid) == "W"] if known else []
        if len(workers) == 1 and name in (ITEM_STATE, JOBS, CONTEXT_RESOURCES):
            return f"context {workers[0]}"
        same = [
            w
            for w in self.locks.words.values()
            if w.tgid == tgid and w.kind in ("mutex", "pthread") and self._find(tgid, w.word)[0] == name
        ]
        if len(same) < 2:
            return ""
        same.sort(key=lambda w: (w.first_ns, w.word))
        order = [w.word for w in same]
        return f"#{order.index(word) + 1}" if word in order else ""


def _bare(word: int) -> str:
    return f"lock@{word:#x}"
