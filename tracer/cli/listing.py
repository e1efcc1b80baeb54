# SPDX-License-Identifier: Apache-2.0

"""``xdtrace list``: VMMs found on this host and their audio streams. Wiring only."""

from __future__ import annotations

import sys
from typing import Any


def find() -> Any:
    """The VMMs of this host."""
    from tracer.capture.servers import list_vmms as found

    return found()


def list_vmms() -> None:
    """Show the VMMs found on this host, and their audio streams."""
    from tracer.views.text import console_for, write_block
    from tracer.views.vmms import render_vmms

    write_block(console_for(sys.stdout), render_vmms(find()))
