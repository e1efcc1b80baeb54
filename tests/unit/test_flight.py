# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: what is kept, that a dump explains itself, when one is written."""

from __future__ import annotations

import os
import signal
import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_fakes import FakeAnalysis, FakeSession
from hypothesis import given
from hypothesis import strategies as st
from test_captures import capture
from trace_samples import some_batch

from tracer import schema
from tracer.cli import live
from tracer.cli.flight import FlightPlan, FlightRecorder
from tracer.cli.main import run_command
from tracer.cli.triggers import Condition, Counter, Limit, parse_condition
from tracer.errors import TraceError, UsageError
from tracer.model.analysis import Analysis, Tally
from tracer.schema import Batch, Kind, Life, empty_records
from tracer.trace import Flight, TraceReader

NS = 1_000_000_000


def at(seconds: float, count: int = 10) -> Batch:
    return replace(some_batch(1, count), watermark_ns=int(seconds * NS))


def life(op: Life, tid: int, comm: str = "", tgid: int = 7) -> schema.Records:
    row = np.zeros(1, schema.LIFE)
    row["kind"], row["op"], row["tid"], row["tgid"], row["comm"] = Kind.LIFE, op, tid, tgid, comm
    return row.view(schema.RECORD)


def summary_of(batches: list[Batch]) -> str:
    analysis = Analysis()
    for batch in batches:
        analysis.feed(batch)
    analysis.finish()
    return str([(m.deadline_ns, m.leg, m.cause, m.lock, m.sufficient) for m in analysis.summary().misses])


def test_only_the_last_seconds_are_kept(tmp_path: Path) -> None:
    memory = Flight(keep_s=5)
    for second in range(1, 101):
        memory.append(at(second))
    kept = memory.dump(tmp_path / "d.xdt", {"flight": "test"})
    first, *batches = TraceReader(tmp_path / "d.xdt")
    assert [(b.watermark_ns // NS, len(b.records)) for b in batches] == [(100, 60)]
    assert first.watermark_ns // NS == 94
    assert (kept.seconds, kept.records, kept.cut_short) == (6.0, 60, False)
    assert memory.bytes == 60 * schema.RECORD_BYTES


def test_a_dump_joins_batches_and_loses_nothing_of_them(tmp_path: Path) -> None:
    whole = [some_batch(number, 20_000) for number in range(1, 12)]
    memory = Flight(keep_s=60)
    for batch in whole:
        memory.append(batch)
    memory.dump(tmp_path / "d.xdt", {})
    found = list(TraceReader(tmp_path / "d.xdt"))[1:]
    assert len(found) == 4
    for name in ("targets", "threads", "sites"):
        assert [r for b in found for r in getattr(b, name)] == [r for b in whole for r in getattr(b, name)]
    assert b"".join(b.records.tobytes() for b in found) == b"".join(b.records.tobytes() for b in whole)
    assert (found[-1].watermark_ns, found[-1].losses) == (whole[-1].watermark_ns, whole[-1].losses)


def test_memory_is_bounded_however_many_records_come(tmp_path: Path) -> None:
    memory = Flight(keep_s=1000, limit_bytes=100 * schema.RECORD_BYTES)
    for second in range(1, 51):
        memory.append(at(second, 30))
        assert memory.bytes <= 100 * schema.RECORD_BYTES
    assert memory.dump(tmp_path / "d.xdt", {}).cut_short


def test_what_dropped_batches_said_is_in_a_dump(tmp_path: Path) -> None:
    memory = Flight(keep_s=1)
    words = np.zeros(2, schema.WORDS)
    words["kind"], words["tid"], words["op"], words["flags"] = Kind.WORDS, 7, 3, [0, 1]
    words["words"][:, 0] = [0x1000, 0x2000]
    learnt = Batch(
        np.concatenate(
            [life(Life.START, 70, "cross domain"), life(Life.START, 71, "gone"), words.view(schema.RECORD)]
        ),
        NS,
        targets=(schema.Target(7, "vmm", "muvm"),),
        fds=(schema.Fd(7, 4, "eventfd", 9),),
        host={"kernel": "6.18"},
    )
    memory.append(learnt)
    memory.append(Batch(np.concatenate([life(Life.EXIT, 71), life(Life.NAME, 70, "renamed")]), 2 * NS))
    for second in (20, 21):
        memory.append(at(second))
    memory.dump(tmp_path / "d.xdt", {})
    first = next(iter(TraceReader(tmp_path / "d.xdt")))
    assert [(t.tid, t.tgid, t.comm) for t in first.threads] == [(70, 7, "renamed")]
    assert (first.targets, first.fds, dict(first.host)) == (learnt.targets, learnt.fds, {"kernel": "6.18"})
    kept = schema.view(first.records, schema.WORDS)
    assert kept["words"][:, 0].tolist() == [0x1000, 0x2000]
    assert (kept["enter_ns"] == first.watermark_ns).all()


@pytest.mark.parametrize("name", ["lock", "serialised", "head_of_line"])
def test_a_dump_gives_the_verdicts_of_the_recording(name: str, tmp_path: Path) -> None:
    whole = list(capture(name))
    memory = Flight(keep_s=60)
    for batch in whole:
        memory.append(batch)
    memory.dump(tmp_path / "d.xdt", {})
    assert summary_of(list(TraceReader(tmp_path / "d.xdt"))) == summary_of(whole)
    assert summary_of(whole) != "[]"


def test_threads_that_come_and_go_cost_no_memory() -> None:
    memory = Flight(keep_s=1)
    for second in range(1, 300):
        rows = [life(op, 1000 * second + n, "short") for n in range(20) for op in (Life.START, Life.EXIT)]
        memory.append(Batch(np.concatenate(rows), second * NS))
    assert len(memory._before.batch(0).threads) == 0


# --- when ---


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("misses>=3/10s", ("misses", 3, 10 * NS)),
        (" misses > 3 / 500 ms ", ("misses", 4, NS // 2)),
        ("episodes>=1/2min", ("episodes", 1, 120 * NS)),
        ("misses>0", ("misses", 1, 10 * NS)),
    ],
)
def test_conditions(text: str, wanted: tuple[str, int, int]) -> None:
    found = parse_condition(text)
    assert (found.what, found.count, found.within_ns) == wanted


@pytest.mark.parametrize(
    "text", ["", "misses", "misses>=0", "misses>=3/0s", "waits>=1", "misses>=3/10", "misses==1"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_condition(text)


@given(st.lists(st.tuples(st.integers(0, 4 * NS), st.integers(0, 3)), max_size=40), st.integers(1, 5))
def test_a_condition_holds_exactly_where_a_recount_says_so(steps: list[tuple[int, int]], count: int) -> None:
    counter = Counter(Condition("misses", count, 3 * NS, ""))
    now, total = 0, 0
    history: list[int] = []
    for gap, more in steps:
        now, total = now + gap, total + more
        history += [now] * more
        holds = counter.holds(now, total)
        assert holds == (sum(when > now - 3 * NS for when in history) >= count)
        if holds and gap % 2:
            counter.restart()
            history.clear()


def test_dumps_are_limited_in_rate_and_number() -> None:
    limit = Limit(gap_ns=10, most=2)
    assert [limit.allows(t) for t in (0, 5, 10, 100)] == [True, False, True, False]
    assert limit.exhausted


class Told:
    """An analysis of which a test says how many misses it has seen."""

    def __init__(self) -> None:
        self.misses = 0

    def tally(self) -> Tally:
        return Tally(self.misses, 0)


def recorder(folder: Path, told: Told) -> FlightRecorder:
    plan = FlightPlan(5, (parse_condition("misses>=2/3s"),), gap_s=5, most=20, limit_bytes=1 << 20)
    return FlightRecorder(folder, plan, told)


def test_misses_a_signal_and_the_targets_death_each_write_a_dump(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    with recorder(tmp_path / "dumps", told) as flying:
        for second in range(1, 4):
            flying.append(at(second))
        assert not flying.dumps
        told.misses = 2
        flying.append(at(4))
        assert [p.name.split("-")[1] for p in flying.dumps] == ["misses.xdt"]
        told.misses = 9
        flying.append(at(8))  # it holds again, but within --every
        assert len(flying.dumps) == 1
        flying.append(at(8.5))
        assert len(flying.dumps) == 1
        flying.append(at(9))  # still within the three seconds, and --every is over
        assert len(flying.dumps) == 2
        os.kill(os.getpid(), signal.SIGUSR2)
        flying.append(at(9.5))
        dead = schema.Target(7, "vmm", "muvm", alive=False)
        flying.append(replace(at(10), targets=(dead,)))
        flying.append(replace(at(11), targets=(dead,)))
    kinds = [p.name.rsplit("Z-", 1)[1] for p in flying.dumps]
    assert kinds[:1] + kinds[2:] == ["misses.xdt", "asked.xdt", "exit.xdt"]
    assert kinds[1].startswith("misses")
    assert stat.S_IMODE((tmp_path / "dumps").stat().st_mode) == 0o700
    assert "misses>=2/3s: the last 3.0 s (40 records) are in" in capsys.readouterr().err
    for path in flying.dumps:
        assert sum(len(b.records) for b in TraceReader(path)) > 0


def test_dumps_of_one_second_get_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101T000000Z")
    with recorder(tmp_path / "dumps", Told()) as flying:
        for second in (1, 2, 3):
            os.kill(os.getpid(), signal.SIGUSR2)
            flying.append(at(second))
    assert [p.name for p in flying.dumps] == [
        "20260101T000000Z-asked.xdt",
        "20260101T000000Z-asked-2.xdt",
        "20260101T000000Z-asked-3.xdt",
    ]


def test_a_full_disk_loses_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    with recorder(tmp_path / "dumps", told) as flying:
        flying.append(at(1))

        def full(*_: object) -> None:
            raise TraceError("cannot write: No space left on device", "free some space")

        monkeypatch.setattr(flying._flight, "dump", full)
        os.kill(os.getpid(), signal.SIGUSR2)
        flying.append(at(2))
        assert "No space left" in capsys.readouterr().err
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGUSR2)
        flying.append(at(3))
    assert len(flying.dumps) == 1


def test_a_link_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(TraceError):
        recorder(tmp_path / "link", Told())


# --- the command ---


def test_the_command_keeps_in_memory_and_says_how_to_get_a_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "open_session", lambda todo: FakeSession(4))
    brief: list[object] = []

    def make(*rest: object) -> FakeAnalysis:
        brief.append(rest[-1])
        return FakeAnalysis()

    monkeypatch.setattr(live, "make_analysis", make)
    folder = tmp_path / "dumps"
    arguments = ["record", "42", "-o", str(folder), "--flight", "60", "--on", "misses>=3/10s"]
    assert run_command(arguments) == 0
    said = capsys.readouterr().err
    assert f"kill -USR2 {os.getpid()}" in said and "misses>=3/10s" in said and "at most 512 MB" in said
    assert "0 dumps written" in said
    assert brief == [True]  # it runs for weeks: what is kept of misses is little from the start
    assert folder.is_dir() and not list(folder.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--on", "misses>0"],
        ["--every", "5"],
        ["--flight", "-1"],
        ["--flight", "60", "--on", "nonsense"],
        ["--flight", "60", "--dumps", "0"],
        ["--flight", "60", "--memory", "0"],
    ],
)
def test_bad_options_are_usage_errors(arguments: list[str], tmp_path: Path) -> None:
    assert run_command(["record", "42", "-o", str(tmp_path / "d"), *arguments]) == 2


def test_a_session_without_batches_has_nothing_to_dump(tmp_path: Path) -> None:
    memory = Flight(5)
    assert memory.dump(tmp_path / "d.xdt", {}).records == 0
    assert empty_records().shape == (0,)
