# SPDX-License-Identifier: Apache-2.0
"""Locks whose waiters park on a word of their own: parking_lot, absl::Mutex, WTF::Lock and their like.

The lock's own word is no futex, so no two threads are seen at it. What is seen is a thread that in the
middle of its work waits on some word, and another one that wakes that very word: who lets the waiter go on
held what it waited for. Owns that one question. Where a thread waits *for* work is not known here: only
waits within W's turns and G's commands may be asked about.

Not taken for a lock: std::thread::park (channels are built on it), a wait that ends by itself, by a signal
or by another process, and the answer to a request: if the last thing that a thread did before it waited was
to wake the one that then wakes it, it waits for what that one does on its behalf.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.spans import Call
from tracer.model.window import Window
from tracer.schema import FUTEX_PRIVATE

#: What std::thread::park waits on: -1.
_STD_PARKED: Final = (-1, 0xFFFFFFFF)


class Parking:
    """Tells waits for such locks from other waits within a thread's work."""

    def __init__(self, registry: Registry, locks: Locks) -> None:
        self._registry = registry
        self._locks = locks

    def is_lock_wait(self, tid: int, wait: Call, window: Window, *, guest: bool) -> bool:
        """Whether a futex wait within a thread's work is one for a lock.

        Args:
            guest: whether a vCPU may hold such a lock; a G that idles on a futex is woken by one (or by W, in
                a VMM without a guest).
        """
        if not wait.op & FUTEX_PRIVATE or wait.expected in _STD_PARKED:
            return False
        off = window.wake_of(tid, wait)
        tgid = self._registry.tgid(tid)
        if off is None or off.in_irq or off.waker_tgid != tgid:
            return False
        giver = "W" if tgid in self._registry.guestless else "vcpu"
        if not guest and self._registry.role(off.waker) == giver:
            return False
        wakes = self._locks.wakes(tgid, wait.word, wait.enter, wait.end)
        if not any(waker == off.waker and end >= off.woken for end, waker in wakes):
            return False
        return not self._asked_for(tid, wait, off.waker, window)

    @staticmethod
    def _asked_for(tid: int, wait: Call, waker: int, window: Window) -> bool:
        """Whether the last call of a thread before its wait woke the one that ended it."""
        calls = window.calls(tid)
        i = bisect_right(calls, wait.enter, key=_end) - 1
        if i < 0:
            return False
        return any(
            off.waker == tid and calls[i].enter <= off.woken <= wait.enter for off in window.offs(waker)
        )


def _end(call: Call) -> int:
    return call.end
