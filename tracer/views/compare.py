# SPDX-License-Identifier: Apache-2.0
"""A comparison of runs as text: every run a dot, then what may be said and what may not.

Owns the sentences and the strips of dots. Computes nothing but where a dot goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from tracer.model.comparison import Comparison, Contrast, CostContrast, SideFigures
from tracer.model.runfigures import COST, EXTRA, EXTRA_CORRECTED, MEASURES, PRIMARY, Measure, Run
from tracer.model.runstats import MIN_PAIRS, MIN_RUNS, Shift, least_p
from tracer.views.fmt import BAD, DIM, GOOD, NONE, WARN, clean, count, cut, duration, wrap
from tracer.views.grid import Block, Column, heading, stack, table
from tracer.views.streams import tally

_DOTS = " ●23456789"
_NAME_CELLS = 18
_RANGE_CELLS = 30
#: A pipe's lines are endless; a row of dots is not.
_MOST_DOTS = 100


def value(number: float | None, unit: str) -> str:
    """A measure's value with its unit: three digits."""
    if number is None:
        return NONE
    if unit == "ns":
        return duration(round(number))
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def strip(values: Sequence[float], low: float, high: float, width: int) -> str:
    """A dot per value between two ends; where several fall on one cell, how many."""
    cells = [0] * max(1, width)
    for one in values:
        share = (one - low) / (high - low) if high > low else 0.0
        cells[min(len(cells) - 1, max(0, round(share * (len(cells) - 1))))] += 1
    return "".join(_DOTS[n] if n < len(_DOTS) else "+" for n in cells)


def render_comparison(found: Comparison) -> Block:
    """All of it: what is compared, warnings, the primary measure, the rest, the runs."""
    primary, *rest = [_measure(found, measure) for measure in MEASURES]
    plain, exploratory = rest[:1], rest[1:]
    title = _lines(
        [("Exploratory: adjusted for their number (Holm); look, and test anew what you find", DIM)]
    )
    return stack(
        [_head(found), primary, _share(found), *plain, title, *exploratory, _costs(found), _runs(found)]
    )


def _lines(parts: Sequence[tuple[str, str]]) -> Block:
    """Sentences (text, style), wrapped; what a text is indented by, its further lines are too."""

    def build(width: int, height: int | None) -> list[Text]:
        lines = []
        for text, style in parts:
            indent = " " * (len(text) - len(text.lstrip()))
            for at, line in enumerate(wrap(clean(text), width - len(indent) - 2)):
                lines.append(Text(f"{indent}{'  ' if at else ''}{line}", style, no_wrap=True))
        return lines

    return Block(build)


def _called(side: SideFigures) -> str:
    return f"{side.label} {side.what}".strip()


def _head(found: Comparison) -> Block:
    sides = " · ".join(f"{_called(side)}: {_runs_of(len(side.runs))}" for side in found.sides)
    how = (
        "rounds are blocks, signs of their differences are flipped"
        if found.blocked
        else "run labels are permuted"
    )
    parts = [(f"Compared: {sides}; the run is the unit, {how}", "")]
    if found.not_comparable:
        parts.append(("✗ Not comparable, so no side is called better; leave runs out, or record anew:", BAD))
        parts += [(f"  {text}", BAD) for text in found.not_comparable]
    parts += [(f"! {text}", WARN) for text in found.warnings]
    return _lines(parts)


def _runs_of(number: int) -> str:
    return f"{count(number)} run{'' if number == 1 else 's'}"


def _measure(found: Comparison, measure: Measure) -> Block:
    """Title, a strip of dots per side, a sentence per contrast."""
    values = [[run.values[measure.name] for run in side.runs] for side in found.sides]
    known = [[one for one in of if one is not None] for of in values]
    everything = [one for of in known for one in of]
    contrasts = [one for one in found.contrasts if one.measure == measure.name]
    if not contrasts:
        return Block(lambda width, height: [])
    low, high = min(everything if measure.zoomed else [0.0, *everything]), max(everything)
    said = _lines([_sentence(one, measure, found.blocked) for one in contrasts])

    def build(width: int, height: int | None) -> list[Text]:
        note = "the primary measure, fixed beforehand" if measure is PRIMARY else ""
        if measure.exploratory and measure.unit != "ns":
            note = measure.unit
        lines = [heading(measure.title[0].upper() + measure.title[1:], note, width)]
        room = min(_MOST_DOTS, max(10, width - _NAME_CELLS - _RANGE_CELLS - 6))
        for side, of in zip(found.sides, known, strict=True):
            name = cut(clean(_called(side)), _NAME_CELLS - 2)
            line = Text(f"  {name:<{_NAME_CELLS - 2}}  ", no_wrap=True)
            line.append(f"{_range(of, measure.unit):<{_RANGE_CELLS}}", DIM)
            line.append("▏")
            line.append(strip(of, low, high, room), "bold")
            line.append("▕")
            line.truncate(width)
            lines.append(line)
        ends = value(low, measure.unit), value(high, measure.unit)
        axis = " " * (_NAME_CELLS + _RANGE_CELLS + 3) + f"{ends[0]}{ends[1]:>{max(1, room - len(ends[0]))}}"
        return [*lines, Text(cut(axis, width), DIM, no_wrap=True), *said.lines(width)]

    return Block(build)


def _range(values: Sequence[float], unit: str) -> str:
    """Median [least–greatest]."""
    if not values:
        return NONE
    ordered = sorted(values)
    half = len(ordered) // 2
    middle = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    if len(ordered) == 1:
        return value(middle, unit)
    return f"{value(middle, unit)} [{value(ordered[0], unit)} – {value(ordered[-1], unit)}]"


def _shift(shift: Shift, unit: str, n_first: int, n_second: int) -> str:
    """``−320 /min, 96.8 % interval −512 to −150 (differences 3 and 23 of 25)``."""
    suffix = "" if unit == "ns" else f" {unit}"
    text = f"{signed(shift.estimate, unit)}{suffix}"
    if shift.low is None or shift.high is None or shift.level is None:
        return f"{text}; no interval exists at 95 % for {n_first} against {n_second}"
    ends = f"{signed(shift.low, unit)} to {signed(shift.high, unit)}"
    of = f"ordered differences {shift.low_rank} and {shift.high_rank} of {shift.of}"
    return f"{text}, {100 * shift.level:.1f} % interval {ends} ({of})"


def signed(number: float, unit: str) -> str:
    """The same with its sign, both of them in print."""
    text = value(number, unit)
    return f"+{text}" if number > 0 else text.replace("-", "−")


def _sentence(one: Contrast, measure: Measure, blocked: bool) -> tuple[str, str]:
    text = f"  {one.second} − {one.first}: {_shift(one.shift, measure.unit, one.n_first, one.n_second)}; "
    text += f"p = {one.p_adjusted:.2g}{' (Holm)' if one.p_adjusted != one.p else ''}: "
    if one.outcome in ("less", "more"):
        style = "" if measure.exploratory else GOOD if one.outcome == "less" else BAD
        return f"{text}{one.second} has {one.outcome}", style
    if one.outcome == "not_comparable":
        return f"{text}no claim, the runs are not comparable", WARN
    if measure.exploratory:
        return f"{text}not shown", DIM
    unit = "pairs" if blocked else "runs a side"
    if one.outcome == "impossible":
        least = 2 / 2**one.n_first if blocked else least_p(one.n_first, one.n_second)
        text += (
            f"{one.n_first} against {one.n_second} runs cannot show anything, the least possible p being "
            f"{least:.2g}; take at least {MIN_PAIRS if blocked else MIN_RUNS} {unit}"
        )
    else:
        text += 'not shown, which is not "no difference"'
    if one.needed is None:
        return f"{text}; the runs point neither way, so no number of them can be named", WARN
    return f"{text}; about {one.needed} {unit} would show a difference like this one in 8 of 10 tries", WARN


def _share(found: Comparison) -> Block:
    parts = []
    for side in found.sides:
        low, high = f"{100 * side.any_low:.0f}", f"{100 * side.any_high:.0f}"
        text = f"  {_called(side)}: {side.with_miss} of {_runs_of(len(side.runs))} missed anything"
        text += f" (95 %: {low} to {high} % of runs)"
        if side.clean_bound is not None:
            bound = f"up to {100 * side.clean_bound:.0f} % of runs may still glitch"
            text += f"; {_runs_of(len(side.runs))} clean: {bound}"
        parts.append((text, ""))
    return stack([_lines([("Runs with any miss", "bold")]), _lines(parts)], gap=0)


def _costs(found: Comparison) -> Block:
    """What one write costs, raw and corrected."""
    parts = [line for one in found.costs for line in _cost(one, found)]
    if not parts:
        return Block(lambda width, height: [])
    return stack([_lines([("What one write costs beyond write(2) itself", "bold")]), _lines(parts)], gap=0)


def _cost(one: CostContrast, found: Comparison) -> Iterator[tuple[str, str]]:
    if one.raw is None:
        return
    sides = {side.label: side for side in found.sides}
    first, second = sides[one.first], sides[one.second]
    names = f"{_called(second)} against {_called(first)}"
    n = [sum(run.values[EXTRA.name] is not None for run in side.runs) for side in (first, second)]
    yield f"  {names}, per write, raw: {_shift(one.raw, 'ns', n[0], n[1])}", ""
    if one.correction_ns is None:
        yield "  how much of it is the probes' was not calibrated in these runs", WARN
        return
    n = [sum(run.values[EXTRA_CORRECTED.name] is not None for run in side.runs) for side in (first, second)]
    share = f"the probes' own share of that difference is {signed(one.correction_ns, 'ns')}"
    if not one.resolvable:
        yield f"  {share}, more than half of it: what the write path costs is not resolvable here", WARN
    elif one.corrected is not None:
        yield f"  corrected: {_shift(one.corrected, 'ns', n[0], n[1])}; {share}", ""


def _runs(found: Comparison) -> Block:
    rows = [(side, run) for side in found.sides for run in side.runs]
    short = {run.name: run.name.rstrip("/").rpartition("/")[2] for _, run in rows}
    if len(set(short.values())) < len(short):
        short = {name: name for name in short}
    columns: list[Column[tuple[SideFigures, Run]]] = [
        Column("side", lambda r: r[0].label),
        Column("run", lambda r: clean(short[r[1].name]), least=10, most=34),
        Column("missed", lambda r: count(r[1].misses), right=True),
        Column("cycles", lambda r: count(r[1].cycles), 1, right=True),
        Column("/min", lambda r: value(r[1].values[PRIMARY.name], "/min"), right=True),
        Column("episodes", lambda r: count(r[1].episodes), 2, right=True),
        Column("audio", lambda r: f"{r[1].audio_s:.3g}s", 4, right=True),
        Column("write", lambda r: value(r[1].values[COST.name], "ns"), 3, right=True),
        Column("steal", lambda r: f"{r[1].steal_percent:.1f}%", 5, right=True),
        Column("causes", lambda r: (tally(r[1].by_cause), DIM), 6, least=14, most=60),
    ]
    return Block(lambda width, height: table("Runs", "", columns, rows, width, height))
