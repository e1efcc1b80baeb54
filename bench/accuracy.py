# SPDX-License-Identifier: Apache-2.0
"""Detection and causes, scored on delays that were made on purpose.

Peers, on the same misses: "always item_state", the majority class, the longest segment. The truth of
detection is the audio server's own log, that of causes the injector's (tests/minivmm/README.md). What is
scored was analysed from the recorded trace with every eventfd write of a vCPU taken out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.figures import figures, table
from bench.score import Cycle, Injection, Labelled, Score, Verdict, add_run
from tracer.capture.session import Session, Settings
from tracer.cli.minivmm import SETTLE_S, MiniVmm, binary
from tracer.model.analysis import Analysis
from tracer.model.summary import Summary
from tracer.schema import RW, Batch, Kind, view
from tracer.trace import TraceReader, TraceWriter

LOCKS = (
    "lock.control_queue",
    "lock.fence_state",
    "lock.intc",
    "lock.control_queue.wake",
    "lock.fence_state.wake",
    "lock.intc.wake",
    "lock.item_state",
    "lock.nested",
    "lock.barging",
)
OTHERS = (
    "head_of_line.syscall",
    "head_of_line.cpu",
    "serialised",
    "not_rearmed.guest",
    "not_rearmed.g",
    "guest_late",
    "slow_syscall.w.wake",
    "slow_syscall.w",
    "slow_syscall.g",
    "on_cpu.w.wake",
    "on_cpu.w",
    "on_cpu.g",
    "host_late",
    "forward_failed",
)
VICTIMS = ("w", "g", "vcpu", "d", "holder")


@dataclass(frozen=True)
class Trial:
    """One run: what is injected, how the mini-VMM is run besides, for how long."""

    inject: str
    write_path: str
    period: str
    seconds: float
    seed: int
    extra: tuple[str, ...] = ()
    negative: bool = False

    @property
    def period_ns(self) -> int:
        """Of a cycle."""
        quantum, rate = self.period.split("/")
        return int(quantum) * 1_000_000_000 // int(rate)


def trials(quick: bool, rounds: int, seed: int) -> Iterator[Trial]:
    """The matrix, in an order that spreads each condition over the whole time."""
    paths = ("locked", "dup") if quick else ("locked", "dup", "refcount", "task")
    periods = ("256/48000",) if quick else ("1024/48000", "256/48000")
    everything = "+".join((*LOCKS, *OTHERS))
    for _ in range(rounds):
        for period in periods:
            scale = 3 if period.startswith("1024") else 1
            for path in paths:
                seed += 1
                yield Trial(everything, path, period, 8.0 * scale, seed)
            for victim in VICTIMS:
                seed += 1
                path = paths[seed % len(paths)]
                yield Trial(f"not_scheduled.{victim}", path, period, 2.5 * scale, seed)
        seed += 1
        contended = "+".join(f"{kind}:0.05..0.3" for kind in LOCKS)
        yield Trial(contended, paths[seed % len(paths)], "1024/48000", 8.0, seed, negative=True)
        seed += 1
        yield Trial("", paths[seed % len(paths)], "256/48000", 5.0, seed, ("--streams", "3"), True)


def capture(trial: Trial, folder: Path) -> None:
    """Run the mini-VMM under a session with live analysis, as attach does; leave trace, log and truth."""
    words = ["--write-path", trial.write_path, "--period", trial.period, *trial.extra]
    words += ["--duration", f"{trial.seconds:g}", "--seed", str(trial.seed), "--log", str(folder / "log")]
    if trial.inject:
        words += ["--inject", trial.inject, "--truth", str(folder / "truth")]
    analysis = Analysis()
    with ExitStack() as stack:
        target = stack.enter_context(MiniVmm(binary(), words))
        session = stack.enter_context(Session([target.vmm], Settings()))
        writer = stack.enter_context(TraceWriter(folder / "run.xdt", force=True))
        target.start()
        end = time.monotonic() + trial.seconds + 30
        for batch in session:
            writer.append(batch)
            analysis.feed(batch)
            for tgid, held in analysis.words_to_watch().items():
                session.watch(tgid, held)
            if target.tick(False) or time.monotonic() > end:
                break
        if target.ground_truth is None:
            raise RuntimeError(f"{trial}: no count from its audio server after {SETTLE_S} s")


def without_kicks(batches: Iterator[Batch] | TraceReader) -> Iterator[Batch]:
    """The same batches without eventfd writes by vCPU threads: a real guest's kick is no system call."""
    vcpus: set[int] = set()
    for batch in batches:
        vcpus |= {t.tid for t in batch.threads if t.comm.startswith("fc_vcpu")}
        records = batch.records
        writes = view(records, RW)
        kick = (records["kind"] == Kind.WRITE) & np.isin(records["tid"], list(vcpus))
        kick &= writes["eventfd_id"] >= 0
        yield replace(batch, records=records[~kick])


def analysed(batches: Iterator[Batch] | TraceReader) -> Summary:
    """The last summary of a source of batches."""
    analysis = Analysis()
    for batch in batches:
        analysis.feed(batch)
    analysis.finish()
    return analysis.summary()


def verdicts(summary: Summary) -> list[Verdict]:
    """The misses of a summary as the scorer takes them."""
    wake = {stream.id: stream.wake_eventfd for stream in summary.streams}
    return [
        Verdict(
            id=m.id,
            episode=m.episode,
            wake_eventfd=wake.get(m.stream, -1),
            cycle=m.cycle,
            start_ns=m.start_ns,
            deadline_ns=m.deadline_ns,
            late_ns=m.late_ns,
            leg=m.leg,
            cause=m.cause,
            lock=m.lock,
            sufficient=m.sufficient,
            carried_from=m.carried_from,
            segments=tuple((s.kind, s.via, s.ns) for s in m.segments),
        )
        for m in summary.misses
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def truth(folder: Path) -> tuple[list[Cycle], list[Injection]]:
    """What the audio server and the injector wrote down."""
    cycles = [
        Cycle(
            row["wake_eventfd"],
            row["cycle"],
            row["start_ns"],
            row["deadline_ns"],
            row["closing_ns"],
            row["leg"],
        )
        for row in _lines(folder / "log")
        if row["type"] == "cycle"
    ]
    injections = [
        Injection(
            kind=row["kind"],
            cause=row["cause"],
            locks=frozenset(row["lock"].split(",")) - {""},
            begin_ns=row["begin_ns"],
            end_ns=row["end_ns"],
            delay_ns=None if row["cause"] == "forward_failed" else row["delay_ns"],
        )
        for row in _lines(folder / "truth")
    ]
    return cycles, injections


def _keep(folder: Path, kept: Path, trial: Trial, wrong: list[Labelled]) -> None:
    """Move a run with wrong labels to where it can be looked at, with what was expected."""
    place = kept / f"{trial.seed}-{trial.write_path}-{trial.period.replace('/', '_')}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    with (place / "wrong.txt").open("w") as out:
        print(trial, file=out)
        for one in wrong:
            v = one.verdict
            print(
                f"miss {v.id} deadline {v.deadline_ns} leg {one.leg}: {one.injection.kind} "
                f"[{one.injection.begin_ns}..{one.injection.end_ns}], got {v.cause} "
                f"sufficient={v.sufficient} late={v.late_ns} segments={v.segments}",
                file=out,
            )


def measure(trial: Trial, score: Score, kept: Path | None) -> None:
    """One run into the score."""
    with tempfile.TemporaryDirectory(prefix="xdtrace-accuracy-") as name:
        folder = Path(name)
        capture(trial, folder)
        summary = analysed(without_kicks(TraceReader(folder / "run.xdt")))
        cycles, injections = truth(folder)
        run = f"{trial.seed}"
        seen = verdicts(summary)
        wrong = add_run(score, run, cycles, seen, injections, trial.period_ns // 4, trial.negative)
        if wrong and kept is not None:
            _keep(folder, kept, trial, wrong)


def main() -> None:
    """Run the matrix and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under three minutes")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--rounds", type=int, default=0, help="of the whole matrix (quick: 1, else 12)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first run")
    parser.add_argument("--keep", type=Path, help="keep runs with wrong labels in this folder")
    options = parser.parse_args()
    score, runs, failed = Score(), 0, 0
    for trial in trials(options.quick, options.rounds or (1 if options.quick else 12), options.seed):
        try:
            measure(trial, score, options.keep)
            runs += 1
        except RuntimeError as error:
            failed += 1
            print(error, file=sys.stderr)
        print(f"{runs}: {trial}", file=sys.stderr, flush=True)
    result = figures(score)
    result["runs"], result["failed_runs"] = runs, failed
    result["host"] = {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "./dev bench " + " ".join(["accuracy", *sys.argv[1:]]),
    }
    print(json.dumps({"bench": "accuracy", **result}) if options.json else table(result))


if __name__ == "__main__":
    main()
