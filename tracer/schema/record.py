# SPDX-License-Identifier: Apache-2.0
"""The record as numpy sees it.

Owns the Python side of probes/event.h (a test compares every offset). Interprets nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECORD_BYTES = 56
RING_HEADER_BYTES = 8
#: Of the record, in every trace: one with a newer number is refused.
SCHEMA_VERSION = 1


class Kind(enum.IntEnum):
    """``xd_head.kind``: the family of a record."""

    READ = 1
    WRITE = 2
    FUTEX = 3
    FD = 4
    TIMER = 5
    EPOLL_CTL = 6
    EPOLL_WAIT = 7
    RECVMSG = 8
    SENDMSG = 9
    SYSCALL = 10
    OFFCPU = 11
    LIFE = 12
    WORDS = 13
    MSG_MORE = 14
    LOSS = 15


class Flag(enum.IntFlag):
    """``xd_head.flags``."""

    OPEN = 1
    CLIPPED = 2
    LATE = 4
    TIMERFD = 8
    PENDING = 16
    EXIT_MASKS = 32
    EVENTFD = 64


class Life(enum.IntEnum):
    """``xd_head.op`` of a LIFE record."""

    START = 1
    NAME = 2
    EXEC = 3
    EXIT = 4


class LossClass(enum.IntEnum):
    """``xd_head.op`` of a LOSS record."""

    RING = 1
    MAP = 2
    LATE = 3


_HEAD: list[tuple[Any, ...]] = [
    ("kind", "u1"),
    ("flags", "u1"),
    ("op", "<u2"),
    ("tid", "<u4"),
    ("enter_ns", "<u8"),
    ("dur_ns", "<u8"),
]
_MASKS: list[tuple[Any, ...]] = [
    ("held_in", "<u2"),
    ("readable_in", "<u2"),
    ("held_out", "<u2"),
    ("readable_out", "<u2"),
]


def _family(*fields: tuple[Any, ...]) -> np.dtype[np.void]:
    dtype = np.dtype(_HEAD + list(fields))
    assert dtype.itemsize == RECORD_BYTES, dtype.itemsize
    return dtype


RECORD = _family(("body", "V32"))
RW = _family(
    ("ret", "<i4"),
    ("fd", "<i4"),
    ("eventfd_id", "<i4"),
    ("len", "<u2"),
    ("generation", "<u2"),
    ("value", "<u8"),
    *_MASKS,
)
FUTEX = _family(("ret", "<i4"), ("expected", "<u4"), ("word", "<u8"), ("caller", "<u8"), *_MASKS)
FD = _family(
    ("ret", "<i4"),
    ("fd", "<i4"),
    ("eventfd_id", "<i4"),
    ("generation", "<u2"),
    ("pad", "<u2"),
    *_MASKS,
    ("value", "<u8"),
)
TIMER = _family(
    ("ret", "<i4"),
    ("fd", "<i4"),
    ("value_ns", "<u8"),
    ("interval_ns", "<u8"),
    ("timer_flags", "<u4"),
    ("pad", "<u4"),
)
EPOLL_CTL = _family(
    ("ret", "<i4"),
    ("epfd", "<i4"),
    ("data", "<u8"),
    ("fd", "<i4"),
    ("generation", "<u2"),
    ("ctl_op", "<u2"),
    ("held_in", "<u2"),
    ("readable_in", "<u2"),
    ("eventfd_id", "<i4"),
)
EPOLL_WAIT = _family(
    ("ret", "<i4"),
    ("epfd", "<i4"),
    ("data", "<u8"),
    ("events", "<u4"),
    ("generation", "<u2"),
    ("pad", "<u2"),
    *_MASKS,
)
MSG = _family(
    ("ret", "<i4"),
    ("fd", "<i4"),
    ("nfds", "<u2"),
    ("generation", "<u2"),
    ("eventfd_ids", "<i4", (3,)),
    *_MASKS,
)
MSG_MORE = _family(("eventfd_ids", "<i4", (8,)))
SYSCALL = _family(
    ("ret", "<i8"),
    ("arg0", "<u8"),
    ("arg1", "<u8"),
    ("generation", "<u2"),
    ("held_in", "<u2"),
    ("readable_in", "<u2"),
    ("pad", "<u2"),
)
OFFCPU = _family(
    ("woken_ns", "<u8"),
    ("waker_tid", "<u4"),
    ("waker_tgid", "<u4"),
    ("instead_tid", "<u4"),
    ("cpu_out", "<u2"),
    ("cpu_in", "<u2"),
    ("waker_in_irq", "u1"),
    ("preempted", "u1"),
    ("pad", "<u2"),
    ("stolen_ns", "<u4"),
)
LIFE = _family(("comm", "S16"), ("tgid", "<u4"), ("old_tid", "<u4"), ("pad", "<u8"))
WORDS = _family(("words", "<u8", (4,)))
LOSS = _family(("count", "<u8"), ("pad", "<u8", (3,)))

FAMILY: Mapping[Kind, np.dtype[np.void]] = {
    Kind.READ: RW,
    Kind.WRITE: RW,
    Kind.FUTEX: FUTEX,
    Kind.FD: FD,
    Kind.TIMER: TIMER,
    Kind.EPOLL_CTL: EPOLL_CTL,
    Kind.EPOLL_WAIT: EPOLL_WAIT,
    Kind.RECVMSG: MSG,
    Kind.SENDMSG: MSG,
    Kind.SYSCALL: SYSCALL,
    Kind.OFFCPU: OFFCPU,
    Kind.LIFE: LIFE,
    Kind.WORDS: WORDS,
    Kind.MSG_MORE: MSG_MORE,
    Kind.LOSS: LOSS,
}

# Futex ops as they appear in FUTEX records (uapi/linux/futex.h).
FUTEX_CMD_MASK = 0x7F
FUTEX_PRIVATE = 0x80
FUTEX_WAIT = 0
FUTEX_WAKE = 1
FUTEX_REQUEUE = 3
FUTEX_CMP_REQUEUE = 4
FUTEX_WAKE_OP = 5
FUTEX_WAIT_BITSET = 9
FUTEX_WAKE_BITSET = 10

Records = NDArray[np.void]


def view(records: Records, family: np.dtype[np.void]) -> Records:
    """Reinterpret a contiguous RECORD array (n,) as one family, without a copy."""
    return np.ascontiguousarray(records).view(family)


def end_ns(records: Records) -> NDArray[np.uint64]:
    """End times (n,) in ns of spans of any family."""
    total: NDArray[np.uint64] = records["enter_ns"] + records["dur_ns"]
    return total


def empty_records() -> Records:
    """A record array of shape (0,)."""
    return np.empty(0, dtype=RECORD)
