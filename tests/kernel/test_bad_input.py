# SPDX-License-Identifier: Apache-2.0
"""What goes wrong for users of ``xdtrace attach``: one line what, one line what to do, the exit code.

Each case is the real command under the real circumstance, or under the smallest stand-in where this host
cannot be brought into it. Lockdown "confidentiality" could not be left again: seccomp refuses bpf(2) with the
same error.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from commandline import COMMAND, Outcome, environment, xdtrace

from tracer.capture import procfs
from tracer.cli import main

pytestmark = pytest.mark.usefixtures("live_host")

USAGE, TARGET, HOST = 2, 3, 4
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
#: A child without a lock, an eventfd or a thread beside its first.
WAIT = "print('ready', flush=True); import sys; sys.stdin.read()"
#: Refuses bpf(2) (number argv[1]) with EPERM by a seccomp filter, then becomes the rest of argv.
SECCOMP = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
program = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (6, 0, 0, 0x00050001), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""
#: Becomes argv in a user namespace of its own, as root in it. The kernel makes none in a chroot,
#: which is left by ".." from above a root further down, and entered again.
IN_USER_NAMESPACE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
here = os.open("/", os.O_RDONLY)
os.chroot("/proc")
os.fchdir(here)
for _ in range(64):
    os.chdir("..")
os.chroot(".")
assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())
for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
    with open("/proc/self/" + name, "w") as file:
        file.write(text)
os.fchdir(here)
os.chroot(".")
os.execvp(sys.argv[1], sys.argv[1:])
"""
#: The tests' own Python sees the system's bcc, and where it does not that is what to mend.
IN_VENV = sys.prefix != sys.base_prefix
BPF_NUMBER = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
#: Two threads on one mutex of Python's (a futex), named like an attack on a terminal.
HOSTILE_NAMES = r"""
import ctypes, sys, threading, time
libc = ctypes.CDLL(None)
libc.pthread_mutex_lock.argtypes = libc.pthread_mutex_unlock.argtypes = [ctypes.c_void_p]
word = ctypes.create_string_buffer(64)
def run(name):
    libc.prctl(15, name, 0, 0, 0)
    while True:
        libc.pthread_mutex_lock(word)
        time.sleep(0.001)
        libc.pthread_mutex_unlock(word)
for name in (b"\x1b[31m[red]\x07", b"\x1b]0;title\x07"):
    threading.Thread(target=run, args=(name,), daemon=True).start()
libc.prctl(15, b"\x1b[2J[bold]x", 0, 0, 0)
print("ready", flush=True)
sys.stdin.read()
"""

Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python child (behind other commands) that says "ready"; its pid as seen from here."""
    children: list[subprocess.Popen[str]] = []

    def run(source: str = WAIT, before: Sequence[str] = ()) -> int:
        child = subprocess.Popen(
            [*before, sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        children.append(child)
        assert child.stdout and child.stdout.readline() == "ready\n"
        below = [pid for pid in procfs.pids() if (found := procfs.stat(pid)) and found.ppid == child.pid]
        return below[0] if below else child.pid

    yield run
    for child in children:
        assert child.stdin and child.stdout
        with closing(child.stdin), closing(child.stdout):
            pass
        child.kill()
        child.wait(10)


def complains(outcome: Outcome, code: int, what: str, do: str) -> None:
    """One line what, one line what to do, nothing else, and the exit code."""
    assert outcome.code == code, outcome
    first, second = outcome.err.splitlines()
    assert first.startswith("xdtrace: ") and what in first, first
    assert second.startswith("  ") and do in second, second
    assert outcome.out == ""


def traces(outcome: Outcome) -> None:
    """It did its work, and says what it has not seen."""
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert "no audio stream seen" in outcome.out
    assert "Traceback" not in outcome.out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "no PID"),
        (("1", "--all"), "--all"),
        (("me",), "'PID'"),
        (("0",), "no process id"),
        (("1", "--period", "a lot"), "a lot"),
        (("1", "--held-words", "99"), "99"),
        (("1", "--lock", "item_state"), "item_state"),
        (("1", "--audio", "2", "--no-audio"), "--no-audio"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(words: Sequence[str], what: str) -> None:
    outcome = xdtrace("attach", *words)
    assert outcome.code == USAGE
    first, second = outcome.err.splitlines()
    assert what in first and second.startswith("  ")


def test_a_profile_that_is_not_there(start: Start) -> None:
    outcome = xdtrace("attach", str(start()), "--profile", "nowhere.toml")
    complains(outcome, USAGE, "nowhere.toml", "")


def test_a_pid_that_is_not_there() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait(10)
    complains(xdtrace("attach", str(gone.pid)), TARGET, f"no process {gone.pid}", "xdtrace list")


def test_a_zombie_has_exited() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        complains(xdtrace("attach", str(child.pid)), TARGET, "has exited", "start it again")


def test_a_kernel_thread() -> None:
    complains(xdtrace("attach", "2"), TARGET, "kernel thread", "give a process's pid")


def test_xdtrace_itself() -> None:
    shell = ("sh", "-c", 'exec "$@" $$', "sh")
    complains(xdtrace("attach", before=shell), TARGET, "is xdtrace itself", "the VMM's pid")


def test_an_audio_server_that_is_not_there(start: Start) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait(10)
    outcome = xdtrace("attach", str(start()), "--audio", str(gone.pid))
    complains(outcome, TARGET, f"no process {gone.pid}", "")


def test_a_process_that_exits_while_it_is_attached_to(start: Start) -> None:
    """It dies between being pinned and being traced."""
    target = start()
    fault = (
        "import os, sys, tracer.capture.maps as maps\n"
        "from tracer.cli.main import main\n"
        "learn, target = maps.Maps.learn, int(sys.argv[2])\n"
        "def dies(self):\n"
        "    fd = os.pidfd_open(target)\n"
        f"    os.kill(target, {int(signal.SIGKILL)})\n"
        "    __import__('select').select([fd], [], [])\n"
        "    return learn(self)\n"
        "maps.Maps.learn = dies\n"
        "main()\n"
    )
    outcome = xdtrace("attach", str(target), command=(sys.executable, "-c", fault))
    complains(outcome, TARGET, "has exited", "start it again")


def test_no_root(start: Start) -> None:
    """Neither capabilities nor the right to look at a process that has them."""
    theirs, own = start(), start(before=WITHOUT_CAPABILITIES)
    outcome = xdtrace("attach", str(own), before=WITHOUT_CAPABILITIES)
    complains(outcome, HOST, "needs root", "sudo xdtrace attach")
    outcome = xdtrace("attach", str(theirs), before=WITHOUT_CAPABILITIES)
    complains(outcome, TARGET, "may not be inspected", "CAP_SYS_PTRACE")


def test_no_bcc(start: Start) -> None:
    without = "import sys; sys.modules['bcc'] = None; from tracer.cli.main import main; main()"
    outcome = xdtrace("attach", str(start()), command=(sys.executable, "-c", without))
    complains(outcome, HOST, "bcc is missing", "--system-site-packages" if IN_VENV else "install")


def test_another_module_of_the_name_bcc(start: Start, tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("")
    outcome = xdtrace("attach", str(start()), env=environment(PYTHONPATH=str(tmp_path)))
    complains(outcome, HOST, "not the BPF compiler collection", "pip uninstall bcc")


@pytest.mark.parametrize("kept", [True, False], ids=["compiled before", "never compiled"])
def test_no_bpf(start: Start, kept: bool) -> None:
    cache = Path(pwd.getpwuid(os.geteuid()).pw_dir, ".cache")
    cache.mkdir(exist_ok=True)
    empty = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{cache}" && exec "$@"', "sh")
    before = (*(() if kept else empty), sys.executable, "-c", SECCOMP, str(BPF_NUMBER))
    outcome = xdtrace("attach", str(start()), before=before)
    complains(outcome, HOST, "kernel refuses", "xdtrace doctor")
    doctor = xdtrace("doctor", before=before)
    assert "seccomp" in doctor.out and "Traceback" not in doctor.err


def test_no_btf_traces_all_the_same_and_says_what_is_unseen(start: Start) -> None:
    hidden = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh")
    outcome = xdtrace("attach", str(start()), "--duration", "1.5", before=hidden)
    traces(outcome)
    assert "no eventfd ids in the kernel" in outcome.out and "no BTF" in outcome.out


def test_no_tracefs_is_no_matter_and_none_is_left_mounted(start: Start) -> None:
    bare = 'while umount -l /sys/kernel/tracing; do :; done 2>/dev/null; cp /proc/self/mounts "$0"; "$@"; '
    bare += 'code=$?; cmp "$0" /proc/self/mounts && exit $code'
    mounts = f"/tmp/xdtrace-mounts-{os.getpid()}"
    try:
        outcome = xdtrace(
            "attach",
            str(start()),
            "--duration",
            "1.5",
            before=("unshare", "--mount", "sh", "-c", bare, mounts),
        )
        traces(outcome)
        places = {line.split()[1] for line in Path(mounts).read_text().splitlines()}
        assert "/proc" in places and "/sys/kernel/tracing" not in places
    finally:
        Path(mounts).unlink(missing_ok=True)


def test_a_target_without_locks_and_eventfds(start: Start) -> None:
    outcome = xdtrace("attach", str(start()), "--duration", "1.5")
    traces(outcome)
    assert "no thread waited for a lock" in outcome.out
    assert "0 misses" not in outcome.out and "0 of 0" not in outcome.out


@pytest.mark.parametrize("width", ["60", "140"])
def test_names_of_threads_can_neither_move_the_cursor_nor_paint(start: Start, width: str) -> None:
    outcome = xdtrace("attach", str(start(HOSTILE_NAMES)), "--duration", "2", env=environment(COLUMNS=width))
    traces(outcome)
    assert not [char for char in outcome.out if ord(char) < 32 and char != "\n"]
    assert r"\x1b[2J[bold]" in outcome.out, "of the process"
    assert r"\x1b[31m[" in outcome.out or r"\x1b]0;" in outcome.out, "of a thread, in the tables"


@pytest.mark.parametrize(
    ("namespace", "before"),
    [
        ("pid", ("unshare", "--pid", "--fork")),
        ("mnt", ("unshare", "--mount")),
        ("user", (sys.executable, "-c", IN_USER_NAMESPACE)),
    ],
)
def test_a_target_in_a_namespace_of_its_own(start: Start, namespace: str, before: Sequence[str]) -> None:
    target = start(before=before)
    assert os.readlink(f"/proc/{target}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")
    traces(xdtrace("attach", str(target), "--duration", "1.5"))


def test_the_command_is_the_one_that_users_get() -> None:
    """These tests start a module; the console script is the same function."""
    assert COMMAND[2] == main.__name__
