# SPDX-License-Identifier: Apache-2.0
"""The record as numpy sees it, and what travels beside records.

Owns the Python side of probes/event.h (a test compares every offset) and
``Batch``, the one unit that moves between capture, trace folder and analysis.
Never interprets records: that is model/.

All times are CLOCK_MONOTONIC in nanoseconds. A record array has dtype
``RECORD``; ``view(records, FUTEX)`` reinterprets one family without a copy.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECORD_BYTES = 56
RING_HEADER_BYTES = 8
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


@dataclass(frozen=True, slots=True)
class Target:
    """A traced process.

    Attributes:
        role: ``vmm`` or ``audio``.
        alive: False once it has exited.
        crate, version: of the cross-domain device, "" where not found.
    """

    tgid: int
    role: str
    comm: str
    exe: str = ""
    build_id: str = ""
    start_ns: int = 0
    crate: str = ""
    version: str = ""
    alive: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Thread:
    """What /proc says of a thread (also of untraced ones that ran instead of a traced one).

    Attributes:
        policy: ``OTHER``, ``FIFO``, ``RR``, ``BATCH``, ``IDLE``, ``DEADLINE``.
        priority: rt_priority for FIFO and RR, else the nice value.
        cpus: allowed CPUs as in Cpus_allowed_list.
        throttled_ns: cgroup CPU throttling (cpu.stat throttled_usec) so far, -1 unknown.
    """

    tid: int
    tgid: int
    comm: str
    policy: str = ""
    priority: int = 0
    cpus: str = ""
    throttled_ns: int = -1


@dataclass(frozen=True, slots=True)
class Fd:
    """An open fd of a target, from /proc/PID/fd and fdinfo.

    Attributes:
        type: ``eventfd``, ``timerfd``, ``epoll``, ``pipe``, ``socket``, ``file``, ``kvm``, ``io_uring``
            or ``other``.
        eventfd_id: -1 unless an eventfd.
        path: what /proc/PID/fd/N links to.
        value_ns, interval_ns: timerfd: remaining time and interval, else 0.
    """

    tgid: int
    fd: int
    type: str
    eventfd_id: int = -1
    path: str = ""
    value_ns: int = 0
    interval_ns: int = 0


@dataclass(frozen=True, slots=True)
class EpollEntry:
    """One registration, from /proc/PID/fdinfo/EPFD: epfd watches fd under data."""

    tgid: int
    epfd: int
    fd: int
    data: int
    events: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One (possibly inlined) function at an address, demangled.

    Attributes:
        line: 0 where unknown.
    """

    function: str
    file: str = ""
    line: int = 0
    inlined: bool = False


@dataclass(frozen=True, slots=True)
class CallSite:
    """Where a contended wait came from.

    Attributes:
        address: the return address as recorded in FUTEX.caller.
        frames: innermost first; empty where nothing is known.
        module: path of the mapped file; offset: address in it (ELF vaddr, return address minus one).
    """

    tgid: int
    address: int
    module: str = ""
    offset: int = 0
    build_id: str = ""
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class LockSymbol:
    """A lock word known by name: from symbols or ``--lock NAME=0xADDR``.

    Attributes:
        source: ``symbols`` or ``user``.
    """

    tgid: int
    address: int
    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Losses:
    """Records lost so far, by class."""

    ring: int = 0
    map: int = 0
    late: int = 0

    @property
    def total(self) -> int:
        """All classes together."""
        return self.ring + self.map + self.late


@dataclass(frozen=True, slots=True)
class SelfUse:
    """What tracing costs: own CPU and the probes' (bpf run_time_ns where the kernel counts it).

    Attributes:
        cpu_percent: of one core, since the previous batch that carried it.
        probe_ns_per_s: ns the probes ran per second, -1 where not measured.
        steal_ns: all CPUs' steal time since attach.
    """

    cpu_percent: float = 0.0
    probe_ns_per_s: int = -1
    steal_ns: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Records and what was learned beside them.

    Attributes:
        records: dtype RECORD, shape (n,), in ring order.
        watermark_ns: no record that ends before it will follow (else it is marked LATE).
        threads ... lock_symbols: learned since the previous batch.
        host: facts of the machine, in the first batch only (kernel, machine, cpus, clock offset ...).
    """

    records: Records
    watermark_ns: int
    targets: tuple[Target, ...] = ()
    threads: tuple[Thread, ...] = ()
    fds: tuple[Fd, ...] = ()
    epolls: tuple[EpollEntry, ...] = ()
    sites: tuple[CallSite, ...] = ()
    lock_symbols: tuple[LockSymbol, ...] = ()
    losses: Losses = field(default_factory=Losses)
    self_use: SelfUse | None = None
    host: Mapping[str, str | int | float] = field(default_factory=dict)


def empty_records() -> Records:
    """A record array of shape (0,)."""
    return np.empty(0, dtype=RECORD)
