# SPDX-License-Identifier: Apache-2.0
"""The measures that a condition may name: their arguments, fields, ratios and units.

Owns that list. Parses nothing: conditions.py does; what a measure is on a Summary is measured.py's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from tracer.model.summary import CAUSES, REMEDIES

#: A name that needs no quotes.
PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_@-]*", re.ASCII)
COUNT, TIME, SHARE, RATE = "count", "time", "share", "rate"
#: Units of times, in ns.
UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
}
#: What misses may be asked by, besides causes.
LEGS: Final = ("wake", "completion")
_STREAM: Final = {"misses": COUNT, "episodes": COUNT, "cycles": COUNT, "carried": COUNT,
                  "slack_p50": TIME, "slack_p1": TIME, "slack_min": TIME}  # fmt: skip
_LOCK: Final = {"waits": COUNT, "barged": COUNT, "misses": COUNT, "wait_p50": TIME, "wait_p99": TIME,
                "wait_max": TIME, "wait_total": TIME, "hold_p50": TIME, "hold_p99": TIME}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """One name: the fields it must have ({"": kind} for none), what its argument may be, its ratios.

    ``arguments``: None: it takes none; (): any name; else one of these. ``needed``: it must be given.
    """

    fields: dict[str, str]
    arguments: tuple[str, ...] | None = None
    needed: bool = False
    ratios: tuple[str, ...] = ()


MEASURES: Final = {
    "misses": Kind({"": COUNT}, (*CAUSES, *LEGS), ratios=("min", "cycles")),
    "episodes": Kind({"": COUNT}, CAUSES, ratios=("min",)),
    "cycles": Kind({"": COUNT}),
    "slack": Kind({"p50": TIME, "p1": TIME, "min": TIME}),
    "stream": Kind(_STREAM, (), needed=True),
    "lock": Kind(_LOCK, (), needed=True),
    "avoided": Kind({"": COUNT}, REMEDIES, needed=True),
    "write": Kind({"p50": TIME, "p99": TIME}),
    "steal": Kind({"": TIME}),
    "lost": Kind({"": COUNT}, ("ring", "map", "late")),
    "findings": Kind({"": COUNT}, ("alert", "warn", "info")),
}


#: What more of the same recording can only raise (1) or lower (-1): counts, sums and extremes. Not causes,
#: since what is usual is learnt, nor findings, shares and percentiles (checked in test_conditions.py).
_TRENDS: Final = {
    **dict.fromkeys([("misses", ""), ("episodes", ""), ("cycles", ""), ("lost", ""), ("steal", "")], 1),
    **{("stream", field): 1 for field in ("misses", "episodes", "cycles", "carried")},
    **{("lock", field): 1 for field in ("waits", "barged", "wait_max", "wait_total")},
    ("slack", "min"): -1,
    ("stream", "slack_min"): -1,
}


class Unsuitable(Exception):
    """A name, argument, field, ratio or unit that does not fit; ``where`` is one of these words."""

    def __init__(self, where: str, what: str, do: str) -> None:
        super().__init__(what)
        self.where, self.what, self.do = where, what, do


@dataclass(frozen=True, slots=True)
class Measure:
    """What is compared; ``kind``: count, time (ns), share (0…1) or rate (per minute of audio)."""

    name: str
    argument: str | None
    field: str
    per: str
    kind: str

    @property
    def trend(self) -> int:
        """1 where more of the same recording can only raise it, -1 where only lower it, else 0."""
        by_cause = self.name in ("misses", "episodes") and self.argument in CAUSES
        return 0 if by_cause or self.per else _TRENDS.get((self.name, self.field), 0)

    def __str__(self) -> str:
        text = self.name
        if self.argument is not None:
            quote = "" if PLAIN_NAME.fullmatch(self.argument) else "'" if '"' in self.argument else '"'
            text += f"({quote}{self.argument}{quote})"
        return text + (f".{self.field}" if self.field else "") + (f"/{self.per}" if self.per else "")


def measure(name: str, argument: str | None, field: str, per: str) -> Measure:
    """A measure of these parts. Raises Unsuitable."""
    kind = MEASURES.get(name)
    if kind is None:
        raise Unsuitable("name", f"there is no measure {name!r}", _did_you_mean(name, MEASURES))
    if argument is None and kind.needed:
        raise Unsuitable("name", f"{name} needs a name in brackets", f"such as {name}({_example(name)})")
    if argument is not None and kind.arguments is None:
        raise Unsuitable("argument", f"{name} takes nothing in brackets", "leave the brackets away")
    if argument is not None and kind.arguments and argument not in kind.arguments:
        raise Unsuitable("argument", f"{name} knows no {argument!r}", _did_you_mean(argument, kind.arguments))
    if field not in kind.fields:
        options = [f for f in kind.fields if f]
        if not field:
            raise Unsuitable("name", f"{name} needs a field", f"add .{', .'.join(options)}")
        do = _did_you_mean(field, options) if options else "leave the field away"
        raise Unsuitable("field", f"{name} has no field {field!r}", do)
    if per and per not in kind.ratios:
        options = [f"/{r}" for r in kind.ratios]
        raise Unsuitable(
            "per",
            f"{name} cannot be taken per {per!r}",
            f"use {' or '.join(options)}" if options else "leave it away",
        )
    quantity = {"min": RATE, "cycles": SHARE, "": kind.fields[field]}[per]
    return Measure(name, argument, field, per, quantity)


def value_of(what: Measure, number: Fraction, unit: str) -> Fraction:
    """A number with its unit, in the measure's own. Raises Unsuitable."""
    if what.kind == TIME:
        if unit in UNITS:
            return number * UNITS[unit]
        if not unit and not number:
            return number
        given = f"{unit!r} is no unit of time" if unit else "a time needs a unit"
        raise Unsuitable("number", f"{what} is a time: {given}", "use ns, us, ms, s or min, such as 2ms")
    if what.kind == SHARE and unit == "%":
        return number / 100
    if unit:
        expected = "a share: write 1% or 0.01" if what.kind == SHARE else "a plain number"
        raise Unsuitable("number", f"{unit!r} does not fit: {what} is {expected}", "leave the unit away")
    return number


def _example(name: str) -> str:
    return {"stream": "s1", "lock": "item_state"}.get(name, REMEDIES[0])


def _did_you_mean(word: str, options: Iterable[str]) -> str:
    known = list(options)
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
