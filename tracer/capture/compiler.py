# SPDX-License-Identifier: Apache-2.0
"""The probes' sources made into instructions: the only importer of bcc.

bcc is the compiler and nothing else: what it made is taken apart and kept for
the next start (bytecode.py). Never loads anything (probes.py does).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer.capture import bytecode
from tracer.capture.forms import TRACEPOINTS, Form
from tracer.errors import HostError
from tracer.resources import probes_dir

# The order in which the sources become one text: BCC rewrites map calls in the main text only.
SOURCES = (
    "memory.bpf.c",
    "common.bpf.c",
    "files.bpf.c",
    "arguments.bpf.c",
    "results.bpf.c",
    "messages.bpf.c",
    "syscalls.bpf.c",
    "interrupts.bpf.c",
    "sched.bpf.c",
    "lifecycle.bpf.c",
)
HEADERS = ("config.h", "event.h", "maps.bpf.h")
MAPS = ("xd_targets", "xd_filter", "xd_threads", "xd_cpus", "xd_learnt", "xd_ring")


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


def bcc_fix() -> str:
    """What to do where Python sees no bcc: its package, or a virtual environment that sees the system's."""
    if sys.prefix != sys.base_prefix and any(Path("/usr").glob("lib*/python3*/*-packages/bcc/__init__.py")):
        return "make the virtual environment with --system-site-packages (so does pipx): the system has bcc"
    return bcc_package()


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


def _import_bcc() -> Any:
    try:
        import bcc  # lazily: everything but live capture works without it
    except ImportError as error:
        raise HostError(f"bcc is missing ({error})", bcc_fix()) from error
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


@dataclass(slots=True)
class Compiler:
    """Makes a form's object, or takes the one that is kept.

    Args:
        kernel_headers: a directory to take headers from instead of our own, "" for ours.
        cache: whether compiled probes are kept and kept ones used; a folder, or True: the user's.

    Attributes:
        version: bcc's, "" where it cannot be told.
        cache_s, compile_s: seconds that these took so far.
    """

    kernel_headers: str = ""
    cache: bool | str = True
    version: str = ""
    cache_s: float = 0.0
    compile_s: float = 0.0

    def __post_init__(self) -> None:
        self.version = _bcc_version()

    def made(self, form: Form, macros: dict[str, int]) -> bytecode.Compiled:
        """The object: kept from an earlier start, or compiled now and kept for the next.

        Args:
            macros: beside those of the form.

        Raises:
            HostError: bcc is missing, or the compiler refuses.
        """
        text = source_text(probes_dir()).encode()
        # No debug information and little unrolling: a quarter of the compile time, nothing of the result.
        values = {**macros, **form.macros}
        flags = ["-g0", "-Os", *(f"-D{name}={value}" for name, value in values.items())]
        start = time.perf_counter()
        # Headers of somebody else may change without a sign.
        use_cache = bool(self.cache and self.version and not self.kernel_headers)
        cache = bytecode.Cache(self.cache if isinstance(self.cache, str) else None)
        uname = os.uname()
        marks = [f"{mark:#x}={btf_id}" for mark, btf_id in form.marks.items()]
        made_of = [text.decode(), *flags, *marks, uname.release, uname.version, uname.machine, self.version]
        key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
        compiled = cache.get(key) if use_cache else None
        self.cache_s += time.perf_counter() - start
        if compiled is None or compiled.programs.keys() != {function for _, function in TRACEPOINTS}:
            start = time.perf_counter()
            try:
                compiled = self._compile(text, flags, form)
            finally:
                self.compile_s += time.perf_counter() - start
            if use_cache:
                cache.put(key, compiled)
        return compiled

    def _compile(self, text: bytes, flags: list[str], form: Form) -> bytecode.Compiled:
        bcc = _import_bcc()
        self.version = str(getattr(bcc, "__version__", ""))
        os.environ["BCC_KERNEL_SOURCE"] = self.kernel_headers or str(probes_dir())
        working_directory = os.getcwd()
        failure: Exception | None = None
        compiled = None
        with _stderr_taken() as said:
            try:
                module = bcc.BPF(text=text, cflags=flags)
                fds = {name: int(module[name.encode()].map_fd) for name in MAPS}
                code = {
                    function: bytecode.marked(bytes(module.dump_func(function.encode())), form.marks)
                    for _, function in TRACEPOINTS
                }
                compiled = bytecode.taken_apart(fds, code)
                module.cleanup()
            except Exception as error:
                failure = error
            os.chdir(working_directory)
        if compiled is None:
            raise HostError(
                f"the probes do not compile with bcc {self.version}: {_first_error(said) or failure}",
                "run `xdtrace doctor`, and report it with its output",
            ) from failure
        return compiled


def _first_error(said: list[str]) -> str:
    return next((line for line in said if "error:" in line), "")
