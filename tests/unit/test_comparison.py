# SPDX-License-Identifier: Apache-2.0
"""What compare says of sides of runs, and what it refuses to say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import views_data
from test_verdicts import play
from trace_samples import record
from world import MS, Delays

from tracer.cli.main import run_command
from tracer.errors import TraceError, UsageError
from tracer.model.comparison import Comparison, Contrast, compare
from tracer.model.runfigures import Run, run_of
from tracer.model.summary import Summary, Window
from tracer.model.summaryrows import CostStats, Slack, WritePath
from tracer.schema import end_ns
from tracer.trace import TraceWriter, pack
from tracer.views.compare import render_comparison, strip
from tracer.views.fmt import ENDLESS

MINUTE = 60_000_000_000


def summary(misses: int, **changes: Any) -> Summary:
    """A run of a minute of audio: one stream of 3,000 cycles of 20 ms."""
    stream = replace(
        views_data.stream(1),
        cycles=3000,
        period_ns=20_000_000,
        misses=misses,
        episodes=min(misses, 2),
        slack_ns=Slack(18_000_000, 2_000_000, 1_000_000),
    )
    whole = replace(
        views_data.base(), streams=(stream,), window=Window(0, MINUTE), locks=(), write_path={}, steal_ns=0
    )
    return replace(whole, **changes)


def run(misses: int, name: str = "", **changes: Any) -> Run:
    return run_of(name or f"{misses}.json", summary(misses, **changes).to_dict())


def side(*misses: int) -> list[Run]:
    return [run(n, f"{at}-{n}") for at, n in enumerate(misses)]


def primary(found: Comparison) -> Contrast:
    return next(one for one in found.contrasts if one.measure == "misses")


def text(found: Comparison) -> str:
    return " ".join(render_comparison(found).plain(120).split())


def test_misses_count_per_minute_of_audio_not_per_recorded_minute() -> None:
    assert run(30).values["misses"] == 30
    assert run(30, window=Window(0, 5 * MINUTE)).values["misses"] == 30
    two = summary(30).streams * 2
    assert run(30, streams=two).values["misses"] == 30
    assert run(30, streams=two).audio_s == 120


def test_five_against_five_without_overlap_is_shown_with_its_interval() -> None:
    found = compare([side(50, 60, 70, 80, 90), side(0, 1, 2, 3, 4)])
    one = primary(found)
    assert one.outcome == "less"
    assert one.p == pytest.approx(2 / 252)
    assert (one.shift.low_rank, one.shift.high_rank) == (3, 23)
    said = text(found)
    assert "96.8 % interval" in said
    assert "B has less" in said


def test_three_against_three_says_that_it_cannot_show_anything() -> None:
    found = compare([side(50, 60, 70), side(0, 0, 0)])
    assert primary(found).outcome == "impossible"
    said = text(found)
    assert "no interval exists at 95 % for 3 against 3" in said
    assert "3 against 3 runs cannot show anything, the least possible p being 0.1" in said
    assert "take at least 4 runs a side" in said


def test_not_shown_is_never_called_no_difference_and_names_the_runs_needed() -> None:
    found = compare([side(5, 20, 90, 40, 3), side(8, 50, 30, 100, 7)])
    assert primary(found).outcome == "not_shown"
    said = text(found)
    assert 'not shown, which is not "no difference"; about 67 runs a side would show' in said
    assert "B has" not in said.split("Exploratory")[0]


def test_equal_sides_have_no_number_of_runs_that_would_show_more() -> None:
    said = text(compare([side(3, 4, 5, 6), side(3, 4, 5, 6)]))
    assert "the runs point neither way, so no number of them can be named" in said


def test_clean_runs_say_how_many_may_still_glitch() -> None:
    found = compare([side(9, 9, 9, 9, 9), side(0, 0, 0, 0, 0)])
    assert "B: 0 of 5 runs missed anything (95 %: 0 to 52 % of runs)" in text(found)
    assert "5 runs clean: up to 45 % of runs may still glitch" in text(found)
    assert found.sides[0].clean_bound is None


def test_equal_counts_are_ties_however_their_periods_were_measured() -> None:
    stream = summary(30).streams[0]
    other = run(30, streams=(replace(stream, period_ns=stream.period_ns + 1),))
    assert other.values == run(30).values


def test_sides_are_called_by_their_names_else_by_their_write_path() -> None:
    path = {"1": WritePath("dup", "", "", "", CostStats(None, None), 0)}
    sides = [[run(1)], [run(1, write_path=path)]]
    assert [one.what for one in compare(sides).sides] == ["", "dup"]
    assert [one.what for one in compare(sides, names=["before", "after"]).sides] == ["before", "after"]


def test_several_sides_are_each_compared_with_the_first_and_adjusted() -> None:
    sides = [side(50, 60, 70, 80, 90), side(0, 1, 2, 3, 4), side(51, 61, 71, 81, 91)]
    found = compare(sides)
    ours = [one for one in found.contrasts if one.measure == "misses"]
    assert [(one.first, one.second) for one in ours] == [("A", "B"), ("A", "C")]
    assert ours[0].p_adjusted == pytest.approx(2 * ours[0].p)
    pairs = [(c.first, c.second) for c in compare(sides, all_pairs=True).contrasts if c.measure == "misses"]
    assert pairs == [("A", "B"), ("A", "C"), ("B", "C")]


def test_the_primary_measure_is_not_diluted_by_exploratory_ones() -> None:
    one = primary(compare([side(50, 60, 70, 80, 90), side(0, 1, 2, 3, 4)]))
    assert one.p_adjusted == one.p


def test_blocks_flip_signs_from_six_pairs_on() -> None:
    first, second = side(10, 20, 30, 40, 50, 60), side(9, 18, 27, 36, 45, 54)
    one = primary(compare([first, second], blocked=True))
    assert one.outcome == "less"
    assert one.p == 2 / 64
    assert primary(compare([first, second])).outcome == "not_shown"
    with pytest.raises(UsageError, match="5 pairs cannot show anything"):
        compare([first[:5], second[:5]], blocked=True)
    with pytest.raises(UsageError, match="as many runs on each side"):
        compare([first, second[:5]], blocked=True)


def test_a_run_without_audio_is_refused_not_counted_as_clean() -> None:
    with pytest.raises(UsageError, match="no audio stream was seen, which is not the same as no miss"):
        compare([side(1, 2, 3), [run(0, streams=())]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": {"kernel": "5.10"}}, "runs have other kernels"),
        ({"streams": (replace(summary(1).streams[0], cycles=100),)}, "runs watched 2 to 60 s of audio"),
        ({"steal_ns": MINUTE}, "the hypervisor took"),
    ],
)
def test_what_else_may_explain_a_difference_is_said_and_bars_nothing(
    changes: dict[str, Any], said: str
) -> None:
    odd = [run(0, f"b{at}", **changes) for at in range(4)]
    found = compare([side(*range(20, 25)), odd])
    assert any(said in warning for warning in found.warnings)
    assert found.not_comparable == () and primary(found).outcome in ("less", "more")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"streams": summary(1).streams * 2}, "runs have other numbers of streams"),
        ({"streams": (replace(summary(1).streams[0], period_ns=5_333_333),)}, "runs have other periods"),
        ({"streams": (replace(summary(1).streams[0], source="inferred"),)}, "periods are inferred"),
    ],
)
def test_of_runs_that_count_other_things_none_is_called_better(changes: dict[str, Any], said: str) -> None:
    odd = [run(0, f"b{at}", **changes) for at in range(4)]
    found = compare([side(*range(20, 25)), odd])
    assert any(said in reason for reason in found.not_comparable)
    assert not {one.outcome for one in found.contrasts} & {"less", "more"}
    assert primary(found).outcome == "not_comparable"
    assert "no claim, the runs are not comparable" in text(found)


def test_lost_records_and_unfinished_traces_bar_a_comparison() -> None:
    lossy = summary(1).to_dict()
    lossy["records"]["lost"]["ring"] = 7
    found = compare(
        [side(1, 2), [run_of("lossy", lossy), run_of("cut", summary(1).to_dict(), "it ends early")]]
    )
    assert any("records were lost in lossy" in reason for reason in found.not_comparable)
    assert "cut: it ends early" in found.not_comparable
    # Nothing was decided, so there is nothing to take back.
    assert primary(found).outcome == "impossible"


def test_alike_runs_have_no_warning() -> None:
    found = compare([side(1, 2), side(3, 4)])
    assert (found.warnings, found.not_comparable) == ((), ())


def costs(first: int, second: int, correction: int | None) -> Comparison:
    def of(kind: str, ns: int, share: int | None) -> list[Run]:
        path = WritePath(kind, "", "", "", CostStats(ns, ns), 100)
        data = [
            summary(1, write_path={"1": replace(path, cost_ns=CostStats(ns + at, ns))}) for at in range(5)
        ]
        runs = []
        for at, one in enumerate(data):
            whole = one.to_dict()
            whole["write_path"]["1"]["extra_ns"] = {"p50": ns + at, "p99": ns}
            whole["write_path"]["1"]["correction_ns"] = share
            whole["write_path"]["1"]["cost_corrected_ns"] = None if share is None else ns + at - share
            runs.append(run_of(f"{kind}{at}", whole))
        return runs

    return compare([of("refcount", first, None if correction is None else 0), of("dup", second, correction)])


def test_the_cost_of_a_write_is_told_raw_and_corrected_with_intervals() -> None:
    one = costs(4000, 12000, 2000).costs[0]
    assert one.raw is not None
    assert one.corrected is not None
    assert (one.raw.estimate, one.corrected.estimate, one.correction_ns, one.resolvable) == (
        8000,
        6000,
        2000,
        True,
    )
    said = text(costs(4000, 12000, 2000))
    assert "B dup against A refcount, per write, raw: +8.00µs, 96.8 % interval" in said
    assert "corrected: +6.00µs, 96.8 % interval" in said


def test_a_correction_of_more_than_half_the_difference_is_not_resolvable() -> None:
    found = costs(4000, 7000, 2000)
    assert found.costs[0].resolvable is False
    assert "more than half of it: what the write path costs is not resolvable here" in text(found)
    assert "corrected:" not in text(found)


def test_runs_without_calibration_give_the_raw_cost_alone() -> None:
    found = costs(4000, 12000, None)
    assert (found.costs[0].correction_ns, found.costs[0].resolvable) == (None, None)
    assert "was not calibrated in these runs" in text(found)


def test_every_run_is_a_dot() -> None:
    assert strip([0, 5, 10, 10], 0, 10, 11) == "●    ●    2"
    assert strip([3.0] * 12, 0, 3, 4) == "   +"
    assert strip([1.0, 1.0], 1.0, 1.0, 3) == "2  "
    drawn = render_comparison(compare([side(1, 2, 3, 4), side(9, 9, 9, 9)])).plain(100).splitlines()
    rows = [line for line in drawn if "▏" in line][:2]
    assert rows[0].count("●") == 4
    assert rows[1].rstrip("▕").endswith("4")


@pytest.mark.parametrize("width", [60, 80, 140])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    found = compare([side(1, 20, 300, 4000), side(9, 9, 9, 9), side(0, 0, 0, 0)])
    assert all(len(line) <= width for line in render_comparison(found).plain(width).splitlines())


def test_a_name_cannot_write_to_the_terminal() -> None:
    found = compare([[run(1, "\x1b[2Jowned")], side(1)])
    assert "\x1b" not in render_comparison(found).plain(100)


@pytest.mark.parametrize("count", [0, 101])
def test_too_few_or_too_many_runs_are_refused(count: int) -> None:
    with pytest.raises(UsageError):
        compare([[run(1)] * count, side(1)])


# --- the command ------------------------------------------------------------------------------------


def saved(folder: Path, *misses: int) -> list[str]:
    names = []
    for at, n in enumerate(misses):
        path = folder / f"{at}-{n}.json"
        path.write_text(summary(n).to_json(kind="summary") + "\n", encoding="utf-8")
        names.append(str(path))
    return names


def test_the_command_takes_saved_summaries_and_gives_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = saved(tmp_path, 50, 60, 70, 80), saved(tmp_path, 0, 1, 2, 3)
    assert run_command(["compare", *a, "--", *b, "--format", "json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["type"], out["schema"]) == ("comparison", 1)
    assert [len(side["runs"]) for side in out["sides"]] == [4, 4]
    assert out["contrasts"][0]["outcome"] == "less"
    assert out["contrasts"][0]["shift"]["level"] == pytest.approx(1 - 2 / 70)


def test_the_command_takes_traces_and_packed_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, records = play(Delays(guest=40 * MS))
    with TraceWriter(tmp_path / "late.xdt") as writer:
        writer.append(world.batch(records, int(end_ns(records)[-1]), first=True))
    pack(tmp_path / "late.xdt", tmp_path / "late.xdtz")
    words = [str(tmp_path / "late.xdt"), "--", str(tmp_path / "late.xdtz"), *saved(tmp_path, 9)]
    assert run_command(["compare", *words, "--format", "json"]) == 0
    sides = json.loads(capsys.readouterr().out)["sides"]
    assert [run["misses"] for side in sides for run in side["runs"]] == [1, 1, 9]
    assert sides[0]["runs"][0]["values"] == sides[1]["runs"][0]["values"]


def test_the_command_keeps_every_separator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = saved(tmp_path, 5), saved(tmp_path, 6), saved(tmp_path, 7)
    assert run_command(["compare", "--all-pairs", *a, "--", *b, "--", *c]) == 0
    assert "C − B" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["a.json"], ["--", "b"], ["a", "--"], ["a", "--", "--", "b"]])
def test_a_side_without_runs_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compare", *words]) == 2
    assert "compare needs runs on both sides of `--`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '{"schema": 1, "streams": 3}',
        '{"schema": 1, "streams": [{"cycles": NaN}]}',
        '{"schema": 1, "streams": [{"cycles": 1e999}]}',
        '{"schema": 1, "streams": [{"cycles": "many"}]}',
        '{"schema": 99}',
        '{"schema": 1, "window": []}',
        "{" * 5000,
        '{"a":' * 100_000,
        '{"schema": true}',
        "{\xff",
    ],
)
def test_a_summary_that_is_none_is_exit_code_5(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content.encode("latin-1"))
    assert run_command(["compare", str(bad), "--", *saved(tmp_path, 1)]) == 5
    what, do, rest = capsys.readouterr().err.split("\n")
    assert what.startswith("xdtrace: ")
    assert do.strip()
    assert rest == ""


def test_what_is_no_trace_and_a_trace_without_audio_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(tmp_path, 1)
    assert run_command(["compare", str(tmp_path / "none.xdt"), "--", *good]) == 5
    record(tmp_path / "quiet.xdt")
    assert run_command(["compare", str(tmp_path / "quiet.xdt"), "--", *good]) == 2
    assert "no audio stream was seen" in capsys.readouterr().err


def test_a_newer_summary_is_refused_by_name() -> None:
    with pytest.raises(TraceError, match="schema 2"):
        run_of("new.json", {**summary(1).to_dict(), "schema": 2})


def test_in_a_pipe_the_rows_of_dots_are_not_as_endless_as_its_lines() -> None:
    found = compare([side(1, 2, 3, 4), side(9, 9, 9, 9)])
    assert max(len(line) for line in render_comparison(found).plain(ENDLESS).splitlines()) < 200
