# SPDX-License-Identifier: Apache-2.0
"""What a target shows, before anything is attached to it (the host: doctor.py).

Owns the checks; each that judges is a function of what was found. Loads no
probe, attaches nothing, changes nothing, and prints nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tracer import schema
from tracer.capture import procfs, servers, target
from tracer.capture.doctor import Check
from tracer.errors import XdtraceError
from tracer.symbols import elf

_AUDIO_COMMS = ("data-loop", "pipewire")


def target_checks(pid: int) -> list[Check]:
    """What a target shows: visibility, namespaces, symbols, threads, fds, audio server."""
    try:
        pinned = target.pin(pid)
    except XdtraceError as error:
        return [Check("target", False, error.message, error.hint)]
    with pinned:
        tgid = pinned.tgid
        fds = procfs.fds(tgid)
        threads = procfs.threads(tgid)
        return [
            Check("target", True, "; ".join((f"{tgid} ({pinned.comm}), {pinned.exe}", *pinned.notes))),
            check_namespaces(_namespaces(os.getpid()), _namespaces(tgid)),
            _symbols(pinned.exe_path),
            check_threads([thread.comm for thread in threads]),
            check_fds(fds),
            _audio(tgid),
        ]


def _namespaces(tgid: int) -> dict[str, str]:
    found = {}
    for name in ("mnt", "pid", "user"):
        try:
            found[name] = os.readlink(f"{procfs.PROC}/{tgid}/ns/{name}")
        except OSError:
            continue
    return found


def check_namespaces(own: dict[str, str], theirs: dict[str, str]) -> Check:
    """Judge the namespace links of xdtrace and of the target."""
    if not theirs:
        return Check("namespaces", False, "the target's namespaces cannot be read", "run it with sudo")
    other = [name for name in theirs if theirs[name] != own.get(name)]
    return Check(
        "namespaces", True, f"its own: {', '.join(other)} (handled)" if other else "the same as here"
    )


def _symbols(exe_path: str) -> Check:
    try:
        fd = os.open(exe_path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return Check("symbols", False, f"its program cannot be read ({error.strerror})", "run it with sudo")
    try:
        return check_symbols(elf.read(fd))
    except OSError as error:
        return Check("symbols", True, f"its program cannot be read ({error.strerror}); locks go by behaviour")
    finally:
        os.close(fd)


def check_symbols(program: elf.Elf | None) -> Check:
    """Judge an ELF file: debug info names inlined functions, a symbol table only the others."""
    if program is None:
        return Check("symbols", True, "no ELF program; locks go by behaviour")
    build_id = f" (build id {program.build_id[:16]})" if program.build_id else ""
    if program.has_dwarf:
        return Check("symbols", True, f"debug info{build_id}")
    apart = ", or debug info apart from it" if program.debug_link else ""
    if program.has_symtab:
        return Check("symbols", True, f"symbol table only{apart}{build_id}; inlined functions stay unnamed")
    return Check(
        "symbols", True, f"stripped{apart}{build_id}; locks go by behaviour, which is enough for verdicts"
    )


def check_threads(comms: Sequence[str]) -> Check:
    """Judge thread names: those that libkrun gives are a hint, their absence no fault."""
    known = ("gpu worker", "cross domain", "fc_vcpu", *_AUDIO_COMMS)
    counts = {name: sum(comm.startswith(name) for comm in comms) for name in known}
    named = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return Check("threads", True, f"{len(comms)}: {named or 'none by a known name; roles go by behaviour'}")


def check_fds(fds: Sequence[schema.Fd]) -> Check:
    """Judge a target's fds: audio comes over eventfds; io_uring hides what goes through it."""
    rings = sum(fd.type == "io_uring" for fd in fds)
    eventfds = sum(fd.type == "eventfd" for fd in fds)
    what = f"{len(fds)}, {eventfds} of them eventfds"
    if not eventfds:
        what += ": no audio can be seen until it has some"
    if rings:
        what += f"; {rings} io_uring: what goes through them is invisible to xdtrace"
    return Check("fds", True, what)


def _audio(tgid: int) -> Check:
    found = servers.find_audio(tgid)
    names = [f"{server} ({stat.comm})" for server in found if (stat := procfs.stat(server))]
    if names:
        return Check("audio server", True, ", ".join(names))
    return Check("audio server", True, "none shares an eventfd with it now; periods would be inferred")
