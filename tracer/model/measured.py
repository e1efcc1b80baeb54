# SPDX-License-Identifier: Apache-2.0
"""What a measure of a condition is on a Summary.

Owns how each is read. Where several rows answer (streams, instances of a lock), the worst one does: of slack
the least, of all else the most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from tracer.model.measures import LEGS, SHARE, TIME, UNITS, Measure
from tracer.model.summary import Summary
from tracer.model.summaryrows import LockRow, StreamRow


@dataclass(frozen=True, slots=True)
class Reading:
    """What a measure is: the values it may have (none: the trace cannot tell), in words, and a note."""

    values: tuple[Fraction, ...]
    text: str
    note: str = ""


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
    if what.argument in LEGS:
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
