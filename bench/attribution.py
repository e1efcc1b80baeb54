# SPDX-License-Identifier: Apache-2.0
"""What a verdict costs: CPU per miss and per origin, against the second of record time it comes from.

Made-up recordings (tests/unit/world.py) of one stream at 256/48000 that starves again and again, each time
while the worker serves N other events: 1, 10, 100 and 300 turns of a round trip through guest and G each, ten
records a turn, and six cycles in time between. So the length of an episode is exact, and nothing else
differs. ``judging`` is the CPU of episodes, paths, leaves and replays; ``remedies`` that of a report's table;
reading and all else of the analysis is left out (bench offline has the whole). Twice the episodes are
analysed as well: ``doubled`` is what that costs, 2 if linear.

Without --quick a churn of the mini-VMM at 256/48000 is recorded too and analysed in the same way, with one
stream and with eight that starve together: there a turn has its locks and run-queue delays. --trace takes a
recording of yours.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import ROOT, Judging, Results, record
from tracer.model.analysis import Analysis
from tracer.schema import Batch, end_ns
from tracer.trace import TraceReader

sys.path.append(str(ROOT / "tests" / "unit"))

from world import MS, US, Delays, World  # it lies with the tests

PERIOD_NS = 256 * 1_000_000_000 // 48_000
TURNS = (1, 10, 100, 300)
#: Shortest round trip through the guest; few of them must take longer to be late at all.
TURN_NS = 400 * US
LATE_NS = 8 * MS
ON_TIME = 6
EPISODES = {1: 200, 10: 200, 100: 40, 300: 16}
BATCH_NS = 50 * MS
#: What is recorded of the mini-VMM, as options of demo.
CHURN = {
    "recorded churn": ("--period", "256/48000"),
    "recorded churn, 8 streams": ("--period", "256/48000", "--streams", "8"),
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="an eighth of the episodes, no recording")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--trace", type=Path, help="a recording of yours, instead of one of the mini-VMM")
    return parser.parse_args()


def starving(turns: int, episodes: int) -> list[Batch]:
    """A recording with so many starvations of so many turns each."""
    world = World(period=PERIOD_NS)
    for i in range(24 + episodes * (ON_TIME + 1)):
        late = i >= 24 and i % (ON_TIME + 1) == 0
        world.cycle(Delays(channel_turns=turns, turn=max(TURN_NS, LATE_NS // turns)) if late else None)
    records = world.finish()
    ends = end_ns(records)
    batches: list[Batch] = []
    sent = 0
    for mark in range(int(ends[0]), int(ends[-1]) + BATCH_NS, BATCH_NS):
        upto = int(ends.searchsorted(mark, side="right"))
        batches.append(world.batch(records[sent:upto], mark, first=not batches))
        sent = upto
    return batches


def cost(batches: Iterable[Batch]) -> dict[str, float]:
    """CPU of attribution while a recording is analysed."""
    analysis, records = Analysis(), 0
    judge = Judging(analysis)
    for batch in batches:
        records += len(batch.records)
        analysis.feed(batch)
    analysis.finish()
    judging = judge.cpu_s
    remedies = time.process_time()
    analysis.summary(misses=1)
    remedies = time.process_time() - remedies
    misses = list(analysis.verdicts.misses)
    origins = [m for m in misses if m.origin is None]
    if not origins:
        return {"records": records}
    span_s = (misses[-1].cycle.end_ns - misses[0].cycle.nominal_ns) / 1e9
    return {
        "records": records,
        "misses": len(misses),
        "origins": len(origins),
        "judging_ms_per_miss": judging / len(misses) * 1e3,
        "judging_ms_per_origin": judging / len(origins) * 1e3,
        "remedies_ms_per_origin": remedies / len(origins) * 1e3,
        "misses_per_cpu_s": len(misses) / (judging + remedies),
        "misses_per_record_s": len(misses) / span_s,
        "cpu_s": judging + remedies,
    }


def main() -> None:
    """Run it."""
    chosen = _options()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)  # as the commands set it (cli/run.py)
    results = Results("attribution")
    for _ in range(chosen.rounds or (1 if chosen.quick else 3)):
        for turns in TURNS:
            episodes = EPISODES[turns] // (8 if chosen.quick else 1)
            once = cost(starving(turns, episodes))
            twice = cost(starving(turns, 2 * episodes))
            doubled = twice["cpu_s"] / once["cpu_s"]
            results.add(f"{turns} turns", **once, doubled=doubled)
        if not chosen.quick or chosen.trace:
            with tempfile.TemporaryDirectory(prefix="xdtrace-bench-") as folder:
                for name, options in CHURN.items():
                    trace = chosen.trace or record(Path(folder) / f"{len(options)}.xdt", *options)
                    results.add(chosen.trace.name if chosen.trace else name, **cost(TraceReader(trace)))
                    if chosen.trace:
                        break
    results.note(
        "a second of record time is attributed in less than a second where misses_per_cpu_s is above"
    )
    results.note("misses_per_record_s, or above 1,000 for the target of 1,000 misses in a second")
    results.say(chosen.json)


if __name__ == "__main__":
    main()
