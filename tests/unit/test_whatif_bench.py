# SPDX-License-Identifier: Apache-2.0
"""The bench that holds what-if against what was: pairing of delays, and its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.predicted import UNCHANGED, Delay, Outcome, Tally, paired
from bench.predicted import figures as whatif_figures
from bench.series import order
from bench.story import chosen_sides, heard, options, same_length
from bench.told import ENOUGH, WITHIN, Side, Told, checked, compared, figures, page, predictions, told
from tracer import audio
from tracer.errors import UsageError

MISSED, TIME = (True, False, False), (False, False, False)


def outcome(*delays: tuple[str, tuple[bool, ...]], predicted: tuple[bool, ...] | None = None) -> Outcome:
    """A run; every delay with one prediction for the remedy ``fair`` (as missed, if not given)."""
    made = [
        Delay(kind, missed, {"fair": missed if predicted is None else predicted}) for kind, missed in delays
    ]
    return Outcome(tuple(made), 100, 0)


def test_a_delay_that_one_run_left_out_does_not_shift_the_others() -> None:
    first = outcome(("a", MISSED), ("b", TIME), ("c", MISSED), ("a", TIME))
    second = outcome(("a", TIME), ("c", TIME), ("a", MISSED))
    assert [(x.kind, x.missed, y.missed) for x, y in paired(first, second)] == [
        ("a", MISSED, TIME),
        ("c", MISSED, TIME),
        ("a", TIME, MISSED),
    ]


@pytest.mark.parametrize(
    ("predicted", "real", "what"),
    [
        (MISSED, MISSED, "stay"),
        (MISSED, TIME, "wrongly_stay"),
        (TIME, TIME, "avoided"),
        (TIME, MISSED, "wrongly_avoided"),
    ],
)
def test_every_missed_cycle_is_counted_once_and_by_what_came_true(
    predicted: tuple[bool, ...], real: tuple[bool, ...], what: str
) -> None:
    base = outcome(("a", MISSED), predicted=predicted)
    tally = Tally()
    tally.add(base, base, outcome(("a", real)), "fair")
    assert dict(tally.all) == {what: 1, "on_time": 2}
    assert dict(tally.repeatable) == {what: 1}
    assert {kind: dict(counts) for kind, counts in tally.kinds.items()} == {"a": {what: 1}}


def test_what_is_missed_only_afterwards_is_new_and_what_was_chance_is_not_repeatable() -> None:
    tally = Tally()
    tally.add(outcome(("a", TIME)), outcome(("a", TIME)), outcome(("a", MISSED)), "fair")
    assert dict(tally.all) == {"new": 1, "on_time": 2}
    tally.add(outcome(("a", MISSED)), outcome(("a", TIME)), outcome(("a", MISSED)), "fair")
    assert tally.all["stay"] == 1
    assert dict(tally.repeatable) == {}


def test_the_peer_predicts_that_everything_repeats() -> None:
    tally = Tally()
    base = outcome(("a", MISSED), predicted=TIME)
    tally.add(base, base, outcome(("a", MISSED)), UNCHANGED)
    assert dict(tally.repeatable) == {"stay": 1}


def test_precision_and_recall_are_of_the_cycles_that_were_missed() -> None:
    tally = Tally()
    tally.all.update(
        {"stay": 8, "wrongly_stay": 2, "avoided": 6, "wrongly_avoided": 1, "new": 3, "on_time": 90}
    )
    found = whatif_figures(tally.all)
    assert (found["stay_precision"]["share"], found["stay_precision"]["n"]) == (0.8, 10)
    assert found["stay_recall"]["share"] == pytest.approx(8 / 9)
    assert found["avoided_precision"]["share"] == pytest.approx(6 / 7)
    assert found["avoided_recall"]["share"] == 0.75
    assert found["recall_with_new"]["share"] == pytest.approx(8 / 12)
    assert whatif_figures(Tally().all)["stay_recall"]["share"] is None


# --- the story --------------------------------------------------------------------------------------


def log(path: Path, missed: set[int], cycles: int = 400) -> Path:
    rows = [
        {"type": "cycle", "stream": 0, "cycle": n, "leg": "wake" if n in missed else "none"}
        for n in range(cycles)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"type": "timer"}]))
    return path


@pytest.mark.parametrize(("missed", "bursts"), [(set(), 0), ({100, 101, 102, 200}, 2), ({50, 300, 350}, 3)])
def test_what_was_heard_has_a_burst_for_each_gap(missed: set[int], bursts: int, tmp_path: Path) -> None:
    heard(log(tmp_path / "log", missed), tmp_path / "heard.wav")
    found = audio.analyse(tmp_path / "heard.wav")
    assert len(found.bursts) == bursts
    assert round(found.tone_hz) == 997


def sides() -> list[Side]:
    from bench.story import sides_of

    return sides_of("minivmm", only_there=False)


def told_side(side: Side, folder: Path, *misses: int, remain: int = 0) -> Told:
    """A side whose runs were kept with these misses a minute, and so many predicted to remain."""
    from test_comparison import summary

    for number, n in enumerate(misses, start=1):
        kept = summary(n).to_dict()
        remedies = {one.remedy: remain for one in sides() if one.remedy}
        truth = {"cycles": round(60 / side.condition.period_s), "missed_cycles": n}  # of a minute
        kept["story"] = {"side": side.name, "bursts": n, "truth": truth, "remain": remedies}
        kept["story"] |= {"seconds": 60.0, "ended": 1.8e9 + 3600 * number}
        (folder / f"{side.name}-{number}.json").write_text(json.dumps(kept))
    return told(folder, side, len(misses))


def test_the_sides_differ_from_the_incident_in_one_thing_each() -> None:
    first, *others = sides()
    assert first.remedy == ""
    assert {one.remedy for one in others} == {"dup", "refcount", "task", "fair", "own_context", "realtime"}
    names = [str(one.condition) for one in (first, *others)]
    assert len(set(names)) == len(names)
    conditions = [one.condition for one in (first, *others)]
    assert sorted(str(c) for c, number in order(conditions, 2) if number == 1) == sorted(names)


def test_sides_can_be_chosen_and_the_incident_stays_with_them() -> None:
    chosen = options(["--side", "mini-fair", "--full"])
    assert chosen.rounds == 20
    (of,) = chosen_sides([sides()], chosen.side)
    assert [side.name for side in of] == ["mini-locked", "mini-fair"]
    assert chosen_sides([sides()], options([]).side) == [sides()]
    assert chosen_sides([sides()], ["none"]) == []


def test_a_prediction_is_validated_only_within_half_and_double(tmp_path: Path) -> None:
    first, dup = sides()[:2]
    real = told_side(dup, tmp_path, *(90, 100, 110, 95, 105) * 4)
    close = checked(told_side(first, tmp_path, *[200] * ENOUGH, remain=110), real)
    assert close.validated
    assert close.low is not None
    assert WITHIN[0] < close.low < 1.1 < (close.high or 0) < WITHIN[1]
    far = checked(told_side(first, tmp_path, *[200] * ENOUGH, remain=20), real)
    assert "| not validated (not within 0.5 to 2) |" in "\n".join(predictions([far]))


def test_too_few_runs_validate_nothing_however_well_they_agree(tmp_path: Path) -> None:
    first, dup = sides()[:2]
    real = told_side(dup, tmp_path, *[100] * ENOUGH)
    found = checked(told_side(first, tmp_path, *[200] * (ENOUGH - 1), remain=100), real)
    assert found.ratio == pytest.approx(1, rel=0.01)
    assert not found.validated
    assert f"not validated ({ENOUGH - 1} against {ENOUGH} runs)" in "\n".join(predictions([found]))


def test_what_really_happened_is_the_servers_count_not_ours(tmp_path: Path) -> None:
    first, dup = sides()[:2]
    before, after = told_side(first, tmp_path, 200, 200, remain=100), told_side(dup, tmp_path, 50, 50)
    for story in after.stories:
        story["truth"]["missed_cycles"] = 100
    found = checked(before, after)
    assert found.ratio == pytest.approx(1, rel=0.01)
    assert found.gone == pytest.approx((0.5, 0.5), abs=0.01)


def test_nothing_missed_on_either_side_validates_nothing(tmp_path: Path) -> None:
    first, dup = sides()[:2]
    found = checked(told_side(first, tmp_path, 9, 9, remain=0), told_side(dup, tmp_path, 0, 0))
    assert (found.ratio, found.validated) == (None, False)


def test_a_side_that_is_mostly_clean_has_no_upper_end(tmp_path: Path) -> None:
    first, dup = sides()[:2]
    found = checked(told_side(first, tmp_path, *[9] * 4, remain=1), told_side(dup, tmp_path, 0, 0, 0, 3))
    assert found.high == float("inf")
    assert not found.validated
    assert "∞" in "\n".join(predictions([found]))


def test_the_story_compares_with_the_incident_and_dup_with_refcount(tmp_path: Path) -> None:
    kept = [told_side(side, tmp_path, 1, 2, 3) for side in sides()]
    found = compared(kept)
    assert [len(one.sides) for one in found] == [7, 2]
    table = "\n".join(figures(kept))
    assert all(f"| {side.name} | 3 | 2 [1–3] |" in table for side in sides())


def test_a_run_that_is_missing_is_no_run(tmp_path: Path) -> None:
    side = sides()[0]
    told_side(side, tmp_path, 1, 2, 3)
    (tmp_path / f"{side.name}-2.json").unlink()
    assert len(told(tmp_path, side, 3).runs) == 2


def test_a_folder_with_runs_of_another_length_is_refused(tmp_path: Path) -> None:
    told_side(sides()[0], tmp_path, 1)
    same_length(tmp_path, 60)
    with pytest.raises(UsageError) as raised:
        same_length(tmp_path, 8)
    assert (raised.value.message, raised.value.hint) == (
        f"{tmp_path}/mini-locked-1.json: a run of 60 s, and 8 s are asked for",
        "say --seconds 60, or name another folder",
    )


def test_the_page_says_when_how_long_and_each_side_against_the_incident(tmp_path: Path) -> None:
    kept = [told_side(side, tmp_path, *[at] * 4) for at, side in enumerate(sides(), start=1)]
    rows = [checked(kept[0], other) for other in kept[1:]]
    lines = list(page(kept, compared(kept), rows, {"cpus": 2}))
    assert lines[0] == "4 runs a side: an illustration, which proves nothing"
    assert lines[1].startswith("28 runs of 60 s, 2027-01-15 09:00 to 12:00 UTC, load ")
    assert "| mini-dup against mini-locked | +1 | 97.1 %: +1 to +1 | 0.17 | not shown" in "\n".join(lines)
    assert "| mini-dup against mini-refcount | −1 | 97.1 %: −1 to −1 | 0.029 | **less** |" in lines
    assert sum("not validated (4 against 4 runs) |" in line for line in lines) == 6
