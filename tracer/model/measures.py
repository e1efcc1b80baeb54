# SPDX-License-Identifier: Apache-2.0
"""What the names in a condition mean on a Summary.

Owns the list of measures, their units and how each is read. Parses nothing: conditions.py does.
Where several rows answer (streams, instances of a lock), the worst one does: of slack the least, of all
else the most.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from tracer.model.summary import CAUSES, REMEDIES, Summary
from tracer.model.summaryrows import LockRow, StreamRow

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
_LEGS: Final = ("wake", "completion")
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
    "misses": Kind({"": COUNT}, (*CAUSES, *_LEGS), ratios=("min", "cycles")),
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


@dataclass(frozen=True, slots=True)
class Reading:
    """What a measure is: the values it may have (none: the trace cannot tell), in words, and a note."""

    values: tuple[Fraction, ...]
    text: str
    note: str = ""


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


# --- reading ----------------------------------------------------------------------------------


def read(what: Measure, summary: Summary) -> Reading:
    """What a measure is in a summary."""
    reader = _READERS[what.name]
    found = reader(what, summary)
    if isinstance(found, Reading):
        return found
    return Reading((Fraction(found),), _words(Fraction(found), what.kind))


def _unknown(why: str) -> Reading:
    return Reading((), f"not known: {why}")


def _words(value: Fraction, kind: str) -> str:
    if kind == TIME:
        for unit, ns in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
            if abs(value) >= ns:
                return f"{float(value / ns):.3g}{unit}"
        return f"{float(value):.3g}ns"
    if kind == SHARE:
        return f"{float(100 * value):.3g}%"
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.3g}"


_Found = Reading | int | Fraction


def _no_stream(summary: Summary) -> Reading | None:
    return None if summary.streams else _unknown("no audio stream was seen")


def _misses(what: Measure, summary: Summary) -> _Found:
    if (none := _no_stream(summary)) is not None:
        return none
    if what.argument in _LEGS:
        n = sum(s.misses_by_leg.get(what.argument or "", 0) for s in summary.streams)
    elif what.argument is not None:
        n = summary.misses_by_cause.get(what.argument, 0)
    else:
        n = max(sum(s.misses for s in summary.streams), len(summary.misses))
    if what.per == "cycles":
        cycles = sum(s.cycles for s in summary.streams)
        return Fraction(n, cycles) if cycles else _unknown("no cycle was watched")
    return _per_minute(n, summary) if what.per else n


def _episodes(what: Measure, summary: Summary) -> _Found:
    if (none := _no_stream(summary)) is not None:
        return none
    n = sum(what.argument in (None, e.cause) for e in summary.episodes)
    return _per_minute(n, summary) if what.per else n


def _per_minute(n: int, summary: Summary) -> _Found:
    """Per minute of audio watched, as ``compare`` has it: two streams for a minute are two minutes."""
    audio_ns = sum(s.cycles * s.period_ns for s in summary.streams)
    return Fraction(n * UNITS["min"], audio_ns) if audio_ns else _unknown("no audio was watched")


def _cycles(what: Measure, summary: Summary) -> _Found:
    return sum(s.cycles for s in summary.streams)


def _slack(what: Measure, summary: Summary) -> _Found:
    return (
        _least_slack(what.field, summary.streams) if summary.streams else _unknown("no audio stream was seen")
    )


def _least_slack(field: str, streams: Sequence[StreamRow]) -> _Found:
    known = [v for s in streams if (v := getattr(s.slack_ns, field)) is not None]
    return min(known) if known else _unknown("no cycle was on time")


def _stream(what: Measure, summary: Summary) -> _Found:
    rows = [s for s in summary.streams if what.argument in (s.name, s.id)]
    if not rows:
        names = ", ".join(s.name or s.id for s in summary.streams[:8])
        return _unknown(f"there is no stream {what.argument!r}; there are: {names or 'none'}")
    if what.field.startswith("slack_"):
        return _least_slack(what.field.removeprefix("slack_"), rows)
    return max(int(getattr(s, what.field)) for s in rows)


def _of_lock(lock: LockRow, field: str) -> int:
    if field.startswith("wait_"):
        return int(getattr(lock.wait_ns, field.removeprefix("wait_")))
    if field.startswith("hold_"):
        return getattr(lock.hold_ns, field.removeprefix("hold_")) or 0
    return {"waits": lock.contended, "barged": lock.barged, "misses": lock.misses_caused}[field]


def _lock(what: Measure, summary: Summary) -> _Found:
    rows = [k for k in summary.locks if what.argument in (k.name, f"{k.name} [{k.instance}]")]
    if rows:
        return max(_of_lock(k, what.field) for k in rows)
    # Nobody waited for it, or it is one of those without a name: it may be any of these.
    nameless = [k for k in summary.locks if k.named_by == "none"]
    values = tuple(sorted({Fraction(_of_lock(k, what.field)) for k in nameless} | {Fraction(0)}))
    named = ", ".join(dict.fromkeys(k.name for k in summary.locks if k.named_by != "none")) or "none"
    note = f"no lock named {what.argument!r} was waited for; named ones that were: {named}"
    if not nameless:
        return Reading(values, "0", note)
    most = _words(values[-1], what.kind)
    note += f"; {len(nameless)} without a name were, and may be it"
    return Reading(values, f"0, or up to {most} where it is one without a name", note)


def _avoided(what: Measure, summary: Summary) -> _Found:
    remedy = summary.counterfactual.get(what.argument or "")
    return remedy.episodes_avoided if remedy is not None else _unknown("no miss was judged")


def _write(what: Measure, summary: Summary) -> _Found:
    known = [v for w in summary.write_path.values() if (v := getattr(w.cost_ns, what.field)) is not None]
    return max(known) if known else _unknown("no write was seen")


def _lost(what: Measure, summary: Summary) -> _Found:
    lost = summary.records.lost
    return int(getattr(lost, what.argument)) if what.argument else lost.ring + lost.map + lost.late


_READERS: Final[dict[str, Callable[[Measure, Summary], _Found]]] = {
    "misses": _misses,
    "episodes": _episodes,
    "cycles": _cycles,
    "slack": _slack,
    "stream": _stream,
    "lock": _lock,
    "avoided": _avoided,
    "write": _write,
    "steal": lambda what, summary: summary.steal_ns,
    "lost": _lost,
    "findings": lambda what, summary: sum(what.argument in (None, f.level) for f in summary.findings),
}
