# SPDX-License-Identifier: Apache-2.0
"""An analysis that runs for weeks holds as much after hours of misses as after a minute: in objects."""

from __future__ import annotations

import gc
import types
from collections import Counter

import pytest
import records as r
from world import LATE, MS, Delays, World

from tracer.model import between
from tracer.model.analysis import Analysis
from tracer.model.timeline import Timeline
from tracer.model.verdicts import Keep

PERIOD = 20 * MS
#: So many periods (3 s) are whole steps of record time, whole seconds, and whole turns of the world below.
ROUND = 150
#: Spans as tuples are kept for seconds of record time, however many misses there are.
_SKIPPED = (type, types.ModuleType, types.FunctionType, types.MethodType, int, str, float, Timeline)


def held_by(analysis: Analysis) -> Counter[str]:
    """How many objects an analysis holds, by type; numbers and texts are not counted."""
    seen: set[int] = set()
    counts: Counter[str] = Counter()
    left: list[object] = [analysis]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, _SKIPPED):
            continue
        seen.add(id(thing))
        counts[type(thing).__name__] += 1
        left += gc.get_referents(thing)
    return counts


def after_rounds(*rounds: int, keep: Keep) -> list[tuple[int, Counter[str]]]:
    """Episodes so far, and what an analysis holds that nobody asks, after so many rounds of misses."""
    world = World(period=PERIOD)
    for i in range((max(rounds) + 1) * ROUND):
        late = i >= 30 and i % 15 == 0
        starved = Delays(channel_turns=6, turn=5 * MS) if i % 2 else Delays(worker_off=LATE)
        world.cycle(starved if late else None)
    analysis, found = Analysis(keep=keep), []
    marks = [world.start_of(n * ROUND) + 50 * MS for n in range(1, max(rounds) + 1)]
    for i, (part, mark) in enumerate(r.steps(world.finish(), marks), 1):
        analysis.feed(world.batch(part, mark, first=i == 1))
        if i in rounds:
            analysis.verdicts.take([])  # lets go of what is kept while one step's cycles are judged
            found.append((analysis.tally().episodes, held_by(analysis)))
    return found


def test_misses_that_nobody_looks_at_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(between, "_CYCLES", 12)
    (many, early), (more, late) = after_rounds(5, 12, keep=Keep(misses=12, cases=5))
    assert more > 2 * many > 80
    # What a step happens to hold varies: nothing may grow by as much as an object for each further miss.
    assert {kind: n for kind, n in (late - early).items() if n > (more - many) // 2} == {}


def test_a_miss_is_kept_as_a_few_objects_once_its_path_is_let_go() -> None:
    (many, early), (more, late) = after_rounds(5, 12, keep=Keep(cases=5))
    grown = {kind: n for kind, n in (late - early).items() if n > (more - many) // 2}
    assert set(grown) <= {"MissState", "Cycle", "EpisodeState", "Judgement", "dict", "tuple", "list"}
    assert sum(grown.values()) <= 12 * (more - many)
