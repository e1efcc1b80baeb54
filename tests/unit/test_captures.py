# SPDX-License-Identifier: Apache-2.0
"""Real captures of delays made on purpose, one per cause, with the verdicts they must get.

Each is a third of a second of the mini-VMM (tests/minivmm/README.md, "Injected delays") at 256/48000, packed
as it was written but for paths and the suffix of the kernel's version. Expected is what the injector and the
audio server wrote down, not what xdtrace said.
Nobody can inject `stolen`: its leg is the server's, its cause the kernel's (more was stolen than it is late).
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.accuracy import analysed, verdicts, without_kicks
from tracer.model.analysis import Analysis
from tracer.model.leaves import NOT_SCHEDULED
from tracer.model.pieces import State
from tracer.model.summary import Miss
from tracer.model.window import Window
from tracer.schema import RW, Kind, view
from tracer.trace import TraceReader

DATA = Path(__file__).resolve().parents[1] / "data" / "captures"
EXPECTED: dict[str, list[dict[str, Any]]] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
CAUSES = (
    "blocked",
    "forward_failed",
    "guest_late",
    "head_of_line",
    "host_late",
    "lock",
    "mixed",  # two delays in one cycle, of equal length
    "not_rearmed",
    "not_scheduled",
    "on_cpu",
    "serialised",
    "slow_syscall",
    "stolen",
    "unknown",  # G took the command and wrote nothing
    "worker_exit",
)
#: The edges of neighbouring segments may move with a vCPU's write; what is said of a miss may not.
SAID = [field.name for field in fields(Miss) if field.name not in ("segments", "detail", "kick", "todo")]


def capture(name: str) -> TraceReader:
    return TraceReader(DATA / f"{name}.xdt.tar")


def test_every_cause_has_its_capture() -> None:
    assert set(EXPECTED) == set(CAUSES)
    assert {path.name for path in DATA.glob("*.tar")} == {f"{cause}.xdt.tar" for cause in CAUSES}
    causes = {name: {miss["cause"] for miss in misses} for name, misses in EXPECTED.items()}
    assert causes.pop("worker_exit") == {"forward_failed"}
    assert all(told == {name} for name, told in causes.items())


@pytest.mark.parametrize("name", CAUSES)
def test_a_real_delay_gets_its_cause(name: str) -> None:
    found = {(v.wake_eventfd, v.deadline_ns): v for v in verdicts(analysed(without_kicks(capture(name))))}
    for expected in EXPECTED[name]:
        told = found[(expected["wake_eventfd"], expected["deadline_ns"])]
        assert (told.leg, told.cause) == (expected["leg"], expected["cause"]), told
        assert told.carried_from is None
        if expected["cause"] == "lock":
            assert told.lock in expected["locks"]


@pytest.mark.parametrize("name", CAUSES)
def test_a_vcpus_eventfd_writes_change_no_verdict(name: str) -> None:
    dropped = sum(len(b.records) for b in capture(name)) - sum(
        len(b.records) for b in without_kicks(capture(name))
    )
    assert dropped > 20  # a kick per turn at least: else nothing was tried
    seen, unseen = analysed(capture(name)), analysed(without_kicks(capture(name)))
    said = [[getattr(m, field) for field in SAID] for m in seen.misses]
    assert said
    assert said == [[getattr(m, field) for field in SAID] for m in unseen.misses]


def test_only_writes_of_vcpus_are_taken_out() -> None:
    batches = zip(capture("lock"), without_kicks(capture("lock")), strict=True)
    vcpus: set[int] = set()
    for whole, rest in batches:
        vcpus |= {t.tid for t in whole.threads if t.comm.startswith("fc_vcpu")}
        writes = view(whole.records, RW)
        kicks = (whole.records["kind"] == Kind.WRITE) & (writes["eventfd_id"] >= 0)
        kicks &= np.isin(whole.records["tid"], sorted(vcpus))
        assert np.array_equal(rest.records, whole.records[~kicks])


@pytest.mark.parametrize("name", ["guest_late", "host_late", "not_rearmed", "serialised"])
def test_of_every_judged_miss_it_is_known_when_g_lacked_a_cpu_over_others_commands(name: str) -> None:
    """Also where no cause is enough alone: remedies and sets of causes are replayed with it."""
    analysis, some = Analysis(), 0
    for batch in capture(name):
        analysis.feed(batch)
    analysis.finish()
    for miss in analysis.verdicts.misses:
        if miss.case is None or miss.judgement is None:
            continue
        path = miss.case.path
        gpu, window = path.gpu_tid, Window(analysis.timeline, path.start_ns, path.end_ns, alone=True)
        others = [(max(a, path.start_ns), b) for a, b in path.foreign if b > path.start_ns]
        pieces = [piece for a, b in others for piece in window.pieces(gpu, a, b)]
        off = sum(p.end - p.start for p in pieces if p.state is State.RUNNABLE)
        assert sum(b - a for a, b in miss.case.relief.get((NOT_SCHEDULED, gpu), ())) == off
        some += off
    assert some
