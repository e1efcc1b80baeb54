# SPDX-License-Identifier: Apache-2.0
"""What the responsible thread did: a path's phases cut into leaves, to the nanosecond.

A leaf is one of lock, not_scheduled, stolen, slow_syscall, on_cpu, blocked, guest,
host. A lock wait is followed into its holder (cut at every wake on the word), and on
from there, to a bounded depth. Names nothing: leaves carry words and tids.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tracer.model.locks import Locks
from tracer.model.phases import GPU, GUEST, HOST, Path, Phase
from tracer.model.registry import Registry
from tracer.model.spans import Call
from tracer.model.window import Piece, State, Window
from tracer.schema import Kind

#: How far a chain of lock waits is followed.
MAX_DEPTH: Final = 4

LOCK, NOT_SCHEDULED, STOLEN = "lock", "not_scheduled", "stolen"
SLOW_SYSCALL, ON_CPU, BLOCKED, GUEST_LEAF, HOST_LEAF, CARRIED = (
    "slow_syscall",
    "on_cpu",
    "blocked",
    "guest",
    "host",
    "carried",
)

_WITHOUT_FD: Final = (int(Kind.FUTEX), int(Kind.SYSCALL))

# Bound once: looking members up in their class costs more than the comparison.
_STOLEN, _RUNNABLE, _ON_CPU, _BLOCKED = State.STOLEN, State.RUNNABLE, State.ON_CPU, State.BLOCKED
_SYSCALL, _SYSCALL_BLOCKED = State.SYSCALL, State.SYSCALL_BLOCKED
#: What a NamedTuple's constructor does, without a call of Python's own.
_new: Final = tuple.__new__

#: (tgid, address) of a lock word.
Word = tuple[int, int]


class Holder(NamedTuple):
    """Who held a lock during a leaf, and what it did.

    Attributes:
        tid: inferred holder, 0 unknown.
        state: running, runnable, blocked, lock or unknown.
        call: the syscall it was in, as (kind, number, fd, eventfd_id), None outside.
        chain: words down the chain, the waited-for word first.
        tids: holders along the chain.
    """

    tid: int
    state: str
    call: tuple[int, int, int, int] | None
    chain: tuple[Word, ...]
    tids: tuple[int, ...]


class Leaf(NamedTuple):
    """[start_ns, end_ns) of a path: one kind, one responsible thread.

    Attributes:
        word: lock waited for (kind lock).
        after: lock whose wake made the thread runnable (kind not_scheduled), else None.
        call: syscall concerned as (kind, number, fd, eventfd_id).
        off_tid: the holder that was runnable and off the CPU meanwhile, 0 none.
        instead: who ran on the CPU instead (kind not_scheduled), 0 unknown.
    """

    start_ns: int
    end_ns: int
    kind: str
    tid: int
    phase: int
    word: Word | None = None
    after: Word | None = None
    call: tuple[int, int, int, int] | None = None
    holder: Holder | None = None
    off_tid: int = 0
    instead: int = 0

    @property
    def ns(self) -> int:
        """Length in ns."""
        return self.end_ns - self.start_ns


def call_of(call: Call | None) -> tuple[int, int, int, int] | None:
    """(kind, syscall number, fd, eventfd_id) of a syscall span, None outside any."""
    if call is None:
        return None
    fd = -1 if call.kind in _WITHOUT_FD else call.fd
    return call.kind, call.op, fd, call.eventfd


class LeafCutter:
    """Cuts paths into leaves."""

    def __init__(self, registry: Registry, locks: Locks) -> None:
        self._registry = registry
        self._locks = locks

    def cut(
        self, path: Path, window: Window, vcpu: int, *, direct: bool = False, since: int = 0
    ) -> list[Leaf]:
        """Leaves of a path, in order; their lengths sum to the window's.

        Args:
            vcpu: the thread that plays the guest on this path, 0 where unseen.
            since: only phases from this index on.
            direct: leave out what was done for others' work (all phases with a via).
        """
        leaves: list[Leaf] = []
        for index in range(since, len(path.phases)):
            phase = path.phases[index]
            if phase.end_ns <= phase.start_ns or (direct and phase.via):
                continue
            tid = phase.tid or (vcpu if phase.who == GUEST else 0)
            if not tid:
                kind = GUEST_LEAF if phase.who == GUEST else HOST_LEAF if phase.who == HOST else ON_CPU
                leaves.append(Leaf(phase.start_ns, phase.end_ns, kind, 0, index))
                continue
            for piece in window.pieces(tid, phase.start_ns, phase.end_ns):
                self._leaf(leaves, piece, phase, index, tid, window)
        return _joined(leaves)

    def others(self, path: Path, window: Window) -> list[Leaf]:
        """Leaves of G's commands for others, in order."""
        phases = [Phase(start, end, GPU, path.gpu_tid) for start, end in path.foreign]
        return self.cut(Path(phases, path.deadline_ns), window, 0)

    def _leaf(
        self, leaves: list[Leaf], piece: Piece, phase: Phase, index: int, tid: int, window: Window
    ) -> None:
        start, end, state, call, off = piece
        word = after = said = None
        instead = 0
        if state is _STOLEN:
            kind = STOLEN
        elif state is _RUNNABLE:
            kind = NOT_SCHEDULED
            after = None if phase.who in (HOST, GUEST) else self._mutex(call, tid)
            instead = off.instead if off is not None else 0
        elif phase.who == HOST:
            kind, said = HOST_LEAF, call_of(call)
        elif phase.who == GUEST:
            kind = GUEST_LEAF
        elif state is _ON_CPU:
            kind = ON_CPU
        elif state is _BLOCKED:
            kind = BLOCKED
        else:
            word = self._mutex(call, tid)
            if word is not None:
                self._lock(leaves, start, end, word, tid, index, window)
                return
            waits = call is not None and call.is_wait and state is _SYSCALL_BLOCKED
            kind, said = BLOCKED if waits else SLOW_SYSCALL, call_of(call)
        leaves.append(_new(Leaf, (start, end, kind, tid, index, word, after, said, None, 0, instead)))

    def _mutex(self, call: Call | None, tid: int) -> Word | None:
        """The mutex word a span waits for, None if it is no mutex wait."""
        if call is None or not call.is_wait or call.expected != 2:
            return None
        word = (self._registry.tgid(tid), call.word)
        return word if self._locks.is_lock(*word) else None

    def _lock(
        self, leaves: list[Leaf], start: int, end: int, word: Word, tid: int, index: int, window: Window
    ) -> None:
        for low, high, holder, off in self._held_by(word, tid, start, end, (tid,), 0, window):
            leaves.append(Leaf(low, high, LOCK, tid, index, word=word, holder=holder, off_tid=off))

    def _held_by(
        self, word: Word, waiter: int, start: int, end: int, seen: tuple[int, ...], depth: int, window: Window
    ) -> list[tuple[int, int, Holder, int]]:
        """Cut a wait at its holders and at what they did: (start, end, holder, runnable holder or 0)."""
        parts: list[tuple[int, int, Holder, int]] = []
        for piece in self._locks.holder_pieces(word[0], word[1], waiter, start, end):
            holder = piece.holder_tid
            if not holder or holder in seen:
                parts.append((piece.start_ns, piece.end_ns, Holder(0, "unknown", None, (word,), ()), 0))
                continue
            for low, high, state, call, _ in window.pieces(holder, piece.start_ns, piece.end_ns):
                off = 0
                if state is _RUNNABLE:
                    doing, off = "runnable", holder
                elif state is _ON_CPU or state is _SYSCALL or state is _STOLEN:
                    doing = "running"
                else:
                    deeper = self._mutex(call, holder)
                    if deeper is not None and deeper != word and depth < MAX_DEPTH:
                        for a, b, inner, inner_off in self._held_by(
                            deeper, holder, low, high, (*seen, holder), depth + 1, window
                        ):
                            chain, tids = (word, *inner.chain), (holder, *inner.tids)
                            parts.append((a, b, Holder(holder, "lock", inner.call, chain, tids), inner_off))
                        continue
                    doing = "blocked"
                parts.append((low, high, Holder(holder, doing, call_of(call), (word,), (holder,)), off))
        return parts


def _joined(leaves: list[Leaf]) -> list[Leaf]:
    """Adjacent leaves that say the same thing, as one."""
    joined: list[Leaf] = []
    for leaf in leaves:
        if joined:
            last = joined[-1]
            if (
                last.end_ns == leaf.start_ns
                and last.phase == leaf.phase
                and (last.kind, last.tid, last.word, last.after, last.call, last.off_tid)
                == (leaf.kind, leaf.tid, leaf.word, leaf.after, leaf.call, leaf.off_tid)
                and last.holder == leaf.holder
            ):
                joined[-1] = Leaf(
                    last.start_ns,
                    leaf.end_ns,
                    leaf.kind,
                    leaf.tid,
                    leaf.phase,
                    leaf.word,
                    leaf.after,
                    leaf.call,
                    leaf.holder,
                    leaf.off_tid,
                    last.instead or leaf.instead,
                )
                continue
        joined.append(leaf)
    return joined
