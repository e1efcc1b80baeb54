# SPDX-License-Identifier: Apache-2.0
"""A trace cannot take more memory than is stated, whatever stands in it."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tracer.cli.bounded import LEAST_BYTES, bounded, limit_bytes
from tracer.cli.main import app
from tracer.errors import TraceError

_OF_A_TRACE = {"report", "bundle", "compare", "export", "glitches", "whatif"}

_GREEDY = """
import resource, sys
sys.path.insert(0, {root!r})
import tracer.cli.main as main
import tracer.cli.report as report
resource.setrlimit(resource.RLIMIT_DATA, (1 << 29, resource.RLIM_INFINITY))
def open_trace(path):
    kept = []
    while True:
        kept.append(bytearray(1 << 24))
report.open_trace = open_trace
sys.exit(main.run_command(["report", "a.xdt"]))
"""


def test_more_memory_than_the_limit_is_a_trace_error_in_two_lines() -> None:
    code = _GREEDY.format(root=str(Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        "xdtrace: what stands in the trace takes more than 0.5 GiB to analyse",
        "  if it is no hostile one, open it on a larger machine, or record for a shorter time",
    ]


def test_within_a_command_the_limit_holds_and_is_taken_back_after_it() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    seen = []

    def command() -> None:
        seen.append(resource.getrlimit(resource.RLIMIT_DATA)[0])
        raise MemoryError

    with pytest.raises(TraceError):
        bounded(command)()
    assert seen == [limit_bytes() if before[0] == resource.RLIM_INFINITY else min(limit_bytes(), before[0])]
    assert limit_bytes() >= LEAST_BYTES
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_every_command_that_reads_a_trace_is_bounded() -> None:
    command = typer.main.get_command(app)
    names = {info.name for info in app.registered_commands if hasattr(info.callback, "__wrapped__")}
    assert names == _OF_A_TRACE
    assert names < set(getattr(command, "commands", ()))
