# SPDX-License-Identifier: Apache-2.0
"""Load and attach the probes.

Owns the one BPF object, its maps' file descriptors and its attachments.
Configuration goes in as -D macros from one dataclass. Compiled ones are
loaded by bpf(2), the same way whether just made or kept. Never reads records
(ring.py) and never decides what to trace (session.py).
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tracer.capture import bpfsys, btf, bytecode
from tracer.capture.compiler import Compiler
from tracer.capture.forms import TRACEPOINTS, Form, forms
from tracer.capture.machine import this_machine
from tracer.errors import HostError

_RINGBUF = 27  # BPF_MAP_TYPE_RINGBUF, uapi/linux/bpf.h


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """What the probes are compiled with (probes/config.h has the reasons).

    Attributes:
        ring_bytes: a power of two, at least a page.
        held_words: watched words per target, 0 to 16.
        wait_stack_ns: futex waits from this on carry their caller's address.
        min_other_ns: other syscalls from this on get a record.
        use_btf: False as on a kernel without BTF.
        form: cast, direct or plain (forms.py); "": the cheapest that this kernel takes.
        kernel_headers: a directory to take headers from instead of our own, "" for ours.
        cache: whether compiled probes are kept and kept ones used; a folder, or True: the user's.
    """

    ring_bytes: int = 16 << 20
    held_words: int = 4
    wait_stack_ns: int = 20_000
    min_other_ns: int = 10_000
    use_btf: bool = True
    form: str = ""
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
        self.offsets = (
            btf.load(tracepoint for tracepoint, _ in TRACEPOINTS)
            if config.use_btf
            else btf.Offsets(note="told not to use BTF")
        )
        self.times.btf = time.perf_counter() - start
        self._compiler = Compiler(config.kernel_headers, config.cache)
        _check_bpf()
        try:
            self.form = self._first_that_works(forms(self.offsets, config.form))
        except BaseException:
            self.close()
            raise

    @property
    def bcc_version(self) -> str:
        """Of the compiler, "" where it cannot be told."""
        return self._compiler.version

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

    def _first_that_works(self, candidates: tuple[Form, ...]) -> Form:
        """Load and attach. A form that the kernel or the compiler refuses costs time, no fact."""
        for form in candidates:
            try:
                compiled = self._compiler.made(form, self._macros())
                self.times.cache, self.times.compile = self._compiler.cache_s, self._compiler.compile_s
                self._load(compiled, form)
                self._attach(form)
            except HostError:
                if form is candidates[-1]:
                    raise
                self.close()
            else:
                return form
        raise AssertionError("no form")

    def _load(self, compiled: bytecode.Compiled, form: Form) -> None:
        start = time.perf_counter()
        place = "the ring and maps"
        try:
            for spec in compiled.maps:
                entries = self.config.ring_bytes if spec.name == "xd_ring" else spec.entries
                self.maps[spec.name] = bpfsys.map_create(
                    spec.name, spec.type, spec.key_bytes, spec.value_bytes, entries, spec.flags
                )
            fds = dict(enumerate(self.maps.values()))
            for tracepoint, function in TRACEPOINTS:
                place = f"the probe {function}"
                code = bytecode.relocated(compiled.programs[function], fds)
                self.program_fds[function] = bpfsys.raw_tracepoint_load(
                    function, code, form.btf_ids.get(tracepoint, 0)
                )
        except OSError as error:
            raise _refused(place, error) from error
        self.times.load = time.perf_counter() - start

    def _attach(self, form: Form) -> None:
        start = time.perf_counter()
        for tracepoint, function in TRACEPOINTS:
            name = "" if form.btf_ids else tracepoint
            try:
                self._links.append(bpfsys.raw_tracepoint_open(name, self.program_fds[function]))
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


def _refused(what: str, error: OSError) -> HostError:
    return HostError(
        f"the kernel refuses {what}: {error.strerror}",
        "run `xdtrace doctor`: it names the setting or the kernel version that is missing",
    )


def _check_bpf() -> None:
    """Ask the kernel before the compiler, which makes maps too and would blame the probes' text."""
    try:
        os.close(bpfsys.map_create("xd_ring", _RINGBUF, 0, 0, mmap.PAGESIZE))
    except OSError as error:
        raise _refused("the ring and maps", error) from error
