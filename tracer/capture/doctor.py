# SPDX-License-Identifier: Apache-2.0
"""What this host lacks for tracing, and how to get it (a target: doctor_target.py).

Owns the checks. Each is a function of the text or number it judges, so that it
can be tried anywhere; ``host_checks`` gathers those from /proc and /sys. Loads no
probe, attaches nothing, changes nothing, and prints nothing.

``ok`` is False only where tracing would fail; what merely makes a verdict
poorer is said in ``what``.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tracer import resources
from tracer.capture import btf, procfs
from tracer.capture.compiler import bcc_fix, bcc_package
from tracer.errors import XdtraceError

_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF, _CAP_SYS_PTRACE = 21, 38, 39, 19  # uapi/linux/capability.h
_BPF_MAP_CREATE, _BPF_MAP_TYPE_RINGBUF = 0, 27  # uapi/linux/bpf.h
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_MIN_KERNEL = (5, 8)  # the BPF ring buffer
_MIN_WITHOUT_BTF = (5, 18)  # sched_switch passes prev_state
_MIN_BCC = (0, 18)
_WITHOUT_BTF = "eventfds are told by /proc, which misses short-lived fds; steal time is not seen"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        ok: False where tracing fails because of it.
        what: what was found, one line.
        fix: what to do, one line; "" where nothing need be done.
    """

    name: str
    ok: bool
    what: str
    fix: str = ""


def host_checks() -> list[Check]:
    """Everything but a target, the most common failure first."""
    status = procfs.status(os.getpid())
    return [
        check_privilege(int(status.get("CapEff", "0"), 16)),
        *_bcc(),
        check_python(sys.version_info[:2]),
        check_kernel(platform.release()),
        check_machine(platform.machine()),
        check_lockdown(procfs.read("/sys/kernel/security/lockdown")),
        check_bpf(_try_bpf(), status.get("Seccomp", "0")),
        check_btf(os.path.exists("/sys/kernel/btf/vmlinux"), platform.release()),
        *_offsets(),
        _sources(),
        check_perf(procfs.read("/proc/sys/kernel/perf_event_paranoid")),
        check_tracefs(procfs.read("/proc/self/mounts")),
        check_rt_throttling(procfs.read("/proc/sys/kernel/sched_rt_runtime_us")),
        Check("kernel headers, clang", True, "not needed: xdtrace brings its own headers, bcc its compiler"),
        check_memlock(platform.release()),
    ]


def check_privilege(effective: int) -> Check:
    """Judge the effective capabilities (CapEff)."""
    held = {bit for bit in range(64) if effective >> bit & 1}
    if _CAP_SYS_ADMIN in held or {_CAP_BPF, _CAP_PERFMON, _CAP_SYS_PTRACE} <= held:
        return Check("privilege", True, "may load BPF programs and inspect processes")
    return Check(
        "privilege", False, "this user may not load BPF programs", "run it with sudo: sudo xdtrace …"
    )


def _bcc() -> list[Check]:
    spec = importlib.util.find_spec("bcc")
    if spec is None or not spec.submodule_search_locations:
        return [check_bcc(None, False)]
    folder = Path(next(iter(spec.submodule_search_locations)))
    version = re.search(r"['\"]([0-9.]+)", procfs.read(str(folder / "version.py")))
    return [check_bcc(version[1] if version else "", (folder / "table.py").exists())]


def check_bcc(version: str | None, genuine: bool) -> Check:
    """Judge the module bcc: its version (None: there is none) and whether it is the BPF compiler."""
    if version is None:
        return Check("bcc", False, f"the Python of {sys.prefix} does not see it", bcc_fix())
    if not genuine:
        what = "a module of that name is there, but it is something else"
        return Check("bcc", False, what, bcc_package())
    if _numbers(version) < _MIN_BCC and version:
        return Check("bcc", False, f"{version} is older than 0.18", "update the distribution's bcc")
    return Check("bcc", True, version or "there, of an unknown version")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def check_python(version: Sequence[int]) -> Check:
    """Judge the interpreter's (major, minor)."""
    shown = f"{version[0]}.{version[1]}"
    if tuple(version) < (3, 11):
        return Check("python", False, f"{shown} is older than 3.11", "run it with the system's Python 3.11+")
    return Check("python", True, shown)


def check_kernel(release: str) -> Check:
    """Judge ``uname -r``."""
    if _numbers(release) < _MIN_KERNEL:
        return Check(
            "kernel", False, f"Linux {release} has no BPF ring buffer", "Linux 5.8 or newer is needed"
        )
    return Check("kernel", True, f"Linux {release}")


def check_machine(machine: str) -> Check:
    """Judge ``uname -m``."""
    if machine not in _SYS_BPF:
        known = " and ".join(_SYS_BPF)
        return Check(
            "machine", False, f"{machine}: its syscall numbers are not known", f"{known} are supported"
        )
    return Check("machine", True, machine)


def check_lockdown(text: str) -> Check:
    """Judge /sys/kernel/security/lockdown, "" where there is none."""
    found = re.search(r"\[(\w+)\]", text)
    mode = found[1] if found else "none"
    if mode == "confidentiality":
        fix = "boot with lockdown=integrity or without it (Secure Boot may force it)"
        return Check("lockdown", False, "confidentiality mode forbids BPF to read memory", fix)
    return Check("lockdown", True, mode)


def _try_bpf() -> int:
    """errno of creating (and dropping) the smallest ring buffer map, 0 where it works."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        return errno.ENOSYS
    attr = ctypes.create_string_buffer(struct.pack("=IIII", _BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 16), 128)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(ctypes.c_long(number), ctypes.c_int(_BPF_MAP_CREATE), attr, ctypes.c_uint(128))
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
    return 0


def check_bpf(error: int, seccomp: str) -> Check:
    """Judge the errno of a bpf() call, and the Seccomp mode of /proc/self/status."""
    if error == 0:
        return Check("bpf()", True, "a ring buffer map can be made")
    name = errno.errorcode.get(error, str(error))
    if seccomp != "0":
        fix = "allow bpf() in the container's seccomp profile, or run xdtrace on the host"
        return Check("bpf()", False, f"{name} under a seccomp filter", fix)
    if error in (errno.EPERM, errno.EACCES):
        return Check("bpf()", False, f"{name}: not permitted", "run it with sudo: sudo xdtrace …")
    return Check(
        "bpf()", False, f"{name}: this kernel refuses it", "a kernel with CONFIG_BPF_SYSCALL is needed"
    )


def check_btf(present: bool, release: str) -> Check:
    """Judge whether /sys/kernel/btf/vmlinux is there, and what ``uname -r`` allows without it."""
    if present:
        return Check("BTF", True, "/sys/kernel/btf/vmlinux")
    what = f"none: {_WITHOUT_BTF}"
    fix = "a kernel with CONFIG_DEBUG_INFO_BTF=y is needed (every current distribution's has it)"
    if _numbers(release) < _MIN_WITHOUT_BTF:
        return Check("BTF", False, f"none, and Linux {release} cannot be traced without", fix)
    return Check("BTF", True, what, fix)


def _offsets() -> list[Check]:
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        return []
    offsets = btf.load()
    return [check_offsets(offsets.have_task, offsets.have_files, offsets.have_steal, offsets.note)]


def check_offsets(task: bool, files: bool, steal: bool, note: str) -> Check:
    """Judge which kernel structures BTF explains: tracing goes without, and sees less."""
    if not task:
        return Check("structures", True, f"{note or 'unknown'}: {_WITHOUT_BTF}", "install libbpf (libbpf1)")
    poorer = [
        text
        for present, text in (
            (files, "eventfds are told by /proc instead of in the kernel"),
            (steal, "steal time is not seen"),
        )
        if not present
    ]
    return Check("structures", True, "; ".join(poorer) or "tasks, files and run queues are known")


def _sources() -> Check:
    try:
        return Check("probes", True, str(resources.probes_dir()))
    except XdtraceError as error:
        return Check("probes", False, error.message, error.hint)


def check_perf(text: str) -> Check:
    """Judge kernel.perf_event_paranoid; root passes whatever it says."""
    level = text.strip()
    return Check("perf_event_paranoid", True, f"{level or 'unknown'}; of no account to root")


def check_tracefs(mounts: str) -> Check:
    """Judge /proc/self/mounts: raw tracepoints need no tracefs."""
    there = any(line.split()[2:3] == ["tracefs"] for line in mounts.splitlines())
    return Check("tracefs", True, "mounted, not needed" if there else "not mounted, not needed")


def check_rt_throttling(text: str) -> Check:
    """Judge kernel.sched_rt_runtime_us: -1 is no throttling, else µs of each second."""
    value = text.strip()
    if value in ("", "-1"):
        return Check("real-time throttling", True, "off")
    return Check("real-time throttling", True, f"real-time threads get at most {value} of 1000000 us")


def check_memlock(release: str) -> Check:
    """Judge whether BPF maps count against RLIMIT_MEMLOCK (they do not since Linux 5.11)."""
    if _numbers(release) >= (5, 11):
        return Check("memlock", True, "not needed since Linux 5.11")
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    enough = soft == resource.RLIM_INFINITY or soft >= 128 << 20
    what = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 20} MiB"
    return Check("memlock", enough, what, "" if enough else "run: ulimit -l unlimited")
