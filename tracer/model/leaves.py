# SPDX-License-Identifier: Apache-2.0
"""What the responsible thread did, piece by piece: the leaves of a path.

A leaf is one of lock, not_scheduled, stolen, slow_syscall, on_cpu, blocked, guest, host. Owns the shape;
cutter.py cuts them. Names nothing: leaves carry words and tids.
"""

from __future__ import annotations

from typing import NamedTuple

LOCK, NOT_SCHEDULED, STOLEN = "lock", "not_scheduled", "stolen"
SLOW_SYSCALL, ON_CPU, BLOCKED, GUEST_LEAF, HOST_LEAF, CARRIED = (
    "slow_syscall",
    "on_cpu",
    "blocked",
    "guest",
    "host",
    "carried",
)

#: (tgid, address) of a lock word.
Word = tuple[int, int]
#: (kind, syscall number, fd, eventfd_id) of a syscall.
Syscall = tuple[int, int, int, int]


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
    call: Syscall | None
    chain: tuple[Word, ...]
    tids: tuple[int, ...]


class Leaf(NamedTuple):
    """[start_ns, end_ns) of a path: one kind, one responsible thread.

    Attributes:
        phase: index of the path's phase.
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
    call: Syscall | None = None
    holder: Holder | None = None
    off_tid: int = 0
    instead: int = 0

    @property
    def ns(self) -> int:
        """Length in ns."""
        return self.end_ns - self.start_ns
