# SPDX-License-Identifier: Apache-2.0
"""What /proc files say, parsed; and the same of a real process: this one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.capture import cgroups, procfs

NO_PROCESS = 2**22 + 1  # above PID_MAX_LIMIT: never a pid

EPOLL = """pos:\t0
flags:\t02000002
tfd:        3 events:       19 data:                3  pos:0 ino:40e sdev:10
tfd:       17 events: 80000001 data: deadbeef00000007  pos:0 ino:40e sdev:10
"""


def stat_text(comm: str, nice: int = 0, rt_priority: int = 0, policy: int = 0, flags: int = 0) -> str:
    before = f"S 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 {nice} 1 0 4711 " + "0 " * 17
    return f"7 ({comm}) {before}{rt_priority} {policy} 0 0 0"


@contextmanager
def child(source: str) -> Iterator[int]:
    """A Python process that has run ``source`` and now waits."""
    program = f"{source}\nprint('ready', flush=True)\nimport sys\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@given(st.text(st.characters(codec="utf-8"), max_size=15), st.integers(-20, 19), st.integers(0, 99))
def test_a_name_of_any_characters_does_not_shift_the_fields_of_stat(
    comm: str, nice: int, priority: int
) -> None:
    found = procfs.parse_stat(stat_text(comm, nice, priority, 1))
    assert found is not None
    assert (found.comm, found.nice, found.rt_priority, found.policy) == (comm, nice, priority, 1)
    assert (found.state, found.start_ticks, found.kernel_thread) == ("S", 4711, False)


def test_a_kernel_thread_is_told_by_its_flag() -> None:
    found = procfs.parse_stat(stat_text("kworker/0:1", flags=0x00200040))
    assert found is not None and found.kernel_thread


@given(st.text(max_size=300))
def test_no_text_makes_a_parser_fail(text: str) -> None:
    procfs.parse_stat(text)
    procfs.parse_status(text)
    procfs.parse_eventfd(text)
    procfs.parse_timerfd(text)
    procfs.parse_epoll(text)
    procfs.parse_syscall(1, text)
    cgroups.parse_cgroup_mounts(text)
    cgroups.parse_throttled_ns(text)
    assert procfs.fd_type(text) in {
        "eventfd", "timerfd", "epoll", "pipe", "socket", "file", "kvm", "io_uring", "other",
    }  # fmt: skip


@given(st.integers(0, 2**64 - 2), st.integers(0, 2**31 - 1))
def test_an_eventfd_s_id_and_hexadecimal_count_are_read(count: int, number: int) -> None:
    text = f"pos:\t0\nino:\t7\neventfd-count: {count:16x}\neventfd-id: {number}\neventfd-semaphore: 0\n"
    assert procfs.parse_eventfd(text) == (number, count)


def test_an_eventfd_of_an_old_kernel_has_a_count_but_no_id() -> None:
    assert procfs.parse_eventfd("pos:\t0\neventfd-count:                5\n") == (-1, 5)


@given(st.integers(0, 10**6), st.integers(0, 10**9 - 1), st.integers(0, 10**6), st.integers(0, 10**9 - 1))
def test_a_timer_s_remaining_time_and_interval_are_nanoseconds(a: int, b: int, c: int, d: int) -> None:
    text = f"clockid: 1\nticks: 0\nsettime flags: 01\nit_value: ({a}, {b})\nit_interval: ({c}, {d})\n"
    assert procfs.parse_timerfd(text) == (a * 10**9 + b, c * 10**9 + d)


def test_epoll_registrations_keep_64_bits_of_data() -> None:
    assert procfs.parse_epoll(EPOLL) == [(3, 0x19, 3), (17, 0x80000001, 0xDEADBEEF00000007)]


def test_a_thread_inside_a_syscall_shows_its_arguments() -> None:
    text = "202 0x7f0012345678 0x89 0x2 0x0 0x0 0xffffffff 0x7ffe57aca528 0x7fa8569162ad\n"
    assert procfs.parse_syscall(9, text) == procfs.BlockedSyscall(
        9, 202, (0x7F0012345678, 0x89, 2, 0, 0, 0xFFFFFFFF)
    )


@pytest.mark.parametrize("text", ["running\n", "-1 0x7ffe57aca528 0x7fa8569162ad\n", ""])
def test_a_thread_outside_a_syscall_is_not_blocked_in_one(text: str) -> None:
    assert procfs.parse_syscall(9, text) is None


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        ("anon_inode:[eventfd]", "eventfd"),
        ("anon_inode:[timerfd]", "timerfd"),
        ("anon_inode:[eventpoll]", "epoll"),
        ("anon_inode:[io_uring]", "io_uring"),
        ("anon_inode:kvm-vcpu:0", "kvm"),
        ("/dev/kvm", "kvm"),
        ("pipe:[10585]", "pipe"),
        ("socket:[10586]", "socket"),
        ("/memfd:pipewire (deleted)", "file"),
        ("anon_inode:[signalfd]", "other"),
    ],
)
def test_an_fd_s_type_is_told_by_its_link(link: str, kind: str) -> None:
    assert procfs.fd_type(link) == kind


def test_cgroup_mounts_of_both_versions_are_found() -> None:
    info = (
        "30 24 0:26 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n"
        "31 24 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
        "32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    )
    assert cgroups.parse_cgroup_mounts(info) == ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu,cpuacct")


def test_throttled_time_is_nanoseconds_in_both_versions() -> None:
    assert cgroups.parse_throttled_ns("usage_usec 9\nnr_throttled 2\nthrottled_usec 17\n") == 17_000
    assert cgroups.parse_throttled_ns("nr_periods 9\nnr_throttled 2\nthrottled_time 17\n") == 17
    assert cgroups.parse_throttled_ns("usage_usec 9\n") == 0


def test_the_fds_of_a_process_are_listed_with_what_they_are() -> None:
    eventfd = os.eventfd(3)
    epoll = select.epoll()
    epoll.register(eventfd, select.EPOLLIN)
    reader, writer = os.pipe()
    try:
        found = {item.fd: item for item in procfs.fds(os.getpid())}
        assert [found[fd].type for fd in (eventfd, epoll.fileno(), reader)] == ["eventfd", "epoll", "pipe"]
        assert procfs.eventfd_ids(os.getpid())[eventfd] == found[eventfd].eventfd_id >= 0
        entries = [item for item in procfs.epolls(os.getpid()) if item.epfd == epoll.fileno()]
        assert [(item.fd, item.events & select.EPOLLIN) for item in entries] == [(eventfd, select.EPOLLIN)]
        copy = os.dup(eventfd)
        assert procfs.eventfd_ids(os.getpid())[copy] == found[eventfd].eventfd_id
        os.close(copy)
    finally:
        epoll.close()
        for fd in (eventfd, reader, writer):
            os.close(fd)


def test_an_epoll_of_many_registrations_is_read_to_its_end() -> None:
    count = 307  # its fdinfo is several pages
    eventfds = [os.eventfd(0) for _ in range(count)]
    epoll = select.epoll()
    try:
        for fd in eventfds:
            epoll.register(fd, select.EPOLLIN)
        entries = [item for item in procfs.epolls(os.getpid()) if item.epfd == epoll.fileno()]
        assert sorted(item.fd for item in entries) == sorted(eventfds)
    finally:
        epoll.close()
        for fd in eventfds:
            os.close(fd)


def test_threads_show_name_policy_and_cpus() -> None:
    source = "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); os.nice(7)"
    with child(source) as pid:
        (main,) = procfs.threads(pid)
        nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 7, 19)
        assert (main.tid, main.tgid, main.policy, main.priority) == (pid, pid, "BATCH", nice)
        assert main.cpus and main == procfs.thread(pid)


def test_a_blocked_thread_is_found_in_its_syscall() -> None:
    source = "import os, threading; r, w = os.pipe()\n" + (
        "threading.Thread(target=os.read, args=(r, 4242), daemon=True).start()"
    )
    with child(source) as pid:
        (reader,) = [tid for tid in procfs.tids(pid) if tid != pid]
        while not (found := {item.tid: item for item in procfs.blocked_syscalls(pid)}).get(reader):
            os.sched_yield()
        assert found[reader].args[2] == 4242


def test_what_is_gone_is_empty() -> None:
    for read in (procfs.fds, procfs.epolls, procfs.threads, procfs.tids, procfs.blocked_syscalls):
        assert len(read(NO_PROCESS)) == 0
    assert procfs.thread(NO_PROCESS) is None and procfs.stat(NO_PROCESS) is None


def test_a_zombie_has_no_fds_but_a_name() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert procfs.fds(process.pid) == ()
        found = procfs.stat(process.pid)
        assert found is not None and found.state == "Z"
    finally:
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
