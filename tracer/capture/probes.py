# SPDX-License-Identifier: Apache-2.0
"""Compile, load and attach the probes: the only importer of bcc.

Owns the one BPF object and its maps' file descriptors. Configuration goes in
as -D macros from one dataclass. Never reads records (ring.py) and never
decides what to trace (session.py).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tracer.capture import bpfsys, btf
from tracer.capture.machine import this_machine
from tracer.errors import HostError
from tracer.resources import probes_dir

# The order in which the sources become one text: BCC rewrites map calls in the main text only.
SOURCES = ("common.bpf.c", "syscalls.bpf.c", "sched.bpf.c", "lifecycle.bpf.c")
HEADERS = ("config.h", "event.h", "maps.bpf.h")

# In the order of attaching: exits before entries, so that no depth or span is left open by half.
TRACEPOINTS = (
    ("hrtimer_expire_exit", "xd_hrtimer_exit"),
    ("softirq_exit", "xd_softirq_exit"),
    ("irq_handler_exit", "xd_hardirq_exit"),
    ("hrtimer_expire_entry", "xd_hrtimer_enter"),
    ("softirq_entry", "xd_softirq_enter"),
    ("irq_handler_entry", "xd_hardirq_enter"),
    ("sched_process_exit", "xd_process_exit"),
    ("sched_process_exec", "xd_process_exec"),
    ("task_newtask", "xd_task_newtask"),
    ("task_rename", "xd_task_rename"),
    ("sched_waking", "xd_sched_waking"),
    ("sched_switch", "xd_sched_switch"),
    ("sys_exit", "xd_sys_exit"),
    ("sys_enter", "xd_sys_enter"),
)


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """What the probes are compiled with (probes/config.h has the reasons).

    Attributes:
        ring_bytes: a power of two, at least a page.
        held_words: watched words per target, 0 to 16.
        wait_stack_ns: futex waits from this on carry their caller's address.
        min_other_ns: other syscalls from this on get a record.
        use_btf: False leaves out eventfd ids, as on a kernel whose BTF lacks the structures.
        kernel_headers: a directory to take headers from instead of our own, "" for ours.
    """

    ring_bytes: int = 8 << 20
    held_words: int = 4
    wait_stack_ns: int = 20_000
    min_other_ns: int = 10_000
    use_btf: bool = True
    kernel_headers: str = ""


@dataclass(slots=True)
class LoadTimes:
    """Seconds that the parts of loading took."""

    import_bcc: float = 0.0
    btf: float = 0.0
    compile: float = 0.0
    load: float = 0.0
    attach: float = 0.0


def source_text(directory: Path) -> str:
    """All sources as one text, each part announced to the compiler by its own name and lines."""
    parts = [
        f'#line 1 "{name}"\n{(directory / name).read_text(encoding="utf-8")}' for name in (*HEADERS, *SOURCES)
    ]
    return "\n".join(parts)


def bcc_package() -> str:
    """The distribution's package that brings bcc, from /etc/os-release."""
    names = ""
    with contextlib.suppress(OSError):
        text = Path("/etc/os-release").read_text(encoding="utf-8")
        fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        names = f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".replace('"', "")
    for family, package in (
        (("debian", "ubuntu"), "apt install python3-bpfcc"),
        (("fedora", "rhel", "centos"), "dnf install python3-bcc"),
        (("arch",), "pacman -S python-bcc"),
        (("suse", "opensuse"), "zypper install python3-bcc"),
        (("alpine",), "apk add py3-bcc"),
    ):
        if any(name in family for name in names.split()):
            return package
    return "install your distribution's bcc for python3 (python3-bpfcc, python3-bcc or python-bcc)"


@contextlib.contextmanager
def _stderr_taken() -> Iterator[list[str]]:
    """Take what clang and libbpf write to fd 2: it belongs into the error, not onto the screen."""
    said: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            said.extend(file.read().decode(errors="replace").splitlines())


def _require_privilege() -> None:
    """CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN. Raises HostError."""
    effective = 0
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    sys_admin, perfmon, bpf = (bool(effective >> bit & 1) for bit in (21, 38, 39))
    if sys_admin or (perfmon and bpf):
        return
    raise HostError(
        "tracing needs root (or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE)",
        "run it with sudo: sudo xdtrace attach PID",
    )


def _import_bcc() -> Any:
    try:
        import bcc  # lazily: everything but live capture works without it
    except ImportError as error:
        raise HostError(f"bcc is missing ({error})", bcc_package()) from error
    if not hasattr(bcc, "BPF"):
        raise HostError(
            f"the module named bcc in {getattr(bcc, '__file__', '?')} is not the BPF compiler collection",
            f"pip uninstall bcc; then {bcc_package()}",
        )
    return bcc


class Probes:
    """The loaded and attached BPF object. Use as a context manager, or call close().

    Raises HostError with a hint where the host cannot run them.
    """

    def __init__(self, config: ProbeConfig) -> None:
        if config.ring_bytes & (config.ring_bytes - 1) or config.ring_bytes < mmap.PAGESIZE:
            raise HostError(f"a ring of {config.ring_bytes} bytes", "use a power of two of at least a page")
        if not 0 <= config.held_words <= 16:
            raise HostError(f"{config.held_words} watched words", "use 0 to 16")
        _require_privilege()
        self.config = config
        self.times = LoadTimes()
        self._links: list[int] = []
        self._bpf: Any = None
        start = time.perf_counter()
        # libbpf before bcc: both carry a libbpf, and the first loaded one answers for its symbols.
        self.offsets = btf.load()
        if not self.offsets.have_task:
            raise HostError(
                f"this kernel's structures are unknown: {self.offsets.note}",
                "use a kernel with CONFIG_DEBUG_INFO_BTF=y and install libbpf1",
            )
        self.times.btf = time.perf_counter() - start
        start = time.perf_counter()
        bcc = _import_bcc()
        self.bcc_version = str(getattr(bcc, "__version__", ""))
        self.times.import_bcc = time.perf_counter() - start
        try:
            self._load(bcc)
        except BaseException:
            self.close()
            raise

    @property
    def have_files(self) -> bool:
        """Whether records carry eventfd ids."""
        return self.offsets.have_files and self.config.use_btf

    def _macros(self) -> dict[str, int]:
        return {
            **this_machine().macros,
            **self.offsets.macros,
            "PAGE_SIZE": mmap.PAGESIZE,
            "XD_RING_PAGES": self.config.ring_bytes // mmap.PAGESIZE,
            "XD_HELD_WORDS": self.config.held_words,
            "XD_WAIT_STACK_NS": self.config.wait_stack_ns,
            "XD_MIN_OTHER_NS": self.config.min_other_ns,
            "XD_HAVE_FILES": int(self.have_files),
            "XD_HAVE_STEAL": int(self.offsets.have_steal),
            "XD_SWITCH_HAS_STATE": int(self.offsets.switch_has_state),
        }

    def _load(self, bcc: Any) -> None:
        directory = probes_dir()
        start = time.perf_counter()
        os.environ["BCC_KERNEL_SOURCE"] = self.config.kernel_headers or str(directory)
        # No debug information and little unrolling: a quarter of the compile time, nothing of the result.
        flags = ["-g0", "-Os", *(f"-D{name}={value}" for name, value in self._macros().items())]
        working_directory = os.getcwd()
        with _stderr_taken() as said:
            try:
                self._bpf = bcc.BPF(text=source_text(directory).encode(), cflags=flags)
            except Exception as error:
                failure: Exception | None = error
            else:
                failure = None
            os.chdir(working_directory)
        if failure is not None:
            raise HostError(
                f"the probes do not compile with bcc {self.bcc_version}: {_first_error(said) or failure}",
                "run `xdtrace doctor`, and report it with its output",
            ) from failure
        self.times.compile = time.perf_counter() - start
        start = time.perf_counter()
        programs = []
        for tracepoint, function in TRACEPOINTS:
            with _stderr_taken() as said:
                try:
                    programs.append(
                        (tracepoint, self._bpf.load_func(function.encode(), bcc.BPF.RAW_TRACEPOINT))
                    )
                except Exception as error:
                    failure = error
            if failure is not None:
                raise HostError(
                    f"the kernel refuses the probe {function}: {said[-1] if said else failure}",
                    "run `xdtrace doctor`: it names the setting or the kernel version that is missing",
                ) from failure
        self.program_fds = {function.name.decode(): function.fd for _tracepoint, function in programs}
        self.times.load = time.perf_counter() - start
        start = time.perf_counter()
        self.maps = {
            name: int(self._bpf[name.encode()].map_fd)
            for name in ("xd_targets", "xd_threads", "xd_cpus", "xd_learnt", "xd_ring", "xd_filter")
        }
        for tracepoint, program in programs:
            try:
                self._links.append(bpfsys.raw_tracepoint_open(tracepoint, program.fd))
            except OSError as error:
                raise HostError(
                    f"cannot attach to the tracepoint {tracepoint}: {error.strerror}",
                    "the kernel needs CONFIG_BPF_EVENTS and this tracepoint; see `xdtrace doctor`",
                ) from error
        self.times.attach = time.perf_counter() - start

    def verified_instructions(self) -> dict[str, int]:
        """Instructions that the verifier walked, by program (kernel 5.16 or newer, else empty)."""
        found = {}
        for name, fd in self.program_fds.items():
            info = bpfsys.fdinfo(fd)
            if "verified_insns" in info:
                found[name] = int(info["verified_insns"])
        return found

    def detach(self) -> None:
        """End tracing; maps and what is in the ring stay until close(). Idempotent."""
        for link in self._links:
            os.close(link)
        self._links = []

    def close(self) -> None:
        """Detach and free everything. Idempotent."""
        self.detach()
        if self._bpf is not None:
            self._bpf.cleanup()
            self._bpf = None

    def __enter__(self) -> Probes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _first_error(said: list[str]) -> str:
    return next((line for line in said if "error:" in line), "")
