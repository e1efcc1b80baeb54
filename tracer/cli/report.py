# SPDX-License-Identifier: Apache-2.0

"""``xdtrace report``: the verdicts of a trace. Needs neither root nor bcc. Wiring only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from tracer.cli import options as o
from tracer.cli.live import make_analysis
from tracer.cli.run import replay
from tracer.errors import FailOnMet, UsageError

if TYPE_CHECKING:
    from tracer.model.conditions import Condition
    from tracer.model.summary import Summary

FORMATS = ("text", "json", "html", "svg")


def open_trace(path: Path) -> Any:
    """A trace reader."""
    from tracer.trace import TraceReader

    return TraceReader(path)


def report(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A trace folder, archive or bundle.", show_default=False, readable=False
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="How to print it; html: one page with pictures; svg: the screen as a picture.",
        ),
    ] = "text",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it there instead.")
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="COND",
            help="Exit with 1 when this holds, e.g. 'misses>0 or lock(item_state).wait_p99>2ms'. Repeatable.",
        ),
    ] = None,
    period: o.Period = None,
    profile: o.ProfileFile = None,
) -> None:
    """Show what a recorded trace says: what would have helped, verdicts, streams, locks, misses."""
    if form not in FORMATS:
        raise UsageError(f"--format {form!r} is unknown", f"use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if form == "html" and output is None and sys.stdout.isatty():
        raise UsageError(
            "a page of HTML says nothing on a terminal", "add -o FILE, and open that in a browser"
        )
    if output is not None:
        check_output(output, path)
    conditions = parse_conditions(fail_on or [])
    analysis = make_analysis(profile, o.parse_period(period))
    with open_trace(path) as trace:
        summary = replay(trace, analysis)
        lost = trace.incomplete
    say_lost(lost)
    with opened(output) as out:
        write(summary, form, out, title=path.resolve().name, notes=[lost] if lost else [])
    judge(conditions, summary, lost)


def say_lost(lost: str | None) -> None:
    """What of a trace is missing, and what that means; nothing of a whole one."""
    if lost:
        print(
            f"xdtrace: note: {lost}\n"
            "  what could be read is shown; what is missing is in no figure and no verdict",
            file=sys.stderr,
        )


def parse_conditions(texts: list[str]) -> list[Condition]:
    """What ``--fail-on`` asks for. Raises UsageError."""
    if not texts:
        return []
    from tracer.model.conditions import parse

    return [parse(text) for text in texts]


def judge(conditions: list[Condition], summary: Summary, lost: str | None) -> None:
    """Raise FailOnMet where a condition holds, or where the trace cannot tell: CI must not pass then.

    Args:
        lost: what of the trace is missing.
    """
    if not conditions:
        return
    from tracer.model.outcomes import evaluate

    sys.stdout.flush()  # the report comes before what is said of it
    for condition in conditions:
        outcome = evaluate(condition, summary, whole=not lost)
        for note in outcome.notes:
            print(f"xdtrace: note: {note}", file=sys.stderr)
        read = "; ".join(outcome.readings)
        if lost and outcome.met is None and evaluate(condition, summary).met is not None:
            raise FailOnMet(
                f"--fail-on {condition} cannot be told, because a part of the trace is missing: "
                f"in what is left {read}",
                "use a whole copy of the trace, or record again",
            )
        if outcome.met is None:
            raise FailOnMet(
                f"--fail-on {condition} cannot be told: {read}", "record what it asks for, or ask otherwise"
            )
        if outcome.met:
            raise FailOnMet(f"--fail-on {condition} is met: {read}", "the report says why")


def write(summary: Summary, form: str, out: TextIO, *, title: str, notes: list[str]) -> None:
    """Write a summary in one of FORMATS."""
    if form == "json":
        from tracer.views.jsonl import JsonLines

        JsonLines(out).finish(summary, {})
    elif form == "text":
        from tracer.views.text import TextBlocks

        TextBlocks(out, None).finish(summary, {})
    elif form == "svg":
        from tracer.views.svg import to_svg

        print(to_svg(summary, title=f"xdtrace report {title}"), file=out)
    else:
        from tracer.views.html import to_html

        print(to_html(summary, title=title, notes=notes), file=out)


def check_output(output: Path, source: Path, *, option: str = "-o", what: str = "the trace") -> None:
    """Refuse to write over what is read, over a folder, or where nothing can be made. Raises UsageError."""
    parent = output.absolute().parent
    if not os.path.isdir(parent):  # not Path's, which raises where it may not look
        raise UsageError(f"{option} {output}: there is no folder {parent}", "make it first")
    if os.path.isdir(output):
        raise UsageError(f"{option} {output} is a folder", "name a file")
    if not os.access(output if os.path.exists(output) else parent, os.W_OK):
        raise UsageError(f"{option} {output} may not be written", "name a file in a folder of your own")
    try:
        same = output.samefile(source)
    except OSError:
        return  # one is not there, or may not be read: the reader says so
    if same:
        raise UsageError(f"{option} {output} is {what} itself", "choose another name")


@contextmanager
def opened(output: Path | None) -> Iterator[TextIO]:
    """The file to write to, or stdout; a file appears once it is whole.

    Raises:
        UsageError: it cannot be written.
    """
    if output is None:
        yield sys.stdout
        return
    whole = output.is_file() or not output.exists()  # else a device or a pipe
    target = output.resolve()
    path = target.with_name(f".{target.name}.{os.getpid()}.part") if whole else target
    try:
        with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
            yield out
        if whole:
            path.replace(target)
    except OSError as error:
        raise UsageError(
            f"cannot write {output}: {error.strerror}", "choose another place, or free some space"
        ) from error
    finally:
        if whole:
            path.unlink(missing_ok=True)
