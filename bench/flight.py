# SPDX-License-Identifier: Apache-2.0
"""The flight recorder for hours: is memory flat, what does an hour cost, what does a dump take?

A run of the mini-VMM with a little churn is recorded (or given by --trace) and repeated, shifted in
time, for --hours of record time, through the same analysis and the same recorder as `xdtrace record
--flight 60` uses; without the kernel's side, whose memory is the ring's and the maps' fixed size. A
dump is written at each tenth.

Peer: the same batches into a plain trace folder, as `record` without --flight does: bytes per hour.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import psutil

from bench.common import Results, record
from bench.offline import load, repeated
from tracer.model.analysis import Analysis
from tracer.model.verdicts import BRIEF
from tracer.schema import end_ns
from tracer.trace import Flight, TraceWriter

_KEEP_S = 60
_PEER_S = 120


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="twenty minutes of record time")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--hours", type=float, default=6.0, help="of record time")
    parser.add_argument("--trace", type=Path, help="a recorded trace to repeat, instead of recording one")
    return parser.parse_args()


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """Run it."""
    chosen = _options()
    seconds = 1200.0 if chosen.quick else chosen.hours * 3600
    results, process = Results("flight"), psutil.Process()
    with tempfile.TemporaryDirectory(prefix="xdtrace-bench-") as name:
        folder = Path(name)
        trace = chosen.trace or record(folder / "minivmm.xdt", churn=5)
        first, records = load(trace)
        ends = end_ns(records)
        rate = len(records) / ((int(ends[-1]) - int(ends[0])) / 1e9)
        analysis, flight = Analysis(keep=BRIEF), Flight(_KEEP_S)
        tenth, done, cpu, began = seconds / 10, 0, time.process_time(), None
        for batch in repeated(first, records, int(rate * seconds)):
            flight.append(batch)
            analysis.feed(batch)
            analysis.tally()
            began = began or batch.watermark_ns or None
            if began and batch.watermark_ns - began >= (done + 1) * tenth * 1e9:
                done += 1
                spent = time.process_time() - cpu
                start = time.process_time()
                kept = flight.dump(folder / f"{done}.xdt", {})
                results.add(
                    f"after {done * tenth / 3600:.2f} h",
                    rss_mib=process.memory_info().rss / 2**20,
                    flight_mib=flight.bytes / 2**20,
                    cpu_percent=spent / tenth * 100,
                    dump_ms=(time.process_time() - start) * 1e3,
                    dump_mib=_disk_bytes(folder / f"{done}.xdt") / 2**20,
                    dump_s=kept.seconds,
                    misses=analysis.tally().misses,
                )
                cpu = time.process_time()
        with TraceWriter(folder / "peer.xdt") as writer:
            cpu = time.process_time()
            for batch in repeated(first, records, int(rate * _PEER_S)):
                writer.append(batch)
        size = _disk_bytes(folder / "peer.xdt")
        results.add(
            "peer: a plain recording",
            cpu_percent=(time.process_time() - cpu) / _PEER_S * 100,
            disk_mib_per_hour=size / 2**20 * 3600 / _PEER_S,
        )
        results.note(f"{rate:,.0f} records a second of record time; {os.path.basename(trace)} repeated")
    results.say(chosen.json)


if __name__ == "__main__":
    main()
