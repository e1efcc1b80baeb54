# SPDX-License-Identifier: Apache-2.0
"""Whether a condition holds for a Summary.

Owns three-valued logic: what a trace cannot tell is neither true nor false. What a measure is there is
measured.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tracer.model.conditions import OPERATORS, Comparison, Condition, Not
from tracer.model.measured import read
from tracer.model.summary import Summary


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a condition.

    Attributes:
        met: None where the trace cannot tell.
        readings: each comparison's measure with what it is, in words.
        notes: what a reader must know to trust the answer.
    """

    met: bool | None
    readings: tuple[str, ...]
    notes: tuple[str, ...]


def evaluate(condition: Condition, summary: Summary, *, whole: bool = True) -> Outcome:
    """Whether a condition holds for a summary.

    Args:
        whole: False where a part of the recording is lost; then only that is told which it cannot change.
    """
    readings: dict[str, None] = {}
    notes: dict[str, None] = {}
    met = _evaluate(condition, summary, whole, readings, notes)
    return Outcome(met, tuple(readings), tuple(notes))


def _evaluate(
    condition: Condition, summary: Summary, whole: bool, readings: dict[str, None], notes: dict[str, None]
) -> bool | None:
    if isinstance(condition, Comparison):
        reading = read(condition.measure, summary)
        readings[f"{condition.measure} is {reading.text}"] = None
        if reading.note:
            notes[reading.note] = None
        compare = OPERATORS[condition.operator]
        values = reading.values if whole else _possible(reading.values, condition)
        answers = {compare(value, condition.value) for value in values}
        return answers.pop() if len(answers) == 1 else None
    if isinstance(condition, Not):
        inner = _evaluate(condition.inner, summary, whole, readings, notes)
        return None if inner is None else not inner
    found = [_evaluate(part, summary, whole, readings, notes) for part in condition.parts]
    decisive = condition.word == "or"
    if decisive in found:
        return decisive
    return None if None in found else not decisive


def _possible(values: tuple[Fraction, ...], asked: Comparison) -> list[Fraction]:
    """What a measure of the whole recording may be, given that of a part: one of each kind of answer."""
    trend, around = asked.measure.trend, [asked.value + step for step in (-1, 0, 1)]
    return [v for value in values for v in (value, *around) if not trend or (v - value) * trend >= 0]
