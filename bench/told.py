# SPDX-License-Identifier: Apache-2.0
"""What a story's runs say: the table of its sides, predictions held against them, comparisons.

Owns how it is told. Runs nothing.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from bench.runs import Condition
from tracer.model.comparison import Comparison, compare
from tracer.model.runfigures import PRIMARY, Run, run_of
from tracer.model.runstats import Shift
from tracer.views.compare import signed
from tracer.views.fmt import duration

#: A prediction of a rate is called validated if the interval of predicted / real lies within, over this
#: many runs a side at least.
WITHIN = (0.5, 2.0)
ENOUGH = 20


@dataclass(frozen=True)
class Side:
    """A side of the story: its name, how it is run, and the remedy that it carries out on the first side."""

    name: str
    condition: Condition
    remedy: str = ""


@dataclass(frozen=True)
class Told:
    """A side's runs as they were kept."""

    side: Side
    runs: tuple[Run, ...]
    stories: tuple[Mapping[str, Any], ...]
    longest_wait_ns: tuple[int, ...]


def told(folder: Path, side: Side, rounds: int) -> Told:
    """Read a side's runs."""
    runs, stories, waits = [], [], []
    for number in range(1, rounds + 1):
        path = folder / f"{side.name}-{number}.json"
        if path.exists():
            summary = json.loads(path.read_text(encoding="utf-8"))
            runs.append(run_of(path.name, summary))
            stories.append(summary["story"])
            locks = [lock for lock in summary["locks"] if lock["name"] == "item_state"]
            waits.append(max((lock["wait_ns"]["max"] for lock in locks), default=0))
    return Told(side, tuple(runs), tuple(stories), tuple(waits))


def _range(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return "–"

    def show(value: float) -> str:
        return duration(round(value)) if unit == "ns" else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    return f"{show(statistics.median(values))} [{show(min(values))}–{show(max(values))}]"


def figures(sides: Sequence[Told]) -> Iterator[str]:
    """The table, as Markdown."""
    head = ["side", "runs", "glitch bursts", "missed/min", "episodes/min", "by cause"]
    head += ["item_state waits/min", "longest", "a write: raw, corrected"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for one in sides:
        causes: dict[str, int] = {}
        for run in one.runs:
            for cause, n in run.by_cause.items():
                causes[cause] = causes.get(cause, 0) + n
        total = max(1, sum(causes.values()))
        largest = sorted(causes.items(), key=lambda item: -item[1])[:3]
        cells = [
            one.side.name,
            str(len(one.runs)),
            _range([story["bursts"] for story in one.stories]),
            _range(_known(one.runs, "misses")),
            _range(_known(one.runs, "episodes")),
            ", ".join(f"{cause} {100 * n / total:.0f} %" for cause, n in largest if n) or "–",
            _range(_known(one.runs, "item_state_waits")),
            _range(one.longest_wait_ns, "ns"),
            _range(_known(one.runs, "write_cost"), "ns")
            + f", {_range(_known(one.runs, 'write_cost_corrected'), 'ns')}",
        ]
        yield f"| {' | '.join(cells)} |"


def _known(runs: Sequence[Run], measure: str) -> list[float]:
    return [value for run in runs if (value := run.values[measure]) is not None]


@dataclass(frozen=True)
class Checked:
    """A rate predicted from the first side against the one that the remedy gave.

    Attributes:
        predicted: misses per minute that xdtrace predicted to remain, one value a run of the first side.
        real: misses per minute that the audio server counted, one value a run of the remedy's side.
        ratio: predicted / real, of means; low, high: its 95 % interval over runs; None: nothing was missed.
            (Percentile bootstrap: of simulated lognormal rates and bursts it covers 93 % at 20 runs a side,
            86 % at five.)
        gone: shares of the first side's misses avoided, as predicted and really; None: it had none.
        verdict: in words.
    """

    remedy: str
    predicted: list[float]
    real: list[float]
    ratio: float | None
    low: float | None
    high: float | None
    gone: tuple[float, float] | None
    verdict: str

    @property
    def validated(self) -> bool:
        """Whether the interval lies within WITHIN, over ENOUGH runs a side."""
        return self.verdict == "validated"


def checked(first: Told, other: Told) -> Checked:
    """Hold the prediction of a side's remedy against that side."""
    minutes = [run.audio_s / 60 for run in first.runs]
    remain = [story["remain"].get(other.side.remedy, 0) for story in first.stories]
    predicted = [n / m for n, m in zip(remain, minutes, strict=True)]
    real, before = _counted(other), _counted(first)
    ratio = low = high = gone = None
    if sum(before) > 0:
        was = statistics.fmean(before)
        gone = (1 - statistics.fmean(predicted) / was, 1 - statistics.fmean(real) / was)
    if len(predicted) > 1 and len(real) > 1 and sum(real) > 0 and sum(predicted) > 0:
        ratio = statistics.fmean(predicted) / statistics.fmean(real)
        with np.errstate(invalid="ignore"):
            resampled = bootstrap(
                (predicted, real),
                lambda a, b, axis=-1: _over(np.mean(a, axis), np.mean(b, axis)),
                n_resamples=5000,
                method="percentile",
                rng=np.random.default_rng(1),
            ).confidence_interval
        low = float(resampled.low)
        high = float(resampled.high) if math.isfinite(resampled.high) else math.inf
    verdict = "validated"
    if min(len(predicted), len(real)) < ENOUGH:
        verdict = f"not validated ({len(predicted)} against {len(real)} runs)"
    elif low is None or high is None:
        verdict = "not validated (no ratio: nothing missed)"
    elif low < WITHIN[0] or high > WITHIN[1]:
        verdict = f"not validated (not within {WITHIN[0]:g} to {WITHIN[1]:g})"
    return Checked(other.side.remedy, predicted, real, ratio, low, high, gone, verdict)


def _counted(one: Told) -> list[float]:
    """Misses per minute as the audio server counted them, a value a run."""
    minute = 60 / one.side.condition.period_s
    return [
        story["truth"]["missed_cycles"] * minute / max(1, story["truth"]["cycles"]) for story in one.stories
    ]


def _over(a: Any, b: Any) -> np.ndarray:
    """a / b, infinite where nothing was missed."""
    found: np.ndarray = np.where(b > 0, a / np.where(b > 0, b, 1), np.inf)
    return found


def predictions(rows: Sequence[Checked]) -> Iterator[str]:
    """What was predicted from the incident's runs, and what the remedy's runs gave; as Markdown."""
    head = ["remedy", "predicted to remain/min", "really missed/min", "predicted / real"]
    yield f"| {' | '.join(head)} | avoided: predicted, really | |"
    yield "|---" * 6 + "|"
    for row in rows:
        ratio = (
            "–"
            if row.ratio is None
            else f"{row.ratio:.2g} [{row.low:.2g}–{row.high:.2g}]".replace("inf", "∞")
        )
        gone = (
            "–"
            if row.gone is None
            else ", ".join(f"{round(100 * share)} %".replace("-", "−") for share in row.gone)
        )
        cells = [row.remedy, _range(row.predicted), _range(row.real), ratio, gone, row.verdict]
        yield f"| {' | '.join(cells)} |"


def compared(sides: Sequence[Told]) -> list[Comparison]:
    """The incident against each other side; then refcount against dup, the review's question."""
    pairs = [list(sides)]
    by_name = {one.side.name.removeprefix("mini-"): one for one in sides}
    if {"dup", "refcount"} <= set(by_name):
        pairs.append([by_name["refcount"], by_name["dup"]])
    return [compare([one.runs for one in of], names=[one.side.name for one in of]) for of in pairs]


def against(found: Sequence[Comparison]) -> Iterator[str]:
    """Each comparison's primary measure, then what a write costs beyond write(2); as Markdown."""
    yield "| missed/min | difference | interval | p | |"
    yield "|---" * 5 + "|"
    for one in found:
        called = {side.label: side.what for side in one.sides}
        for row in one.contrasts:
            if row.measure == PRIMARY.name:
                needed = "" if row.needed is None else f"; about {row.needed:,} runs a side would show it"
                less = f"**{row.outcome}**" if row.outcome in ("less", "more") else "not shown" + needed
                names = f"{called[row.second]} against {called[row.first]}"
                yield f"| {names} | {_shift(row.shift, '/min')} | {row.p_adjusted:.2g} | {less} |"
    yield ""
    for one in found:
        called = {side.label: side.what for side in one.sides}
        for cost in one.costs:
            if cost.raw is None or cost.corrected is None or not cost.correction_ns:
                continue  # not calibrated, or the same syscalls on both sides
            names = f"{called[cost.second]} against {called[cost.first]}"
            raw, corrected = (
                _shift(shift, "ns").replace(" | ", ", ") for shift in (cost.raw, cost.corrected)
            )
            share = f"the probes' share {_number(cost.correction_ns, 'ns')}"
            yield f"- a write of {names}: raw {raw}; {share}; " + (
                f"corrected {corrected}" if cost.resolvable else "not resolvable here"
            )


def _shift(shift: Shift, unit: str) -> str:
    """Estimate | interval."""
    if shift.low is None or shift.high is None or shift.level is None:
        return f"{_number(shift.estimate, unit)} | none at 95 %"
    ends = f"{_number(shift.low, unit)} to {_number(shift.high, unit)}"
    return f"{_number(shift.estimate, unit)} | {100 * shift.level:.1f} %: {ends}"


def _number(number: float, unit: str) -> str:
    return signed(number, "ns" if unit == "ns" else "")


def page(
    kept: Sequence[Told], found: Sequence[Comparison], rows: Sequence[Checked], where: Mapping[str, object]
) -> Iterator[str]:
    """All that a story's runs say, as Markdown: what docs/story.md keeps."""
    least = min((len(one.runs) for one in kept), default=0)
    stories = [story for one in kept for story in one.stories]
    ended = [time.gmtime(story["ended"]) for story in stories if "ended" in story]
    load = [run.load for one in kept for run in one.runs]
    yield f"{least} run{'s' * (least != 1)} a side" + (
        "" if least >= ENOUGH else ": an illustration, which proves nothing"
    )
    if ended:
        first, last = time.strftime("%Y-%m-%d %H:%M", min(ended)), time.strftime("%H:%M", max(ended))
        length = sorted({f"{story['seconds']:g} s" for story in stories if "seconds" in story})
        yield f"{len(stories)} runs of {', '.join(length)}, {first} to {last} UTC, load {_range(load)}"
    yield str(dict(where))
    yield ""
    yield from figures(kept)
    yield ""
    yield from against(found)
    yield ""
    yield from predictions(rows)
