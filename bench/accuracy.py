# SPDX-License-Identifier: Apache-2.0
"""Detection and causes, scored on delays that were made on purpose.

Peers, on the same misses: "always item_state", the majority class, the longest segment. The truth of
detection is the audio server's own log, that of causes the injector's (tests/minivmm/README.md). What is
scored was analysed from the recorded trace with every eventfd write of a vCPU taken out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import host
from bench.figures import figures, table
from bench.labels import NO_TIME, Cycle, Injection, Waits
from bench.matrix import Trial, in_a_round, trials
from bench.plan import expected
from bench.played import play
from bench.score import (
    Labelled,
    Score,
    Verdict,
    add_run,
    match,
    saved_form,
    score_of,
)
from tracer.capture.session import Session, Settings
from tracer.cli.minivmm import MiniVmm, binary
from tracer.model.analysis import Analysis
from tracer.model.summary import Summary
from tracer.schema import RW, Batch, Kind, view
from tracer.trace import TraceReader, TraceWriter


def capture(trial: Trial, folder: Path) -> None:
    """Run the mini-VMM under a session with live analysis, as attach does; leave trace, log and truth."""
    words = ["--write-path", trial.write_path, "--period", trial.period, *trial.extra]
    words += ["--duration", f"{trial.seconds:g}", "--seed", str(trial.seed), "--log", str(folder / "log")]
    if trial.inject:
        words += ["--inject", trial.inject, "--truth", str(folder / "truth")]
    with ExitStack() as stack:
        target = stack.enter_context(MiniVmm(binary(), words))
        session = stack.enter_context(Session([target.vmm, *target.others], Settings()))
        writer = stack.enter_context(TraceWriter(folder / "run.xdt", force=True))
        play(target, session, Analysis(), trial.seconds, writer)


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


def verdicts(summary: Summary, gone: Mapping[str, int] | None = None) -> list[Verdict]:
    """The misses of a summary as the scorer takes them; ``gone``: eventfds of streams without a row."""
    wake = {**(gone or {}), **{stream.id: stream.wake_eventfd for stream in summary.streams}}
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


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def truth(folder: Path, trial: Trial | None = None) -> tuple[list[Cycle], list[Injection]]:
    """What the audio server and the injector wrote down.

    Args:
        trial: what was run. Older logs do not hold how long a delay was to last; its option says
            how long at most.
    """
    rows = [row for row in json_lines(folder / "log") if row["type"] == "cycle"]
    starts = {(row["stream"], row["cycle"]): row["start_ns"] for row in rows}
    cycles = [
        Cycle(
            row["wake_eventfd"],
            row["cycle"],
            row["start_ns"],
            # Of a cycle in time the log has no deadline: it is the next one's start.
            row["deadline_ns"] or starts.get((row["stream"], row["cycle"] + 1), 0),
            row["closing_ns"],
            row["leg"],
            row["stream"],
            row.get("closer", ""),
            row.get("at_work", False),
            row.get("read_ns", 0),
            row.get("signal_ns", 0),
            row.get("written_ns", 0),
        )
        for row in rows
    ]
    injections = [
        Injection(
            kind=row["kind"],
            cause=row["cause"],
            locks=frozenset(row["lock"].split(",")) - {""},
            begin_ns=row["begin_ns"],
            end_ns=row["end_ns"],
            delay_ns=None if row["cause"] in NO_TIME else row["delay_ns"],
            stream=row["stream"],
            asked_ns=row.get("asked_ns") or (trial.asked_ns(row["kind"]) if trial else 0),
        )
        for row in json_lines(folder / "truth")
        if "kind" in row
    ]
    return cycles, injections


def waits(folder: Path) -> Waits:
    """How long the run's threads waited for a CPU, as the injector wrote it down."""
    rows = [row for row in json_lines(folder / "truth") if row.get("type") == "cpu_wait"]
    return Waits([row["ns"] for row in rows], [row["waited_ns"] for row in rows])


def _keep(
    folder: Path,
    kept: Path,
    trial: Trial,
    wrong: list[Labelled],
    cycles: list[Cycle],
    seen: list[Verdict],
) -> None:
    """Move a run with errors to where it can be looked at, with what was expected."""
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
        found = match(cycles, seen, trial.period_ns // 4)
        print(*(f"not seen: {cycle}" for cycle in found.unseen), sep="\n", file=out)
        print(*(f"invented: {verdict}" for verdict in found.invented), sep="\n", file=out)
        if trial.negative:
            print(*(f"lock blamed: {v}" for v in seen if v.cause == "lock"), sep="\n", file=out)


def measure(trial: Trial, kept: Path | None, traces: Path | None = None) -> Score:
    """What one run adds to the score; a run that is among the ``traces`` is judged anew, not run again."""
    if traces is None:
        with tempfile.TemporaryDirectory(prefix="xdtrace-accuracy-") as name:
            capture(trial, Path(name))
            return judged(trial, Path(name), kept)
    folder = traces / str(trial.seed)
    record(trial, folder)
    return judged(recorded(folder, trial), folder, kept)


def recorded(folder: Path, planned: Trial) -> Trial:
    """What was run there; the plan may have changed since. Older runs do not say."""
    path = folder / "trial.json"
    if not path.exists():
        return planned
    kept = json.loads(path.read_text(encoding="utf-8"))
    values = {of.name: kept[of.name] for of in fields(Trial)}
    return Trial(**{**values, "extra": tuple(values["extra"])})


def record(trial: Trial, folder: Path) -> None:
    """Run it, unless it was."""
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        capture(trial, folder)
        (folder / "trial.json").write_text(json.dumps(asdict(trial)), encoding="utf-8")
        (folder / "done").touch()


def judged(trial: Trial, folder: Path, kept: Path | None) -> Score:
    """The score of a recorded run."""
    score = Score()
    analysis = Analysis()
    until_ns = 0
    with TraceReader(folder / "run.xdt") as trace:
        for batch in without_kicks(trace):
            analysis.feed(batch)
            until_ns = batch.watermark_ns
    analysis.finish()
    summary = analysis.summary()
    cycles, injections = truth(folder, trial)
    # Of many streams that ended the summary has no rows.
    seen = verdicts(summary, {m.cycle.stream.id: m.cycle.stream.wake.id for m in analysis.verdicts.misses})
    tolerance_ns = trial.period_ns // 4
    run = str(trial.seed)
    wrong = add_run(
        score,
        run,
        cycles,
        seen,
        injections,
        tolerance_ns,
        trial.negative,
        trial.condition,
        until_ns,
        waits(folder),
    )
    strange = score.false_misses + score.not_seen + score.negative_locks
    if kept is not None and (wrong or strange):
        _keep(folder, kept, trial, wrong, cycles, seen)
    return score


def load(path: Path | None) -> dict[int, Score]:
    """Scores kept in a file, by seed."""
    if path is None or not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {line["seed"]: score_of(line["score"]) for line in lines}


def main() -> None:
    """Run the matrix and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under three minutes")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--rounds", type=int, default=0, help="of the whole matrix (quick: 1, else 12)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first run")
    parser.add_argument("--keep", type=Path, help="keep runs with wrong labels in this folder")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="append each run; what is in it is not run again"
    )
    parser.add_argument(
        "--budget", type=float, metavar="S", help="start no further run after so many seconds"
    )
    parser.add_argument("--load", type=Path, metavar="FILE", help="no runs: the figures of what was saved")
    parser.add_argument(
        "--traces",
        type=Path,
        metavar="DIR",
        help="keep every run there; what is there is judged anew, not run again",
    )
    parser.add_argument("--only", metavar="CONDITION", action="append", help="as the table names it: 256")
    parser.add_argument("--plan", action="store_true", help="no runs: how many episodes they should give")
    parser.add_argument("--record-only", action="store_true", help="with --traces: judge nothing yet")
    options = parser.parse_args()
    if options.record_only and not options.traces:
        parser.error("--record-only needs --traces")
    for name in ("keep", "save", "load", "traces"):  # bcc changes the working directory
        path = getattr(options, name)
        setattr(options, name, path.absolute() if path else None)
    rounds = 0 if options.load else options.rounds or (1 if options.quick else 12)
    planned = islice(trials(options.quick, options.seed), rounds * in_a_round(options.quick))
    if options.plan:
        for (cause, leg), episodes in sorted(expected(planned).items()):
            print(f"{cause}/{leg} {episodes}")
        return
    scores, failed = load(options.load or options.save), 0
    end = time.monotonic() + options.budget if options.budget else float("inf")
    for trial in planned:
        if trial.seed in scores or (options.only and trial.condition not in options.only):
            continue
        if time.monotonic() >= end:
            print("runs are left: the same command goes on", file=sys.stderr, flush=True)
            break
        try:
            if options.record_only:
                record(trial, options.traces / str(trial.seed))
                continue
            score = scores[trial.seed] = measure(trial, options.keep, options.traces)
        except RuntimeError as error:  # shown, counted, and no reason to lose the other runs
            failed += 1
            print(f"{trial}: {error}", file=sys.stderr)
            continue
        if options.save:
            with options.save.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"seed": trial.seed, "score": saved_form(score)}, default=sorted) + "\n"
                )
        print(f"{len(scores)}: {trial}", file=sys.stderr, flush=True)
    total = Score()
    for score in scores.values():
        total.add(score)
    result = figures(total)
    result["runs"], result["failed_runs"] = len(scores), failed
    result["host"] = host("./dev bench accuracy")
    print(json.dumps({"bench": "accuracy", **result}) if options.json else table(result))


if __name__ == "__main__":
    main()
