# SPDX-License-Identifier: Apache-2.0
"""Causes shown by intervention: what is predicted to remain without a cause, against running it without.

Real device (stripped builds) and mini-VMM under xdtrace as ``attach`` runs it. Every condition that an
intervention needs is run once a round, in random order, five rounds in the full form; the runs of a side are
those of its condition. Each run's missed cycles and episodes are also compared with what its audio server
counted. Equal runs differ tenfold: ``--quick`` (one round) is an illustration.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import host
from bench.compared import Comparison, detection, render
from bench.runs import Condition, Run, traced
from bench.series import absolute, add_options, measure, saved

VARIANTS = ("locked", "dup", "refcount")
PROGRAMS = (*VARIANTS, "minivmm")
_SHORT = "--period", "256/48000"
_CHURN = "--churn", "200"


@dataclass(frozen=True)
class Intervention:
    """Two conditions that differ in one thing, and what predicts the second from the first.

    Attributes:
        cause: what is to go; prediction: a remedy or candidate of bench.runs; contrast: one that is not
            carried out, and shown beside it.
    """

    name: str
    what: str
    before: Condition
    after: Condition
    cause: str
    prediction: str
    contrast: str = ""


def _real(variant: str) -> Iterator[Intervention]:
    def on(*arguments: str) -> Condition:
        return Condition(variant, arguments)

    def fifo(*arguments: str) -> Condition:
        return Condition(variant, (*arguments, "--realtime"), realtime_vcpus=True)

    hogs = (*_SHORT, "--load", "hogs")
    own = "--topology", "per-client"
    for period, label in (((), ""), (_SHORT, "-256")):
        churn = (*period, *_CHURN)
        what = f"churn at {'256' if period else '1024'}"
        yield Intervention(
            f"own-context{label}",
            f"{what}: a context of its own",
            on(*churn),
            on(*churn, *own),
            "serialised",
            "own_context",
            "item_state",
        )
        yield Intervention(
            f"realtime{label}",
            f"{what}: SCHED_FIFO for W, G and vCPUs",
            on(*churn),
            fifo(*churn),
            "not_scheduled",
            "realtime",
        )
        several = (*churn, "--contexts", "3", "--streams", "3")
        yield Intervention(
            f"contexts{label}",
            f"{what}, three contexts: a context of its own",
            on(*several),
            on(*several, *own),
            "serialised",
            "own_context",
            "item_state",
        )
    yield Intervention(
        "hogs",
        "CPU hogs: taken away",
        on(*hogs),
        on(*_SHORT),
        "not_scheduled",
        "no not_scheduled",
        "item_state",
    )
    yield Intervention(
        "hogs-realtime",
        "CPU hogs: SCHED_FIFO for W, G and vCPUs",
        on(*hogs),
        fifo(*hogs),
        "not_scheduled",
        "realtime",
        "item_state",
    )
    yield Intervention(
        "hogs-realtime-host",
        "CPU hogs: SCHED_FIFO for W and G alone",
        on(*hogs),
        on(*hogs, "--realtime"),
        "not_scheduled",
        "realtime",
    )
    pipe = on(*_SHORT, "--load", "pipe")
    fast = on(*pipe.arguments, "--reader", "fast")
    yield Intervention(
        "pipe", "slow pipe: a fast reader", pipe, fast, "head_of_line", "no head_of_line", "item_state"
    )
    gpu = on(*_SHORT, "--load", "gpu")
    yield Intervention(
        "gpu", "GPU context: quiet", gpu, on(*_SHORT), "head_of_line", "no head_of_line", "item_state"
    )
    both = (*_CHURN, "--load", "hogs")
    yield Intervention(
        "both-own-context",
        "churn and hogs: a context of its own",
        on(*both),
        on(*both, *own),
        "serialised",
        "own_context",
    )
    yield Intervention(
        "both-realtime",
        "churn and hogs: SCHED_FIFO for W, G and vCPUs",
        on(*both),
        fifo(*both),
        "not_scheduled",
        "realtime",
    )
    if variant == "locked":
        for other in ("dup", "refcount"):
            for what, load in (("churn at 1024", on(*_CHURN)), ("slow pipe", pipe)):
                yield Intervention(
                    "other-crate",
                    f"{what}: the crate with `{other}`",
                    load,
                    Condition(other, load.arguments),
                    "lock",
                    other,
                )


def _mini() -> Iterator[Intervention]:
    def on(path: str, *arguments: str) -> Condition:
        return Condition("minivmm", ("--write-path", path, *_SHORT, *arguments))

    first = on("locked", *_CHURN)
    fair = on("locked", *_CHURN, "--worker", "fair")
    yield Intervention("fair", "churn at 256: a fair worker", first, fair, "serialised", "fair")
    for load in ("pipe", "preempt-holder", "nested", "churn", "hogs", "gpu"):
        arguments = _CHURN if load == "churn" else ("--load", load)
        for path in ("dup", "refcount", "task"):
            yield Intervention(
                f"path-{load}",
                f"{load}: write path `{path}`",
                on("locked", *arguments),
                on(path, *arguments),
                "lock",
                path,
            )


def interventions(programs: list[str], only: list[str]) -> list[Intervention]:
    """Those of the programs: all, or those named (NAME or PROGRAM:NAME)."""
    found = [i for program in programs for i in (_mini() if program == "minivmm" else _real(program))]
    return [i for i in found if not only or {i.name, f"{i.before.program}:{i.name}"} & set(only)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench interventions", description=__doc__)
    add_options(parser, rounds=5)
    parser.add_argument("--variant", action="append", choices=PROGRAMS, help="may be repeated (all)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="[PROGRAM:]NAME", help="may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="name the interventions and end")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="record each run into a trace there")
    chosen = parser.parse_args()
    absolute(chosen, "keep", "save", "load")
    return chosen


def _measure(chosen: argparse.Namespace, conditions: list[Condition]) -> list[Run]:
    if chosen.keep:
        chosen.keep.mkdir(mode=0o700, parents=True, exist_ok=True)

    def one(condition: Condition, number: int) -> Run:
        name = f"{conditions.index(condition)}-{number}.xdt"
        return traced(condition, chosen.seconds, number, chosen.keep / name if chosen.keep else None)

    return measure(conditions, chosen.rounds or (1 if chosen.quick else 5), chosen, one)


def main() -> None:
    """Run it."""
    chosen = _options()
    wanted = interventions(chosen.variant or list(PROGRAMS), chosen.only)
    if chosen.list:
        for one in wanted:
            print(f"{one.name:18} {one.before} -> {one.after}")
        return
    conditions = {str(c): c for one in wanted for c in (one.before, one.after)}
    if chosen.load:
        runs = [run for run in saved(chosen.load) if run.condition in conditions]
    else:
        runs = _measure(chosen, list(conditions.values()))
    sides = {name: [run for run in runs if run.condition == name] for name in conditions}
    compared = [
        Comparison.of(
            one.what,
            one.before,
            one.after,
            sides[str(one.before)],
            sides[str(one.after)],
            name,
            one.cause,
            name == one.prediction,
        )
        for one in wanted
        for name in (one.prediction, one.contrast)
        if name and sides[str(one.before)] and sides[str(one.after)]
    ]
    machine = host("./dev bench interventions")
    if chosen.json:
        rows = [asdict(row) for row in compared]
        found = detection(runs)
        print(json.dumps({"bench": "interventions", "host": machine, "compared": rows, "detection": found}))
        return
    print(render(compared, detection(runs)))
    print(machine)


if __name__ == "__main__":
    main()
