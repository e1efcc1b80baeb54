# SPDX-License-Identifier: Apache-2.0
"""A path's phases cut into leaves, to the nanosecond.

A lock wait is followed into its holder (cut at every wake on the word), and on from there, to a bounded
depth. What was cut is kept until there are more records, for other paths through the same phase: many
streams that starve in one window go through the same turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tracer.model.candidates import Cut
from tracer.model.leaves import (
    BLOCKED,
    GUEST_LEAF,
    HOST_LEAF,
    LOCK,
    NOT_SCHEDULED,
    ON_CPU,
    SLOW_SYSCALL,
    STOLEN,
    Holder,
    Leaf,
    Word,
)
from tracer.model.locks import Locks
from tracer.model.parking import Parking
from tracer.model.phases import CLOCK, GPU, GUEST, HOST, WORKER, Path
from tracer.model.pieces import State
from tracer.model.registry import Registry
from tracer.model.spans import Call
from tracer.model.window import Window
from tracer.schema import Kind

#: How far a chain of lock waits is followed.
MAX_DEPTH: Final = 4

_FUTEX: Final = int(Kind.FUTEX)
_WITHOUT_FD: Final = (_FUTEX, int(Kind.SYSCALL))

# Bound once: looking members up in their class costs more than the comparison.
_STOLEN, _RUNNABLE, _ON_CPU, _BLOCKED = State.STOLEN, State.RUNNABLE, State.ON_CPU, State.BLOCKED
_SYSCALL, _SYSCALL_BLOCKED = State.SYSCALL, State.SYSCALL_BLOCKED
#: What a NamedTuple's constructor does, without a call of Python's own.
_new: Final = tuple.__new__


def call_of(call: Call | None) -> tuple[int, int, int, int] | None:
    """(kind, syscall number, fd, eventfd_id) of a syscall span, None outside any."""
    if call is None:
        return None
    _, _, kind, op, _, _, fd, eventfd, _ = call
    return kind, op, -1 if kind in _WITHOUT_FD else fd, eventfd


class LeafCutter:
    """Cuts paths into leaves."""

    def __init__(self, registry: Registry, locks: Locks) -> None:
        self._registry = registry
        self._locks = locks
        self._parking = Parking(registry, locks)
        self._known: dict[tuple[int, int, int, str], Cut] = {}

    def forget(self) -> None:
        """There are more records, or more is known of locks: what was cut may be cut otherwise now."""
        self._known.clear()

    def cut(self, path: Path, window: Window, vcpu: int, *, since: int = 0) -> list[Cut]:
        """The leaves of each phase of a path from an index on; their lengths sum to the phases'.

        Args:
            vcpu: the thread that plays the guest on this path, 0 where unseen.
        """
        return [
            self._phase(
                phase.tid or (vcpu if phase.who == GUEST else 0),
                phase.start_ns,
                phase.end_ns,
                phase.who,
                window,
                path.within,
            )
            for phase in path.phases[since:]
        ]

    def direct(self, path: Path, window: Window, vcpu: int) -> Iterable[Cut]:
        """The leaves of what was done for this cycle itself: of all phases without a via."""
        for phase in path.phases:
            if phase.end_ns > phase.start_ns and not phase.via and phase.sub != CLOCK:
                tid = phase.tid or (vcpu if phase.who == GUEST else 0)
                yield Cut(self._leaves(tid, phase.start_ns, phase.end_ns, phase.who, window, path.within))

    def others(self, path: Path, window: Window) -> Iterable[Cut]:
        """The leaves of each of G's commands for others within the window, in order."""
        for start, end in path.foreign:
            if end > window.start_ns:
                yield self._phase(path.gpu_tid, max(start, window.start_ns), end, GPU, window, path.within)

    def _phase(self, tid: int, start: int, end: int, who: str, window: Window, within: frozenset[int]) -> Cut:
        if end <= start:
            return _NOTHING
        if not window.shared or start < window.start_ns or end > window.stop_ns:
            return Cut(self._leaves(tid, start, end, who, window, within))
        key = (tid, start, end, who)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Cut(self._leaves(tid, start, end, who, window, within))
        return known

    def _leaves(
        self, tid: int, start: int, end: int, who: str, window: Window, within: frozenset[int]
    ) -> list[Leaf]:
        if not tid:
            kind = GUEST_LEAF if who == GUEST else HOST_LEAF if who == HOST else ON_CPU
            return [Leaf(start, end, kind, 0, 0)]
        leaves: list[Leaf] = []
        last: Leaf | None = None
        theirs = who in (HOST, GUEST)
        for begin, stop, state, call, off in window.pieces(tid, start, end):
            after = said = None
            instead = 0
            if state is _STOLEN:
                kind = STOLEN
            elif state is _RUNNABLE:
                kind = NOT_SCHEDULED
                after = None if theirs else self._lock_of(call, tid, who, window, within)
                instead = off.instead if off is not None else 0
            elif who == HOST:
                kind, said = HOST_LEAF, call_of(call)
            elif who == GUEST:
                kind = GUEST_LEAF
            elif state is _ON_CPU:
                kind = ON_CPU
            elif state is _BLOCKED:
                kind = BLOCKED
            else:
                word = self._lock_of(call, tid, who, window, within)
                if word is not None:
                    last = self._lock(leaves, last, (begin, stop), word, tid, window)
                    continue
                waits = call is not None and call.is_wait and state is _SYSCALL_BLOCKED
                kind, said = BLOCKED if waits else SLOW_SYSCALL, call_of(call)
            if last is not None and last[2] == kind and last[7] == said and last[6] == after:
                # The same goes on (a lock's leaf never gets here).
                last = _new(
                    Leaf, (last[0], stop, kind, tid, 0, None, after, said, None, 0, last[10] or instead)
                )
                leaves[-1] = last
            else:
                last = _new(Leaf, (begin, stop, kind, tid, 0, None, after, said, None, 0, instead))
                leaves.append(last)
        return leaves

    def _lock(
        self,
        leaves: list[Leaf],
        last: Leaf | None,
        wait: tuple[int, int],
        word: Word,
        tid: int,
        window: Window,
    ) -> Leaf | None:
        """Add the leaves of a wait (begin, end) for a lock; the last of them."""
        for low, high, holder, off in self._held_by(word, tid, *wait, (tid,), 0, window):
            if (
                last is not None
                and last.word == word
                and last.off_tid == off
                and last.holder == holder
                and last.end_ns == low
            ):
                last = leaves[-1] = last._replace(end_ns=high)
            else:
                last = Leaf(low, high, LOCK, tid, 0, word=word, holder=holder, off_tid=off)
                leaves.append(last)
        return last

    def _lock_of(
        self, call: Call | None, tid: int, who: str, window: Window, within: frozenset[int]
    ) -> Word | None:
        """The word on which a span of W or G waits for a lock, None if it is no such wait."""
        word = self._mutex(call, tid)
        if word is not None or call is None or call[2] != _FUTEX or not call.is_wait:
            return word
        if who != GPU and call[0] not in within:
            return None
        if not self._parking.is_lock_wait(tid, call, window, guest=who == WORKER):
            return None
        return (self._registry.tgid(tid), call.word)

    def _mutex(self, call: Call | None, tid: int) -> Word | None:
        """The mutex word a span waits for, None if it is no mutex wait."""
        if call is None or call[2] != _FUTEX or call[6] != 2 or not call.is_wait:
            return None
        word = (self._registry.tgid(tid), call.word)
        return word if self._locks.is_lock(*word) else None

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


_NOTHING: Final = Cut(())
