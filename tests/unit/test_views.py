# SPDX-License-Identifier: Apache-2.0
"""What the views must say, whatever they look like."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import views_data
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tracer.model.summary import Lost, RecordCounts, Segment, Summary
from tracer.model.summaryrows import Slack, StreamRow
from tracer.views import fmt
from tracer.views.jsonl import SNAPSHOT_MISSES, JsonLines, to_line
from tracer.views.tables import (
    VIEWS,
    render_findings,
    render_header,
    render_locks,
    render_misses,
    render_misses_in_detail,
    render_streams,
    screen,
)
from tracer.views.text import TextBlocks, render_ground_truth


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "–"),
        (0, "0ns"),
        (999, "999ns"),
        (999_600, "1.00ms"),
        (1_840_000, "1.84ms"),
        (-138_000_000, "-138ms"),
        (12_340, "12.3µs"),
        (61_000_000_000, "61.0s"),
        (86_400_000_000_000, "86400s"),
    ],
)
def test_times_are_written_with_three_digits(ns: int | None, text: str) -> None:
    assert fmt.duration(ns) == text


@given(st.integers(-(2**63), 2**63))
def test_every_time_is_short_and_keeps_its_sign(ns: int) -> None:
    text = fmt.duration(ns)
    assert text.startswith("-") == (ns < 0)
    assert abs(ns) >= 999_999 * 10**9 or len(text) <= 8


@given(st.text())
def test_a_cleaned_name_is_printable_and_cleaning_it_again_changes_nothing(name: str) -> None:
    cleaned = fmt.clean(name)
    assert cleaned.isprintable()
    assert fmt.clean(cleaned) == cleaned


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs", "Mn", "Me", "Cf"))), st.integers(1, 40))
def test_padded_text_has_exactly_its_width(text: str, width: int) -> None:
    assert cell_len(fmt.pad(text, width)) == width
    assert cell_len(fmt.pad(text, width, right=True)) == width


@given(
    st.lists(st.tuples(st.sampled_from(sorted(fmt.SEGMENT_MARKS)), st.integers(0, 10**9)), max_size=30),
    st.integers(1, 120),
)
def test_a_bar_is_always_full(parts: list[tuple[str, int]], width: int) -> None:
    drawn = fmt.bar([ns for _, ns in parts], lambda i: parts[i][0], width)
    assert drawn.cell_len == (width if sum(ns for _, ns in parts) else 0)
    if drawn:
        widest = max(parts, key=lambda part: part[1])[0]
        assert fmt.SEGMENT_MARKS[widest][0] in drawn.plain or len(parts) > width


def test_a_bar_shares_its_cells_by_time() -> None:
    assert fmt.bar([30, 10], ("lock", "guest").__getitem__, 8).plain == "LLLLLLgg"


def test_bars_and_sparklines_can_be_read_without_colour() -> None:
    letters = [letter for letter, _, _ in fmt.SEGMENT_MARKS.values()]
    assert len(set(letters)) == len(letters)
    assert fmt.sparkline((None, 0, 10, 5), 10, 4).plain == "×▁█▅"


def test_a_sparkline_shows_the_newest_cycles() -> None:
    assert fmt.sparkline((None,) * 50 + (9, 9), 10, 3).plain == "×██"


@given(st.text(), st.integers(10, 80), st.integers(1, 4))
def test_wrapped_sentences_fit_and_lose_no_word_unless_told_to(text: str, width: int, most: int) -> None:
    text = fmt.clean(text)
    assert all(cell_len(line) <= width for line in fmt.wrap(text, width, indent="  "))
    assert len(fmt.wrap(text, width, indent="  ", lines=most)) <= most
    if all(cell_len(word) <= width - 2 for word in text.split()):
        assert " ".join(fmt.wrap(text, width, indent="  ")).split() == text.split()


def test_losses_are_red_and_told_by_class() -> None:
    lines = render_header(views_data.losing()).lines(140)
    line = next(line for line in lines if "LOST ring 12,345 map 2 late 7" in line.plain)
    at = line.plain.index("LOST")
    assert any(span.start <= at < span.end and fmt.VERMILLION in str(span.style) for span in line.spans)


@pytest.mark.parametrize("lost", [Lost(ring=1), Lost(map=1), Lost(late=1)])
def test_a_single_lost_record_of_any_class_is_told(lost: Lost) -> None:
    summary = views_data.base(records=RecordCounts(10, lost))
    assert "LOST" in render_header(summary).plain(80)
    assert "LOST" not in render_header(views_data.base()).plain(80)


@pytest.mark.parametrize("make", [views_data.no_streams, views_data.nothing_yet])
def test_without_a_stream_every_view_says_why_in_the_words_of_the_summary(
    make: Callable[[], Summary],
) -> None:
    summary = make()
    assert summary.verdict in render_streams(summary).plain(140)
    assert f"● {summary.verdict}" in render_header(summary).plain(140)
    misses = [line.plain for line in screen(summary, 140, 40, view="misses")]
    assert f"{summary.verdict}: no misses to show" in misses
    whole = "\n".join(line.plain for view in VIEWS for line in screen(summary, 140, 60, view=view))
    assert ("no audio stream seen" in whole) == ("seen" in summary.verdict)
    assert "no miss" not in whole.replace("no misses to show", "")


def test_without_a_miss_the_header_says_what_was_watched() -> None:
    text = render_header(views_data.base()).plain(140)
    assert "1,205 cycles of 1 stream watched, none missed, least slack 1.84ms" in text


def test_unknown_slack_is_no_number() -> None:
    row: StreamRow = views_data.stream(1, slack_ns=Slack(), recent=())
    text = render_streams(views_data.base(streams=(row,))).plain(140)
    assert "0ns" not in text


def test_locks_are_ranked_by_harm_and_never_by_count() -> None:
    often = views_data.lock("often", total_ms=1, contended=1_000_000)
    long = views_data.lock("long", total_ms=50)
    guilty = views_data.lock("guilty", total_ms=2, misses=1)
    lines = render_locks(views_data.base(locks=(often, long, guilty))).lines(140)[2:]
    assert [line.plain.split()[0] for line in lines] == ["guilty", "long", "often"]


def test_carried_misses_are_counted_under_their_origin() -> None:
    text = render_misses(views_data.missing()).plain(140)
    assert "+5 carried" in text
    assert "5 carried misses (#3 to #7)" in render_misses_in_detail(views_data.missing()).plain(140)


def test_a_miss_in_detail_lists_what_suffices_the_chain_and_what_it_is_made_of() -> None:
    text = render_misses_in_detail(views_data.missing()).plain(140)
    assert "serialised, or not_scheduled:gpu worker" in text
    assert "G ← item_state: W ← jobs: 4310 in fsync" in text
    assert text.count("tid 4301") == 3


def test_a_mixed_miss_says_which_causes_only_jointly_suffice() -> None:
    text = render_misses_in_detail(views_data.mixed()).plain(140)
    assert "jointly     lock:item_state + stolen" in text


def test_degraded_evidence_is_told() -> None:
    assert "evidence degraded" in render_misses(views_data.losing()).plain(140)
    assert "never closed" in render_misses(views_data.losing()).plain(140)


def test_where_findings_lack_room_their_own_view_shortens_them_before_it_leaves_any_out() -> None:
    whole = replace(views_data.base(), findings=views_data.base().findings * 8)
    block = render_findings(whole, full=True)
    lines = block.lines(80, 9)
    assert len(lines) <= 9
    said = "\n".join(line.plain for line in lines)
    assert whole.findings[0].what[:20] in said
    assert "(a taller window shows them all)" in said and "view 3" not in said
    assert len(block.lines(80, 200)) == len(block.lines(80))  # where there is room nothing is shortened
    assert any(whole.findings[0].why[:30] in line.plain for line in block.lines(80, 200))
    assert "view 3 shows them all" in "\n".join(line.plain for line in render_findings(whole).lines(80, 5))


def test_each_finding_names_one_thing_to_do() -> None:
    for full in (False, True):
        assert "→ chrt -f -p 60 4301" in render_findings(views_data.base(), full=full).plain(140)


@pytest.mark.parametrize("name", views_data.ALL)
def test_every_json_line_parses_and_has_the_names_of_the_schema(name: str) -> None:
    summary = views_data.ALL[name]()
    out = io.StringIO()
    view = JsonLines(out)
    view.show(summary)
    view.show(summary)
    view.finish(summary, {"ground_truth": {"cycles": 1}})
    assert out.getvalue().encode("utf-8")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["type"] for line in lines] == ["snapshot", "snapshot", "summary"]
    names = {field.name for field in fields(Summary)} | {"type"}
    assert set(lines[0]) == names
    assert set(lines[-1]) == names | {"ground_truth"}
    assert lines[-1]["ground_truth"] == {"cycles": 1}


def test_json_lines_are_the_summary_in_its_own_json_form() -> None:
    summary = views_data.missing()
    assert to_line(summary, "summary") == summary.to_json(kind="summary") + "\n"


def test_a_snapshot_lists_the_newest_misses_only_and_the_summary_all() -> None:
    many = replace(views_data.missing(), misses=tuple(views_data.miss(n) for n in range(1000)))
    out = io.StringIO()
    view = JsonLines(out)
    view.show(many)
    view.finish(many, {})
    first, last = (json.loads(line) for line in out.getvalue().splitlines())
    assert [m["id"] for m in first["misses"]] == list(range(1000 - SNAPSHOT_MISSES, 1000))
    assert len(last["misses"]) == 1000


def test_text_blocks_carry_no_escape_and_end_with_the_ground_truth() -> None:
    out = io.StringIO()
    view = TextBlocks(out)
    view.show(views_data.hostile())
    view.finish(views_data.hostile(), {"ground_truth": {"cycles": 5, "missed_cycles": 1, "episodes": 1}})
    assert "\x1b" not in out.getvalue()
    last = out.getvalue().splitlines()[-1]
    said = "the audio server itself counted 5 cycles, 1 missed cycle, 1 episode"
    assert len(views_data.hostile().streams) > 1
    assert last == f"{said}, each stream's counted apart"
    truth = {"ground_truth": {"cycles": 5, "missed_cycles": 1, "episodes": 1}}
    assert render_ground_truth(truth).plain(140).strip() == said


def test_in_a_pipe_no_sentence_and_no_name_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    summary = views_data.missing()
    long = " and then it waited for something else" * 20
    miss = dataclasses.replace(summary.misses[-1], detail=f"late because{long}", carried_from=None)
    lock = dataclasses.replace(summary.locks[0], name="lock" * 40)
    finding = dataclasses.replace(summary.findings[0], what=f"what{long}", do=f"do{long}")
    out = io.StringIO()
    TextBlocks(out, None).finish(
        dataclasses.replace(summary, misses=(miss,), locks=(lock,), findings=(finding,), verdict=f"v{long}"),
        {},
    )
    for text in (miss.detail, lock.name, finding.what, finding.do, f"v{long}"):
        assert text in " ".join(out.getvalue().split()), text
    assert "…" not in out.getvalue()


def test_a_quiet_text_view_prints_the_last_summary_only() -> None:
    out = io.StringIO()
    view = TextBlocks(out, None)
    view.show(views_data.base())
    assert out.getvalue() == ""
    view.finish(views_data.base(), {"ground_truth": None})
    assert "Streams" in out.getvalue()


def test_thousands_of_segments_become_a_few_lines_that_keep_the_total() -> None:
    pieces = tuple(
        Segment("guest" if n % 2 else "on_cpu", "serialised", 10_000, 7 + n % 2, "x") for n in range(4000)
    )
    text = render_misses_in_detail(views_data.base(misses=(views_data.miss(1, segments=pieces),))).plain(140)
    assert text.count("in 2,000 pieces") == 2
    assert text.count("20.0ms   50%") == 2


def test_the_legend_names_exactly_the_marks_that_are_drawn() -> None:
    tiny = (Segment("lock", "", 10**9, 1, "a"), Segment("stolen", "", 1, 1, ""))
    text = render_misses(views_data.base(misses=(views_data.miss(1, segments=tiny),))).plain(140)
    assert text.splitlines()[-1] == "L lock"
