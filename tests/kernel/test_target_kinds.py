# SPDX-License-Identifier: Apache-2.0
"""Targets that only root can arrange: kernel threads, namespaces, somebody else's processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tracer.capture import procfs, target
from tracer.errors import TargetError

NOBODY = 65534
READY = "print('ready', flush=True); input()"


def test_a_kernel_thread_is_refused() -> None:
    kernel = [pid for pid in procfs.pids() if (found := procfs.stat(pid)) and found.kernel_thread]
    with pytest.raises(TargetError, match="is a kernel thread"):
        target.pin(kernel[0])


def test_a_target_in_a_pid_namespace_of_its_own_is_pinned_by_the_pid_seen_here() -> None:
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", READY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        (inner,) = [pid for pid in procfs.pids() if (s := procfs.stat(pid)) and s.ppid == process.pid]
        with target.pin(inner) as pinned:
            assert (pinned.tgid, pinned.ns_tgid) == (inner, 1)
            assert "pid namespace" in pinned.notes[0]
        process.stdin.close()


def test_somebody_else_s_process_is_refused_with_sudo_as_the_remedy() -> None:
    """A child gives up root and tries to pin this process, whose fds it may not list."""
    victim, (reader, writer) = os.getpid(), os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"pinned"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            target.pin(victim)
        except TargetError as error:
            answer = f"{error.message}: {error.hint}".encode()
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        assert stream.read() == f"process {victim} may not be inspected by you: run xdtrace with sudo"
    os.waitpid(child, 0)
