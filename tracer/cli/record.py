# SPDX-License-Identifier: Apache-2.0
"""``xdtrace record``: a trace folder, or a flight recorder's, without a screen. Wiring only."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracer.cli import options as o
from tracer.cli.flight import FlightPlan, FlightRecorder
from tracer.cli.live import Hooks, Plan, go, make_view, plan
from tracer.cli.run import ending_by_signal
from tracer.cli.triggers import parse_condition
from tracer.errors import UsageError

if TYPE_CHECKING:
    from tracer.views.base import View


def record(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The trace folder to make.")],
    pids: o.Pids = None,
    everything: o.All = False,
    duration: o.Duration = None,
    period: o.Period = None,
    profile: o.ProfileFile = None,
    lock: o.Locks = None,
    audio: o.Audio = None,
    no_audio: o.NoAudio = False,
    held_words: o.HeldWords = 4,
    force: o.Force = False,
    flight: Annotated[
        float | None,
        typer.Option(
            "--flight", metavar="S", help="Keep only the last S seconds, in memory; dumps go into DIR."
        ),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on", metavar="COND", help="Write a dump when this holds, e.g. 'misses>=3/10s'. Repeatable."
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            "--every", metavar="S", help="Least seconds between two dumps by --on (else as --flight)."
        ),
    ] = None,
    dumps: Annotated[int, typer.Option("--dumps", metavar="N", help="At most so many dumps by --on.")] = 20,
    memory: Annotated[
        int, typer.Option("--memory", metavar="MB", help="Records kept in memory at most by --flight.")
    ] = 512,
) -> None:
    """Record running VMMs into a trace folder; the last summary is printed at the end.

    With --flight nothing is written until a condition of --on holds, SIGUSR2 comes or a target exits.
    """
    todo = plan(
        pids,
        everything=everything,
        output=output,
        duration=duration,
        period=period,
        profile=profile,
        lock=lock,
        audio=audio,
        no_audio=no_audio,
        held_words=held_words,
        force=force,
    )
    wanted = _flight(flight, on, every, dumps, memory)
    view = make_view(as_json=False, refresh_s=None, quiet=True)
    if wanted is not None:
        _fly(todo, view, wanted)
        return
    hooks = Hooks(
        started=lambda: print(f"recording into {output}; Ctrl-C ends it", file=sys.stderr, flush=True)
    )
    with ending_by_signal() as ending:
        go(todo, view, ending, hooks)
    print(f"recorded into {output}; `xdtrace report {output}` shows it again", file=sys.stderr)


def _flight(
    seconds: float | None, on: list[str] | None, every: float | None, dumps: int, memory: int
) -> FlightPlan | None:
    """The flight recorder that is wanted, None for a plain recording. Raises UsageError."""
    o.check_seconds("--flight", seconds)
    o.check_seconds("--every", every)
    if seconds is None:
        if on or every is not None:
            raise UsageError("--on and --every belong to a flight recorder", "add --flight SECONDS")
        return None
    if dumps < 1 or not 1 <= memory <= 1 << 20:
        raise UsageError("--dumps and --memory must be at least 1", "leave them out for 20 dumps and 512 MB")
    return FlightPlan(
        seconds=seconds,
        conditions=tuple(parse_condition(text) for text in on or ()),
        gap_s=seconds if every is None else every,
        most=dumps,
        limit_bytes=memory << 20,
    )


def _fly(todo: Plan, view: View, wanted: FlightPlan) -> None:
    folder = todo.output
    assert folder is not None  # -o is required
    made: list[FlightRecorder] = []

    def recorder(analysis: object) -> FlightRecorder:
        made.append(FlightRecorder(folder, wanted, analysis))
        return made[0]

    what = " or ".join([*(c.text for c in wanted.conditions), "SIGUSR2", "the target's exit"])
    said = (
        f"keeping the last {wanted.seconds:g} s in memory (at most {wanted.limit_bytes >> 20} MB); "
        f"written into {folder} on {what}: kill -USR2 {os.getpid()}; Ctrl-C ends it"
    )
    hooks = Hooks(started=lambda: print(said, file=sys.stderr, flush=True), writer=recorder, brief=True)
    with ending_by_signal() as ending:
        go(todo, view, ending, hooks)
    count = len(made[0].dumps) if made else 0
    print(f"{count} dump{'' if count == 1 else 's'} written into {folder}", file=sys.stderr)
