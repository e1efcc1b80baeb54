# SPDX-License-Identifier: Apache-2.0
"""``xdtrace compare``: runs before and after. Needs neither root nor bcc. Wiring only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tracer.cli import options as o
from tracer.cli.live import make_analysis
from tracer.cli.run import replay
from tracer.errors import TraceError, UsageError

#: Stands for ``--`` between the sides: no path can be it.
_NEXT_SIDE = "\0"
#: A saved summary larger than this is none.
MAX_SUMMARY_BYTES = 256 << 20


class Sides(TyperCommand):
    """Keeps every ``--``: the parser would drop the first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse with each ``--`` as an argument of its own."""
        return super().parse_args(ctx, [_NEXT_SIDE if word == "--" else word for word in args])


def split(words: list[str]) -> list[list[str]]:
    """The names of each side. Raises UsageError."""
    sides: list[list[str]] = [[]]
    for word in words:
        if word == _NEXT_SIDE:
            sides.append([])
        else:
            sides[-1].append(word)
    if len(sides) < 2 or not all(sides):
        raise UsageError(
            "compare needs runs on both sides of `--`",
            "write: xdtrace compare A1.xdt A2.xdt -- B1.xdt B2.xdt",
        )
    return sides


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _saved(path: Path) -> Any:
    """The last summary in a file of JSON, one object or one a line. Raises TraceError."""
    try:
        if path.stat().st_size > MAX_SUMMARY_BYTES:
            raise TraceError(f"{path} is too large for a summary", "name what `report --format json` printed")
        text = path.read_text(encoding="utf-8").strip()
        try:
            return json.loads(text, parse_constant=_constant)
        except ValueError:
            return json.loads(text.splitlines()[-1] if text else "", parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise TraceError(
            f"{path} is neither a trace nor a summary",
            "name a trace folder, or what `report --format json` printed",
        ) from error
    except OSError as error:
        raise TraceError(
            f"{path} cannot be read: {error.strerror}", "check the name and its rights"
        ) from error


def _is_json(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(64).lstrip()[:1] == b"{"
    except OSError:
        return False


def load(name: str, profile: str | None = None, period: tuple[int, int] | None = None) -> Any:
    """The figures of one run: a trace folder, a packed trace, or a saved summary. Raises TraceError."""
    from tracer.model.runfigures import run_of

    path = Path(name)
    if _is_json(path):
        return run_of(name, _saved(path))
    from tracer.trace import TraceReader

    with TraceReader(path) as trace:
        summary = replay(trace, make_analysis(profile, period))
        return run_of(name, summary.to_dict(), note=trace.incomplete or "")


def _loaded(sides: list[list[str]], profile: str | None, period: str | None) -> list[list[Any]]:
    """All runs; on a terminal says how far it is, since a trace takes seconds."""
    found: list[list[Any]] = [[] for _ in sides]
    tell = sys.stderr.isatty()
    names = [(at, name) for at, side in enumerate(sides) for name in side]
    for done, (at, name) in enumerate(names, start=1):
        if tell:
            from tracer.views.fmt import clean

            print(f"\r\x1b[K{done} of {len(names)}: {clean(name)}", end="", file=sys.stderr, flush=True)
        found[at].append(load(name, profile, o.parse_period(period)))
    if tell:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return found


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Traces or saved summaries, `--` between the sides: A1 A2 -- B1 B2 [-- C1 C2].",
            show_default=False,
        ),
    ],
    form: Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")] = "text",
    blocked: Annotated[
        bool,
        typer.Option(
            "--blocked", help="Run i of each side belong together: rounds that were interleaved (6 or more)."
        ),
    ] = False,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Every side with every other, not only with the first.")
    ] = False,
    period: o.Period = None,
    profile: o.ProfileFile = None,
) -> None:
    """Compare runs before and after a change: missed cycles, episodes, waits, cost of a write.

    The run is the unit, the primary measure is missed cycles per minute of audio, and tests and intervals are
    exact. Later sides are each compared with the first.
    """
    from tracer.model.comparison import compare as compare_runs
    from tracer.views.compare import render_comparison
    from tracer.views.text import console_for, write_block

    if form not in ("text", "json"):
        raise UsageError(f"--format {form!r} is unknown", "use text or json")
    sides = split(runs)
    found = compare_runs(_loaded(sides, profile, period), blocked=blocked, all_pairs=all_pairs)
    if form == "json":
        print(json.dumps(found.to_dict(), separators=(",", ":")))
        return
    write_block(console_for(sys.stdout), render_comparison(found))
