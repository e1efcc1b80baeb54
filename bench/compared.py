# SPDX-License-Identifier: Apache-2.0
"""Two sides of an intervention, compared: what was predicted to remain and what did.

Owns the rates, the ratio with its interval, and how both look. Runs nothing.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.runs import Condition, Run

#: Resamples of the runs of both sides, of which the middle 95 % are the interval.
_RESAMPLES = 4000
#: A prediction holds if the interval of (real - predicted) has 0 in it, or they differ by at most this
#: share of the misses before.
CLOSE = 0.05


@dataclass(frozen=True)
class Side:
    """Runs of one condition: per minute of audio, one value a run."""

    condition: str
    misses_per_minute: list[float]
    episodes_per_minute: list[float]
    by_cause: Mapping[str, int]
    minutes: float
    steal_percent: list[float]
    load_average: list[float]

    @classmethod
    def of(cls, condition: Condition, runs: Sequence[Run]) -> Side:
        """The runs of a condition."""
        causes: dict[str, int] = {}
        for run in runs:
            for cause, count in run.by_cause.items():
                causes[cause] = causes.get(cause, 0) + count
        return cls(
            str(condition),
            [run.truth.misses / _minutes(condition, run) for run in runs],
            [run.truth.episodes / _minutes(condition, run) for run in runs],
            dict(sorted(causes.items(), key=lambda item: -item[1])),
            sum(_minutes(condition, run) for run in runs),
            [run.steal_percent for run in runs],
            [run.load_average for run in runs],
        )


@dataclass(frozen=True)
class Comparison:
    """One prediction of one intervention.

    Attributes:
        cause: what the misses that the intervention takes away are called.
        predicted: misses per minute that remain by replay, one value per run before.
        ratio: real / predicted, of means; low, high: its 95 % interval over runs. None: nothing predicted.
        predicted_avoided, real_avoided: shares of the misses before, of means. None: no misses before.
        holds: see CLOSE; None: a prediction of something else, shown for contrast.
    """

    what: str
    prediction: str
    cause: str
    before: Side
    after: Side
    predicted: list[float]
    predicted_avoided: float | None
    real_avoided: float | None
    ratio: float | None
    low: float | None
    high: float | None
    holds: bool | None

    @classmethod
    def of(
        cls,
        what: str,
        before: Condition,
        after: Condition,
        before_runs: Sequence[Run],
        after_runs: Sequence[Run],
        prediction: str,
        cause: str,
        carried_out: bool,
    ) -> Comparison:
        """Compare; both sides have runs. ``carried_out``: whether *after* is what the prediction is of."""
        first, second = Side.of(before, before_runs), Side.of(after, after_runs)
        predicted = [run.remaining[prediction][0] / _minutes(before, run) for run in before_runs]
        real = second.misses_per_minute
        was = statistics.fmean(first.misses_per_minute)
        mean_predicted, mean_real = statistics.fmean(predicted), statistics.fmean(real)
        chance = random.Random(1)
        ratios, differences = [], []
        for _ in range(_RESAMPLES):
            a = statistics.fmean(chance.choices(predicted, k=len(predicted)))
            b = statistics.fmean(chance.choices(real, k=len(real)))
            differences.append(b - a)
            if a:
                ratios.append(b / a)
        least, most = _middle(differences)
        low, high = _middle(ratios) if ratios else (None, None)
        close = least <= 0 <= most or abs(mean_real - mean_predicted) <= CLOSE * was
        return cls(
            what=what,
            prediction=prediction,
            cause=cause,
            before=first,
            after=second,
            predicted=predicted,
            predicted_avoided=1 - mean_predicted / was if was else None,
            real_avoided=1 - mean_real / was if was else None,
            ratio=mean_real / mean_predicted if mean_predicted else None,
            low=low,
            high=high,
            holds=close if carried_out else None,
        )


def _minutes(condition: Condition, run: Run) -> float:
    return max(1, run.truth.cycles) * condition.period_s / 60


def _middle(values: list[float]) -> tuple[float, float]:
    values.sort()
    return values[int(0.025 * len(values))], values[min(len(values) - 1, int(0.975 * len(values)))]


def detection(runs: Iterable[Run]) -> dict[str, dict[str, int]]:
    """xdtrace's counts against the servers', by program; ``runs_beyond``: more than 1 off for each stream."""
    table: dict[str, dict[str, int]] = {}
    for run in runs:
        row = table.setdefault(run.condition.split()[0], {})
        off = {
            name: abs(getattr(run.truth, name) - getattr(run.seen, name))
            for name in ("cycles", "misses", "episodes")
        }
        values = {
            "runs": 1,
            "cycles": run.truth.cycles,
            "misses": run.truth.misses,
            "episodes": run.truth.episodes,
            "cycles_off": off["cycles"],
            "misses_off": off["misses"],
            "episodes_off": off["episodes"],
            "runs_equal": int(not any(off.values())),
            "runs_beyond": int(max(off.values()) > run.streams),
            "records_lost": run.lost,
        }
        for name, value in values.items():
            row[name] = row.get(name, 0) + value
    return table


# --- how it looks: Markdown, which is kept in docs/ -------------------------------------------------


_SIDE = ("condition", "runs", "misses/min", "episodes/min", "misses by cause", "steal %", "load")
_COMPARISON = (
    "program",
    "intervention",
    "called so: before, after",
    "prediction",
    "misses/min before",
    "predicted to remain",
    "remained",
    "real / predicted",
    "avoided: predicted, real",
    "holds",
)


def render(compared: Sequence[Comparison], found: Mapping[str, Mapping[str, int]]) -> str:
    """Three tables: sides, predictions, detection."""
    sides: dict[str, Side] = {}
    for one in compared:
        sides.update({one.before.condition: one.before, one.after.condition: one.after})
    text = markdown(_SIDE, [_side(side) for _, side in sorted(sides.items())])
    text += "\n" + markdown(_COMPARISON, [_comparison(one) for one in compared])
    columns = list(next(iter(found.values()), {}))
    rows = [(name, *(f"{row[column]:,}" for column in columns)) for name, row in sorted(found.items())]
    return text + "\n" + markdown(("program", *(name.replace("_", " ") for name in columns)), rows)


def _side(side: Side) -> tuple[str, ...]:
    total = sum(side.by_cause.values())
    causes = ", ".join(f"{cause} {100 * n / total:.0f} %" for cause, n in side.by_cause.items() if n)
    return (
        f"`{side.condition}`",
        str(len(side.misses_per_minute)),
        _range(side.misses_per_minute),
        _range(side.episodes_per_minute),
        causes or "–",
        _range(side.steal_percent),
        _range(side.load_average),
    )


def _comparison(one: Comparison) -> tuple[str, ...]:
    carried_out, ratio = one.holds is not None, "–"
    shares = one.predicted_avoided, one.real_avoided
    if one.ratio is not None and one.low is not None and one.high is not None:
        ratio = f"{one.ratio:.2g} [{one.low:.2g}–{one.high:.2g}]"
    return (
        one.before.condition.split()[0],
        one.what,
        f"{one.cause} {_rate(one.before, one.cause)}, {_rate(one.after, one.cause)}",
        one.prediction,
        _range(one.before.misses_per_minute),
        _range(one.predicted),
        _range(one.after.misses_per_minute) if carried_out else "not this",
        ratio if carried_out else "–",
        ", ".join("–" if share is None else f"{100 * share:.0f} %" for share in shares[: 1 + carried_out]),
        {True: "yes", False: "**no**", None: "–"}[one.holds],
    )


def _rate(side: Side, cause: str) -> str:
    """Misses per minute of a cause, over all runs of a side."""
    return f"{side.by_cause.get(cause, 0) / side.minutes:,.0f}"


def _range(values: Sequence[float]) -> str:
    """Median [least–greatest]."""
    middle, least, most = (
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} [{least}–{most}]" if len(values) > 1 else middle


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, as docs/ keeps it."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
