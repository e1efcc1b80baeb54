# SPDX-License-Identifier: Apache-2.0
"""What a story's runs say: the table of its sides, predictions held against them, comparisons.

Owns how it is told. Runs nothing.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from bench.runs import Condition
from tracer.model.comparison import Comparison, compare
from tracer.model.runfigures import Run, run_of
from tracer.views.fmt import duration

#: A prediction of a rate is called validated if the interval of predicted / real lies within.
WITHIN = (0.5, 2.0)


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
        predicted, real: misses per minute, one value a run.
        ratio: predicted / real, of means; low, high: its 95 % interval over runs; None: nothing was missed.
        validated: whether that interval lies within WITHIN.
    """

    remedy: str
    predicted: list[float]
    real: list[float]
    ratio: float | None
    low: float | None
    high: float | None
    validated: bool


def checked(first: Told, other: Told) -> Checked:
    """Hold the prediction of a side's remedy against that side."""
    minutes = [run.audio_s / 60 for run in first.runs]
    remain = [story["remain"].get(other.side.remedy, 0) for story in first.stories]
    predicted = [n / m for n, m in zip(remain, minutes, strict=True)]
    real = _known(other.runs, "misses")
    ratio = low = high = None
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
    good = low is not None and high is not None and WITHIN[0] <= low and high <= WITHIN[1]
    return Checked(other.side.remedy, predicted, real, ratio, low, high, good)


def _over(a: Any, b: Any) -> np.ndarray:
    """a / b, infinite where nothing was missed."""
    found: np.ndarray = np.where(b > 0, a / np.where(b > 0, b, 1), np.inf)
    return found


def predictions(rows: Sequence[Checked]) -> Iterator[str]:
    """What was predicted from the incident's runs, and what the remedy's runs gave; as Markdown."""
    yield "| remedy | predicted to remain/min | really missed/min | predicted / real | |"
    yield "|---|---|---|---|---|"
    for row in rows:
        ratio = (
            "–"
            if row.ratio is None
            else f"{row.ratio:.2g} [{row.low:.2g}–{row.high:.2g}]".replace("inf", "∞")
        )
        verdict = "validated" if row.validated else "not validated"
        if min(len(row.predicted), len(row.real)) < 20:
            verdict = f"{verdict} ({len(row.predicted)} against {len(row.real)} runs)"
        yield f"| {row.remedy} | {_range(row.predicted)} | {_range(row.real)} | {ratio} | {verdict} |"


def compared(sides: Sequence[Told]) -> list[Comparison]:
    """The incident against each other side; then refcount against dup, the review's question."""
    pairs = [list(sides)]
    by_name = {one.side.name.removeprefix("mini-"): one for one in sides}
    if {"dup", "refcount"} <= set(by_name):
        pairs.append([by_name["refcount"], by_name["dup"]])
    return [compare([one.runs for one in of], names=[one.side.name for one in of]) for of in pairs]
