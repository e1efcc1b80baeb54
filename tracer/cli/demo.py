# SPDX-License-Identifier: Apache-2.0
"""``xdtrace demo``: the mini-VMM or the real device, and attach to it. Wiring only."""

from __future__ import annotations

from typing import Annotated

import typer

from tracer.cli import options as o
from tracer.cli import realdevice
from tracer.cli.live import Hooks, go, make_view, plan
from tracer.cli.minivmm import MiniVmm, binary
from tracer.cli.run import ending_by_signal
from tracer.errors import UsageError

_CHOICES = {
    "--write-path": ("locked", "dup", "refcount", "task"),
    "--worker": ("first", "fair"),
    "--topology": ("shared", "per-client"),
    "--load": ("none", "pipe", "preempt-holder", "nested", "hogs", "gpu"),
    "--real": realdevice.VARIANTS,
}
#: What needs code inside the device, and the real one is as it was published.
_NOT_REAL = {"--worker": ("fair",), "--load": ("preempt-holder", "nested")}

#: Seconds beyond --duration after which the demo ends even if the mini-VMM says nothing.
_PATIENCE_S = 20.0


def _choice(name: str, text: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(name, metavar="|".join(_CHOICES[name]), help=text)
    return found


def _check(name: str, value: str) -> None:
    if value not in _CHOICES[name]:
        raise UsageError(f"{name} {value!r} is unknown", f"use one of {', '.join(_CHOICES[name])}")


def demo(
    real: Annotated[str | None, _choice("--real", "Run this published device instead.")] = None,
    stripped: Annotated[
        bool, typer.Option("--stripped", help="With --real: the build without symbols.")
    ] = False,
    write_path: Annotated[
        str | None, _choice("--write-path", "How G writes eventfds (locked; with --real as there).")
    ] = None,
    worker: Annotated[str, _choice("--worker", "Which ready event W serves.")] = "first",
    topology: Annotated[str, _choice("--topology", "Whether streams share the churn's context.")] = "shared",
    period: Annotated[str, typer.Option("--period", metavar="Q/RATE", help="Audio period.")] = "1024/48000",
    streams: Annotated[int, typer.Option("--streams", metavar="N", help="Sustained streams, 1 to 16.")] = 1,
    churn: Annotated[
        int, typer.Option("--churn", metavar="N", help="Short streams cycling beside them.")
    ] = 200,
    vmms: Annotated[
        int, typer.Option("--vmms", metavar="N", help="VMMs on one audio server; streams in turn.")
    ] = 1,
    load: Annotated[str, _choice("--load", "What else goes on.")] = "none",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the mini-VMM's randomness.")] = 1,
    duration: o.Duration = None,
    output: o.Output = None,
    as_json: o.Json = False,
    held_words: o.HeldWords = 4,
    refresh: o.Refresh = None,
    force: o.Force = False,
) -> None:
    """Run the bundled mini-VMM, a small VMM with an audio server, and attach to it.

    With --real the device is rutabaga_gfx as published, with that write path (needs cargo 1.81).
    The summary carries "ground_truth": what the audio server itself counted.
    """
    if real is not None:
        _check("--real", real)
    elif stripped:
        raise UsageError("--stripped needs --real", f"add --real {'|'.join(realdevice.VARIANTS)}")
    given = {
        "--write-path": write_path or real or "locked",
        "--worker": worker,
        "--topology": topology,
        "--load": load,
    }
    for name, value in given.items():
        _check(name, value)
        if real is not None and value in _NOT_REAL.get(name, ()):
            raise UsageError(
                f"the real device knows no {name} {value}", "leave --real away: the mini-VMM does"
            )
    if real is not None and given["--write-path"] != real:
        raise UsageError(f"--real {real} writes the way it does", "leave --write-path away")
    if not 1 <= streams <= 16 or not 0 <= churn <= 10_000:
        raise UsageError(
            "--streams or --churn is out of range", "give 1 to 16 streams, and a churn of 0 to 10000"
        )
    if not 1 <= vmms <= min(streams, 4):
        raise UsageError(
            "--vmms is out of range", f"give 1 to {min(streams, 4)}: each plays a stream of --streams"
        )
    if vmms > 1 and real is not None:
        raise UsageError("the real device's driver has one VMM", "leave --real away: the mini-VMM can")
    o.parse_period(period)
    o.check_seconds("--duration", duration)
    view = make_view(as_json=as_json, refresh_s=refresh)
    if real is not None:
        del given["--worker"]
    arguments = [word for pair in given.items() for word in pair]
    arguments += ["--period", period, "--streams", str(streams), "--churn", str(churn), "--seed", str(seed)]
    arguments += ["--duration", f"{duration or 0:g}", *(("--vmms", str(vmms)) if vmms > 1 else ())]
    output = output.absolute() if output is not None else None
    program = binary() if real is None else realdevice.binary(real, stripped=stripped)
    with ending_by_signal() as ending, MiniVmm(program, arguments) as child:
        todo = plan(
            [child.vmm, *child.others],
            output=output,
            duration=None if duration is None else duration + _PATIENCE_S,
            period=None,
            profile=None,
            lock=None,
            audio=None,
            no_audio=False,
            held_words=held_words,
            force=force,
        )
        hooks = Hooks(
            started=child.start, may_end=child.tick, extra=lambda: {"ground_truth": child.ground_truth}
        )
        go(todo, view, ending, hooks)
