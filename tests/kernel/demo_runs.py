# SPDX-License-Identifier: Apache-2.0
"""Runs of ``xdtrace demo --json``, as a user starts them; each one's counts are held to the audio server's.

Owns the command line and what a whole run must show whatever its causes. Equal runs differ wildly, so a
test that needs to see something asks for further runs until it has seen it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from commandline import xdtrace

#: How often a test that needs misses tries to see some.
ATTEMPTS = 3

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run's snapshots and its last summary, as JSON says them.

    Attributes:
        words: the options it was started with.
        summary: with "ground_truth": what the audio server itself counted.
    """

    words: tuple[str, ...]
    snapshots: tuple[Row, ...]
    summary: Row

    @property
    def truth(self) -> Row:
        truth: Row = self.summary["ground_truth"]
        return truth

    @property
    def misses(self) -> int:
        """All missed cycles, as the streams' rows count them."""
        return sum(stream["misses"] for stream in self.summary["streams"])

    @property
    def origins(self) -> list[Row]:
        """First misses of starvations; the driver's own catching up is nobody's."""
        return [m for m in self.summary["misses"] if m["carried_from"] is None and m["via"] != "driver"]

    @property
    def write_path(self) -> Row:
        """Of the run's only VMM."""
        (path,) = self.summary["write_path"].values()
        found: Row = path
        return found

    def remedy(self, name: str) -> Row:
        """What a remedy would have done."""
        remedy: Row = self.summary["counterfactual"][name]
        return remedy

    def locks(self, name: str) -> list[Row]:
        """Rows of the locks with a name, one per context."""
        return [lock for lock in self.summary["locks"] if lock["name"] == name]

    def blame(self, lock: str) -> list[Row]:
        """Rows of the blame table on a lock, whichever its context."""
        return [row for row in self.summary["blame"] if row["lock"].split(" ")[0] == lock]

    def __repr__(self) -> str:
        """What a failed assertion should show."""
        causes, verdict = self.summary["misses_by_cause"], self.summary["verdict"]
        return f"<demo {' '.join(self.words)}: {self.misses} missed, {causes}: {verdict}>"


def demo(*words: str) -> Run:
    """Run the demo to its end; its counts must be the audio server's, whatever happened in it."""
    done = xdtrace("demo", "--json", *words)
    assert done.code == 0, done.err
    *snapshots, summary = [json.loads(line) for line in done.out.splitlines()]
    run = Run(words, tuple(snapshots), summary)
    assert {row["type"] for row in snapshots} == {"snapshot"}
    assert summary["type"] == "summary" and summary["schema"] == 1
    hold_counts(run)
    hold_segments(run)
    return run


def hold_counts(run: Run) -> None:
    """Cycles, missed cycles and episodes are the audio server's own; nothing was lost on the way."""
    summary, truth = run.summary, run.truth
    assert summary["records"]["lost"] == {"ring": 0, "map": 0, "late": 0}, run
    assert truth["cycles"] > 0, run
    assert abs(sum(s["cycles"] for s in summary["streams"]) - truth["cycles"]) <= 1, run
    assert abs(run.misses - truth["missed_cycles"]) <= 1, (run, truth)
    episodes = sum(s["episodes"] for s in summary["streams"])  # of each; one culprit's may be one of several
    assert abs(episodes - truth["episodes"]) <= 1, (run, truth)
    assert len(summary["episodes"]) == episodes or len(summary["streams"]) > 1, run
    assert run.misses == len(summary["misses"]) == sum(e["misses"] for e in summary["episodes"]), run
    for stream in summary["streams"]:
        assert stream["source"] == "exact", run
        assert sum(stream["misses_by_leg"].values()) == stream["misses"], run


def hold_segments(run: Run) -> None:
    """A verdict says what it rests on: its segments are there, and what is sufficient is its own."""
    ids = {miss["id"] for miss in run.summary["misses"]}
    for miss in run.summary["misses"]:
        total = sum(segment["ns"] for segment in miss["segments"])
        assert miss["segments"] and all(segment["ns"] >= 0 for segment in miss["segments"]), (run, miss)
        assert miss["late_ns"] is None or total >= miss["late_ns"] > 0, (run, miss)
        assert miss["carried_from"] is None or miss["carried_from"] in ids, (run, miss)
        assert miss["detail"] and miss["evidence"] in ("complete", "degraded"), (run, miss)


def share(rows: Iterable[Row], condition: Callable[[Row], bool]) -> float:
    """Which fraction of the rows meets a condition; 0 without rows."""
    found = [condition(row) for row in rows]
    return sum(found) / len(found) if found else 0.0


def sufficient(miss: Row, *wanted: str) -> bool:
    """Whether each wanted cause is among a miss's sufficient ones; "lock:" stands for any lock."""
    return all(
        any(name == w or (w.endswith(":") and name.startswith(w)) for name in miss["sufficient"])
        for w in wanted
    )
