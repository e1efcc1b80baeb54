# SPDX-License-Identifier: Apache-2.0
"""How long guests and commands take, measured for on-time cycles.

Owns the usual case only, which the readings of W and G tell without a path: W interrupts, the guest's kick
wakes an idle G, G writes the completion. It says exactly what path.py and commands.py say of such a cycle (a
test holds it to that), at a hundredth of the cost; of every other cycle it says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tracer.model.gpureading import GpuReading
from tracer.model.readers import Readers
from tracer.model.roles import Roles
from tracer.model.streams import Cycle
from tracer.model.timeline import Timeline
from tracer.model.window import AFTER_NS
from tracer.model.workerreading import WorkerReading

#: How far before a cycle spans are looked at.
BEFORE_NS: Final = 5_000_000


class Answer(NamedTuple):
    """From the interrupt to the kick, and from there to the end of the completion's write.

    ``exact``: the kick was seen, so the two are known.
    """

    exact: bool
    guest_ns: int = 0
    command_ns: int = 0


class Answers:
    """Measures on-time cycles of one stream."""

    def __init__(self, timeline: Timeline, roles: Roles, readers: Readers) -> None:
        self._timeline = timeline
        self._roles = roles
        self._readers = readers

    def measure(self, cycles: Sequence[Cycle]) -> list[Answer | None]:
        """An answer per cycle; None where it is not the usual case."""
        answers: list[Answer | None] = [None] * len(cycles)
        by_threads: dict[tuple[int, int], list[int]] = {}
        gpus: dict[tuple[int, int], int] = {}
        for i, cycle in enumerate(cycles):
            wrote = cycle.stream.tgid, cycle.writer_tid
            gpu = gpus.get(wrote)
            if gpu is None:
                gpu = gpus[wrote] = self._roles.gpu_worker(*wrote)
            if (
                cycle.write_enter_ns is not None
                and cycle.read_ns is not None
                and cycle.write_enter_ns > cycle.read_ns
                and gpu
                and cycle.writer_tid == gpu
            ):
                by_threads.setdefault((cycle.reader_tid or cycle.stream.context, gpu), []).append(i)
        for (worker, gpu), at in by_threads.items():
            for i, answer in zip(at, self._between(worker, gpu, [cycles[i] for i in at]), strict=True):
                answers[i] = answer
        return answers

    def _between(self, worker: int, gpu: int, cycles: Sequence[Cycle]) -> list[Answer | None]:
        start = min(c.nominal_ns for c in cycles) - BEFORE_NS
        stop = max(c.end_ns for c in cycles) + AFTER_NS
        turns = self._readers.worker(self._timeline.track(worker, start), worker, cycles[0].stream.tgid)
        track = self._timeline.track(gpu, start)
        commands = self._readers.gpu(track, gpu, track.bounds(start, stop))
        return [_answer(cycle, turns, commands) for cycle in cycles]


def _answer(cycle: Cycle, turns: WorkerReading, commands: GpuReading) -> Answer | None:
    assert cycle.read_ns is not None
    assert cycle.write_enter_ns is not None
    assert cycle.write_ns is not None
    irq = turns.irq_of_turn(cycle.read_ns, cycle.write_enter_ns)
    if irq <= 0:
        return None
    kick = commands.woken_before(cycle.write_enter_ns)
    # G worked for somebody else between the kick and our write: when ours was kicked is not known.
    if kick <= irq or commands.busy_in(kick, cycle.write_enter_ns):
        return Answer(False)
    return Answer(True, kick - irq, cycle.write_ns - kick)
