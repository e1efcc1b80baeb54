# SPDX-License-Identifier: Apache-2.0
"""What travels beside records, and ``Batch``, which moves both between capture, trace folder and analysis.

Owns the shape of these facts; they are learned in capture, kept in trace, and used in model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.schema.record import Records


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
