# SPDX-License-Identifier: Apache-2.0
"""Spans as plain tuples, because a verdict looks at each a few times, one by one.

Owns the two tuple types and the conversion from records. Each record is converted at most
once (timeline.py keeps what was converted), and only where a verdict asks for its thread.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.schema import (
    FUTEX,
    FUTEX_CMD_MASK,
    FUTEX_WAIT,
    FUTEX_WAIT_BITSET,
    FUTEX_WAKE,
    FUTEX_WAKE_BITSET,
    OFFCPU,
    RW,
    Flag,
    Kind,
    Records,
    view,
)

# Plain ints and tuples: enum look-ups cost more than the comparison, hundreds of thousands of times.
_FUTEX: Final = int(Kind.FUTEX)
_WAITS: Final = (FUTEX_WAIT, FUTEX_WAIT_BITSET)
_WAKES: Final = (FUTEX_WAKE, FUTEX_WAKE_BITSET)
#: What ``_make`` does, without a call of Python's own for each of hundreds of thousands of spans.
_new: Final = tuple.__new__
#: prev_state of a thread that cannot run: interruptible, uninterruptible, stopped, traced (sched.h).
OFF_BY_ITSELF: Final = 1 | 2 | 4 | 8
_STOPPED: Final = 4 | 8


class Call(NamedTuple):
    """A syscall span; fd, eventfd, word and expected are -1 or 0 where the family has none."""

    enter: int
    end: int
    kind: int
    op: int
    flags: int
    ret: int
    fd: int
    eventfd: int
    word: int

    @property
    def is_wait(self) -> bool:
        """Whether it is a futex wait."""
        return self.kind == _FUTEX and self.op & FUTEX_CMD_MASK in _WAITS

    @property
    def is_wake(self) -> bool:
        """Whether it is a futex wake."""
        return self.kind == _FUTEX and self.op & FUTEX_CMD_MASK in _WAKES

    @property
    def expected(self) -> int:
        """The value a futex waiter expects."""
        return self.fd


class Off(NamedTuple):
    """An off-CPU span."""

    out: int
    back: int
    woken: int
    waker: int
    waker_tgid: int
    instead: int
    in_irq: int
    preempted: int
    state: int
    stolen: int
    open: int

    @property
    def slept(self) -> bool:
        """Whether the thread blocked (else it was runnable all along)."""
        return not self.preempted and bool(self.state & OFF_BY_ITSELF)

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger stopped it: whatever syscall it then goes on with did not."""
        return not self.preempted and bool(self.state & _STOPPED)


#: Rows of ``call_columns`` and ``off_columns``: as in the tuples, which have these places.
ENTER, END, KIND, OP, FLAGS, EXPECTED, EVENTFD, WORD = 0, 1, 2, 3, 4, 6, 7, 8
OUT, BACK, WOKEN, WAKER, WAKER_TGID, IN_IRQ, PREEMPTED, STATE, STOLEN, IS_OPEN = 0, 1, 2, 3, 4, 6, 7, 8, 9, 10

Columns = NDArray[np.int64]


def call_columns(records: Records) -> Columns:
    """Syscall spans (n,) as what a ``Call`` holds (9, n)."""
    rw, futex = view(records, RW), view(records, FUTEX)
    enter, kind = records["enter_ns"], records["kind"]
    with_eventfd = (kind == Kind.READ) | (kind == Kind.WRITE) | (kind == Kind.FD)
    return _columns(
        enter,
        enter + records["dur_ns"],
        kind,
        records["op"],
        records["flags"],
        rw["ret"],
        rw["fd"],
        np.where(with_eventfd, rw["eventfd_id"], -1),
        np.where(kind == Kind.FUTEX, futex["word"], 0),
    )


def calls_of(columns: Columns) -> list[Call]:
    """Columns of syscall spans as tuples."""
    return list(map(_new, repeat(Call), zip(*columns.tolist(), strict=True)))


def off_columns(records: Records) -> Columns:
    """Off-CPU spans (n,) as what an ``Off`` holds (11, n)."""
    off = view(records, OFFCPU)
    out = off["enter_ns"]
    return _columns(
        out,
        out + off["dur_ns"],
        off["woken_ns"],
        off["waker_tid"],
        off["waker_tgid"],
        off["instead_tid"],
        off["waker_in_irq"],
        off["preempted"],
        off["op"],
        off["stolen_ns"],
        (off["flags"] & Flag.OPEN) != 0,
    )


def offs_of(columns: Columns) -> list[Off]:
    """Columns of off-CPU spans as tuples."""
    return list(map(_new, repeat(Off), zip(*columns.tolist(), strict=True)))


def _columns(*columns: NDArray[Any]) -> Columns:
    found = np.empty((len(columns), len(columns[0])), dtype=np.int64)
    for i, column in enumerate(columns):
        found[i] = column
    return found
