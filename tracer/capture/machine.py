# SPDX-License-Identifier: Apache-2.0
"""Syscall numbers and register slots of the machines that can be traced.

Owns the per-machine -D values of the probes. A machine that is not listed is
refused: wrong numbers would trace nonsense. Sources: arch/x86/entry/syscalls/
syscall_64.tbl, include/uapi/asm-generic/unistd.h, and struct pt_regs of each.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from tracer.errors import HostError

_COMMON = {
    "epoll_pwait2": 441,
    "futex_waitv": 449,
}
_X86_64 = {
    "read": 0,
    "write": 1,
    "close": 3,
    "poll": 7,
    "ioctl": 16,
    "pread64": 17,
    "pwrite64": 18,
    "readv": 19,
    "writev": 20,
    "select": 23,
    "dup": 32,
    "dup2": 33,
    "sendmsg": 46,
    "recvmsg": 47,
    "fcntl": 72,
    "futex": 202,
    "restart_syscall": 219,
    "epoll_wait": 232,
    "epoll_ctl": 233,
    "pselect6": 270,
    "ppoll": 271,
    "epoll_pwait": 281,
    "eventfd": 284,
    "timerfd_settime": 286,
    "eventfd2": 290,
    "dup3": 292,
    **_COMMON,
}
_AARCH64 = {
    "eventfd2": 19,
    "epoll_ctl": 21,
    "epoll_pwait": 22,
    "dup": 23,
    "dup3": 24,
    "fcntl": 25,
    "ioctl": 29,
    "close": 57,
    "read": 63,
    "write": 64,
    "readv": 65,
    "writev": 66,
    "pread64": 67,
    "pwrite64": 68,
    "pselect6": 72,
    "ppoll": 73,
    "timerfd_settime": 86,
    "futex": 98,
    "restart_syscall": 128,
    "sendmsg": 211,
    "recvmsg": 212,
    **_COMMON,
}
# Numbers that a machine lacks: distinct, and above any real one.
_ABSENT = 0x10000


@dataclass(frozen=True, slots=True)
class Machine:
    """One architecture.

    Attributes:
        syscalls: name to number, of those that have a record of their own.
        macros: what the probes need: XD_NR_*, XD_REGS_*, XD_EPOLL_PACKED.
    """

    name: str
    syscalls: dict[str, int]
    macros: dict[str, int]


def _macros(
    syscalls: dict[str, int], offset: int, slots: int, registers: tuple[int, ...], frame: int
) -> dict[str, int]:
    every = sorted(_X86_64.keys() | _AARCH64.keys())
    numbers = {f"XD_NR_{name}": syscalls.get(name, _ABSENT + i) for i, name in enumerate(every)}
    slot = {f"XD_REGS_{i}": register for i, register in enumerate(registers)}
    return {**numbers, "XD_REGS_OFFSET": offset, "XD_REGS_SLOTS": slots, "XD_REGS_FRAME": frame, **slot}


_MACHINES = {
    # pt_regs from r10 (byte 56): r10 r9 r8 ax cx dx si di; arguments are di si dx r10. bp is at 32.
    "x86_64": Machine("x86_64", _X86_64, {**_macros(_X86_64, 56, 8, (7, 6, 5, 0), 32), "XD_EPOLL_PACKED": 1}),
    # user_pt_regs starts with x0 ... x5; the frame pointer is x29.
    "aarch64": Machine(
        "aarch64", _AARCH64, {**_macros(_AARCH64, 0, 4, (0, 1, 2, 3), 232), "XD_EPOLL_PACKED": 0}
    ),
}


def this_machine(name: str = "") -> Machine:
    """The machine we run on (or ``name``). Raises HostError where it is not supported."""
    name = name or platform.machine()
    if name not in _MACHINES:
        raise HostError(
            f"cannot trace on {name}: its syscall numbers are not known to xdtrace",
            f"trace on one of {', '.join(sorted(_MACHINES))}; reading traces works everywhere",
        )
    return _MACHINES[name]
