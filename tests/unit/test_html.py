# SPDX-License-Identifier: Apache-2.0
"""The page: needs nothing but itself, escapes every name, can be read without eyes or mouse, is bounded."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import views_data
from hypothesis import given
from hypothesis import strategies as st

from tracer.cli.main import run_command
from tracer.cli.run import replay
from tracer.model.analysis import Analysis
from tracer.model.summary import Miss, Segment, Summary, Window
from tracer.model.summaryrows import SlackBin, WaitBin
from tracer.trace import TraceReader
from tracer.views import html
from tracer.views.html import pictures, to_html

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
CSS = Path(html.__file__).parent / "templates" / "style.css"
VOID = {"meta", "link", "img", "br", "input"}
#: Elements that the templates use; anything else came out of a name.
KNOWN = set(
    re.findall(
        r"\w+",
        "html head meta title style body a header h1 h2 h3 ul li strong main section p div table caption span"
        " thead tr th tbody td nav details summary figure figcaption svg path rect line desc dl dt dd footer"
        " code",
    )
)


class Page(HTMLParser):
    """What an accessibility tree is built from; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), self.open[-1] if self.open else ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), self.open[-1] if self.open else ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs, _ in self.elements if name == tag]


def page(summary: Summary, **more: Any) -> Page:
    return Page(to_html(summary, title="x.xdt", **more))


def captured(name: str) -> Summary:
    with TraceReader(CAPTURES / f"{name}.xdt.tar") as trace:
        return replay(trace, Analysis())


def everything() -> Summary:
    """A made-up summary with something in every picture."""
    summary = views_data.missing()
    bins = tuple(SlackBin(n << 22, 3, n % 2, 100 * n, 200 * n, 5 * n if n % 2 else None) for n in range(40))
    waits = tuple(WaitBin(1 << n, 2 << n, n) for n in range(10, 20))
    return dataclasses.replace(
        summary,
        streams=tuple(dataclasses.replace(s, slack_bin_ns=1 << 22, slack_bins=bins) for s in summary.streams),
        locks=tuple(dataclasses.replace(k, wait_bins=waits) for k in summary.locks),
        holders=captured("lock").holders,
    )


SUMMARIES: dict[str, Callable[[], Summary]] = {
    **views_data.ALL,
    "everything": everything,
    "lock": lambda: captured("lock"),
}


def replaced(value: Any, text: str) -> Any:
    """The value with every string in it, however deep, followed by ``text``."""
    if isinstance(value, str):
        return value + text
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: replaced(getattr(value, f.name), text) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    if isinstance(value, Mapping):
        return {key: replaced(inner, text) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(replaced(inner, text) for inner in value)
    return value


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_page_needs_nothing_but_itself_and_runs_nothing(name: str) -> None:
    text = to_html(SUMMARIES[name](), title="x.xdt")
    found = Page(text)
    assert "default-src 'none'" in text
    assert {tag for tag, _, _ in found.elements} <= KNOWN
    for tag, attrs, _ in found.elements:
        assert not {"src", "srcset", "background", "data"} & attrs.keys(), (tag, attrs)
        assert all(
            value is not None and value.startswith("#") for key, value in attrs.items() if key == "href"
        )
        assert not any(key.startswith("on") for key in attrs)
    assert not re.search(r"url\(|@import|https?:", text)


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "</style></title><b>",
        "\x1b[2J\0\u202e\udcff",
    ],
)
def test_a_hostile_name_anywhere_is_shown_and_does_nothing(attack: str) -> None:
    text = to_html(replaced(everything(), attack), title="x" + attack, notes=["y" + attack])
    found = Page(text)
    assert {tag for tag, _, _ in found.elements} <= KNOWN
    assert not any(key.startswith("on") or key == "src" for _, attrs, _ in found.elements for key in attrs)
    shown = attack if attack.isprintable() else attack.encode("unicode_escape").decode()
    assert found.text.count(shown) > 50
    assert text.encode("utf-8")


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_page_can_be_read_without_eyes_or_mouse(name: str) -> None:
    found = page(SUMMARIES[name]())
    ids = [attrs["id"] for _, attrs, _ in found.elements if "id" in attrs]
    assert not [key for key, n in Counter(ids).items() if n > 1]
    for _, attrs, _ in found.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert set((attrs.get(key) or "").split()) <= set(ids)
        assert attrs.get("href", "#main")[1:] in ids  # type: ignore[index]
        stop = attrs.get("tabindex")
        assert stop in (None, "-1") or (stop == "0" and attrs.get("aria-label"))
    assert found.all("main")[0]["tabindex"] == "-1"  # the skip link takes the focus along
    for figure in found.all("figure"):
        assert figure.get("aria-label") or figure.get("aria-labelledby")
    scrollers = [attrs for attrs in found.all("div") if attrs.get("class") == "scroll"]
    assert len(scrollers) == len(found.all("table"))
    assert all(attrs["role"] == "region" and attrs["aria-label"] for attrs in scrollers)
    for landmark in ("header", "main", "nav", "footer", "h1"):
        assert len(found.all(landmark)) == 1, landmark
    assert found.all("html")[0]["lang"] == "en"
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(attrs.get("scope") in ("col", "row") for attrs in found.all("th"))
    for svg in found.all("svg"):
        assert svg["role"] == "img" and svg["aria-labelledby"]
    assert len([1 for tag, _, parent in found.elements if (tag, parent) == ("title", "svg")]) == len(
        found.all("svg")
    )
    levels = [int(tag[1]) for tag, _, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    first_link = next(attrs for tag, attrs, _ in found.elements if tag == "a")
    assert first_link["href"] == "#main"


@pytest.mark.parametrize(("apart", "gaps"), [(1, 0), (4, 0), (5, 0), (9, 39)])
def test_slack_has_gaps_where_cycles_are_missing_and_nowhere_else(apart: int, gaps: int) -> None:
    """A short recording's stretches are shorter than a period: each reaches to the next cycle's."""
    width, period = 1 << 22, 4 << 22
    bins = tuple(SlackBin(n * apart * width, 1, 0, 5_000_000, 5_000_000, None) for n in range(40))
    stream = dataclasses.replace(
        views_data.missing().streams[0], period_ns=period, slack_bin_ns=width, slack_bins=bins
    )
    drawn = pictures.slack(stream, Window(0, 40 * apart * width))
    boxes = [
        (float(x), float(x) + float(w)) for x, w in re.findall(r"M([\d.]+) [\d.]+h([\d.]+)", drawn.least)
    ]
    assert len(boxes) == 40
    assert sum(b[0] - a[1] > 0.2 for a, b in itertools.pairwise(boxes)) == gaps


def test_it_leads_with_what_would_have_helped_then_pictures_then_the_rest() -> None:
    summary = everything()
    text = page(summary).text
    places = [summary.lead, "no stolen CPU", summary.verdict, "One missed cycle", "Slack over time",
              "while its holder did", "How long the waits were", "What runs under a lock", "Findings",
              "Threads", "What is missing"]  # fmt: skip
    at = 0
    for place in places:
        assert place in text[at:], place
        at = text.index(place, at)


def test_losses_an_incomplete_trace_and_an_absent_stream_are_told() -> None:
    losing = page(views_data.losing(), notes=["the last 3 batches are cut off"]).text
    assert "lost: ring 12,345, map 2, late 7" in losing and "the last 3 batches are cut off" in losing
    absent = views_data.no_streams()
    assert f"{absent.verdict}. That is not “no misses”" in page(absent).text
    clean = page(views_data.base()).text
    assert "none lost" in clean and "is whole" in clean


def test_the_page_stays_small_however_much_there_is_and_says_what_it_leaves_out() -> None:
    long = "n" * 4000
    segments = tuple(Segment("lock" if n % 3 else "guest", "", 1000 + n, n % 40, long) for n in range(5000))
    misses = tuple(
        views_data.miss(n, detail=long, segments=segments, sufficient=(long,) * 20, chain=(long,) * 20)
        for n in range(600)
    )
    made = everything()
    summary = dataclasses.replace(
        made,
        misses=misses,
        streams=tuple(dataclasses.replace(made.streams[0], id=f"s{n}", name=long) for n in range(300)),
        locks=tuple(dataclasses.replace(made.locks[0], name=long, address=n) for n in range(300)),
        threads=tuple(dataclasses.replace(made.threads[0], tid=n, comm=long) for n in range(500)),
        findings=made.findings * 100,
    )
    text = to_html(summary, title=long)
    assert len(text.encode()) < 3_000_000
    words = Page(text).text
    for told in (
        "576 more: miss with a timeline",
        "200 more: earlier miss",
        "268 more: stream",
        "400 more: thread",
    ):
        assert told in words


def test_a_real_miss_is_drawn_with_its_threads_and_every_link_to_it_works() -> None:
    summary = captured("lock")
    origin = next(m for m in summary.misses if m.cause == "lock")
    text = to_html(summary, title="x")
    assert f'id="miss-{origin.id}"' in text and f'href="#miss-{origin.id}"' in text
    drawn = pictures.timeline(origin, summary)
    assert drawn.total_ns == sum(s.ns for s in origin.segments)
    assert {lane.sub.rpartition(" ")[2] for lane in drawn.lanes[1:]} >= {
        str(s.tid) for s in origin.segments if s.tid and s.tid in {t.tid for t in summary.threads}
    }
    assert "lock" in drawn.marks
    late = drawn.total_ns * (1 - drawn.deadline)
    assert late == pytest.approx(origin.late_ns, rel=1e-6)


SEGMENTS = st.lists(
    st.builds(
        Segment,
        st.sampled_from(["lock", "guest", "on_cpu", "host"]),
        st.sampled_from(["", "serialised"]),
        st.integers(0, 10**9),
        st.integers(0, 3),
        st.just(""),
    ),
    min_size=1,
    max_size=60,
).filter(lambda rows: sum(s.ns for s in rows) > 0)


@given(SEGMENTS)
def test_every_instant_of_a_timeline_is_drawn_for_one_thread_and_for_somebodys_work(
    rows: list[Segment],
) -> None:
    miss: Miss = views_data.miss(1, segments=tuple(rows))
    drawn = pictures.timeline(miss, views_data.base())

    def columns(shapes: tuple[tuple[str, str], ...]) -> list[int]:
        spans = [m for _, path in shapes for m in re.findall(r"M(\d+) 0H(\d+)V1H\1Z", path)]
        return [c for a, b in spans for c in range(int(a), int(b))]

    whose = columns(drawn.lanes[0].shapes)
    assert sorted(whose) == list(range(pictures.COLUMNS))
    threads = [columns(lane.shapes) for lane in drawn.lanes[1:]]
    assert all(len(set(lane)) == len(lane) for lane in threads)
    assert set().union(*threads) == set(range(pictures.COLUMNS))


@given(SEGMENTS)
def test_a_segment_as_long_as_two_columns_is_seen_in_its_lane(rows: list[Segment]) -> None:
    drawn = pictures.timeline(views_data.miss(1, segments=tuple(rows)), views_data.base())
    order = list(dict.fromkeys(s.tid for s in rows))
    for segment in rows:
        if segment.ns * pictures.COLUMNS >= 2 * drawn.total_ns:
            lane = drawn.lanes[1 + order.index(segment.tid)]
            assert segment.kind in {mark for mark, _ in lane.shapes}


# --- colours ---------------------------------------------------------------------------------


def colours(dark: bool) -> dict[str, tuple[float, float, float]]:
    """The variables of one theme as (r, g, b) in 0…1."""
    light, _, rest = CSS.read_text(encoding="utf-8").partition("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", light))
    if dark:
        found |= dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", rest.partition("\n}\n")[0]))
    return {
        k: (int(v[1:3], 16) / 255, int(v[3:5], 16) / 255, int(v[5:7], 16) / 255) for k, v in found.items()
    }


def contrast(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """WCAG 2: relative luminance ratio."""

    def luminance(rgb: tuple[float, float, float]) -> float:
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_a_contrast_of_4_5_and_shapes_one_of_3(dark: bool) -> None:
    of = colours(dark)
    for text in ("fg", "dim", "link", "bad", "good", "warn"):
        for ground in ("bg", "panel"):
            assert contrast(of[text], of[ground]) >= 4.5, (text, ground)
    hot, panel = of["hot"], of["panel"]
    warmest = (0.5 * hot[0] + 0.5 * panel[0], 0.5 * hot[1] + 0.5 * panel[1], 0.5 * hot[2] + 0.5 * panel[2])
    assert contrast(of["fg"], warmest) >= 4.5
    for mark in set(pictures.MARKS) - {"own", "carried"}:
        assert contrast(of[mark], of["bg"]) >= 3, mark


def test_every_mark_has_its_colour_in_both_themes() -> None:
    for dark in (False, True):
        assert set(pictures.MARKS) <= set(colours(dark))


# --- the command -----------------------------------------------------------------------------


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert run_command(["report", str(CAPTURES / "lock.xdt.tar"), "--format", "html", "-o", str(out)]) == 0
    assert "lock.xdt.tar" in Page(out.read_text(encoding="utf-8")).text


@pytest.mark.parametrize("form", ["text", "json", "svg"])
def test_other_formats_go_to_a_file_too(form: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert run_command(["report", str(CAPTURES / "lock.xdt.tar"), "--format", form, "-o", str(out)]) == 0
    assert out.stat().st_size > 500


def test_a_report_never_overwrites_its_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "x.tar"
    trace.write_bytes((CAPTURES / "lock.xdt.tar").read_bytes())
    link = tmp_path / "link"
    link.symlink_to(trace)
    for name in (trace, link, tmp_path, tmp_path / "none" / "x"):
        assert run_command(["report", str(trace), "-o", str(name)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 2
    assert trace.read_bytes() == (CAPTURES / "lock.xdt.tar").read_bytes()


def test_a_report_that_cannot_be_written_leaves_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page.html"
    out.write_text("mine", encoding="utf-8")

    def full(*rest: object, **more: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(html, "to_html", full)
    trace = str(CAPTURES / "lock.xdt.tar")
    assert run_command(["report", trace, "--format", "html", "-o", str(out)]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert out.read_text(encoding="utf-8") == "mine"
    assert run_command(["report", trace, "-o", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()
