# SPDX-License-Identifier: Apache-2.0
"""What a remedy would have done, cycle by cycle, on a world whose delays are known exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_verdicts import LATE, play
from trace_samples import record
from world import MS, Delays, World

from tracer.cli.main import run_command
from tracer.model.analysis import Analysis
from tracer.model.misses import EpisodeState
from tracer.model.summary import REMEDIES, Episode
from tracer.model.verdicts import WHOLE, Keep
from tracer.model.whatif import Prediction, Predictor, WhatIf
from tracer.schema import Records, end_ns
from tracer.trace import TraceWriter
from tracer.views.whatif import render_prediction

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"


def predict(world: World, records: Records, what: WhatIf, keep: Keep = WHOLE) -> Prediction:
    analysis = Analysis(keep=keep)
    predictor = Predictor(analysis, what)
    analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
    analysis.finish()
    return predictor.prediction()


def lock_name(world: World, records: Records) -> str:
    analysis = Analysis()
    analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
    analysis.finish()
    return next(lock.name for lock in analysis.summary().locks if lock.name.startswith("lock@"))


def test_a_lock_that_made_a_cycle_late_is_predicted_to_save_it() -> None:
    world, records = play(Delays(lock=LATE))
    found = predict(world, records, WhatIf(locks=(lock_name(world, records),)))
    assert (found.misses, found.avoided) == (1, 1)
    assert (found.episodes, found.episodes_avoided) == (1, 1)
    assert found.remaining_by_cause == {}
    assert found.moved_ns == 0
    assert found.removed_ns == found.gained_ns - found.passed_ns
    assert found.gained_ns == pytest.approx(LATE, rel=0.01)
    assert all(row.avoided and row.predicted_late_ns is not None for row in found.cycles)


def test_a_lock_held_over_a_pipe_only_moves_the_wait_to_the_queue() -> None:
    world, records = play(Delays(pipe_under_lock=LATE))
    found = predict(world, records, WhatIf(locks=(lock_name(world, records),)))
    assert found.avoided == 0
    assert found.removed_ns > 0.9 * LATE
    assert found.moved_ns > 0.9 * found.removed_ns
    assert found.removed_ns == found.gained_ns + found.moved_ns - found.passed_ns
    assert "head_of_line" in found.then
    said = " ".join(render_prediction(found).plain(100).split())
    assert "0 of 1 missed cycle (0 of 1 episode)" in said
    assert "come back as waiting for G's other commands" in said
    assert "passing commands of others" not in said
    more = render_prediction(replace(found, passed_ns=5 * MS)).plain(200)
    assert "gained (5.00ms of it from passing commands of others), " in " ".join(more.split())


@pytest.mark.parametrize(
    "delays",
    [
        Delays(channel_turns=40, turn=3 * MS, guest=26 * MS),
        Delays(channel_turns=12, turn=9 * MS),
        Delays(worker_off=5 * LATE),
        Delays(guest=LATE),
    ],
)
def test_a_report_counts_the_same_cycles_as_avoided(delays: Delays) -> None:
    world, records = play(delays)
    analysis = Analysis()
    analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
    analysis.finish()
    table = analysis.summary().counterfactual
    for remedy in REMEDIES:
        if remedy in ("item_state", "no_steal"):  # whatif asks for these in other words, or not at all
            continue
        found = predict(world, records, WhatIf((remedy,)))
        assert (table[remedy].of, table[remedy].avoided) == (found.misses, found.avoided), remedy
        assert table[remedy].remaining_by_cause == found.remaining_by_cause
        episodes = table[remedy].episodes_of, table[remedy].episodes_avoided
        assert episodes == (found.episodes, found.episodes_avoided), remedy


def test_an_episode_of_several_streams_counts_once_as_in_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    world, records = play(Delays(worker_off=2 * LATE), None, None, None, Delays(worker_off=2 * LATE))
    assert predict(world, records, WhatIf(("realtime",))).episodes == 2
    apart = Analysis.episodes

    def merged(analysis: Analysis) -> list[tuple[Episode, list[EpisodeState]]]:
        found = apart(analysis)
        return [(found[0][0], [state for _, states in found for state in states])]

    monkeypatch.setattr(Analysis, "episodes", merged)
    found = predict(world, records, WhatIf(("realtime",)))
    assert (found.episodes, found.episodes_avoided) == (1, 1)


def test_a_stream_has_the_name_that_tables_give_it() -> None:
    world, records = play(Delays(lock=LATE))
    analysis = Analysis()
    analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
    analysis.finish()
    (stream,) = analysis.summary().streams
    found = predict(world, records, WhatIf(("dup",)))
    assert {(row.stream, row.name) for row in found.cycles} == {(stream.id, stream.name)}
    table = render_prediction(found).plain(100).partition("Cycle by cycle")[2]
    assert stream.name in table
    assert f" {stream.id} " not in table


def test_carried_cycles_are_held_against_their_own_deadlines() -> None:
    """A starvation of six cycles, of which a remedy takes away all but a bit more than a period."""
    plan = Delays(channel_turns=40, turn=3 * MS, guest=26 * MS)
    world, records = play(plan)
    found = predict(world, records, WhatIf(("own_context",)))
    assert found.misses >= 6
    first, *rest = found.cycles
    assert not first.carried
    assert not first.avoided
    assert first.predicted_late_ns is not None
    assert 0 < first.predicted_late_ns < world.period
    assert all(row.carried and row.avoided for row in rest)
    assert found.episodes_avoided == 0


def test_changes_together_do_what_neither_does_alone() -> None:
    world, records = play(Delays(worker_off=30 * MS, lock=30 * MS))
    locks = (lock_name(world, records),)
    alone = [predict(world, records, what) for what in (WhatIf(locks=locks), WhatIf(("realtime",)))]
    both = predict(world, records, WhatIf(("realtime",), locks))
    assert [found.cycles[0].avoided for found in alone] == [False, False]
    assert both.misses == both.avoided == 2
    assert "lock" in alone[1].then


def test_what_remains_names_what_else_would_have_to_go() -> None:
    world, records = play(Delays(guest=LATE))
    found = predict(world, records, WhatIf(("dup",)))
    assert found.avoided == 0
    assert found.remaining_by_cause == {"guest_late": 1}
    assert found.then == {"guest_late": 1}
    assert found.then_of == 1


def test_the_prediction_does_not_depend_on_how_long_paths_are_kept() -> None:
    world, records = play(*[Delays(lock=LATE), None, None, None] * 4)
    what = WhatIf(locks=(lock_name(world, records),))
    whole = predict(world, records, what)
    assert predict(world, records, what, Keep(cases=1)).cycles == whole.cycles
    assert whole.avoided == whole.misses == 4


def test_nothing_missed_is_nothing_to_avoid() -> None:
    found = predict(*play(), WhatIf(("fair",)))
    assert (found.misses, found.cycles_watched) == (0, 36)
    assert "nothing to avoid, none of 36 cycles was missed" in render_prediction(found).plain(120)


def test_a_lock_nobody_waited_for_is_said() -> None:
    found = predict(*play(Delays(guest=LATE)), WhatIf(locks=("item_state",)))
    assert "no wait for a lock named item_state was seen" in found.notes
    assert found.avoided == 0


@pytest.mark.parametrize("width", [60, 80, 140])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    found = predict(*play(Delays(guest=130 * MS)), WhatIf(("dup", "realtime"), ("\x1b[31mlock",)))
    drawn = render_prediction(found, full=True).plain(width)
    assert all(len(line) <= width for line in drawn.splitlines())
    assert "\x1b" not in drawn


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    world, records = play(Delays(channel_turns=12, turn=3 * MS), None, None, None, Delays(guest=LATE))
    with TraceWriter(tmp_path / "late.xdt") as writer:
        writer.append(world.batch(records, int(end_ns(records)[-1]), first=True))
    return tmp_path / "late.xdt"


def test_the_command_gives_json_by_cycle(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["whatif", str(trace), "--own-context", "--format", "json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["type"], out["schema"], out["what"]["remedies"]) == ("whatif", 1, ["own_context"])
    assert out["avoided"] == sum(row["avoided"] for row in out["cycles"]) > 0
    assert out["misses"] == len(out["cycles"])
    assert out["remaining_by_cause"] == {"guest_late": 1}


def test_the_command_says_it_in_a_sentence(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["whatif", str(trace), "--without", "item_state", "--as", "dup"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("With no waits on item_state, and write path dup: 0 of ")
    assert "Cycle by cycle" in out


@pytest.mark.parametrize(
    "words", [[], ["--as", "locked"], ["--worker", "first"], ["--realtime", "--format", "xml"]]
)
def test_a_change_that_is_none_is_a_usage_error(
    words: list[str], trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["whatif", str(trace), *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_lock_that_is_not_there_is_told_from_one_that_nobody_waited_for(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = CAPTURES / "lock.xdt.tar"
    assert run_command(["whatif", str(lock), "--without", "nolock"]) == 2
    what, do = capsys.readouterr().err.splitlines()
    assert what == "xdtrace: --without nolock: no lock of that name was waited for"
    assert do.startswith("  there are: ") and "item_state" in do.removeprefix("  there are: ").split(", ")
    # The profile knows it; that nobody waited for it is an answer.
    assert run_command(["whatif", str(trace), "--without", "item_state"]) == 0
    assert "no wait for a lock named item_state was seen" in capsys.readouterr().out


def test_what_is_no_trace_is_exit_code_5_and_one_without_audio_is_none_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["whatif", str(tmp_path / "none.xdt"), "--realtime"]) == 5
    record(tmp_path / "quiet.xdt")
    assert run_command(["whatif", str(tmp_path / "quiet.xdt"), "--realtime"]) == 0
    assert "no audio stream was seen" in capsys.readouterr().out
