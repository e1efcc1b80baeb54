# SPDX-License-Identifier: Apache-2.0
"""kill -9 of `xdtrace record` at random moments on the published device: what is lost beside the last batch?

The device (rutabaga_gfx, `locked`) runs under churn all the time; a recorder is attached again and again, and
killed at a random moment of the first three seconds. Each trace is then read as `report` does. The truth is
the clock: up to the kill everything must be there but what the batch being written would have held, and no
cycle of the audio may be missing in between.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import ROOT, Results
from tracer.cli import realdevice
from tracer.cli.minivmm import MiniVmm
from tracer.cli.run import replay
from tracer.errors import TraceError
from tracer.model.analysis import Analysis
from tracer.trace import TraceReader

#: Seconds within which it is killed once it says that it records.
_SPAN_S = 3.0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="ten kills instead of a hundred")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="so many")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--churn", type=int, default=200)
    return parser.parse_args()


def _killed(vmm: int, path: Path, after_s: float) -> int:
    """Record, and kill the recorder so long after it said that it does; the moment of the kill, ns."""
    command = [sys.executable, "-m", "tracer", "record", str(vmm), "-o", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        said = child.stderr.readline()
        if not said.startswith(b"recording"):
            raise SystemExit(f"the recorder says: {said.decode()}")
        time.sleep(after_s)
        child.kill()
        return time.monotonic_ns()


def _judge(results: Results, path: Path, killed_ns: int) -> str:
    """What became of one trace, in a word."""
    ends, records = [0], 0
    try:
        with TraceReader(path) as trace:
            for batch in trace:
                records += len(batch.records)
                ends.append(batch.watermark_ns or ends[-1])
            torn = "cut off" in (trace.incomplete or "") or "left out" in (trace.incomplete or "")
    except TraceError as error:
        return "before its first batch, which it says" if "no whole batch" in error.message else "UNREADABLE"
    with TraceReader(path) as trace:
        summary = replay(trace, Analysis())
    holes = 0
    for stream in summary.streams:
        watched_ns = (
            stream.slack_bins[-1].start_ns - stream.slack_bins[0].start_ns if stream.slack_bins else 0
        )
        holes += max(0, watched_ns // stream.period_ns - stream.cycles - 1) if stream.period_ns else 0
    between = [b - a for a, b in pairwise(ends[1:])]
    results.add(
        "read again",
        records=records,
        batches=len(ends) - 1,
        lost_at_the_end_ms=(killed_ns - ends[-1]) / 1e6,
        longest_batch_ms=max(between, default=0) / 1e6,
        lost_in_between=sum((summary.records.lost.ring, summary.records.lost.map, summary.records.lost.late)),
        cycles=sum(s.cycles for s in summary.streams),
        cycles_missing=holes,
    )
    return "read up to its last whole batch" + ("; a torn one left out, and said so" if torn else "")


def main() -> None:
    """Run it."""
    chosen = _options()
    kills, results = chosen.kills or (10 if chosen.quick else 100), Results("kills")
    moments = random.Random(chosen.seed)
    device = realdevice.binary("locked", stripped=False)
    arguments = ["--churn", str(chosen.churn), "--duration", "0", "--period", "1024/48000", "--streams", "1"]
    outcomes: dict[str, int] = {}
    with (
        tempfile.TemporaryDirectory(prefix="xdtrace-bench-") as name,
        MiniVmm(device, [*arguments, "--write-path", "locked"]) as child,
    ):
        child.start()
        for number in range(kills):
            path = Path(name) / f"{number}.xdt"
            killed_ns = _killed(child.vmm, path, moments.uniform(0.0, _SPAN_S))
            outcome = _judge(results, path, killed_ns)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            child.tick(asked=False)
        while not child.tick(asked=True):
            time.sleep(0.05)
    for outcome, count in sorted(outcomes.items()):
        results.note(f"{count} of {kills}: {outcome}")
    results.say(chosen.json)


if __name__ == "__main__":
    main()
