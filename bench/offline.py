# SPDX-License-Identifier: Apache-2.0
"""Analysing a recorded trace: cost per record, whether cost grows with the trace, and memory.

A trace of the mini-VMM under churn is recorded first (or given by --trace), then repeated, shifted in time,
into trace folders of 1 M, 3 M and (without --quick) 10 M records, in batches of a quarter of a second as a
recording has them. Each is read and analysed by a process of its own, as `xdtrace report --format json`
does: CPU, wall time, peak memory. ``us_per_record`` is all, ``us_read`` reading, ``us_unjudged`` analysis
without what verdicts on misses cost, which depends on how many there are.

Peer: one question of the many, futex waits per word with count, total and longest, asked of text as `perf
script` prints it, through pandas. The text is written beforehand; only reading it counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from bench.common import ROOT, Judging, Results, record
from tracer.schema import FUTEX, Batch, Flag, Kind, Records, end_ns, view

_MILLION = 1_000_000
_BATCH_NS = 50_000_000
_WRITTEN_NS = 250_000_000
_PEER_RECORDS = 500_000


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="1 M and 3 M records only")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trace", type=Path, help="a recorded trace to repeat, instead of recording one")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def load(trace: Path) -> tuple[Batch, Records]:
    """What a trace knows beside its records, in one batch, and its records in order of their end."""
    from tracer.trace import TraceReader

    batches = list(TraceReader(trace))
    records = np.concatenate([b.records.view("u1") for b in batches]).view(batches[0].records.dtype)
    records = records.take(np.argsort(end_ns(records), kind="stable"))
    first = Batch(
        records[:0],
        0,
        targets=tuple(row for b in batches for row in b.targets),
        threads=tuple(row for b in batches for row in b.threads),
        fds=tuple(row for b in batches for row in b.fds),
        epolls=tuple(row for b in batches for row in b.epolls),
        sites=tuple(row for b in batches for row in b.sites),
        lock_symbols=tuple(row for b in batches for row in b.lock_symbols),
        host=batches[0].host,
    )
    return first, records


def repeated(first: Batch, records: Records, wanted: int, batch_ns: int = _BATCH_NS) -> Iterator[Batch]:
    """Batches with ``wanted`` records in all: the trace again and again, each time shifted by its length."""
    ends = end_ns(records)
    length = int(ends[-1] - ends[0]) + batch_ns
    edges = np.arange(int(ends[0]) + batch_ns, int(ends[-1]) + batch_ns, batch_ns, dtype=np.uint64)
    cuts = [0, *np.searchsorted(ends, edges, side="right").tolist(), len(records)]
    yield first
    sent = shift = 0
    while sent < wanted:
        for start, stop in pairwise(cuts):
            part = records[start : min(stop, start + wanted - sent)].copy()
            if not len(part):
                continue
            part["enter_ns"] += np.uint64(shift)
            sent += len(part)
            yield Batch(part, int(ends[start + len(part) - 1]) + shift - 1)
        shift += length


def _write(trace: Path, wanted: int, folder: Path) -> None:
    """The trace folder that is analysed."""
    from tracer.trace import TraceWriter

    with TraceWriter(folder) as writer:
        for batch in repeated(*load(trace), wanted, _WRITTEN_NS):
            writer.append(batch)


def _one(trace: Path, wanted: int) -> None:
    """Report on a trace folder of ``wanted`` records in this process; print what it took."""
    from tracer.cli.run import collect_seldom
    from tracer.model.analysis import Analysis
    from tracer.trace import TraceReader

    collect_seldom()  # as every command does
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall, analysed = time.process_time(), time.perf_counter(), 0.0
    analysis = Analysis()
    judging = Judging(analysis)
    with TraceReader(trace) as batches:
        for batch in batches:
            start = time.process_time()
            analysis.feed(batch)
            analysed += time.process_time() - start
    start = time.process_time()
    analysis.finish()
    fed = time.process_time()
    summary = analysis.summary()
    text = summary.to_json()
    done, wall = time.process_time(), time.perf_counter() - wall
    read_s, analysed, summary_s, cpu = start - cpu - analysed, analysed + fed - start, done - fed, done - cpu
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert summary.records.total == wanted, (summary.records.total, wanted)
    say = {
        "cpu_s": cpu,
        "wall_s": wall,
        "us_per_record": cpu / wanted * 1e6,
        "us_read": read_s / wanted * 1e6,
        "us_unjudged": (analysed - judging.cpu_s) / wanted * 1e6,
        "misses": (misses := sum(stream.misses for stream in summary.streams)),
        "ms_per_miss": judging.cpu_s * 1e3 / max(1, misses),
        "summary_s": summary_s,
        "peak_mib": peak_kib / 1024,
        "grown_mib": (peak_kib - before_kib) / 1024,
        "json_kib": len(text) / 1024,
    }
    print(json.dumps(say))


def _text(records: Records, path: Path) -> int:
    """The futex waits as `perf script` prints raw_syscalls' pairs; the number of records they stand for."""
    rows = view(records.take(np.flatnonzero(records["kind"] == int(Kind.FUTEX))), FUTEX)
    rows = rows.take(np.flatnonzero((rows["flags"] & int(Flag.OPEN)) == 0))
    lines: list[tuple[int, str]] = []
    columns = (rows[name].tolist() for name in ("tid", "enter_ns", "dur_ns", "op", "word", "expected", "ret"))
    for tid, enter, dur, op, word, expected, ret in zip(*columns, strict=True):
        cpu = tid % 2
        for at, what in (
            (enter, f"sys_enter: NR 202 ({word:x}, {op:x}, {expected:x}, 0, 0, ffffffff)"),
            (enter + dur, f"sys_exit: NR 202 = {ret}"),
        ):
            stamp = f"{at // 1_000_000_000}.{at % 1_000_000_000:09d}"
            lines.append((at, f"gpu worker {tid:7d} [{cpu:03d}] {stamp}: raw_syscalls:{what}\n"))
    lines.sort()
    path.write_text("".join(text for _, text in lines), encoding="ascii")
    return len(rows)


def _peer(text: Path) -> None:
    """Waits per futex word from perf's text, through pandas; print what it took."""
    import pandas as pd

    cpu, wall = time.process_time(), time.perf_counter()
    lines = pd.Series(text.read_text(encoding="ascii").splitlines())
    parts = lines.str.extract(
        r"^.{10} +(?P<tid>\d+) \[\d+\] (?P<s>\d+)\.(?P<ns>\d+): raw_syscalls:sys_(?P<what>\w+): NR \d+ "
        r"(?:\((?P<word>\w+), (?P<op>\w+), (?P<expected>\w+)|= (?P<ret>-?\d+))"
    )
    parts["at"] = parts["s"].astype("int64") * 1_000_000_000 + parts["ns"].astype("int64")
    parts = parts.sort_values(["tid", "at"], kind="stable")
    begun = parts["what"] == "enter"
    parts["dur"] = parts["at"].shift(-1) - parts["at"]
    waits = parts[begun & parts["op"].isin(["89", "80"])]
    found = waits.groupby("word")["dur"].agg(["count", "sum", "max"])
    say = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "words": len(found)}
    print(json.dumps(say))


def _child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run it."""
    chosen = _options()
    if chosen.one:
        _one(chosen.trace, chosen.one)
        return
    if chosen.peer:
        _peer(chosen.trace)
        return
    results = Results("offline")
    with tempfile.TemporaryDirectory(prefix="xdtrace-bench-") as folder:
        trace = chosen.trace or record(Path(folder) / "minivmm.xdt")
        _, records = load(trace)
        text = Path(folder) / "perf.txt"
        futexes = _text(records[:_PEER_RECORDS], text)
        sizes = (1, 3) if chosen.quick else (1, 3, 10)
        for _ in range(chosen.rounds):
            for size in sizes:
                written = Path(folder) / f"{size}.xdt"
                if not written.exists():
                    _write(trace, size * _MILLION, written)
                found = _child("--trace", str(written), "--one", str(size * _MILLION))
                results.add(f"xdtrace, {size} M records", **found)
            peer = _child("--trace", str(text), "--peer")
            results.add(
                f"perf text + pandas, {futexes:,} futex calls only",
                cpu_s=peer["cpu_s"],
                wall_s=peer["wall_s"],
                us_per_record=peer["cpu_s"] / futexes * 1e6,
            )
        kinds = np.bincount(records["kind"], minlength=16)[1:].tolist()
        shares = ", ".join(f"{Kind(i + 1).name.lower()} {n}" for i, n in enumerate(kinds) if n)
        results.note(f"the trace that is repeated has {len(records):,} records: {shares}")
        results.note("the peer answers one question (waits per word); xdtrace's figure is its whole report")
    results.say(chosen.json)


if __name__ == "__main__":
    main()
