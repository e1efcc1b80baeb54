# SPDX-License-Identifier: Apache-2.0
"""What single calls of W and G are: idle, a wait, a wake, a poll.

Owns the system call numbers by which these are told, and the rules for columns of calls. Which turn or
command a call belongs to is workerreading.py's and gpureading.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.spans import (
    END,
    ENTER,
    EXPECTED,
    FLAGS,
    KIND,
    OFF_BY_ITSELF,
    OP,
    OUT,
    PREEMPTED,
    STATE,
    WOKEN,
    WORD,
    Call,
    Columns,
)
from tracer.schema import (
    FUTEX_CMD_MASK,
    FUTEX_WAIT,
    FUTEX_WAIT_BITSET,
    FUTEX_WAKE,
    FUTEX_WAKE_BITSET,
    Flag,
    Kind,
)

#: close on x86-64 and arm64: it ends a command that wrote to a dup.
_CLOSE, _CLOSE_ARM64 = 3, 57
CLOSE: Final = frozenset({_CLOSE, _CLOSE_ARM64})
#: Memory syscalls belong to whatever command runs (mmap, mprotect, munmap, brk, madvise on x86-64).
MEMORY_CALLS: Final = frozenset({9, 10, 11, 12, 28})
#: What a G idles in: a blocking read of its queue (libkrun), or epoll_wait before the read (crosvm).
IDLE_CALLS: Final = (int(Kind.READ), int(Kind.EPOLL_WAIT))
#: poll, select, pselect6, ppoll on x86-64; pselect6, ppoll on arm64. In G they wait for a device, which is
#: work, unless it reads its queue next.
POLLS: Final = frozenset({7, 23, 270, 271, 72, 73})
#: Plain ints: enum look-ups cost more than the comparison.
_READ, _FUTEX, _EPOLL_WAIT = int(Kind.READ), int(Kind.FUTEX), int(Kind.EPOLL_WAIT)
_EVENTFD: Final = int(Flag.EVENTFD)
#: Later than any time.
NEVER: Final = np.iinfo(np.int64).max


def closes(numbers: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Which of the system call numbers (n,) of FD records are close."""
    found: NDArray[np.bool_] = (numbers == _CLOSE) | (numbers == _CLOSE_ARM64)
    return found


def is_idle(call: Call) -> bool:
    """Whether a G may be idle in a call, as far as that alone tells."""
    return call.kind in IDLE_CALLS and (call.kind == _READ or call.op not in POLLS)


def calls_among(columns: Columns, kind: int, numbers: Set[int]) -> NDArray[np.bool_]:
    """Which of some calls are of a kind, and have one of these numbers."""
    found: NDArray[np.bool_] = columns[KIND] == kind
    at = np.flatnonzero(found)
    if len(at):
        found[at] = np.isin(columns[OP].take(at), sorted(numbers))
    return found


def waits_among(columns: Columns) -> NDArray[np.bool_]:
    """Which of some calls are futex waits."""
    command = columns[OP] & FUTEX_CMD_MASK
    found: NDArray[np.bool_] = columns[KIND] == _FUTEX
    found &= (command == FUTEX_WAIT) | (command == FUTEX_WAIT_BITSET)
    return found


def wakes_among(columns: Columns, is_lock: Callable[[int], bool]) -> NDArray[np.bool_]:
    """Which of some calls wake somebody who waits for no lock."""
    command = columns[OP] & FUTEX_CMD_MASK
    found: NDArray[np.bool_] = columns[KIND] == _FUTEX
    found &= (command == FUTEX_WAKE) | (command == FUTEX_WAKE_BITSET)
    at = np.flatnonzero(found)
    word, of = np.unique(columns[WORD].take(at), return_inverse=True)
    locks = np.array([is_lock(w) for w in word.tolist()], dtype=bool)
    found[at[locks[of]]] = False
    return found


def also_idle(columns: Columns, *, parks: bool) -> NDArray[np.int64]:
    """Calls of G in which it is idle by what follows, a read of its queue after a poll, or by habit."""
    kind = columns[KIND]
    polls = calls_among(columns, _EPOLL_WAIT, POLLS)
    polls[:-1] &= (kind[1:] == _READ) & ((columns[FLAGS, 1:] & _EVENTFD) != 0)
    polls[-1:] = False
    if parks:
        polls |= waits_among(columns) & (columns[EXPECTED] != 2)
    return np.flatnonzero(polls)


def idle_calls(columns: Columns, also: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those calls of G in which it may be idle, and those of them that are for its queue beyond doubt."""
    kind = columns[KIND]
    idle = (kind == _READ) | (kind == _EPOLL_WAIT)
    idle &= ~calls_among(columns, _EPOLL_WAIT, POLLS)
    idle[also] = True
    at = np.flatnonzero(idle)
    sure = (kind.take(at) != _READ) | ((columns[FLAGS].take(at) & _EVENTFD) != 0)
    return at, at[sure]


def wakings(columns: Columns, kicks: NDArray[np.int64], offs: Columns) -> NDArray[np.int64]:
    """When G was woken out of one of the calls for its queue, in order."""
    slept = np.flatnonzero((offs[WOKEN] > 0) & (offs[PREEMPTED] == 0) & ((offs[STATE] & OFF_BY_ITSELF) != 0))
    woken = offs[WOKEN].take(slept)
    at = columns[END].take(kicks).searchsorted(woken)
    begun = np.append(columns[ENTER].take(kicks), NEVER)[at]
    found: NDArray[np.int64] = woken[begun <= offs[OUT].take(slept)]
    return found
