# SPDX-License-Identifier: Apache-2.0
"""``xdtrace whatif``: a trace replayed under a remedy. Needs neither root nor bcc. Wiring only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tracer.cli import options as o
from tracer.cli.live import make_analysis
from tracer.cli.report import say_lost
from tracer.errors import UsageError

_PATHS = ("dup", "refcount", "task")


def _remedies(
    write_path: str | None, worker: str | None, own_context: bool, realtime: bool, no_steal: bool
) -> tuple[str, ...]:
    """The remedies' names. Raises UsageError."""
    if write_path is not None and write_path not in _PATHS:
        raise UsageError(f"--as {write_path!r} is unknown", f"use one of {', '.join(_PATHS)}")
    if worker is not None and worker != "fair":
        raise UsageError(f"--worker {worker!r} is unknown", "use fair")
    wanted = {"own_context": own_context, "realtime": realtime, "no_steal": no_steal}
    named = [name for name in (write_path, worker) if name is not None]
    return (*named, *(name for name, on in wanted.items() if on))


def _check_locks(wanted: tuple[str, ...], seen: list[str], profile: str | None) -> None:
    """Refuse a lock that nobody waited for and no profile knows. Raises UsageError."""
    from tracer.profile import default_profiles, load

    profiles = default_profiles() if profile is None else (load(profile), *default_profiles())
    known = {lock.name for profile in profiles for lock in profile.locks}
    for name in wanted:
        if name not in known and name not in seen:
            raise UsageError(
                f"--without {name}: no lock of that name was waited for",
                f"there are: {', '.join(seen)}" if seen else "nobody waited for any lock in this trace",
            )


def whatif(
    path: Annotated[
        Path, typer.Argument(metavar="DIR", help="A trace folder.", show_default=False, readable=False)
    ],
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="LOCK", help="Nobody waits for this lock; may be repeated."),
    ] = None,
    write_path: Annotated[
        str | None, typer.Option("--as", metavar="dup|refcount|task", help="Another write path.")
    ] = None,
    worker: Annotated[
        str | None, typer.Option("--worker", metavar="fair", help="W serves ready events in turn.")
    ] = None,
    own_context: Annotated[
        bool, typer.Option("--own-context", help="Each stream in a context of its own.")
    ] = False,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="The VMM's threads on the path get the CPU at once.")
    ] = False,
    no_steal: Annotated[bool, typer.Option("--no-steal", help="The hypervisor takes no CPU away.")] = False,
    cycles: Annotated[bool, typer.Option("--cycles", help="List every missed cycle.")] = False,
    form: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")] = "text",
    period: o.Period = None,
    profile: o.ProfileFile = None,
) -> None:
    """Predict, cycle by cycle, which misses of a trace a remedy would have avoided, and what remains.

    Several changes at once are taken out together. docs/accuracy.md says how far predictions came true.
    """
    from tracer.model.whatif import Predictor, WhatIf
    from tracer.trace import TraceReader
    from tracer.views.text import console_for, write_block
    from tracer.views.whatif import render_prediction

    if form not in ("text", "json"):
        raise UsageError(f"--format {form!r} is unknown", "use text or json")
    what = WhatIf(_remedies(write_path, worker, own_context, realtime, no_steal), tuple(without or ()))
    if not what.remedies and not what.locks:
        raise UsageError(
            "whatif needs a change to try",
            "add --without item_state, --as dup, --worker fair, --own-context or --realtime",
        )
    analysis = make_analysis(profile, o.parse_period(period))
    predictor = Predictor(analysis, what)
    with TraceReader(path) as trace:
        for batch in trace:
            analysis.feed(batch)
        analysis.finish()
        say_lost(trace.incomplete)
    _check_locks(what.locks, predictor.seen(), profile)
    found = predictor.prediction()
    if form == "json":
        print(json.dumps(found.to_dict(), separators=(",", ":")))
        return
    write_block(console_for(sys.stdout), render_prediction(found, full=cycles))
