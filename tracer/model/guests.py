# SPDX-License-Identifier: Apache-2.0
"""Guests whose vCPUs run in another process than the devices: crosvm's sandbox, vhost-user backends.

Owns which such processes are to be traced, and the finding that one is not. Who kicks whom is known
from roles.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.summary import Finding

#: Kicks from outside before it is told.
_MANY: Final = 32


def elsewhere(registry: Registry, roles: Roles) -> Iterator[tuple[int, int]]:
    """(VMM, process) where, mostly, threads of a process that is not traced wake the VMM's G."""
    for tgid, votes in sorted(roles.kicked_from.items()):
        process = roles.guest_process(tgid)
        if process != tgid and process not in registry.targets and votes[process] >= _MANY:
            yield tgid, process


def findings(registry: Registry, roles: Roles) -> Iterator[Finding]:
    """One for each such process, traced or not."""
    for process, tgid in sorted(registry.guests.items()):
        yield Finding(
            f"the guest of pid {tgid} runs in {process} ({registry.comm(process)}), which is traced too",
            f"its threads wake {registry.comm(roles.gpu_worker(tgid))!r}",
            "nothing: it joins by itself, and its threads and open files are in the trace",
            "info",
        )
    for tgid, process in elsewhere(registry, roles):
        votes = roles.kicked_from[tgid]
        name = registry.comm(process)
        yield Finding(
            f"the guest of pid {tgid} runs in another process, {process} ({name}), which is not traced",
            f"its threads woke {registry.comm(roles.gpu_worker(tgid))!r} {votes[process]} times; "
            "when they kick while that is busy, or have no CPU, is not seen: head of line and a late guest "
            "are then mixed",
            f"trace it as well: xdtrace attach {tgid} {process}",
        )
