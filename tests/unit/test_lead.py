# SPDX-License-Identifier: Apache-2.0
"""What a report leads with says what each remedy alone would have avoided, and what not."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import views_data

from tracer.model.lead import REMEDY_TEXT, lead, ranked
from tracer.model.summary import REMEDIES, Remedy
from tracer.views.tables import render_report
from tracer.views.text import TextBlocks


def remedy(episodes: int, of: int = 9, misses: int = 0) -> Remedy:
    return Remedy(misses, 20, {}, episodes, of)


def test_every_remedy_has_a_name() -> None:
    assert set(REMEDY_TEXT) == set(REMEDIES)


def test_the_best_comes_first_and_what_avoids_nothing_last() -> None:
    table = {"item_state": remedy(0), "fair": remedy(8), "realtime": remedy(7), "dup": remedy(0)}
    assert lead(table) == (
        "Each of these alone would have avoided so many of the 9 episodes: a fair worker 8, "
        "real-time for W, G and the vCPUs 7; none: no waits on item_state and write path dup."
    )


def test_equal_episodes_are_ranked_by_misses() -> None:
    assert ranked({"dup": remedy(1, misses=2), "fair": remedy(1, misses=5)}) == ["fair", "dup"]


def test_one_episode_and_no_help_read_as_such() -> None:
    assert lead({"fair": remedy(1, 1), "dup": remedy(0, 1), "task": remedy(1, 1)}) == (
        "Each of these alone would have avoided the one episode: write path task and a fair worker; "
        "not: write path dup."
    )
    assert lead({"fair": remedy(1, 1)}).endswith("avoided the one episode: a fair worker.")
    assert lead({"fair": remedy(0, 1)}).endswith("would have avoided the one episode: a fair worker.")
    assert lead({"fair": remedy(0, 4), "dup": remedy(0, 4)}) == (
        "None of these alone would have avoided any of the 4 episodes: write path dup and a fair worker."
    )


def test_without_a_judged_episode_nothing_is_claimed() -> None:
    assert lead({}) == "" == lead({"fair": remedy(0, 0)})
    assert render_report(views_data.base()).plain(100).startswith("xdtrace")


def test_the_text_report_leads_with_it_then_its_table() -> None:
    lines = render_report(views_data.missing()).plain(100).splitlines()
    assert lines[0].startswith("Each of these alone would have avoided so many of the 2 episodes")
    assert next(line for line in lines if line.startswith("remedy")) in lines[:4]


def test_nothing_is_cut_where_the_report_goes_to_a_pipe() -> None:
    long = "no room for this name " * 30
    for name in views_data.ALL:
        out = io.StringIO()
        TextBlocks(out, None).finish(views_data.ALL[name](), {})
        assert "…" not in out.getvalue(), name
    summary = views_data.missing()
    streams = tuple(views_data.stream(n, misses=3, name=f"{long}{n}") for n in range(100))
    out = io.StringIO()
    TextBlocks(out, None).finish(replace(summary, streams=streams, verdict=long, todo=long), {})
    assert "…" not in out.getvalue()
    assert all(f"{long}{n} " in out.getvalue() for n in range(100))


def test_a_pipe_of_a_given_width_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = io.StringIO()
    TextBlocks(out, None).finish(views_data.missing(), {})
    assert max(map(len, out.getvalue().splitlines())) <= 60
