# SPDX-License-Identifier: Apache-2.0
"""A path's phases cut into leaves, to the nanosecond.

A lock wait is followed into its holder (cut at every wake on the word), and on from there, to a bounded
depth. What a thread did does not depend on whose cycle it is: W, G and the vCPU are cut once for a whole
window, and a phase is a slice of that (columns.py). What was cut is kept until there are more records, for
other paths through the same time.
"""

from __future__ import annotations

from typing import Final

from tracer.model.candidates import Sorts
from tracer.model.columns import Leaves, Strip, call_of
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
#: Who a path comes back to again and again: cut for the whole window. The others are there at its ends.
_THROUGHOUT: Final = (WORKER, GPU, GUEST)

# Bound once: looking members up in their class costs more than the comparison.
_STOLEN, _RUNNABLE, _ON_CPU, _BLOCKED = State.STOLEN, State.RUNNABLE, State.ON_CPU, State.BLOCKED
_SYSCALL, _SYSCALL_BLOCKED = State.SYSCALL, State.SYSCALL_BLOCKED


class LeafCutter:
    """Cuts paths into leaves."""

    def __init__(self, registry: Registry, locks: Locks) -> None:
        self._registry = registry
        self._locks = locks
        self._parking = Parking(registry, locks)
        self.forget()

    def forget(self) -> None:
        """There are more records, or more is known of locks: what was cut may be cut otherwise now."""
        self._table = Sorts()
        # W's differ where its waits within turns are its re-arms in some windows (worker.py).
        self._strips: dict[tuple[int, str, bool], Strip] = {}
        # Of each thread: not scheduled, on a CPU, blocked; and of a thread's syscalls.
        self._usual: dict[int, tuple[int, int, int]] = {}
        self._syscalls: dict[tuple[int, int, int], int] = {}
        # Those of the one window that shares them with no other.
        self._alone: tuple[Window | None, dict[tuple[int, str, bool], Strip]] = (None, {})

    def cut(self, path: Path, window: Window, vcpu: int, *, same: Leaves | None = None) -> Leaves:
        """The leaves of each phase of a path; their lengths sum to the phases'.

        Args:
            vcpu: the thread that plays the guest on this path, 0 where unseen.
            same: leaves of a path with the same first ``fixed`` phases.
        """
        found, since = Leaves(self._table), 0
        if same is not None:
            found, since = same.upto(path.fixed), path.fixed
        strips: dict[tuple[int, str], Strip] = {}
        for phase in path.phases[since:]:
            tid = phase.tid or (vcpu if phase.who == GUEST else 0)
            self._stretch(found, strips, tid, phase.start_ns, phase.end_ns, phase.who, window, path.within)
        return found

    def direct(self, path: Path, window: Window, vcpu: int) -> Leaves:
        """The leaves of what was done for this cycle itself: of all phases without a via."""
        found = Leaves(self._table)
        for phase in path.phases:
            if phase.end_ns > phase.start_ns and not phase.via and phase.sub != CLOCK:
                tid = phase.tid or (vcpu if phase.who == GUEST else 0)
                self._add(found, tid, phase.start_ns, phase.end_ns, phase.who, window, path.within)
                found.close(phase.end_ns)
        return found

    def others(self, path: Path, window: Window) -> Leaves:
        """The leaves of each of G's commands for others within the window, in order."""
        found, gpu = Leaves(self._table), path.gpu_tid
        strips: dict[tuple[int, str], Strip] = {}
        for start, end in path.foreign:
            if end > window.start_ns:
                start = max(start, window.start_ns)
                self._stretch(found, strips, gpu, start, end, GPU, window, path.within)
        return found

    def _stretch(
        self,
        found: Leaves,
        strips: dict[tuple[int, str], Strip],
        tid: int,
        start: int,
        end: int,
        who: str,
        window: Window,
        within: frozenset[int],
    ) -> None:
        """Append the leaves of an interval of a thread, from one of the strips where that can be."""
        if tid and who in _THROUGHOUT and window.start_ns <= start < end <= window.stop_ns:
            strip = strips.get((tid, who))
            if strip is None:
                strip = strips[tid, who] = self._strip(tid, who, window, within)
            if found.take(strip, start, end):
                return
        if start < end:
            self._add(found, tid, start, end, who, window, within)
        found.close(end)

    def _strip(self, tid: int, who: str, window: Window, within: frozenset[int]) -> Strip:
        """A thread's leaves over all of a window, and maybe more."""
        if window.shared:
            strips = self._strips
        else:
            if self._alone[0] is not window:
                self._alone = (window, {})
            strips = self._alone[1]
        start, stop = window.start_ns, window.stop_ns
        key = tid, who, who == WORKER and bool(within)
        strip = strips.get(key)
        if strip is None or not strip.start_ns <= start <= strip.stop_ns:
            strip = strips[key] = Strip(start, start)
        if strip.stop_ns < stop:
            # Once more from where nothing hangs on what came after the end: out of any syscall.
            kinds, i = self._table.like, len(strip.starts) - 1
            while i > 0 and kinds[strip.sorts[i]].kind not in (ON_CPU, GUEST_LEAF):
                i -= 1
            since = strip.starts[i] if i >= 0 else start
            del strip.starts[max(i, 0) :], strip.sorts[max(i, 0) :], strip.more[max(i, 0) :]
            self._add(strip, tid, since, stop, who, window, within)
            strip.stop_ns = stop
        return strip

    def _add(
        self,
        to: Strip | Leaves,
        tid: int,
        start: int,
        end: int,
        who: str,
        window: Window,
        within: frozenset[int],
    ) -> None:
        """Append what a thread did in an interval: when each leaf begins, its sort, what else is known."""
        table, starts, sorts, rest = self._table, to.starts, to.sorts, to.more
        if not tid:
            starts.append(start)
            sorts.append(table.of(GUEST_LEAF if who == GUEST else HOST_LEAF if who == HOST else ON_CPU, 0))
            rest.append(None)
            return
        syscalls = self._syscalls
        theirs = who in (HOST, GUEST)
        usual = self._usual.get(tid)
        if usual is None:
            usual = table.of(NOT_SCHEDULED, tid), table.of(ON_CPU, tid), table.of(BLOCKED, tid)
            self._usual[tid] = usual
        not_scheduled, on_cpu, blocked = usual
        elsewhere = table.of(HOST_LEAF if who == HOST else GUEST_LEAF, tid) if theirs else 0
        last, said = -1, None
        for begin, stop, state, call, off in window.pieces(tid, start, end):
            more: Call | None = None
            if state is _RUNNABLE:
                sort = not_scheduled
                if not theirs and call is not None and call[2] == _FUTEX:
                    after = self._lock_of(call, tid, who, window, within)
                    if after is not None:
                        sort = table.of(NOT_SCHEDULED, tid, None, after)
                instead = off[5] if off is not None else 0
                if sort != last:
                    starts.append(begin)
                    sorts.append(sort)
                    rest.append(instead)
                    last = sort
                elif not rest[-1]:
                    rest[-1] = instead
                continue
            if state is _STOLEN:
                sort = table.of(STOLEN, tid)
            elif theirs:
                sort = elsewhere
                if who == HOST:
                    more = call
            elif state is _ON_CPU:
                sort = on_cpu
            elif state is _BLOCKED or call is None:
                sort = blocked
            else:
                more = call
                kind, op = call[2], call[3]
                if kind == _FUTEX:
                    word = self._lock_of(call, tid, who, window, within)
                    if word is not None:
                        last = self._lock(to, last, (begin, stop), word, tid, window)
                        continue
                known = syscalls.get((tid, kind, op))
                if known is None:
                    known = table.of(SLOW_SYSCALL, tid, None, None, (kind, op, -1, -1))
                    syscalls[tid, kind, op] = known
                sort = blocked if state is _SYSCALL_BLOCKED and call.is_wait else known
            if sort == last and (more is said or call_of(more) == call_of(said)):
                continue  # the same goes on
            starts.append(begin)
            sorts.append(sort)
            rest.append(more)
            last, said = sort, more

    def _lock(
        self, to: Strip | Leaves, last: int, wait: tuple[int, int], word: Word, tid: int, window: Window
    ) -> int:
        """Append the leaves of a wait (begin, end) for a lock; the sort of the last of them."""
        for low, _, holder, off in self._held_by(word, tid, *wait, (tid,), 0, window):
            sort = self._table.of(LOCK, tid, word, None, None, holder, off)
            if sort != last:
                to.starts.append(low)
                to.sorts.append(sort)
                to.more.append(None)
                last = sort
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
