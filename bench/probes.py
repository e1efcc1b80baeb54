# SPDX-License-Identifier: Apache-2.0
"""What each probe costs: calls a second and ns a call by the kernel's own counting, by load.

Peer: the sum of all. Calls by processes that are no targets are in it, so a quiet machine is wanted; the
kernel's counting adds about 30 ns to each call.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import Results, options, pieces
from tracer.capture import bpfsys
from tracer.capture.session import Session, Settings
from tracer.cli import realdevice
from tracer.cli.minivmm import MiniVmm, binary

_LOADS = {
    "a stream": ("--streams", "1"),
    "4 streams": ("--streams", "4"),
    "200 churn": ("--churn", "200"),
}
_SETTLE_S = 0.5


def _counts(session: Session) -> dict[str, tuple[int, int]]:
    """Run time in ns and calls so far, by program."""
    infos = {name: bpfsys.fdinfo(fd) for name, fd in session.program_fds.items()}
    return {name: (int(info["run_time_ns"]), int(info["run_cnt"])) for name, info in infos.items()}


def _programs(results: Results, load: str, form: str, seconds: float) -> None:
    arguments = ["--period", "256/48000", "--duration", str(seconds + 2 * _SETTLE_S)]
    if load.startswith("real "):
        program = realdevice.binary(load.removeprefix("real "), stripped=False)
    else:
        program, arguments = binary(), [*arguments, *_LOADS[load]]
    with MiniVmm(program, arguments) as vmm, Session([vmm.vmm], Settings(probe_form=form)) as session:
        batches = iter(session)
        next(batches)
        vmm.start()
        start = time.monotonic()
        while time.monotonic() - start < _SETTLE_S:
            next(batches)
        counting = bpfsys.enable_stats()
        try:
            start, before, records = time.monotonic(), _counts(session), 0
            while time.monotonic() - start < seconds:
                records += len(next(batches).records)
            after, took = _counts(session), time.monotonic() - start
        finally:
            os.close(counting)
        for _batch in batches:  # the target ends by itself
            if vmm.tick(False):
                session.stop()
    spent = {name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in before}
    row = f"{load}, {form or 'as here'}"
    for name, (ns, calls) in sorted(spent.items(), key=lambda item: -item[1][0]):
        if calls:
            results.add(
                f"{row}: {name}",
                calls_per_s=calls / took,
                ns_per_call=ns / calls,
                core_percent=ns / took / 1e7,
            )
    results.add(
        f"{row}: all",
        calls_per_s=sum(calls for _, calls in spent.values()) / took,
        core_percent=sum(ns for ns, _ in spent.values()) / took / 1e7,
        records_per_s=records / took,
    )


def main() -> None:
    """Run it."""
    chosen = options(__doc__.splitlines()[0] if __doc__ else "", pieces=True)
    if chosen.save:
        chosen.save = chosen.save.absolute()  # bcc changes the working directory
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    loads = [*_LOADS, *([] if chosen.quick else ["real dup"])]
    results = Results("probes")
    steps: list[tuple[str, Callable[[Results], None]]] = [
        (
            f"{number} {load} {form}",
            partial(_programs, load=load, form=form, seconds=3.0 if chosen.quick else 5.0),
        )
        for number in range(rounds)
        for load in loads
        for form in ("", "plain")
    ]
    pieces(results, steps, chosen)
    results.say(chosen.json)


if __name__ == "__main__":
    main()
