# SPDX-License-Identifier: Apache-2.0
"""Compile, load and attach the probes: the only importer of bcc.

Owns the one BPF object and its maps' file descriptors. Configuration goes in
as -D macros from one dataclass. bcc is the compiler and nothing else: what it
made is taken apart, kept for the next start (bytecode.py) and loaded by
bpf(2), the same way whether it was just made or kept. Never reads records
(ring.py) and never decides what to trace (session.py).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import mmap
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tracer.capture import bpfsys, btf, bytecode
from tracer.capture.machine import this_machine
from tracer.errors import HostError
from tracer.resources import probes_dir

# The order in which the sources become one text: BCC rewrites map calls in the main text only.
SOURCES = ("common.bpf.c", "syscalls.bpf.c", "sched.bpf.c", "lifecycle.bpf.c")
HEADERS = ("config.h", "event.h", "maps.bpf.h")
MAPS = ("xd_targets", "xd_filter", "xd_threads", "xd_cpus", "xd_learnt", "xd_ring")

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
    ("sched_wakeup", "xd_sched_wakeup"),
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
        use_btf: False as on a kernel without BTF.
        kernel_headers: a directory to take headers from instead of our own, "" for ours.
        cache: whether compiled probes are kept and kept ones used; a folder, or True: the user's.
    """

    ring_bytes: int = 16 << 20
    held_words: int = 4
    wait_stack_ns: int = 20_000
    min_other_ns: int = 10_000
    use_btf: bool = True
    kernel_headers: str = ""
    cache: bool | str = True


@dataclass(slots=True)
class LoadTimes:
    """Seconds that the parts of loading took; ``compile`` includes bcc's import, 0: kept ones were used."""

    btf: float = 0.0
    cache: float = 0.0
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


def _bcc_version() -> str:
    """bcc's version without its import, which brings a compiler into memory; "" where it cannot be told."""
    try:
        spec = importlib.util.find_spec("bcc")
    except ValueError:  # a module that was put there by hand
        return ""
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        with contextlib.suppress(OSError):
            text = (Path(folder) / "version.py").read_text(encoding="utf-8")
            if found := re.search(r"['\"]([^'\"]+)['\"]", text):
                return found[1]
    return ""


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
        self.maps: dict[str, int] = {}
        self.program_fds: dict[str, int] = {}
        self._links: list[int] = []
        start = time.perf_counter()
        # libbpf before bcc: both carry a libbpf, and the first loaded one answers for its symbols.
        self.offsets = btf.load() if config.use_btf else btf.Offsets(note="told not to use BTF")
        self.times.btf = time.perf_counter() - start
        self.bcc_version = _bcc_version()
        try:
            self._load(self._compiled())
            self._attach()
        except BaseException:
            self.close()
            raise

    @property
    def have_files(self) -> bool:
        """Whether records carry eventfd ids."""
        return self.offsets.have_files

    def _macros(self) -> dict[str, int]:
        return {
            **this_machine().macros,
            **self.offsets.macros,
            "PAGE_SIZE": mmap.PAGESIZE,
            # The compiler makes its maps, to no use: the ring's size is set when it is loaded.
            "XD_RING_PAGES": 1,
            "XD_HELD_WORDS": self.config.held_words,
            "XD_WAIT_STACK_NS": self.config.wait_stack_ns,
            "XD_MIN_OTHER_NS": self.config.min_other_ns,
            "XD_HAVE_TASK": int(self.offsets.have_task),
            "XD_HAVE_FILES": int(self.have_files),
            "XD_HAVE_STEAL": int(self.offsets.have_steal),
            "XD_SWITCH_HAS_STATE": int(self.offsets.switch_has_state),
        }

    def _compiled(self) -> bytecode.Compiled:
        """The object: kept from an earlier start, or compiled now and kept for the next."""
        text = source_text(probes_dir()).encode()
        # No debug information and little unrolling: a quarter of the compile time, nothing of the result.
        flags = ["-g0", "-Os", *(f"-D{name}={value}" for name, value in self._macros().items())]
        start = time.perf_counter()
        # Headers of somebody else may change without a sign.
        use_cache = bool(self.config.cache and self.bcc_version and not self.config.kernel_headers)
        cache = bytecode.Cache(self.config.cache if isinstance(self.config.cache, str) else None)
        uname = os.uname()
        made_of = [text.decode(), *flags, uname.release, uname.version, uname.machine, self.bcc_version]
        key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
        compiled = cache.get(key) if use_cache else None
        self.times.cache = time.perf_counter() - start
        if compiled is None or compiled.programs.keys() != {function for _, function in TRACEPOINTS}:
            start = time.perf_counter()
            compiled = self._compile(text, flags)
            self.times.compile = time.perf_counter() - start
            if use_cache:
                cache.put(key, compiled)
        return compiled

    def _compile(self, text: bytes, flags: list[str]) -> bytecode.Compiled:
        bcc = _import_bcc()
        self.bcc_version = str(getattr(bcc, "__version__", ""))
        os.environ["BCC_KERNEL_SOURCE"] = self.config.kernel_headers or str(probes_dir())
        working_directory = os.getcwd()
        failure: Exception | None = None
        compiled = None
        with _stderr_taken() as said:
            try:
                module = bcc.BPF(text=text, cflags=flags)
                fds = {name: int(module[name.encode()].map_fd) for name in MAPS}
                code = {function: bytes(module.dump_func(function.encode())) for _, function in TRACEPOINTS}
                compiled = bytecode.taken_apart(fds, code)
                module.cleanup()
            except Exception as error:
                failure = error
            os.chdir(working_directory)
        if compiled is None:
            raise HostError(
                f"the probes do not compile with bcc {self.bcc_version}: {_first_error(said) or failure}",
                "run `xdtrace doctor`, and report it with its output",
            ) from failure
        return compiled

    def _load(self, compiled: bytecode.Compiled) -> None:
        start = time.perf_counter()
        place = "the ring and maps"
        try:
            for spec in compiled.maps:
                entries = self.config.ring_bytes if spec.name == "xd_ring" else spec.entries
                self.maps[spec.name] = bpfsys.map_create(
                    spec.name, spec.type, spec.key_bytes, spec.value_bytes, entries, spec.flags
                )
            fds = dict(enumerate(self.maps.values()))
            for function, code in compiled.programs.items():
                place = f"the probe {function}"
                code = bytecode.relocated(code, fds)
                self.program_fds[function] = bpfsys.raw_tracepoint_load(function, code)
        except OSError as error:
            raise HostError(
                f"the kernel refuses {place}: {error.strerror}",
                "run `xdtrace doctor`: it names the setting or the kernel version that is missing",
            ) from error
        self.times.load = time.perf_counter() - start

    def _attach(self) -> None:
        start = time.perf_counter()
        for tracepoint, function in TRACEPOINTS:
            try:
                self._links.append(bpfsys.raw_tracepoint_open(tracepoint, self.program_fds[function]))
            except OSError as error:
                if (
                    tracepoint == "sched_switch"
                    and error.errno == errno.EINVAL
                    and not self.offsets.have_task
                ):
                    raise HostError(
                        f"this kernel's sched_switch does not pass the state, and {self.offsets.note}",
                        "use Linux 5.18 or newer, or one with CONFIG_DEBUG_INFO_BTF=y, and install libbpf1",
                    ) from error
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
        for fds in (self.program_fds, self.maps):
            for fd in fds.values():
                os.close(fd)
            fds.clear()

    def __enter__(self) -> Probes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _first_error(said: list[str]) -> str:
    return next((line for line in said if "error:" in line), "")
