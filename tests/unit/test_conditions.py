# SPDX-License-Identifier: Apache-2.0
"""``--fail-on``: what parses means what it says, the rest is pointed at, what is not known never passes."""

from __future__ import annotations

import dataclasses
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest
import views_data
from hypothesis import example, given
from hypothesis import strategies as st

from tracer.cli.live import make_analysis
from tracer.cli.main import run_command
from tracer.cli.run import replay
from tracer.errors import ExpressionError
from tracer.model import measures
from tracer.model.conditions import Comparison, Condition, Joined, Not, parse
from tracer.model.measured import read
from tracer.model.measures import MEASURES, SHARE, TIME, UNITS, Measure
from tracer.model.outcomes import evaluate
from tracer.model.summary import CAUSES, Lost, RecordCounts, Summary
from tracer.model.summaryrows import Slack
from tracer.trace import TraceReader, TraceWriter
from tracer.views.fmt import pointed_at

ROOT = Path(__file__).resolve().parents[2]
TRACE = ROOT / "tests" / "data" / "captures" / "lock.xdt.tar"
MS = 1_000_000
OPERATORS = (">", ">=", "<", "<=", "==", "!=")


def met(text: str, summary: Summary) -> bool | None:
    return evaluate(parse(text), summary).met


def measured(summary: Summary) -> Summary:
    """Six misses serialised and one by lock in a minute of audio; item_state waited for 900 µs at p99."""
    one = dataclasses.replace(
        summary.streams[0], cycles=2812, slack_ns=Slack(18 * MS, 2 * MS, -3 * MS), name="music"
    )
    return dataclasses.replace(summary, streams=(one,))


# --- meaning ---------------------------------------------------------------------------------

CASES = {
    "misses > 0": True,
    "misses == 7": True,
    "misses(serialised) == 6 and misses(lock) == 1": True,
    "misses(wake) == 6 and misses(completion) == 1": True,
    "episodes == 2 and episodes(lock) == 1 and episodes(stolen) == 0": True,
    "misses/min > 7": True,
    "misses/min < 7.01": True,
    "misses/cycles > 0.2%": True,
    "misses/cycles > 0.0025": False,
    "cycles < 2812": False,
    "slack.min < 0": True,
    "slack.p50 >= 18ms and slack.p50 <= 18000us": True,
    "slack.p1 == 2000000ns": True,
    "stream(music).misses > 6": True,
    "stream(s1).slack_min == 0": False,
    "lock(item_state).wait_p99 > 2ms": False,
    "lock(item_state).wait_p99 == 900us": True,
    'lock("item_state [context 4301]").waits == 72': True,
    "lock(item_state).hold_p99 < 88.001µs": True,
    "lock(jobs).wait_total == 0.9s": True,
    "lock(never_seen).waits == 0": True,
    "avoided(fair) == 1 and avoided(no_steal) == 0": True,
    "write.p99 > 1s": False,
    "lost > 0": False,
    "steal > 0": False,
    "findings(alert) > 0": False,
    "not misses > 0": False,
    "not (misses > 0 and lost > 0)": True,
}


@pytest.mark.parametrize("text", CASES)
def test_a_condition_means_what_it_says(text: str) -> None:
    assert met(text, measured(views_data.missing())) is CASES[text]


def test_of_several_streams_and_instances_the_worst_one_answers() -> None:
    summary = views_data.missing()
    streams = tuple(
        views_data.stream(n, slack_ns=Slack(n * MS, n * MS, n * MS), name="same") for n in (3, 1, 2)
    )
    locks = (views_data.lock("item_state", total_ms=5), views_data.lock("item_state", total_ms=50))
    many = dataclasses.replace(summary, streams=streams, locks=locks)
    assert met("slack.min == 1ms and stream(same).slack_p50 == 1ms", many)
    assert met("lock(item_state).wait_total == 50ms", many)


def test_without_a_stream_nothing_is_said_of_misses() -> None:
    none = views_data.no_streams()
    for text in ("misses > 0", "misses == 0", "not misses > 0", "episodes/min > 1", "slack.min < 0"):
        assert met(text, none) is None, text
    assert met("cycles < 1000", none) is True
    assert met("misses > 0 or cycles == 0", none) is True
    assert met("misses > 0 and cycles > 0", none) is False
    assert "no audio stream" in evaluate(parse("misses > 0"), none).readings[0]


def test_a_lock_that_may_be_one_without_a_name_is_not_taken_for_absent() -> None:
    nameless = views_data.lock("lock@0x1000", named_by="none", contended=40)
    summary = dataclasses.replace(views_data.base(), locks=(nameless,))
    assert met("lock(item_state).waits > 39", summary) is None
    assert met("lock(item_state).waits > 40", summary) is False
    assert met("lock(item_state).waits >= 0", summary) is True
    assert "may be it" in evaluate(parse("lock(item_state).waits > 39"), summary).notes[0]


#: On a part of a recording with 7 misses, 2812 cycles, least slack -3 ms and no loss.
PART = {
    "misses > 6": True,
    "misses > 7": None,
    "misses >= 7": True,
    "misses >= 8": None,
    "misses == 6": False,
    "misses == 7": None,
    "misses != 6": True,
    "misses != 7": None,
    "misses < 8": None,
    "misses < 7": False,
    "misses <= 6": False,
    "misses <= 7": None,
    "not misses > 7": None,
    "not misses > 6": False,
    "misses > 0 or lost > 0": True,
    "misses > 0 and lost > 0": None,
    "misses > 100000 or cycles < 1000": None,
    "cycles < 1000": False,
    "misses(wake) > 5": True,
    "misses(serialised) > 0": None,
    "episodes > 1": True,
    "episodes(lock) > 0": None,
    "misses/cycles > 0.1%": None,
    "misses/min > 1": None,
    "slack.min < 0": True,
    "slack.min > 0": False,
    "slack.p1 > 1ms": None,
    "stream(music).misses > 6": True,
    "stream(music).slack_min > 0": False,
    "lock(item_state).waits > 71": True,
    "lock(item_state).waits > 72": None,
    "lock(item_state).wait_p99 > 1us": None,
    "lock(never_seen).waits > 0": None,
    "findings == 0": None,
    "avoided(fair) > 0": None,
}


@pytest.mark.parametrize("text", PART)
def test_of_a_part_is_told_only_what_the_rest_cannot_change(text: str) -> None:
    assert evaluate(parse(text), measured(views_data.missing()), whole=False).met is PART[text]


def test_what_is_taken_only_to_grow_or_to_shrink_does_so_on_recordings() -> None:
    """Each capture, cut after every whole batch: without this, a part could be told from which it is not."""
    moved = set()
    for path in sorted(TRACE.parent.glob("*.tar")):
        with TraceReader(path) as trace:
            batches = list(trace)
        before: dict[Measure, Fraction] = {}
        for end in range(1, len(batches) + 1):
            summary = replay(batches[:end], make_analysis(None, None))
            named = {"stream": {s.id for s in summary.streams}, "lock": {k.name for k in summary.locks}}
            for name, kind in MEASURES.items():
                arguments = {*named.get(name, ()), *(kind.arguments or ()), *(() if kind.needed else (None,))}
                for what in (measures.measure(name, a, f, "") for a in arguments for f in kind.fields):
                    values = read(what, summary).values
                    if not what.trend or len(values) != 1:
                        continue
                    change = values[0] - before.get(what, values[0])
                    assert change * what.trend >= 0, (path.name, end, str(what))
                    before[what] = values[0]
                    moved |= {(name, what.field)} if change else set()
    assert {("misses", ""), ("episodes", ""), ("cycles", ""), ("slack", "min"), ("lock", "waits")} <= moved


NUMBERS = st.integers(0, 6)


@st.composite
def logic(draw: st.DrawFn, depth: int = 4) -> str:
    """Conditions that Python's own eval reads the same way."""
    kind = draw(st.sampled_from(["leaf", "leaf", "not", "and", "or", "brackets"])) if depth else "leaf"
    if kind == "leaf":
        name = draw(st.sampled_from(["lost", "cycles", "findings"]))
        return f"{name} {draw(st.sampled_from(OPERATORS))} {draw(NUMBERS)}"
    if kind == "not":
        return f"not {draw(logic(depth - 1))}" if depth > 1 else f"not lost > {draw(NUMBERS)}"
    if kind == "brackets":
        return f"({draw(logic(depth - 1))})"
    return f"{draw(logic(depth - 1))} {kind} {draw(logic(depth - 1))}"


@given(logic(), NUMBERS, NUMBERS, NUMBERS)
def test_and_or_not_and_brackets_bind_as_in_python(text: str, lost: int, cycles: int, findings: int) -> None:
    base = views_data.base()
    summary = dataclasses.replace(
        base,
        records=RecordCounts(0, Lost(lost, 0, 0)),
        streams=(views_data.stream(1, cycles=cycles),),
        findings=(views_data.missing().findings + views_data.no_streams().findings * 6)[:findings],
    )
    known = {"lost": lost, "cycles": cycles, "findings": len(summary.findings)}
    assert met(text, summary) is bool(eval(text, {"__builtins__": {}}, known))


# --- parsing ---------------------------------------------------------------------------------


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    name = draw(st.sampled_from(sorted(MEASURES)))
    kind = MEASURES[name]
    argument = None
    if kind.arguments is not None and (kind.needed or draw(st.booleans())):
        names = st.text(st.characters(blacklist_characters="'\"", blacklist_categories=["Cs"]), max_size=12)
        argument = draw(st.sampled_from(kind.arguments) if kind.arguments else names)
    field = draw(st.sampled_from(sorted(kind.fields)))
    per = draw(st.sampled_from(["", *kind.ratios]))
    measure: Measure = measures.measure(name, argument, field, per)
    number = f"{draw(st.integers(0, 10**9))}" + draw(st.sampled_from(["", ".5", ".125"]))
    unit = draw(st.sampled_from(sorted(UNITS))) if measure.kind == TIME else ""
    if measure.kind == SHARE:
        unit = draw(st.sampled_from(["", "%"]))
    value = measures.value_of(measure, Fraction(number), unit)
    return Comparison(measure, draw(st.sampled_from(OPERATORS)), value, number + unit)


CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(Joined, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


@given(CONDITIONS)
def test_a_condition_written_out_parses_to_itself(condition: Condition) -> None:
    assert parse(str(condition)) == condition
    assert evaluate(condition, views_data.missing()).met in (True, False, None)


PIECES = ["misses", "lock", "(", ")", "item_state", ".", "wait_p99", ">", ">=", "2", "ms", " ", "and", "or",
          "not", "/", "min", "'", '"', "x", "0.5%", "é", "\n", "\x1b", "-", ","]  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map("".join)))
def test_whatever_is_written_parses_or_is_pointed_at(text: str) -> None:
    try:
        assert parse(str(parse(text))) == parse(text)
    except ExpressionError as error:
        assert 0 <= error.at <= len(text) and error.length >= 1 and error.text == text
        assert error.message and error.hint
        line, mark = pointed_at(error.text, error.at, error.length)
        assert line.isprintable() and re.fullmatch(r" *\^~*", mark)


BAD = {
    "": (0, "here a measure"),
    "misses": (6, "comparison"),
    "misses > ": (9, "a number"),
    "misses > x": (9, "a number"),
    "misses > 1ms": (9, "does not fit"),
    "misses > 1 2": (11, "'and', 'or' or the end"),
    "misses = 1": (7, "means nothing"),
    "misses(lock > 1": (12, "')'"),
    "misses(nothing) > 1": (7, "knows no"),
    "episodes/cycles > 1": (9, "cannot be taken"),
    "lock.waits > 1": (0, "needs a name"),
    "lock(a) > 1": (0, "needs a field"),
    "lock(a).wait_p98 > 1ms": (8, "no field"),
    "lock(a).wait_p99 > 1": (19, "needs a unit"),
    "lock(a).wait_p99 > 1h": (19, "no unit of time"),
    "cycles(1) > 1": (7, "a name"),
    "cycles(lock) > 1": (7, "nothing in brackets"),
    "(misses > 1": (11, "')'"),
    "mises > 1": (0, "no measure"),
    "misses > 0 or": (13, "here a measure"),
    "and > 1": (0, "here a measure"),
    "lock('a).waits > 1": (5, "quote"),
    "misses/cycles > 1ms": (16, "a share"),
}


@pytest.mark.parametrize("text", BAD)
def test_an_error_says_what_and_points_at_where(text: str) -> None:
    at, what = BAD[text]
    with pytest.raises(ExpressionError, match=re.escape(what)) as caught:
        parse(text)
    assert caught.value.at == at


@pytest.mark.parametrize(
    "text", ["(" * 5000, "not " * 1000 + "misses > 0", "misses > 0 or " * 5000, "(" * 70]
)
def test_a_monstrous_condition_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text)


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=40), st.data())
def test_the_caret_stands_below_what_is_to_blame(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text) - 1))
    line, mark = pointed_at(text, at, data.draw(st.integers(1, len(text) - at)))
    assert line == text and mark.index("^") == at


@given(st.text(max_size=300), st.integers(0, 300), st.integers(1, 300))
@example("0" * 72 + "\u0300", 0, 1)  # a combining mark takes no cell
@example("\u4e00" * 300, 250, 40)  # these take two
def test_a_long_or_hostile_expression_is_shown_on_one_short_line(text: str, at: int, length: int) -> None:
    line, mark = pointed_at(text, min(at, len(text)), length)
    assert line.isprintable() and len(line) <= 72 and len(mark) <= 73


def test_near_misses_are_suggested() -> None:
    for text, told in (
        ("mises>0", "misses?"),
        ("misses(lok)>0", "lock?"),
        ("lock(a).wait_p9>1s", "wait_p99?"),
    ):
        with pytest.raises(ExpressionError) as caught:
            parse(text)
        assert caught.value.hint == f"did you mean {told}"


# --- the command and its page ------------------------------------------------------------------


def test_exit_codes_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*texts: str) -> int:
        conditions = [word for text in texts for word in ("--fail-on", text)]
        return run_command(["report", str(TRACE), *conditions])

    assert run("misses == 0") == 0
    assert "misses" not in capsys.readouterr().err
    assert run("misses == 0", "misses(lock) > 0") == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("Each of these") or captured.out.startswith("None of these")
    assert captured.err.startswith("xdtrace: --fail-on misses(lock) > 0 is met: misses(lock) is ")
    assert run("misses >") == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.splitlines()[1:3] == ["    misses >", "            ^"]
    for nothing in ("", "  "):
        assert run(nothing) == 2
        what, do = capsys.readouterr().err.splitlines()
        assert "a measure, such as misses is expected" in what and do.startswith("  such as: misses > 0")
    assert run("stream(nobody).misses > 0") == 1
    assert "cannot be told" in capsys.readouterr().err


def test_a_trace_that_was_cut_off_passes_only_what_is_certain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Misses may lie in what was lost: exit code 0 would be a lie."""
    ends = []
    with TraceReader(TRACE.with_name("serialised.xdt.tar")) as trace, TraceWriter(tmp_path / "a.xdt") as out:
        for batch in trace:
            out.append(batch)
            ends.append((tmp_path / "a.xdt/events.arrows").stat().st_size)
    os.truncate(tmp_path / "a.xdt/events.arrows", ends[2])

    def run(text: str) -> tuple[int, list[str]]:
        code = run_command(["report", str(tmp_path / "a.xdt"), "--fail-on", text])
        return code, capsys.readouterr().err.splitlines()

    note = [
        "xdtrace: note: the last of 4 batches is cut off",
        "  what could be read is shown; what is missing is in no figure and no verdict",
    ]
    code, told = run("misses > 100000")
    assert code == 1 and told[:2] == note
    assert told[2].startswith(
        "xdtrace: --fail-on misses > 100000 cannot be told, because a part of the trace is missing: "
    )
    assert told[3] == "  use a whole copy of the trace, or record again"
    code, told = run("misses > 0")
    assert code == 1 and "is met" in told[2]
    assert run("cycles < 10") == (0, note)
    code, told = run("stream(nobody).misses > 0")
    assert code == 1 and "there is no stream" in told[2] and "is missing" not in told[2]


def test_the_page_lists_every_measure_field_and_unit() -> None:
    page = (ROOT / "docs" / "fail-on.md").read_text(encoding="utf-8")
    rows = {m[1]: m[2] for m in re.finditer(r"^\| `(\w+)(?:\([A-Z]+\))?` \|([^|]*)\|", page, re.M)}
    assert {name: sorted(re.findall(r"`\.(\w+)`", fields)) for name, fields in rows.items()} == {
        name: sorted(f for f in kind.fields if f) for name, kind in MEASURES.items()
    }
    for unit in UNITS:
        assert f"`{unit}`" in page or unit == "μs"
    assert set(CAUSES) <= set(MEASURES["misses"].arguments or ())
