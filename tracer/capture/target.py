# SPDX-License-Identifier: Apache-2.0
"""Which process is traced: pinning it.

Owns the identity of a target: a pidfd and a start time, so that a reused pid is
never traced by mistake. Never attaches anything and never follows children.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass, field
from types import TracebackType

from tracer import schema
from tracer.capture import procfs
from tracer.errors import HostError, TargetError

_SEE_LIST = "`xdtrace list` shows the VMMs on this host"


@dataclass(slots=True)
class PinnedTarget:
    """A process held by a pidfd, so that its pid cannot come to mean another one.

    Attributes:
        start_ns: when it started, CLOCK_BOOTTIME.
        exe: its program's path in its own mount namespace; open ``exe_path`` instead.
        ns_tgid: its pid in its own (innermost) pid namespace.
        notes: what the user should know, one sentence each.
    """

    tgid: int
    role: str
    comm: str
    exe: str
    start_ns: int
    ns_tgid: int
    notes: tuple[str, ...] = ()
    pidfd: int = field(default=-1, repr=False)

    @property
    def exe_path(self) -> str:
        """Where its program can be opened from here, whatever its mount namespace."""
        return f"{procfs.PROC}/{self.tgid}/exe"

    def alive(self) -> bool:
        """False once it has exited (also as a zombie) or was closed here."""
        return self.pidfd >= 0 and not _has_exited(self.pidfd)

    def describe(self, build_id: str = "", crate: str = "", version: str = "") -> schema.Target:
        """The same as it travels in a batch."""
        return schema.Target(
            tgid=self.tgid,
            role=self.role,
            comm=self.comm,
            exe=self.exe,
            build_id=build_id,
            start_ns=self.start_ns,
            crate=crate,
            version=version,
            alive=self.alive(),
            notes=self.notes,
        )

    def close(self) -> None:
        """Let go of the process; may be called twice."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def __enter__(self) -> PinnedTarget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pin(pid: int, role: str = "vmm") -> PinnedTarget:
    """Pin a process by pid; a thread's id stands for its process.

    Raises:
        TargetError: no such process, a kernel thread, xdtrace itself, exited, or not permitted.
        HostError: this system has no pidfd.
    """
    tgid, notes = _resolve(pid)
    pidfd = _open_pidfd(tgid)
    try:
        return _inspect(tgid, role, pidfd, notes)
    except BaseException:
        os.close(pidfd)
        raise


def _resolve(pid: int) -> tuple[int, tuple[str, ...]]:
    status = procfs.status(pid) if pid > 0 else {}
    if not status:
        raise _not_found(pid)
    tgid = int(status.get("Tgid", pid))
    if tgid == os.getpid():
        raise TargetError(f"{pid} is xdtrace itself", f"give the VMM's pid; {_SEE_LIST}")
    if tgid != pid:
        return tgid, (f"{pid} is a thread of {tgid}; tracing the whole process",)
    return tgid, ()


def _not_found(pid: int) -> TargetError:
    try:
        os.kill(pid, 0) if pid > 0 else None
    except PermissionError:
        return TargetError(f"process {pid} exists but is hidden from you", "run xdtrace with sudo")
    except (OSError, OverflowError):
        pass
    return TargetError(f"there is no process {pid} here", _SEE_LIST)


def _open_pidfd(tgid: int) -> int:
    try:
        return os.pidfd_open(tgid)
    except ProcessLookupError:
        raise exited(tgid) from None
    except OSError as error:
        raise HostError(
            f"pidfd_open is refused here ({error.strerror})",
            "Linux 5.8 or newer is needed; in a container, a seccomp profile that allows pidfd_open",
        ) from error


def exited(tgid: int) -> TargetError:
    """What to tell the user of a target that is gone."""
    return TargetError(f"process {tgid} has exited", f"start it again and attach to its new pid; {_SEE_LIST}")


def _has_exited(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _inspect(tgid: int, role: str, pidfd: int, notes: tuple[str, ...]) -> PinnedTarget:
    """Read what identifies it; what was read is its own if it still lives afterwards."""
    stat, status = procfs.stat(tgid), procfs.status(tgid)
    if stat is None or stat.state in "ZX" or _has_exited(pidfd):
        raise exited(tgid)
    if stat.kernel_thread:
        raise TargetError(
            f"{tgid} ({stat.comm}) is a kernel thread, no VMM", f"give a process's pid; {_SEE_LIST}"
        )
    exe = _exe(tgid, pidfd)
    ns_tgid = int((status.get("NSpid", "").split() or [str(tgid)])[-1])
    if ns_tgid != tgid:
        notes += (f"in a pid namespace of its own, where it is {ns_tgid}",)
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return PinnedTarget(tgid, role, stat.comm, exe, stat.start_ticks * tick_ns, ns_tgid, notes, pidfd)


def _exe(tgid: int, pidfd: int) -> str:
    try:
        os.listdir(f"{procfs.PROC}/{tgid}/fd")
        return procfs.text_of(os.fsencode(os.readlink(f"{procfs.PROC}/{tgid}/exe")))
    except PermissionError:
        hint = "run xdtrace with sudo"
        if os.geteuid() == 0:
            hint = "this root lacks CAP_SYS_PTRACE: use sudo on the host, outside of any container"
        raise TargetError(f"process {tgid} may not be inspected by you", hint) from None
    except OSError:
        raise exited(tgid) from None if _has_exited(pidfd) else _unreadable(tgid)


def _unreadable(tgid: int) -> TargetError:
    return TargetError(f"/proc/{tgid}/exe cannot be read", "mount /proc, and run xdtrace with sudo")
