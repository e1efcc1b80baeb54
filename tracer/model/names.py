# SPDX-License-Identifier: Apache-2.0
"""Names of lock words and of operations, with who says so and why.

Owns the order of trust: the user's word and symbols; the call site's frames through a
profile; behaviour; else the address. Behaviour names only what it can tell apart, on a
stripped binary too: a wrong name would put the blame on the wrong lock, so in doubt a word
stays ``lock@0x...``, and ``parked@0x...`` where only the waiter's own word is seen.

What tells ``item_state`` from its neighbours (measured on the published crates; turns.py counts):

======================  ==========  ===============  =================  ===========  ============
word                    users       at W's read of   at the irq write   at W's       as condvar's
                                    an item          right after it     epoll_ctl    mutex
======================  ==========  ===============  =================  ===========  ============
item_state              one W, G    held             held               held         no
context_resources       one W, G    held             free               free         no
control_queue and       W, G, ...   free             held               free         no
fence_state, intc
jobs                    one W, G    free             free               free         yes
======================  ==========  ===============  =================  ===========  ============

Not *all* of W's interrupts: most of them under churn follow received fds, and item_state is
free there. Eight samples are enough: a neighbour would have to be held by chance at all eight.
epoll_ctl tells the contexts whose worker never gets as far as a read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from tracer.model.held import MIN_SAMPLES, Held, is_inside
from tracer.model.locks import Locks
from tracer.model.operations import tell
from tracer.model.registry import Registry
from tracer.model.turns import Turns
from tracer.model.words import Word
from tracer.schema import Frame, Kind

ITEM_STATE = "item_state"
JOBS = "jobs"
CONTEXT_RESOURCES = "context_resources"
_MOSTLY = 0.8  # of what is expected always; the rest are kicks and other reads of W's
_RARELY = 0.2
_TURNS = 8
_SURE = 0.9
_BUSY = 0.5  # a word that bystanders find held so often needs more turns than eight
_FEW = 3


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
    """Functions to locks and operations (tracer/profile.py)."""

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
        self.held = held
        self.turns = turns
        self.profile = profile
        self._cache: dict[tuple[int, int], Named] = {}
        self._cached_at = -1
        self._sites: dict[tuple[int, int], Site | None] = {}

    # ---- Namer

    def lock(self, tgid: int, word: int) -> Named:
        """(name, instance, named_by, evidence) of a lock word; ``lock@0x...`` where unknown."""
        if self._cached_at != self.locks.now_ns:
            self._cache.clear()
            self._sites.clear()
            self._cached_at = self.locks.now_ns
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
                name, evidence = self._by_behaviour(known)
                return (name or _bare(word)), ("behaviour" if name else "none"), evidence
            if own and known.is_relock:
                return _bare(word), "none", _cond_evidence(known)
            if known.kind not in ("mutex", "pthread"):
                return f"parked@{word:#x}", "none", "a waiter's own word (parking.py); the lock's is no futex"
        return _bare(word), "none", ""

    def _site(self, tgid: int, caller: int) -> Site | None:
        key = tgid, caller
        if key not in self._sites:
            known = self.registry.sites.get(key)
            frames = known.frames if known is not None else ()
            self._sites[key] = self.profile.site(frames) if self.profile is not None and frames else None
        return self._sites[key]

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

    # ---- behaviour

    def _by_behaviour(self, word: Word) -> tuple[str, str]:
        """(name or "", evidence)."""
        workers = {tid for tid in word.participants if self.registry.role(tid) == "W"}
        commanders = {tid for tid in word.participants if self.registry.role(tid) == "G"}
        others = {self.registry.comm(tid) for tid in word.participants - workers - commanders}
        if word.is_relock:
            if len(workers) == 1 and any(self.registry.role(tid) == "W" for tid in _relockers(word)):
                return JOBS, _cond_evidence(word)
            return "", _cond_evidence(word)
        if len(workers) != 1:
            also = f"also used by {', '.join(sorted(others)[:3])}" if others else ""
            return "", "used by several workers" if workers else also
        worker = next(iter(workers))
        if others:
            # No third thread of the published devices takes item_state; one of this VMM's own (that is
            # neither the guest nor a fence thread, which take locks of the whole device) may.
            roles = {self.registry.role(tid) for tid in word.participants - workers - commanders}
            told = self._by_turns(word, worker, strict=True) if commanders and roles == {""} else None
            return told or ("", f"also used by {', '.join(sorted(others)[:3])}")
        for verdict in (self._by_turns(word, worker), self._by_held(word, worker)):
            if verdict is not None:
                return verdict
        if word.kind == "pthread":
            return "", ""  # malloc's lock is taken at the same places
        return self._by_surroundings(word, worker, commanders)

    def _by_turns(self, word: Word, worker: int, *, strict: bool = False) -> tuple[str, str] | None:
        """From what is held over W's turns with an item, and where it adds an item to its epoll set.

        None where too little was watched.

        Args:
            strict: only what chance cannot have done names a lock, however rarely bystanders find it held.
        """
        if self.turns is None or self.held is None:
            return None
        key = word.tgid, word.word
        turn = self.turns.of(*key, worker)
        added, adds = self.held.count(*key, (worker,), Kind.EPOLL_CTL)
        if turn.n + adds < _TURNS:
            return None
        said = (
            f"held at {turn.at_read} of {turn.n} reads of its worker that an interrupt followed, "
            f"at {turn.at_irq} of these interrupts, and at {added} of {adds} epoll_ctl"
        )
        if turn.at_both >= _SURE * turn.n and added >= _SURE * adds:
            held, n, base = turn.at_both + added, turn.n + adds, self.held.base(*key) or 0.0
            if (base <= _BUSY and not strict) or is_inside(held, n, base):
                return ITEM_STATE, said
            return "", said + f", but at {base:.0%} of others' calls too"
        if turn.n < _TURNS:
            return None
        if turn.at_read >= _SURE * turn.n and turn.at_irq <= _RARELY * turn.n and added <= _RARELY * adds:
            held, n, base = turn.at_read, turn.n, self.held.base(*key) or 0.0
            sure = (base <= _BUSY and not strict) or is_inside(held, n, base)
            return (CONTEXT_RESOURCES if sure else ""), said
        if turn.at_read <= _RARELY * turn.n and turn.at_irq >= _MOSTLY * turn.n:
            return "", said + ": one of the fence handler's locks (control_queue, fence_state, intc)"
        return "", said + ": not over the turn"

    def _by_held(self, word: Word, worker: int) -> tuple[str, str] | None:
        """From all of W's interrupts: what is held at (nearly) all of them is no context's lock."""
        if self.held is None:
            return None
        held = self.held
        key = word.tgid, word.word
        read, reads = held.count(*key, (worker,), Kind.READ, held.eventfds)
        wrote, writes = held.count(*key, (worker,), Kind.WRITE, held.eventfds)
        if reads < MIN_SAMPLES or writes < MIN_SAMPLES:
            return None
        said = f"held at {read} of {reads} eventfd reads and {wrote} of {writes} irq writes of its worker"
        if read <= _RARELY * reads and wrote >= _MOSTLY * writes:
            return "", said + ": one of the fence handler's locks (control_queue, fence_state, intc)"
        return None

    def _by_surroundings(self, word: Word, worker: int, commanders: set[int]) -> tuple[str, str]:
        """From what its waiters did just before and just after (without held words)."""
        from_w: Counter[str] = Counter()
        from_g: Counter[str] = Counter()
        for (tid, before, after), n in word.around.items():
            if tid == worker:
                from_w[_worker_sign(before, after)] += n
            elif tid in commanders:
                from_g["write" if after in ("fcntl", "write(eventfd)") else "else"] += n
        told = from_w["item"] + from_w["fence"]
        said = (
            f"its worker waited {from_w['item']} times of {told} where only item_state is taken (before an "
            f"eventfd's read, epoll_ctl or a further received fd), the command thread {from_g['write']} "
            f"times of {from_g.total()} before a write"
        )
        fits_w = from_w["item"] >= _FEW and from_w["item"] >= _MOSTLY * told
        fits_g = from_g["write"] >= _FEW and 2 * from_g["write"] >= from_g.total()
        return (ITEM_STATE, said) if fits_w and fits_g else ("", "")

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


def _relockers(word: Word) -> set[int]:
    return {tid for tid, caller in word.callers} if word.conds else set()


def _cond_evidence(word: Word) -> str:
    return f"{word.relocks} of {word.contended} waits were the re-lock after a condvar wait"


def _worker_sign(before: str, after: str) -> str:
    """``item``: W's wait lay where item_state alone is taken; ``fence``: after a read; "": may be either.

    Between a received fd and the interrupt W takes item_state, then the fence handler's locks.
    """
    if after in ("read(eventfd)", "epoll_ctl") and before != "read(eventfd)":
        return "item"
    if before in _RECEIVING and after in _RECEIVING:
        return "item"
    return "fence" if before == "read(eventfd)" and after == "write(eventfd)" else ""


# what W does for an fd that has just arrived
_RECEIVING = ("recvmsg", "lseek", "readlink", "readlinkat")
