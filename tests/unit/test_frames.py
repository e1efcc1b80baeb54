# SPDX-License-Identifier: Apache-2.0
"""Frames: the columns that are promised, and the same numbers as the summary's."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import views_data

import tracer
from tracer import schema
from tracer.errors import TraceError, UsageError
from tracer.frames import TABLES, Trace
from tracer.frames.columns import TYPES
from tracer.frames.docs import page
from tracer.frames.html import summary_html
from tracer.model.analysis import Analysis
from tracer.schema import FAMILY, Kind
from tracer.trace import TraceReader

ROOT = Path(__file__).resolve().parents[2]
CAPTURES = ROOT / "tests" / "data" / "captures"
#: Fields that no column of df_records has: what is no datum, and what the columns call otherwise.
NO_COLUMN = {"pad", "body"}
#: Kinds that no capture holds.
UNSEEN = (Kind.SENDMSG, Kind.MSG_MORE, Kind.LOSS)
RENAMED = {(Kind.LIFE, "comm"): "new_comm", (Kind.LIFE, "tgid"): "new_tgid"}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return tracer.open(CAPTURES / "lock.xdt.tar")


def frame(of: Trace, name: str) -> pd.DataFrame:
    found: pd.DataFrame = getattr(of, f"df_{name}")()
    return found


@pytest.mark.parametrize("capture", ["lock", "serialised"])
@pytest.mark.parametrize("name", TABLES)
def test_a_frame_has_the_columns_and_types_that_are_listed(capture: str, name: str) -> None:
    found = frame(tracer.open(CAPTURES / f"{capture}.xdt.tar"), name)
    assert list(found.columns) == TABLES[name].names
    for column in TABLES[name].columns:
        assert str(found[column.name].dtype) == TYPES[column.type][0], column.name


@pytest.mark.parametrize("name", TABLES)
def test_a_frame_without_rows_has_its_columns_and_types(name: str, tmp_path: Path) -> None:
    from tracer.trace import TraceWriter

    with TraceWriter(tmp_path / "empty.xdt"):
        pass
    found = frame(tracer.open(tmp_path / "empty.xdt"), name)
    assert list(found.columns) == TABLES[name].names
    assert len(found) == (8 if name == "remedies" else 0)
    for column in TABLES[name].columns:
        if column.type != "category":
            assert str(found[column.name].dtype) == TYPES[column.type][0], column.name


def test_every_type_listed_is_used_and_every_column_says_what_it_is() -> None:
    columns = [column for table in TABLES.values() for column in table.columns]
    assert {column.type for column in columns} == set(TYPES)
    assert all(column.unit and column.meaning for column in columns)
    assert all(
        column.name.endswith("ns") or "_ns_" in column.name
        for column in columns
        if column.type in ("time", "span")
    )


def test_the_page_of_frames_is_the_list_of_columns() -> None:
    written = (ROOT / "docs" / "frames.md").read_text(encoding="utf-8")
    assert written == page(), "write it anew: python -m tracer.frames.docs > docs/frames.md"


def test_every_field_of_a_record_is_a_column() -> None:
    fields = {
        RENAMED.get((kind, name), name)
        for kind, family in FAMILY.items()
        for name in family.names or ()
        if name not in NO_COLUMN
    }
    assert fields <= set(TABLES["records"].names)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in UNSEEN], ids=lambda kind: kind.name)
def test_records_are_what_the_trace_holds(kind: Kind) -> None:
    trace = tracer.open(CAPTURES / "serialised.xdt.tar")
    with TraceReader(trace.path) as reader:
        batches = [schema.view(b.records[b.records["kind"] == kind], FAMILY[kind]) for b in reader]
    found = trace.df_records(kind.name.lower())
    assert len(found) == sum(map(len, batches)) > 0
    assert set(found["kind"]) == {kind.name}
    offset = int(trace.summary.host["clock_offset_ns"])
    assert found["enter_ns"].astype("int64").tolist() == [
        int(row["enter_ns"]) + offset for rows in batches for row in rows
    ]
    for name in FAMILY[kind].names or ():
        if name in NO_COLUMN or name in ("kind", "enter_ns"):
            continue
        column = found[RENAMED.get((kind, name), name)]
        unknown = {"eventfd_id": -1, "woken_ns": 0}.get(name)
        for told, kept in zip(column, (row[name] for rows in batches for row in rows), strict=True):
            assert (kept == unknown) if _is_none(told) else (_plain(told, offset) == kept).all(), name


def _is_none(told: object) -> bool:
    return not isinstance(told, tuple) and bool(pd.isna(told))


def _plain(told: object, offset: int) -> np.ndarray:
    """A cell as the record has it."""
    if isinstance(told, pd.Timestamp):
        return np.array(told.value - offset)
    if isinstance(told, pd.Timedelta):
        return np.array(told.value)
    return np.array(told.encode() if isinstance(told, str) else told)


def test_acquisitions_are_those_that_the_locks_count(trace: Trace) -> None:
    found = trace.df_acquisitions()
    locks = trace.df_locks().set_index("address")
    assert len(found)
    assert found.groupby("address").size().to_dict() == locks["contended"].to_dict()
    longest = found.groupby("address")["wait_ns"].max()
    assert longest.to_dict() == locks["wait_max_ns"].to_dict()
    assert found.groupby("address")["barged"].sum().to_dict() == locks["barged"].to_dict()


@pytest.mark.parametrize("capture", ["lock", "serialised", "head_of_line"])
def test_waits_are_those_that_blame_adds_up(capture: str) -> None:
    trace = tracer.open(CAPTURES / f"{capture}.xdt.tar")
    keys = ["lock", "holder_operation", "holder_syscall", "victim_operation"]
    waits = trace.df_waits().rename(columns={"operation": "victim_operation"})
    waits["holder_operation"] = waits["holder_operation"].astype("str").fillna("unknown")
    blame = trace.df_blame()
    sums = [
        {tuple("" if pd.isna(k) else k for k in key): total for key, total in totals.items()}
        for totals in (
            waits.astype(dict.fromkeys(keys, "str")).groupby(keys, dropna=False)["wait_ns"].sum(),
            blame.astype(dict.fromkeys(keys, "str")).groupby(keys, dropna=False)["wait_ns_total"].sum(),
        )
    ]
    assert sums[0] == sums[1]
    acquired = set(zip(trace.df_acquisitions()["start_ns"], trace.df_acquisitions()["tid"], strict=True))
    assert set(zip(waits["acquisition_ns"], waits["tid"], strict=True)) <= acquired


@pytest.mark.parametrize("capture", ["lock", "serialised", "host_late"])
def test_periods_are_the_cycles_that_the_streams_count(capture: str) -> None:
    trace = tracer.open(CAPTURES / f"{capture}.xdt.tar")
    periods, streams, misses = trace.df_periods(), trace.df_streams().set_index("id"), trace.df_misses()
    assert periods.groupby("stream").size().to_dict() == streams["cycles"].to_dict()
    missed = periods[periods["missed"]]
    keys = ["stream", "cycle", "deadline_ns"]
    assert missed[keys].astype("str").values.tolist() == misses[keys].astype("str").values.tolist()
    assert (-missed["slack_ns"]).tolist() == misses["late_ns"].tolist()
    assert len(missed)


def test_segments_sum_to_their_windows(trace: Trace) -> None:
    misses, segments = trace.df_misses().set_index("id"), trace.df_segments()
    closing = misses["deadline_ns"] + misses["late_ns"]
    assert segments.groupby("miss")["ns"].sum().to_dict() == (closing - misses["start_ns"]).to_dict()
    ends = segments.groupby("miss").last()
    assert (ends["start_ns"] + ends["ns"]).to_dict() == closing.to_dict()


def test_who_writes_into_a_frame_changes_no_later_one(trace: Trace) -> None:
    first = trace.df_periods()
    first.loc[:, "cycle"] = -1
    del first["stream"]
    again = trace.df_periods()
    assert list(again.columns) == TABLES["periods"].names
    assert (again["cycle"] >= 0).all()


def test_a_tap_changes_no_summary(trace: Trace) -> None:
    analysis = Analysis()
    with TraceReader(trace.path) as reader:
        for batch in reader:
            analysis.feed(batch)
    analysis.finish()
    assert analysis.summary().to_json() == trace.summary.to_json()


def test_seconds_count_from_the_first_record(trace: Trace) -> None:
    seconds = trace.seconds(trace.df_records()["enter_ns"] + trace.df_records()["dur_ns"])
    assert isinstance(seconds, pd.Series)
    span = trace.summary.window.end_ns - trace.summary.window.start_ns
    assert 0 <= seconds.min() < seconds.max() <= span / 1e9 + 0.2
    assert trace.seconds(trace.start + pd.Timedelta("250ms")) == 0.25


# --- what Jupyter shows ------------------------------------------------------------------


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", views_data.ALL)
def test_the_page_of_a_summary_is_tables_and_nothing_that_a_target_named(name: str) -> None:
    summary = views_data.ALL[name]()
    page = Tags()
    page.feed(summary_html(summary, title="<b>x</b>.xdt", tables=("misses",)))
    assert page.tags <= {"div", "p", "b", "style", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert page.attributes <= {"class"}
    assert "<b>x</b>.xdt" in page.text
    assert "df_misses()" in page.text
    assert not any(not c.isprintable() for c in page.text)


def test_a_trace_shows_its_verdict_and_its_frames(trace: Trace) -> None:
    page = Tags()
    page.feed(trace._repr_html_())
    assert trace.summary.verdict in page.text
    assert all(f"df_{name}()" in page.text for name in TABLES)


# --- errors and costs ----------------------------------------------------------------------


def test_what_is_no_trace_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TraceError):
        tracer.open(tmp_path / "none.xdt")


def test_an_unknown_kind_is_refused(trace: Trace) -> None:
    with pytest.raises(UsageError, match="no kind of record"):
        trace.df_records("futexes")


@pytest.mark.parametrize("pids", [(), (0,), (-5,)])
def test_attach_refuses_what_is_no_pid(pids: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        tracer.attach(*pids)


def test_a_session_keeps_no_records(tmp_path: Path) -> None:
    session = tracer.attach(1)
    with pytest.raises(UsageError, match="not kept"):
        session.df_records()
    with pytest.raises(UsageError, match="nothing was recorded"):
        session.trace()


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import tracer", ("numpy", "pandas", "pyarrow", "rich", "bcc", "IPython")),
        (
            "import tracer; tracer.open({path!r}).df_misses()",
            ("bcc", "IPython", "matplotlib", "tracer.capture"),
        ),
    ],
)
def test_imports_come_late(code: str, absent: tuple[str, ...]) -> None:
    code = code.format(path=str(CAPTURES / "lock.xdt.tar"))
    code += "; import sys; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, *absent], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["locked-1", "real-device", "slow-pipe"])
def test_the_documented_keys_find_one_row_each(name: str) -> None:
    trace = tracer.open(Path(__file__).parents[2] / "notebooks" / "data" / f"{name}.xdt.tar")
    misses, periods = trace.df_misses(), trace.df_periods()
    both = misses.merge(periods, on=["stream", "cycle"], suffixes=("", "_p"), validate="one_to_one")
    assert len(both) == len(misses) == periods["missed"].sum() > 0
    assert (both["deadline_ns"] == both["deadline_ns_p"]).all()
    assert ((both["closing_ns"] - both["deadline_ns"]).dropna() == both["late_ns"].dropna()).all()
    assert str(both["stream"].dtype) == "category"
    segments = trace.df_segments().merge(misses, left_on="miss", right_on="id", validate="many_to_one")
    assert len(segments) == len(trace.df_segments())
    waits = trace.df_waits().merge(
        trace.df_acquisitions(),
        left_on=["tid", "address", "acquisition_ns"],
        right_on=["tid", "address", "start_ns"],
        validate="many_to_one",
    )
    assert len(waits) == len(trace.df_waits())
    streams = periods.merge(trace.df_streams(), left_on="stream", right_on="id", validate="many_to_one")
    assert len(streams) == len(periods)
