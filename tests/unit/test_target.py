# SPDX-License-Identifier: Apache-2.0
"""Pinning real processes, and telling an audio server by what it holds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tracer.capture import procfs, servers, target
from tracer.capture.attached import Attached
from tracer.capture.machine import this_machine
from tracer.errors import TargetError

NO_PROCESS = 2**22 + 1  # above PID_MAX_LIMIT: never a pid

PRELUDE = """
import array, ctypes, os, select, socket, sys, threading
libc = ctypes.CDLL(None)
side = socket.socket(fileno=int(sys.argv[1]))
def receive():
    _, control, _, _ = side.recvmsg(1, 1024)
    return list(array.array("i", control[0][2]))
def send(fds):
    side.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
def name(thread_name):
    libc.prctl(15, thread_name)
def watch(fds):
    epoll = select.epoll()
    for fd in fds:
        epoll.register(fd, select.EPOLLIN)
    return epoll
"""
# The server makes a stream's two eventfds; a data loop of its own waits for the second and a timer.
SERVER = """
wake, done = os.eventfd(0), os.eventfd(0)
loop = watch([done, libc.timerfd_create(1, 0)])
send([wake, done])
"""
# A client of the same server holds the same eventfds and a timer, but waits for them apart.
CLIENT = """
fds = receive()
loop, other = watch(fds[:1]), watch([libc.timerfd_create(1, 0)])
"""
VMM = """
own = os.eventfd(0)
fds = receive()
worker = watch([own, fds[0]])
ready = threading.Event()
def work():
    name(b"cross domain")
    ready.set()
    threading.Event().wait()
threading.Thread(target=work, daemon=True).start()
ready.wait()
"""


class Child:
    """A Python process with one end of a socket; it has run its source when it is ready."""

    def __init__(self, source: str) -> None:
        self.side, theirs = socket.socketpair()
        program = f"{PRELUDE}{source}\nprint('ready', flush=True)\nsys.stdin.read()"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        self.tgid = self.process.pid

    def ready(self) -> Child:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.side.close()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def children(*sources: str) -> Iterator[list[Child]]:
    started: list[Child] = []
    try:
        for source in sources:
            started.append(Child(source))
        yield started
    finally:
        for one in started:
            one.stop()


def hand_over(server: Child, *clients: Child) -> None:
    """Pass the server's eventfds on, as the guest's bridge does; keep no copy."""
    _, fds, _, _ = socket.recv_fds(server.side, 1, 8)
    try:
        for client in clients:
            socket.send_fds(client.side, [b"x"], fds)
    finally:
        for fd in fds:
            os.close(fd)
    for one in (server, *clients):
        one.ready()


def test_a_pinned_process_tells_who_it_is() -> None:
    with children("") as (child,):
        child.ready()
        with target.pin(child.tgid) as pinned:
            assert (pinned.tgid, pinned.role, pinned.ns_tgid) == (child.tgid, "vmm", child.tgid)
            assert os.path.samefile(pinned.exe_path, sys.executable) and pinned.start_ns > 0
            assert pinned.alive() and pinned.describe().alive
            assert pinned.describe(crate="c", version="1").exe == pinned.exe


def test_a_pinned_process_is_not_alive_once_it_has_exited() -> None:
    with children("") as (child,), target.pin(child.ready().tgid, role="audio") as pinned:
        child.process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.tgid, os.WEXITED | os.WNOWAIT)
        assert not pinned.alive() and not pinned.describe().alive


def test_a_thread_s_id_stands_for_its_process_and_is_noted() -> None:
    with children("threading.Thread(target=threading.Event().wait, daemon=True).start()") as (child,):
        (tid,) = [tid for tid in procfs.tids(child.ready().tgid) if tid != child.tgid]
        with target.pin(tid) as pinned:
            assert pinned.tgid == child.tgid
            assert f"{tid} is a thread of {child.tgid}" in pinned.notes[0]


@pytest.mark.parametrize("pid", [NO_PROCESS, 0, -1, -(2**40), 2**40])
def test_no_such_process_is_an_error_with_a_remedy(pid: int) -> None:
    with pytest.raises(TargetError, match=f"no process {pid}") as caught:
        target.pin(pid)
    assert "xdtrace list" in caught.value.hint and caught.value.exit_code == 3


def test_xdtrace_itself_is_refused() -> None:
    with pytest.raises(TargetError, match="xdtrace itself"):
        target.pin(os.getpid())


@pytest.mark.parametrize(("euid", "hint"), [(0, "CAP_SYS_PTRACE"), (1000, "sudo")])
def test_a_process_that_may_not_be_read_is_refused_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, euid: int, hint: str
) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(path)

    with children("") as (child,):
        monkeypatch.setattr(os, "geteuid", lambda: euid)
        monkeypatch.setattr(os, "listdir", refuse)
        with pytest.raises(TargetError, match="may not be inspected") as caught:
            target.pin(child.ready().tgid)
    assert hint in caught.value.hint


def test_a_zombie_has_exited() -> None:
    with children("") as (child,):
        child.ready().process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.tgid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(TargetError, match="has exited"):
            target.pin(child.tgid)


def test_the_server_is_found_and_the_other_client_is_not() -> None:
    with children(SERVER, VMM, CLIENT) as (server, vmm, client):
        hand_over(server, vmm, client)
        assert servers.find_audio(vmm.tgid) == [server.tgid]


def test_without_a_driving_epoll_the_holder_of_a_timer_is_the_server() -> None:
    with children("send([os.eventfd(0)]); t = libc.timerfd_create(1, 0)", VMM) as (server, vmm):
        hand_over(server, vmm)
        assert servers.find_audio(vmm.tgid) == [server.tgid]


def test_who_shares_an_eventfd_but_drives_nothing_is_no_server() -> None:
    with children("send([os.eventfd(0)])", VMM) as (backend, vmm):
        hand_over(backend, vmm)
        assert servers.find_audio(vmm.tgid) == []


def test_a_server_without_a_timer_signals_the_vmm_and_is_answered() -> None:
    with children("send([os.eventfd(0), os.eventfd(0)])", VMM) as (server, vmm):
        hand_over(server, vmm)
        assert servers.find_audio(vmm.tgid) == [server.tgid]


def test_an_id_that_was_another_eventfds_a_moment_ago_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{3: 7}, {5: 7}, {3: 8}])  # the server's, the VMM's, the server's again
    monkeypatch.setattr(procfs, "eventfd_ids", lambda _tgid: next(looks))
    assert not servers.share_eventfds(1, 2)


def test_a_forked_copy_of_the_vmm_is_no_server() -> None:
    copy = "timer = libc.timerfd_create(1, 0)\nworker.register(timer)\n"
    fork = "if os.fork() == 0: threading.Event().wait()"
    with children(SERVER, VMM + copy + fork) as (server, vmm):
        hand_over(server, vmm)
        forked = [pid for pid in procfs.pids() if (stat := procfs.stat(pid)) and stat.ppid == vmm.tgid]
        try:
            assert len(forked) == 1
            assert servers.find_audio(vmm.tgid) == [server.tgid]
        finally:
            for pid in forked:
                os.kill(pid, signal.SIGKILL)


def test_a_server_found_for_a_vmm_that_has_gone_meanwhile_is_not_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eventfd ids are reused: what a VMM held when it was read may be another run's by now."""
    with children(SERVER, VMM) as (server, vmm), target.pin(vmm.tgid) as pinned:
        hand_over(server, vmm)
        assert servers.share_eventfds(vmm.tgid, server.tgid)
        monkeypatch.setattr(servers, "find_servers", lambda _vmms: {vmm.tgid: [server.tgid]})
        vmm.process.kill()
        vmm.process.wait()
        assert not servers.share_eventfds(vmm.tgid, server.tgid)
        # Neither maps nor names: whoever attaches to anything here fails.
        attached = Attached({vmm.tgid: pinned}, None, None, this_machine(), "")  # type: ignore[arg-type]
        attached.find_audio(None, (vmm.tgid,))
        assert list(attached.pinned) == [vmm.tgid]


def test_a_process_without_eventfds_has_no_audio_server() -> None:
    with children("") as (child,):
        assert servers.find_audio(child.ready().tgid) == []
    assert servers.find_audio(NO_PROCESS) == []


def test_a_vmm_is_listed_with_the_streams_it_waits_for() -> None:
    with children(SERVER, VMM) as (server, vmm):
        hand_over(server, vmm)
        (found,) = [item for item in servers.list_vmms() if item.tgid == vmm.tgid]
        assert (found.contexts, found.why, found.audio) == (1, ("threads", "audio"), (server.tgid,))
        shared = set(procfs.eventfd_ids(server.tgid).values()) & set(procfs.eventfd_ids(vmm.tgid).values())
        assert [stream.server_tgid for stream in found.streams] == [server.tgid]
        assert found.streams[0].eventfd_id in shared
        assert server.tgid not in [item.tgid for item in servers.list_vmms()]
