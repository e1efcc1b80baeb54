# SPDX-License-Identifier: Apache-2.0
"""What /proc says of a process: threads, fds, epoll registrations, blocked syscalls.

Owns the parsing of /proc files, and nothing else: it decides nothing about
what it reads, touches no process and starts none. A thread or an fd that
vanishes while it is being read is normal and is left out; a process that is
gone gives empty results. What may not be read (another user's process) is left
out too: target.pin() is where missing permission becomes an error.

Formats: proc(5); fs/proc/array.c, fs/eventfd.c, fs/timerfd.c, fs/eventpoll.c.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tracer import schema
from tracer.capture.cgroups import Cgroups

PROC = "/proc"
_POLICIES = {0: "OTHER", 1: "FIFO", 2: "RR", 3: "BATCH", 5: "IDLE", 6: "DEADLINE", 7: "EXT"}
_REALTIME = (1, 2)
_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_CHUNK = 4096
# A seq_file's read ends early only where the next line does not fit into its page, so what is
# shorter than this is whole (fs/seq_file.c): the second read, which finds the end, is spared.
_WHOLE = 2048
_EVENTFD = re.compile(r"^eventfd-count:\s*([0-9a-f]+)$(?:\neventfd-id:\s*(\d+)$)?", re.MULTILINE)
_TFD = re.compile(r"^tfd:\s*(\d+)\s+events:\s*([0-9a-f]+)\s+data:\s*([0-9a-f]+)", re.MULTILINE)
_PAIR = re.compile(r"^(it_value|it_interval): \((-?\d+), (-?\d+)\)", re.MULTILINE)
EVENTFD = "anon_inode:[eventfd]"
TIMERFD = "anon_inode:[timerfd]"
EPOLL = "anon_inode:[eventpoll]"
_DETAILED = frozenset({EVENTFD, TIMERFD})
_ANON = {
    EVENTFD: "eventfd",
    TIMERFD: "timerfd",
    EPOLL: "epoll",
    "anon_inode:[io_uring]": "io_uring",
    "/dev/kvm": "kvm",
}
_PREFIXES = (
    ("pipe:", "pipe"),
    ("socket:", "socket"),
    ("anon_inode:kvm", "kvm"),
    ("anon_inode:", "other"),
    ("/", "file"),
)


@dataclass(frozen=True, slots=True)
class Stat:
    """What is used of /proc/PID/stat.

    Attributes:
        state: one letter, as ps shows it.
        start_ticks: since boot, in clock ticks (CLOCK_BOOTTIME).
        policy: the kernel's number of the scheduling policy.
    """

    comm: str
    state: str
    ppid: int
    kernel_thread: bool
    nice: int
    start_ticks: int
    rt_priority: int
    policy: int


@dataclass(frozen=True, slots=True)
class BlockedSyscall:
    """A thread that sleeps inside a syscall.

    Attributes:
        number: of the syscall on this machine.
        args: its six argument registers.
    """

    tid: int
    number: int
    args: tuple[int, int, int, int, int, int]


def text_of(raw: bytes) -> str:
    """Text that every encoder accepts: what is no UTF-8 is shown as \\xNN."""
    return raw.decode("utf-8", "backslashreplace")


def read(path: str, dir_fd: int | None = None) -> str:
    """One /proc file as text, "" when it (or its process) is gone or may not be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return ""
    try:
        raw = os.read(fd, _CHUNK)
        if len(raw) > _WHOLE:
            while more := os.read(fd, _CHUNK):
                raw += more
    except OSError:
        return ""
    finally:
        os.close(fd)
    return text_of(raw)


def parse_stat(text: str) -> Stat | None:
    """Parse /proc/PID/stat; the name in it may hold blanks, brackets and newlines."""
    opening, closing = text.find("("), text.rfind(")")
    rest = text[closing + 1 :].split()
    if opening < 0 or closing < opening or len(rest) < 39:
        return None
    try:
        return Stat(
            comm=text[opening + 1 : closing],
            state=rest[0],
            ppid=int(rest[1]),
            kernel_thread=bool(int(rest[6]) & _PF_KTHREAD),
            nice=int(rest[16]),
            start_ticks=int(rest[19]),
            rt_priority=int(rest[37]),
            policy=int(rest[38]),
        )
    except ValueError:
        return None


def parse_status(text: str) -> dict[str, str]:
    """The lines ``Name:<tab>value`` of /proc/PID/status."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key: value.strip() for key, value in pairs}


def parse_eventfd(text: str) -> tuple[int, int] | None:
    """(eventfd-id, eventfd-count) of an eventfd's fdinfo; the id is -1 before Linux 5.2."""
    found = _EVENTFD.search(text)
    return (int(found[2] or -1), int(found[1], 16)) if found else None


def parse_timerfd(text: str) -> tuple[int, int] | None:
    """(remaining ns, interval ns) of a timerfd's fdinfo."""
    found = {name: int(sec) * 1_000_000_000 + int(nsec) for name, sec, nsec in _PAIR.findall(text)}
    if "it_value" not in found:
        return None
    return found["it_value"], found.get("it_interval", 0)


def parse_epoll(text: str) -> list[tuple[int, int, int]]:
    """(fd, events, data) per registration of an epoll's fdinfo."""
    return [(int(fd), int(events, 16), int(data, 16)) for fd, events, data in _TFD.findall(text)]


def parse_syscall(tid: int, text: str) -> BlockedSyscall | None:
    """Parse /proc/PID/task/TID/syscall; None when it runs or is blocked outside a syscall (-1)."""
    fields = text.split()
    if len(fields) != 9:
        return None
    try:
        number, *values = int(fields[0]), *(int(value, 16) for value in fields[1:7])
    except ValueError:
        return None
    a, b, c, d, e, f = values
    return BlockedSyscall(tid, number, (a, b, c, d, e, f)) if number >= 0 else None


def fd_type(link: str) -> str:
    """The ``schema.Fd.type`` of what /proc/PID/fd/N links to."""
    if known := _ANON.get(link):
        return known
    return next((kind for prefix, kind in _PREFIXES if link.startswith(prefix)), "other")


def pids() -> list[int]:
    """Thread group ids of every process that can be seen."""
    return [int(name) for name in os.listdir(PROC) if name.isdecimal()]


def tids(tgid: int) -> list[int]:
    """Thread ids of a process, [] when it is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"{PROC}/{tgid}/task"))
    except OSError:
        return []


def stat(tgid: int, tid: int | None = None) -> Stat | None:
    """Stat of a process or of one of its threads, None when it is gone."""
    return parse_stat(read(f"{PROC}/{tgid}/stat" if tid is None else f"{PROC}/{tgid}/task/{tid}/stat"))


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status as a dictionary, {} when it is gone. Accepts a thread id too."""
    return parse_status(read(f"{PROC}/{pid}/status"))


def links(tgid: int) -> Iterator[tuple[str, str]]:
    """(fd number as text, link) of every fd of a process that may be read."""
    try:
        directory = os.open(f"{PROC}/{tgid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for name in os.listdir(directory):
            try:
                link = os.readlink(name, dir_fd=directory)
            except OSError:
                continue
            yield name, link if link.isascii() else text_of(os.fsencode(link))
    except OSError:
        return
    finally:
        os.close(directory)


def fds(tgid: int) -> tuple[schema.Fd, ...]:
    """Every open fd of a process, by number; () when it is gone or may not be read."""
    return tuple(sorted(_fds(tgid), key=lambda item: item.fd))


def _fds(tgid: int) -> Iterator[schema.Fd]:
    for name, link, info in _links_with_info(tgid, _DETAILED):
        kind = fd_type(link)
        eventfd = parse_eventfd(info) if kind == "eventfd" else None
        value_ns, interval_ns = (parse_timerfd(info) if kind == "timerfd" else None) or (0, 0)
        yield schema.Fd(tgid, int(name), kind, eventfd[0] if eventfd else -1, link, value_ns, interval_ns)


def _links_with_info(tgid: int, wanted: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    """(fd number as text, link, fdinfo where the link is one of ``wanted``, else "")."""
    try:
        directory = os.open(f"{PROC}/{tgid}/fdinfo", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for name, link in links(tgid):
            yield name, link, read(name, directory) if link in wanted else ""
    finally:
        os.close(directory)


def eventfd_ids(tgid: int) -> dict[int, int]:
    """fd -> eventfd-id of a process."""
    found = {}
    for name, _, info in _links_with_info(tgid, frozenset({EVENTFD})):
        if info and (parsed := parse_eventfd(info)):
            found[int(name)] = parsed[0]
    return found


def epolls(tgid: int) -> tuple[schema.EpollEntry, ...]:
    """Every epoll registration of a process, by epoll fd and fd."""
    entries = [
        schema.EpollEntry(tgid, int(name), fd, data, events)
        for name, _, info in _links_with_info(tgid, frozenset({EPOLL}))
        for fd, events, data in parse_epoll(info)
    ]
    return tuple(sorted(entries, key=lambda entry: (entry.epfd, entry.fd)))


def threads(tgid: int) -> tuple[schema.Thread, ...]:
    """Every thread of a process, by tid; () when it is gone."""
    cgroups = Cgroups(read)
    found = (_thread(tgid, tid, cgroups) for tid in tids(tgid))
    return tuple(item for item in found if item is not None)


def thread(tid: int) -> schema.Thread | None:
    """One thread by its tid alone (also of an untraced process), None when it is gone."""
    tgid = status(tid).get("Tgid", "")
    return _thread(int(tgid), tid, Cgroups(read)) if tgid.isdecimal() else None


def _thread(tgid: int, tid: int, cgroups: Cgroups) -> schema.Thread | None:
    base = f"{PROC}/{tgid}/task/{tid}/"
    found = parse_stat(read(base + "stat"))
    if found is None:
        return None
    return schema.Thread(
        tid=tid,
        tgid=tgid,
        comm=found.comm,
        policy=_POLICIES.get(found.policy, str(found.policy)),
        priority=found.rt_priority if found.policy in _REALTIME else found.nice,
        cpus=parse_status(read(base + "status")).get("Cpus_allowed_list", ""),
        throttled_ns=cgroups.throttled_ns(read(base + "cgroup")),
    )


def blocked_syscalls(tgid: int) -> list[BlockedSyscall]:
    """Threads of a process that sleep inside a syscall now. Needs ptrace permission, else []."""
    found = (parse_syscall(tid, read(f"{PROC}/{tgid}/task/{tid}/syscall")) for tid in tids(tgid))
    return [item for item in found if item is not None]
