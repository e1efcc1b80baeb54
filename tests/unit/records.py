# SPDX-License-Identifier: Apache-2.0
"""Builders of RECORD arrays for unit tests.

Owns how tests spell records: one function per thing a thread can do, each
returning an array (n,) of dtype RECORD; ``trace`` puts them in analysis order.
Times are integer ns. Never asserts anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer.schema import (
    EPOLL_CTL,
    EPOLL_WAIT,
    FD,
    FUTEX,
    LIFE,
    LOSS,
    MSG,
    OFFCPU,
    RECORD,
    RW,
    SYSCALL,
    TIMER,
    WORDS,
    Flag,
    Kind,
    Records,
    end_ns,
)

WAIT = 137  # FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, as std uses it
WAKE = 129
PTHREAD_WAIT = 128
SHARED_WAIT = 9  # FUTEX_WAIT_BITSET without PRIVATE
EAGAIN = -11
F_DUPFD_CLOEXEC = 1030

NR_READ, NR_WRITE, NR_CLOSE, NR_IOCTL, NR_FCNTL, NR_POLL = 0, 1, 3, 16, 72, 7
NR_SENDMSG, NR_RECVMSG, NR_FUTEX, NR_EPOLL_WAIT, NR_EPOLL_CTL = 46, 47, 202, 232, 233
NR_TIMERFD_SETTIME, NR_EVENTFD2 = 286, 290


def one(family: np.dtype[np.void], kind: Kind, tid: int, start: int, end: int, **fields: Any) -> Records:
    """One record (1,) of a family, from ``start`` to ``end`` ns; other fields by name."""
    row = np.zeros(1, dtype=family)
    row["kind"], row["tid"], row["enter_ns"], row["dur_ns"] = kind, tid, start, end - start
    for name, value in fields.items():
        row[name] = value
    return row.view(RECORD)


def _masks(
    held_in: int = 0, readable_in: int = 0, held_out: int | None = None, readable_out: int | None = None
) -> dict[str, int]:
    flags = 0 if held_out is None else int(Flag.EXIT_MASKS)
    return {
        "held_in": held_in,
        "readable_in": readable_in or held_in,
        "held_out": held_out or 0,
        "readable_out": readable_out if readable_out is not None else (held_out or 0),
        "flags": flags,
    }


def wait(
    tid: int,
    word: int,
    start: int,
    end: int,
    *,
    expected: int = 2,
    op: int = WAIT,
    ret: int = 0,
    caller: int = 0,
    flags: int = 0,
) -> Records:
    """A futex wait; by default one of a std mutex."""
    return one(
        FUTEX,
        Kind.FUTEX,
        tid,
        start,
        end,
        op=op,
        ret=ret,
        expected=expected,
        word=word,
        caller=caller,
        flags=flags,
    )


def wake(
    tid: int, word: int, at: int, *, dur: int = 500, count: int = 1, op: int = WAKE, ret: int = 1
) -> Records:
    """A futex wake that *ends* at ``at``."""
    return one(FUTEX, Kind.FUTEX, tid, at - dur, at, op=op, ret=ret, expected=count, word=word)


def requeue(tid: int, word: int, at: int, *, dur: int = 500, op: int = 132) -> Records:
    """A FUTEX_CMP_REQUEUE that ends at ``at``."""
    return one(FUTEX, Kind.FUTEX, tid, at - dur, at, op=op, ret=1, expected=1, word=word)


def read(
    tid: int,
    start: int,
    end: int,
    *,
    fd: int = 5,
    eventfd: int = -1,
    value: int = 1,
    ret: int = 8,
    generation: int = 0,
    flags: int = 0,
    **masks: Any,
) -> Records:
    """A read; ``eventfd`` is an eventfd-id (-1: none)."""
    return _rw(Kind.READ, NR_READ, tid, start, end, fd, eventfd, value, ret, generation, flags, masks)


def write(
    tid: int,
    start: int,
    end: int,
    *,
    fd: int = 5,
    eventfd: int = -1,
    value: int = 1,
    ret: int = 8,
    generation: int = 0,
    flags: int = 0,
    **masks: Any,
) -> Records:
    """A write; ``eventfd`` is an eventfd-id (-1: none)."""
    return _rw(Kind.WRITE, NR_WRITE, tid, start, end, fd, eventfd, value, ret, generation, flags, masks)


def _rw(
    kind: Kind,
    number: int,
    tid: int,
    start: int,
    end: int,
    fd: int,
    eventfd: int,
    value: int,
    ret: int,
    generation: int,
    flags: int,
    masks: dict[str, Any],
) -> Records:
    fields: dict[str, Any] = _masks(**masks)
    fields["flags"] |= flags | (int(Flag.EVENTFD) if eventfd >= 0 else 0)
    return one(
        RW,
        kind,
        tid,
        start,
        end,
        op=number,
        fd=fd,
        eventfd_id=eventfd,
        value=value,
        ret=ret,
        len=8,
        generation=generation,
        **fields,
    )


def timer_read(tid: int, start: int, end: int, *, fd: int = 4, value: int = 1) -> Records:
    """A read of a timerfd: ``value`` expirations."""
    return read(tid, start, end, fd=fd, value=value, flags=int(Flag.TIMERFD))


def dup(
    tid: int,
    start: int,
    end: int,
    *,
    fd: int,
    new_fd: int,
    eventfd: int = -1,
    generation: int = 0,
    **masks: Any,
) -> Records:
    """A dup by fcntl(F_DUPFD_CLOEXEC) that returns ``new_fd``."""
    return one(
        FD,
        Kind.FD,
        tid,
        start,
        end,
        op=NR_FCNTL,
        ret=new_fd,
        fd=fd,
        eventfd_id=eventfd,
        generation=generation,
        **_masks(**masks),
    )


def close(
    tid: int, start: int, end: int, *, fd: int, eventfd: int = -1, generation: int = 0, **masks: Any
) -> Records:
    """A close."""
    return one(
        FD,
        Kind.FD,
        tid,
        start,
        end,
        op=NR_CLOSE,
        ret=0,
        fd=fd,
        eventfd_id=eventfd,
        generation=generation,
        **_masks(**masks),
    )


def eventfd(tid: int, start: int, end: int, *, new_fd: int, eventfd_id: int, value: int = 0) -> Records:
    """An eventfd2: the birth of an eventfd-id."""
    return one(
        FD, Kind.FD, tid, start, end, op=NR_EVENTFD2, ret=new_fd, fd=-1, eventfd_id=eventfd_id, value=value
    )


def settime(
    tid: int, start: int, end: int, *, fd: int = 4, value_ns: int, interval_ns: int = 0, flags: int = 1
) -> Records:
    """A timerfd_settime; absolute by default (timer_flags)."""
    return one(
        TIMER,
        Kind.TIMER,
        tid,
        start,
        end,
        op=NR_TIMERFD_SETTIME,
        fd=fd,
        value_ns=value_ns,
        interval_ns=interval_ns,
        timer_flags=flags,
    )


def epoll_ctl(
    tid: int,
    start: int,
    end: int,
    *,
    epfd: int = 3,
    fd: int = 9,
    data: int = 9,
    eventfd: int = -1,
    ctl_op: int = 1,
    generation: int = 0,
    held_in: int = 0,
    readable_in: int = 0,
) -> Records:
    """An epoll_ctl (ADD by default)."""
    return one(
        EPOLL_CTL,
        Kind.EPOLL_CTL,
        tid,
        start,
        end,
        op=NR_EPOLL_CTL,
        epfd=epfd,
        fd=fd,
        data=data,
        eventfd_id=eventfd,
        ctl_op=ctl_op,
        generation=generation,
        held_in=held_in,
        readable_in=readable_in,
    )


def epoll_wait(
    tid: int,
    start: int,
    end: int,
    *,
    ret: int = 1,
    epfd: int = 3,
    data: int = 0,
    events: int = 1,
    generation: int = 0,
    **masks: Any,
) -> Records:
    """An epoll_wait whose first event has ``data``."""
    return one(
        EPOLL_WAIT,
        Kind.EPOLL_WAIT,
        tid,
        start,
        end,
        op=NR_EPOLL_WAIT,
        ret=ret,
        epfd=epfd,
        data=data,
        events=events,
        generation=generation,
        **_masks(**masks),
    )


def recvmsg(
    tid: int,
    start: int,
    end: int,
    *,
    fd: int = 7,
    ret: int = 64,
    eventfds: Sequence[int] = (),
    generation: int = 0,
    **masks: Any,
) -> Records:
    """A recvmsg that brings ``eventfds`` (at most three ids; -1: another kind of fd)."""
    return _msg(Kind.RECVMSG, NR_RECVMSG, tid, start, end, fd, ret, eventfds, generation, masks)


def sendmsg(
    tid: int,
    start: int,
    end: int,
    *,
    fd: int = 7,
    ret: int = 64,
    eventfds: Sequence[int] = (),
    generation: int = 0,
    **masks: Any,
) -> Records:
    """A sendmsg that passes ``eventfds`` (at most three ids)."""
    return _msg(Kind.SENDMSG, NR_SENDMSG, tid, start, end, fd, ret, eventfds, generation, masks)


def _msg(
    kind: Kind,
    number: int,
    tid: int,
    start: int,
    end: int,
    fd: int,
    ret: int,
    eventfds: Sequence[int],
    generation: int,
    masks: dict[str, Any],
) -> Records:
    ids = [*eventfds, -1, -1, -1][:3]
    return one(
        MSG,
        kind,
        tid,
        start,
        end,
        op=number,
        ret=ret,
        fd=fd,
        nfds=len(eventfds),
        eventfd_ids=np.array(ids, dtype=np.int32),
        generation=generation,
        **_masks(**masks),
    )


def syscall(
    tid: int, start: int, end: int, *, number: int = NR_IOCTL, ret: int = 0, arg0: int = 0
) -> Records:
    """Any other syscall that took long."""
    return one(SYSCALL, Kind.SYSCALL, tid, start, end, op=number, ret=ret, arg0=arg0)


def offcpu(
    tid: int,
    start: int,
    end: int,
    *,
    woken: int = 0,
    waker: int = 0,
    waker_tgid: int = 0,
    irq: bool = False,
    preempted: bool = False,
    state: int = 1,
    instead: int = 0,
    stolen: int = 0,
    cpu_out: int = 0,
    cpu_in: int = 0,
) -> Records:
    """An off-CPU span: blocked to ``woken``, then runnable; runnable all along if preempted."""
    return one(
        OFFCPU,
        Kind.OFFCPU,
        tid,
        start,
        end,
        op=0 if preempted else state,
        woken_ns=woken,
        waker_tid=waker,
        waker_tgid=waker_tgid,
        waker_in_irq=int(irq),
        preempted=int(preempted),
        instead_tid=instead,
        stolen_ns=stolen,
        cpu_out=cpu_out,
        cpu_in=cpu_in,
    )


def life(tid: int, at: int, *, op: int = 1, comm: str = "", tgid: int = 0, old_tid: int = 0) -> Records:
    """A LIFE record (START by default)."""
    return one(LIFE, Kind.LIFE, tid, at, at, op=op, comm=comm.encode(), tgid=tgid, old_tid=old_tid)


def words(tgid: int, at: int, generation: int, watched: Sequence[int]) -> Records:
    """WORDS records (one per four words): ``watched`` is in force from ``at`` on."""
    padded = [*watched] + [0] * (-len(watched) % 4) or [0] * 4
    return trace(
        one(
            WORDS,
            Kind.WORDS,
            tgid,
            at,
            at,
            op=generation,
            flags=i,
            words=np.array(padded[4 * i : 4 * i + 4], "<u8"),
        )
        for i in range(len(padded) // 4)
    )


def loss(at: int, count: int, *, op: int = 1) -> Records:
    """A LOSS record (ring by default)."""
    return one(LOSS, Kind.LOSS, 0, at, at, op=op, count=count)


def opened(record: Records, at: int) -> Records:
    """The OPEN record that a sweep at ``at`` would have written of a span (1,) still under way."""
    row = record.copy()
    row["flags"] |= int(Flag.OPEN)
    row["dur_ns"] = at - int(row["enter_ns"][0])
    return row


def trace(*parts: Records | Iterable[Records]) -> Records:
    """All parts together, in analysis order (end, tid, kind, enter); arrays and iterables of arrays."""
    arrays: list[Records] = []
    for part in parts:
        arrays.extend([part] if isinstance(part, np.ndarray) else list(part))
    if not arrays:
        return np.empty(0, dtype=RECORD)
    rows = np.concatenate(arrays)
    order: NDArray[np.intp] = np.lexsort((rows["enter_ns"], rows["kind"], rows["tid"], end_ns(rows)))
    return rows[order]


def steps(records: Records, cuts: Iterable[int]) -> Iterator[tuple[Records, int]]:
    """Cut a trace at record times: yields (records with end <= cut not given before, cut); all are given."""
    ends = end_ns(records)
    last = int(ends[-1]) if len(ends) else 0
    at = 0
    for cut in itertools.chain(sorted(cuts), (last,)):
        to = int(np.searchsorted(ends, np.uint64(cut), side="right"))
        if to >= at and cut <= last:
            yield records[at:to], cut
            at = to


@dataclass(slots=True)
class Mutex:
    """A std mutex word acted out in time: ``contend`` gives the records of one contended acquisition.

    The holder entered before the waiter; every wake in ``wakes`` is by a holder; all but the last
    find the word taken again (barging), so the waiter waits again ``gap`` ns after each.
    """

    word: int
    gap: int = 300
    caller: int = 0

    def contend(self, waiter: int, start: int, wakes: Sequence[tuple[int, int]]) -> Records:
        """Records of ``waiter`` waiting from ``start``; ``wakes`` are (time, holder tid) in time order."""
        parts: list[Records] = []
        begin = start
        for at, holder in wakes:
            parts.append(wake(holder, self.word, at))
            parts.append(wait(waiter, self.word, begin, at + self.gap, caller=self.caller))
            begin = at + 2 * self.gap
        return trace(parts)
