# SPDX-License-Identifier: Apache-2.0
"""Predictions of ``whatif`` against what was: cycles of the same delays in two runs, counted. Pure."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracer.model.runstats import share_interval

#: Cycles of a delay that are compared, from the delayed one on: the longest delay covers two.
AFTER = 3
UNCHANGED = "unchanged rerun"


@dataclass(frozen=True)
class Delay:
    """An injected delay and what became of the cycles from it on (AFTER of them); None: none."""

    kind: str
    missed: tuple[bool, ...]
    predicted: Mapping[str, tuple[bool, ...]]


@dataclass(frozen=True)
class Outcome:
    """Of one run: its delays in order, cycles, and misses that no delay explains."""

    delays: tuple[Delay, ...]
    cycles: int
    others: int


def paired(first: Outcome, second: Outcome) -> Iterator[tuple[Delay, Delay]]:
    """The same delays of two runs: their kinds are the same sequence, but for what a run left out."""
    ours, theirs = ([d.kind for d in one.delays] for one in (first, second))
    for block in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        for k in range(block.size):
            yield first.delays[block.a + k], second.delays[block.b + k]


Confusion = Counter[str]  # stay, avoided (right ones), wrongly_stay, wrongly_avoided, new


@dataclass
class Tally:
    """Of one remedy: all cycles, those that an unchanged rerun missed as well, and by kind of delay."""

    all: Confusion = field(default_factory=Counter)
    repeatable: Confusion = field(default_factory=Counter)
    kinds: dict[str, Confusion] = field(default_factory=dict)

    def add(self, base: Outcome, again: Outcome, after: Outcome, remedy: str) -> None:
        """Count cycles: predicted from ``base`` against what ``after`` did."""
        twice = {id(one): other.missed for one, other in paired(base, again)}
        for one, other in paired(base, after):
            guess = one.missed if remedy == UNCHANGED else one.predicted[remedy]
            repeated = twice.get(id(one), (False,) * AFTER)
            for was, second, predicted, real in zip(one.missed, repeated, guess, other.missed, strict=True):
                what = _outcome_of(was, predicted, real)
                self.all[what] += 1
                if was and second:
                    self.repeatable[what] += 1
                    self.kinds.setdefault(one.kind, Counter())[what] += 1


def _outcome_of(was: bool, predicted: bool, real: bool) -> str:
    if not was:
        return "new" if real else "on_time"
    if predicted:
        return "stay" if real else "wrongly_stay"
    return "wrongly_avoided" if real else "avoided"


def figures(found: Confusion) -> dict[str, Any]:
    """Precision and recall of what stays and of what is avoided, among the cycles that were missed.

    ``new`` cycles (in time before, missed after) are in no prediction's reach and counted apart; with them
    ``recall_with_new`` is that of all misses after.
    """

    def share(hits: int, of: int) -> dict[str, Any]:
        if not of:
            return {"n": 0, "share": None, "low": None, "high": None}
        low, high = share_interval(hits, of)
        return {"n": of, "share": hits / of, "low": low, "high": high}

    stay, avoided = found["stay"], found["avoided"]
    return {
        "stay_precision": share(stay, stay + found["wrongly_stay"]),
        "stay_recall": share(stay, stay + found["wrongly_avoided"]),
        "avoided_precision": share(avoided, avoided + found["wrongly_avoided"]),
        "avoided_recall": share(avoided, avoided + found["wrongly_stay"]),
        "recall_with_new": share(stay, stay + found["wrongly_avoided"] + found["new"]),
        "counts": dict(found),
    }


def table(result: Mapping[str, Any], order: Sequence[str]) -> str:
    """The figures as Markdown, the runs of each remedy in this order."""
    head = (
        "run",
        *(f"{a}: {b}" for a in ("stays", "avoided") for b in ("precision", "recall")),
        "newly late",
    )
    lines = []
    for what, title in (
        ("all", "All cycles"),
        ("repeatable", "Cycles that an unchanged rerun missed as well"),
    ):
        lines += [f"{title}:", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for name in order:
            if name not in result[what]:
                continue
            row = result[what][name]
            keys = ("stay_precision", "stay_recall", "avoided_precision", "avoided_recall")
            cells = [*(_cell(row[key]) for key in keys), str(row["counts"].get("new", 0))]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    for name, kinds in result["by_kind"].items():
        lines += [f"{name}: {kind} {counts}" for kind, counts in kinds.items()]
    lines.append(f"missed outside of injected delays: {result['misses_outside_injections']}")
    lines.append(f"{result['runs']} runs, {result['failed_runs']} failed; {result['host']}")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    if row["share"] is None:
        return "–"
    return f"{row['share']:.3f} [{row['low']:.3f}–{row['high']:.3f}] of {row['n']}"
