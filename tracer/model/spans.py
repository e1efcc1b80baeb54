# SPDX-License-Identifier: Apache-2.0
"""Spans as plain tuples, because a verdict looks at each a few times, one by one.

Owns the two tuple types and the conversion from records. Each record is converted at most
once (timeline.py keeps what was converted), and only where a verdict asks for its thread.
"""

from __future__ import annotations

from itertools import repeat
from typing import Final, NamedTuple

import numpy as np

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

_WITH_EVENTFD: Final = (Kind.READ, Kind.WRITE, Kind.FD)
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
    open: bool

    @property
    def slept(self) -> bool:
        """Whether the thread blocked (else it was runnable all along)."""
        return not self.preempted and bool(self.state & OFF_BY_ITSELF)

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger stopped it: whatever syscall it then goes on with did not."""
        return not self.preempted and bool(self.state & _STOPPED)


def calls_of(records: Records) -> list[Call]:
    """Syscall spans (n,) as tuples, in the order given."""
    rw, futex = view(records, RW), view(records, FUTEX)
    enter, kind = records["enter_ns"], records["kind"]
    columns = zip(
        enter.tolist(),
        (enter + records["dur_ns"]).tolist(),
        kind.tolist(),
        records["op"].tolist(),
        records["flags"].tolist(),
        rw["ret"].tolist(),
        rw["fd"].tolist(),
        np.where(np.isin(kind, _WITH_EVENTFD), rw["eventfd_id"], -1).tolist(),
        np.where(kind == Kind.FUTEX, futex["word"], 0).tolist(),
        strict=True,
    )
    return list(map(_new, repeat(Call), columns))


def offs_of(records: Records) -> list[Off]:
    """Off-CPU spans (n,) as tuples, in the order given."""
    off = view(records, OFFCPU)
    out = off["enter_ns"]
    columns = zip(
        out.tolist(),
        (out + off["dur_ns"]).tolist(),
        off["woken_ns"].tolist(),
        off["waker_tid"].tolist(),
        off["waker_tgid"].tolist(),
        off["instead_tid"].tolist(),
        off["waker_in_irq"].tolist(),
        off["preempted"].tolist(),
        off["op"].tolist(),
        off["stolen_ns"].tolist(),
        ((off["flags"] & Flag.OPEN) != 0).tolist(),
        strict=True,
    )
    return list(map(_new, repeat(Off), columns))
