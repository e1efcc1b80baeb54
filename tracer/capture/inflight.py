# SPDX-License-Identifier: Apache-2.0
"""Spans that have not ended: OPEN records, and spans that began before attach.

Owns the translation between the probes' per-thread state (maps.THREAD) and
records, in both directions. Pure but for what it is given; touches no map.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tracer import schema
from tracer.capture.machine import Machine
from tracer.capture.maps import THREAD
from tracer.schema import Flag, Kind, Records

KVM_RUN = 0xAE80
_STATES = {"S": 1, "D": 2}
_KINDS = {
    "read": Kind.READ,
    "pread64": Kind.READ,
    "readv": Kind.READ,
    "write": Kind.WRITE,
    "pwrite64": Kind.WRITE,
    "writev": Kind.WRITE,
    "futex": Kind.FUTEX,
    "epoll_wait": Kind.EPOLL_WAIT,
    "epoll_pwait": Kind.EPOLL_WAIT,
    "epoll_pwait2": Kind.EPOLL_WAIT,
    "poll": Kind.EPOLL_WAIT,
    "ppoll": Kind.EPOLL_WAIT,
    "select": Kind.EPOLL_WAIT,
    "pselect6": Kind.EPOLL_WAIT,
    "recvmsg": Kind.RECVMSG,
    "sendmsg": Kind.SENDMSG,
}


def open_records(
    tids: NDArray[np.uint32], threads: NDArray[np.void], now_ns: int, min_age_ns: int
) -> Records:
    """OPEN records, dtype RECORD (n,), of spans at least ``min_age_ns`` old.

    Args:
        tids, threads: shape (n,); dtype u4 and maps.THREAD.
        now_ns: when they were read; the records end there.
    """
    age = now_ns - min_age_ns
    syscalls = (threads["kind"] != 0) & (threads["enter_ns"] <= age)
    away = (threads["out_ns"] != 0) & (threads["out_ns"] <= age)
    parts = []
    if syscalls.any():
        parts.append(_syscall_records(tids[syscalls], threads[syscalls], now_ns))
    if away.any():
        parts.append(_offcpu_records(tids[away], threads[away], now_ns))
    return np.concatenate(parts) if parts else schema.empty_records()


def _head(into: Records, tids: NDArray[np.uint32], enter_ns: NDArray[np.uint64], now_ns: int) -> None:
    into["tid"] = tids
    into["enter_ns"] = enter_ns
    into["dur_ns"] = np.uint64(now_ns) - enter_ns


def _syscall_records(tids: NDArray[np.uint32], threads: NDArray[np.void], now_ns: int) -> Records:
    records = np.zeros(len(tids), schema.RECORD)
    records["kind"] = threads["kind"]
    records["op"] = threads["op"]
    records["flags"] = threads["flags"] | Flag.OPEN
    _head(records, tids, threads["enter_ns"], now_ns)
    for kind in np.unique(threads["kind"]):
        family = schema.FAMILY[Kind(int(kind))]
        chosen = threads["kind"] == kind
        source = threads[chosen]
        rows = schema.view(records[chosen], family)
        rows_of = rows.dtype.names or ()
        for name in ("fd", "eventfd_id", "generation", "held_in", "readable_in"):
            if name in rows_of:
                rows[name] = source[name]
        if kind in (Kind.READ, Kind.WRITE):
            rows["len"] = np.minimum(source["arg"], 65535)
            rows["value"] = np.where(kind == Kind.WRITE, source["a"], 0)
        elif kind == Kind.FUTEX:
            rows["expected"] = source["arg"]
            rows["word"] = source["a"]
        elif kind == Kind.EPOLL_WAIT:
            rows["epfd"] = source["fd"]
        elif kind == Kind.EPOLL_CTL:
            rows["epfd"] = source["fd"]
            rows["fd"] = source["b"].astype("<i4")
            rows["data"] = source["a"]
            rows["ctl_op"] = source["arg"]
        elif kind == Kind.TIMER:
            rows["value_ns"] = source["a"]
            rows["interval_ns"] = source["b"]
            rows["timer_flags"] = source["arg"]
        elif kind in (Kind.RECVMSG, Kind.SENDMSG):
            rows["eventfd_ids"] = -1
        elif kind == Kind.SYSCALL:
            rows["arg0"] = source["a"]
            rows["arg1"] = source["b"]
        records[chosen] = rows.view(schema.RECORD)
    return records


def _offcpu_records(tids: NDArray[np.uint32], threads: NDArray[np.void], now_ns: int) -> Records:
    rows = np.zeros(len(tids), schema.OFFCPU)
    rows["kind"] = Kind.OFFCPU
    rows["op"] = threads["state"]
    rows["flags"] = threads["out_flags"] | Flag.OPEN
    _head(rows, tids, threads["out_ns"], now_ns)
    woken = threads["woken_ns"] != 0
    rows["woken_ns"] = np.where(woken, np.maximum(threads["woken_ns"], threads["out_ns"]), 0)
    rows["waker_tid"] = np.where(woken, threads["waker_tid"], 0)
    rows["waker_tgid"] = np.where(woken, threads["waker_tgid"], 0)
    rows["waker_in_irq"] = np.where(woken, threads["waker_in_irq"], 0)
    rows["cpu_out"] = threads["cpu_out"]
    rows["cpu_in"] = threads["cpu_out"]
    rows["preempted"] = threads["preempted"]
    rows["stolen_ns"] = threads["stolen_ns"]
    return rows.view(schema.RECORD)


def clipped(
    machine: Machine,
    tgid: int,
    state: str,
    number: int,
    args: tuple[int, ...],
    now_ns: int,
    eventfd_ids: Mapping[int, int],
    timerfds: frozenset[int],
) -> NDArray[np.void]:
    """A THREAD value, shape (), for a thread that was there before us.

    Args:
        state: letter of /proc/PID/stat.
        number: of the syscall it sleeps in, -1: in none.
        args: the syscall's argument registers, () where there is none.
        eventfd_ids: fd to eventfd id of its process; timerfds: its timerfds.
    """
    value: NDArray[np.void] = np.zeros((), THREAD)
    value["tgid"] = tgid
    value["eventfd_id"] = -1
    if state in _STATES:
        value["out_ns"] = now_ns
        value["state"] = _STATES[state]
        value["out_flags"] = Flag.CLIPPED
    names = {number: name for name, number in machine.syscalls.items()}
    name = names.get(number, "")
    if number < 0 or len(args) < 4 or (name == "ioctl" and args[1] & 0xFFFFFFFF == KVM_RUN):
        return value
    kind = _KINDS.get(name, Kind.SYSCALL)
    value["kind"] = kind
    value["flags"] = Flag.CLIPPED
    value["op"] = number & 0xFFFF
    value["nr"] = number & 0xFFFF
    value["enter_ns"] = now_ns
    value["a"] = args[0]
    value["b"] = args[1]
    if kind == Kind.FUTEX:
        value["op"] = args[1] & 0xFFFF
        value["arg"] = args[2] & 0xFFFFFFFF
        return value
    if kind == Kind.EPOLL_WAIT and not name.startswith("epoll"):
        value["fd"] = -1  # poll and select are given no fd to wait on
        return value
    fd = np.array([args[0] & 0xFFFFFFFF], "<u4").view("<i4")[0]
    value["fd"] = fd
    if kind in (Kind.READ, Kind.WRITE):
        value["arg"] = min(args[2], 65535)
        # readv and writev keep their vector in user memory: their value is not known here.
        value["a"] = args[1] if name in ("read", "pread64") else 0
        if int(fd) in eventfd_ids:
            value["eventfd_id"] = eventfd_ids[int(fd)]
            value["flags"] = Flag.CLIPPED | Flag.EVENTFD
        elif int(fd) in timerfds:
            value["flags"] = Flag.CLIPPED | Flag.TIMERFD
    elif kind in (Kind.EPOLL_WAIT, Kind.RECVMSG, Kind.SENDMSG):
        value["a"] = args[1]
    return value
