# SPDX-License-Identifier: Apache-2.0
"""Which lock of the cross-domain device a word is, told by who uses it and when it is held, without symbols.

Owns the rules, and their thresholds. Where they do not agree beyond doubt the word has no name.

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
free there. A table that W leaves before its interrupt is told from context_resources by G, which
writes eventfds under it (``locked``) and never under the latter. Eight samples are enough: a
neighbour would have to be held by chance at all eight. epoll_ctl tells the contexts whose worker
never gets as far as a read.
"""

from __future__ import annotations

from collections import Counter

from tracer.model.held import MIN_SAMPLES, Held
from tracer.model.heldrows import is_inside
from tracer.model.registry import Registry
from tracer.model.turns import Turns
from tracer.model.words import Word
from tracer.schema import Kind

ITEM_STATE = "item_state"
JOBS = "jobs"
CONTEXT_RESOURCES = "context_resources"
_MOSTLY = 0.8  # of what is expected always; the rest are kicks and other reads of W's
_RARELY = 0.2
_TURNS = 8
_SURE = 0.9
_BUSY = 0.5  # a word that bystanders find held so often needs more turns than eight
_FEW = 3


class Behaviour:
    """Names lock words by what is known of them now.

    Args:
        registry: roles of threads. held, turns: None where no word is watched.
    """

    def __init__(self, registry: Registry, held: Held | None, turns: Turns | None) -> None:
        self.registry = registry
        self.held = held
        self.turns = turns

    def name(self, word: Word) -> tuple[str, str]:
        """(name or "", evidence) of one of a VMM's own lock words."""
        workers = {tid for tid in word.participants if self.registry.role(tid) == "W"}
        commanders = {tid for tid in word.participants if self.registry.role(tid) == "G"}
        others = {self.registry.comm(tid) for tid in word.participants - workers - commanders}
        if word.is_relock:
            if len(workers) == 1 and any(self.registry.role(tid) == "W" for tid in _relockers(word)):
                return JOBS, relock_evidence(word)
            return "", relock_evidence(word)
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
            gs = self.registry.with_role("G", word.tgid)
            wrote, writes = self.held.count(*key, gs, Kind.WRITE, self.held.eventfds)
            if writes >= _TURNS and wrote >= _SURE * writes and is_inside(wrote, writes, base):
                return ITEM_STATE, said + f"; and at {wrote} of {writes} eventfd writes of the command thread"
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


def _relockers(word: Word) -> set[int]:
    return {tid for tid, caller in word.callers} if word.conds else set()


def relock_evidence(word: Word) -> str:
    """How many of a word's waits were inside a condvar's wait, in words."""
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
