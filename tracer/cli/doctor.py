# SPDX-License-Identifier: Apache-2.0

"""``xdtrace doctor``: what is missing here and how to get it. Wiring only."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from tracer.errors import HostError, TargetError


def run_checks(pid: int | None) -> tuple[list[Any], list[Any]]:
    """The checks of this host, and with a pid those of that target."""
    from tracer.capture.doctor import host_checks
    from tracer.capture.doctor_target import target_checks

    return list(host_checks()), list(target_checks(pid)) if pid is not None else []


def doctor(
    pid: Annotated[
        int | None, typer.Argument(metavar="[PID]", help="Check this target too.", show_default=False)
    ] = None,
) -> None:
    """Say what is missing on this host, each line with its fix.

    Exit code 4 if anything is missing here, 3 if only the target is amiss.
    """
    from tracer.views.text import console_for, write_block
    from tracer.views.vmms import render_checks

    here, target = run_checks(pid)
    write_block(console_for(sys.stdout), render_checks([*here, *target]))
    if not all(row.ok for row in here):
        raise typer.Exit(HostError.exit_code)
    if not all(row.ok for row in target):
        raise typer.Exit(TargetError.exit_code)
