# SPDX-License-Identifier: Apache-2.0
"""``xdtrace export``: a trace for other tools. Needs neither root nor bcc. Wiring only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracer.cli import options as o
from tracer.cli.report import check_output, say_lost
from tracer.errors import UsageError

if TYPE_CHECKING:
    from tracer.frames import Trace

#: What a trace can become, and what stands behind its name.
SUFFIXES = {"parquet": "-parquet", "csv": "-csv", "archive": ".xdt.tar", "perfetto": ".pftrace"}


def export(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A trace.", show_default=False, readable=False)],
    form: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="|".join(SUFFIXES),
            help="Tables, one file each; the trace as one file; or a trace for ui.perfetto.dev.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="What to make; beside the trace unless given."),
    ] = None,
    period: o.Period = None,
    profile: o.ProfileFile = None,
) -> None:
    """Turn a trace into tables (parquet, csv), a single file (archive), or a Perfetto trace.

    Tables come with a README.md that says what every column means.
    """
    from tracer.frames import Trace

    if form not in SUFFIXES:
        raise UsageError(f"--to {form!r} is unknown", f"use {', '.join(SUFFIXES)}")
    trace = Trace(path, period=o.parse_period(period), profile=profile)
    if output is None:
        whole = path.absolute()
        name = whole.name.removesuffix(".tar").removesuffix(".xdt")
        output = whole.with_name(name + SUFFIXES[form])
    if os.path.lexists(output):
        raise UsageError(f"{output} exists", "choose another name with -o")
    check_output(output, path)
    if form == "archive":
        from tracer.trace import pack

        pack(path, output)
        said = f"{output.stat().st_size / 1e6:.1f} MB; `xdtrace report {output}` opens it"
    elif form == "perfetto":
        said = _perfetto(trace, output)
    else:
        from tracer.frames.export import export_tables

        rows = export_tables(trace, output, form)
        said = f"{len(rows)} tables, {rows['records']:,} records; README.md says what is in them"
    say_lost(trace.incomplete)
    print(f"wrote {output}: {said}")


def _perfetto(trace: Trace, output: Path) -> str:
    from tracer.views.perfetto import write_perfetto

    offset_ns = trace.offset_ns  # a damaged trace is refused before anything is made
    made = False
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        made = True
        with os.fdopen(fd, "wb") as out:
            packets = write_perfetto(trace, out, offset_ns=offset_ns)
    except BaseException as error:
        if made:
            output.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UsageError(
            f"cannot write {output}: {error.strerror}", "choose another place, or free some space"
        ) from error
    return f"{packets:,} packets; open it in ui.perfetto.dev"
