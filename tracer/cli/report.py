# SPDX-License-Identifier: Apache-2.0

"""``xdtrace report``: the verdicts of a trace folder. Needs neither root nor bcc. Wiring only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tracer.cli import options as o
from tracer.cli.live import make_analysis
from tracer.cli.run import replay
from tracer.errors import UsageError


def open_trace(path: Path) -> Any:
    """A trace reader."""
    from tracer.trace import TraceReader

    return TraceReader(path)


def report(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A trace folder.", show_default=False)],
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="text|json|svg", help="How to print it; svg: the screen as a picture."
        ),
    ] = "text",
    period: o.Period = None,
    profile: o.ProfileFile = None,
) -> None:
    """Show what a recorded trace says: verdict, remedies, streams, locks, misses."""
    from tracer.views.jsonl import JsonLines
    from tracer.views.text import TextBlocks

    if form not in ("text", "json", "svg"):
        raise UsageError(f"--format {form!r} is unknown", "use text, json or svg")
    view = JsonLines(sys.stdout) if form == "json" else TextBlocks(sys.stdout, None)
    analysis = make_analysis(profile, o.parse_period(period))
    with open_trace(path) as trace:
        summary = replay(trace, analysis)
        if trace.incomplete:
            print(f"xdtrace: note: {trace.incomplete}", file=sys.stderr)
    if form == "svg":
        from tracer.views.svg import to_svg

        print(to_svg(summary, title=f"xdtrace report {path}"))
        return
    view.finish(summary, {})
