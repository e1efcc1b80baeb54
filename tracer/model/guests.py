# SPDX-License-Identifier: Apache-2.0
"""Guests whose vCPUs run in another process than the devices: crosvm's sandbox, vhost-user backends.

Owns the finding that such a process is not traced. Who kicks whom is known from roles.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.summary import Finding

#: Kicks from outside before it is told.
_MANY: Final = 32


def findings(registry: Registry, roles: Roles) -> Iterator[Finding]:
    """One for each VMM whose G is woken, mostly, by the threads of a process that is not traced."""
    for tgid, votes in sorted(roles.kicked_from.items()):
        process = roles.guest_process(tgid)
        if process == tgid or process in registry.targets or votes[process] < _MANY:
            continue
        name = registry.comm(process)
        yield Finding(
            f"the guest of pid {tgid} runs in another process, {process} ({name}), which is not traced",
            f"its threads woke {registry.comm(roles.gpu_worker(tgid))!r} {votes[process]} times; "
            "when they kick while that is busy, or have no CPU, is not seen: head of line and a late guest "
            "are then mixed",
            f"trace it as well: xdtrace attach {tgid} {process}",
        )
