# SPDX-License-Identifier: Apache-2.0

"""``xdtrace doctor``: what is missing here and how to get it. Wiring only."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from tracer.errors import HostError


def run_checks(pid: int | None) -> Any:
    """The checks of this host and, with a pid, of that target."""
    from tracer.capture.doctor import host_checks
    from tracer.capture.doctor_target import target_checks

    return [*host_checks(), *(target_checks(pid) if pid is not None else ())]


def doctor(
    pid: Annotated[
        int | None, typer.Argument(metavar="[PID]", help="Check this target too.", show_default=False)
    ] = None,
) -> None:
    """Say what is missing on this host, each line with its fix; exit code 4 if anything is."""
    from tracer.views.text import console_for, write_block
    from tracer.views.vmms import render_checks

    rows = run_checks(pid)
    write_block(console_for(sys.stdout), render_checks(rows))
    if not all(row.ok for row in rows):
        raise typer.Exit(HostError.exit_code)
