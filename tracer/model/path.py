# SPDX-License-Identifier: Apache-2.0
"""The critical path of one cycle: who was responsible at each instant, and for whose work.

From the nominal start to the closing event: the driver until e_n is written; W
until it has served e_n (while it waits for its re-arm, the guest until the kick,
then G); after the interrupt the guest; then G; then the driver until it reads.
Owns the finding of phases. G's side (kicks, commands) is commands.py's; what the responsible
thread *did* is leaves.py's.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from dataclasses import replace
from typing import Final

from tracer.model.commands import Commands
from tracer.model.kickruns import KickRuns
from tracer.model.locks import Locks
from tracer.model.phases import (
    CLOCK,
    GPU,
    GUEST,
    HEAD_OF_LINE,
    HOST,
    NOT_REARMED,
    SERIALISED,
    TASK,
    WORKER,
    Habitual,
    Path,
    Phase,
)
from tracer.model.pieces import State
from tracer.model.readers import Readers
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.streams import Cycle
from tracer.model.timeline import Timeline
from tracer.model.window import BEFORE_NS, RECENT_NS, Window, is_eventfd_write
from tracer.model.worker import Worker
from tracer.schema import Kind

_EPOLL_WAIT: Final = int(Kind.EPOLL_WAIT)
#: A driver that reads a completion sooner was woken for it, or was awake.
ASLEEP_NS: Final = 100_000


class PathFinder:
    """Builds paths from the timeline, locks (which words are mutexes) and roles."""

    def __init__(self, registry: Registry, timeline: Timeline, locks: Locks, roles: Roles) -> None:
        self._registry = registry
        self._timeline = timeline
        self._locks = locks
        self._roles = roles
        self.readers = Readers(registry, locks, roles)
        self._commands = Commands(
            registry, locks, roles, KickRuns(registry, timeline, locks, roles), self.readers
        )

    def forget(self) -> None:
        """There are more records, or more is known of locks: what was read may be read otherwise now."""
        self.readers.forget()
        self._commands.forget()

    def _worker(self, window: Window, tid: int, tgid: int) -> Worker:
        return Worker(window, tid, self.readers.worker(window.track(tid), tid, tgid))

    def window(self, cycle: Cycle, before_ns: int = BEFORE_NS) -> Window:
        """The window of a cycle, to be shared by its path and its leaves."""
        old = self._timeline.end_ns - cycle.end_ns > RECENT_NS
        return Window(self._timeline, cycle.nominal_ns, cycle.end_ns, before_ns, alone=old)

    def find(
        self,
        cycle: Cycle,
        window: Window,
        habits: Habitual,
        kick_ns: int | None = None,
        *,
        direct: bool = False,
    ) -> Path:
        """The path of one cycle.

        Args:
            kick_ns: where an inferred kick is to be placed within its bounds, None: the best guess.
            direct: only what was done for this cycle itself is wanted (for baselines): what was done
                for others is one phase a turn, and G's other commands are left out.
        """
        stop = cycle.end_ns
        path = Path([Phase(cycle.nominal_ns, cycle.signal_ns, HOST, cycle.driver.tid)], cycle.deadline_ns)
        tgid = cycle.stream.tgid
        worker = self._worker(window, cycle.reader_tid or cycle.stream.context, tgid)
        path.within = worker.within
        gpu = self._roles.gpu_worker(tgid, cycle.writer_tid)
        self._to_choice(path, cycle, worker, gpu, stop, habits, direct)
        if cycle.read_ns is not None and cycle.read_ns < stop and path.at_ns < stop:
            self._to_completion(path, cycle, worker, gpu, stop, habits, kick_ns)
        _tidy(path, cycle.nominal_ns, stop)
        path.gpu_tid = gpu
        if gpu and not direct:
            path.foreign = self._commands.foreign(cycle, window, gpu, worker, stop, habits)
            if path.computed[1]:
                _insert(path.foreign, path.computed)
        return path

    def with_kick(self, path: Path, cycle: Cycle, window: Window, habits: Habitual, kick_ns: int) -> Path:
        """A path whose kick is inferred, with the kick elsewhere; its first ``fixed`` phases are the same."""
        moved = replace(path, phases=path.phases[: path.fixed])
        self._to_end(moved, cycle, window, path.gpu_tid, habits, kick_ns)
        _tidy(moved, cycle.nominal_ns, cycle.end_ns)
        return moved

    # --- from the signal to W's choice of e_n -----------------------------------

    def _to_choice(
        self,
        path: Path,
        cycle: Cycle,
        worker: Worker,
        gpu: int,
        stop: int,
        habits: Habitual,
        direct: bool,
    ) -> None:
        signal = cycle.signal_ns
        until = min(cycle.read_ns if cycle.read_ns is not None else stop, stop)
        if until <= signal:
            return
        served = cycle.read_ns == until and cycle.read_enter_ns is not None
        last = cycle.read_enter_ns if served and cycle.read_enter_ns is not None else until
        low, high = bisect_right(worker.choice_ends, signal), bisect_right(worker.choice_ends, last)
        exits = worker.choice_ends[low:high]
        turn_began = worker.choice_ends[low - 1] if low else 0
        if worker.chose_after(low, signal):
            via, sub = self._what_kept(worker, cycle, signal, turn_began)
        else:
            via, sub = "", ""
        if not exits:
            if not served:  # another cycle's completion closed this one before W was back
                self._wait_phases(path, worker, signal, until, gpu, via, sub, habits, turn_began)
            return
        if direct and via:
            path.phases.append(Phase(signal, exits[-1], WORKER, worker.tid, via, sub))
            return
        self._wait_phases(path, worker, signal, exits[0], gpu, via, sub, habits, turn_began)
        served_before = set()
        if via == SERIALISED:
            _count(path, worker.served(turn_began, exits[0])[0])
            served_before.add(worker.served(turn_began, exits[0]))
        if direct and len(exits) > 1:
            path.phases.append(Phase(exits[0], exits[-1], WORKER, worker.tid, SERIALISED, "chosen"))
            return
        for begin, end in itertools.pairwise(exits):
            what = worker.served(begin, end)
            _count(path, what[0])
            sub = "chosen" if what in served_before else "round"
            served_before.add(what)
            self._wait_phases(path, worker, begin, end, gpu, SERIALISED, sub, habits, begin)
        if not served:
            self._wait_phases(path, worker, exits[-1], until, gpu, SERIALISED, "chosen", habits, exits[-1])

    def _what_kept(self, worker: Worker, cycle: Cycle, signal: int, turn_began: int) -> tuple[str, str]:
        """Why W was not ready when e_n was written: a turn in progress, or no re-arm yet."""
        parked = worker.parked_in(signal, signal + 1)
        if worker.served(turn_began, signal)[1] == cycle.stream.wake.id:
            return NOT_REARMED, "own"
        if any(worker.parked[i].enter <= signal for i in parked):
            return NOT_REARMED, ""
        # A worker that serves all that was ready, each with its interrupt, needs no re-arm in between.
        if worker.irq_before(turn_began, signal) and not worker.goes_on(signal):
            return NOT_REARMED, ""
        return SERIALISED, "in_progress"

    def _wait_phases(
        self,
        path: Path,
        worker: Worker,
        start: int,
        stop: int,
        gpu: int,
        via: str,
        sub: str,
        habits: Habitual,
        turn_began: int,
    ) -> None:
        """Phases of [start, stop): W, but guest and then G while W waits for its re-arm."""
        if stop <= start:
            return
        cursor = start
        tgid = self._registry.tgid(worker.tid)
        for i in worker.parked_in(start, stop):
            wait = worker.parked[i]
            if wait.end <= cursor:
                continue
            rearm, waker, waker_tgid = worker.rearmed(i)
            rearm = min(max(rearm, cursor), stop)
            irq = worker.irq_before(turn_began, wait.enter)
            mover = waker if waker and waker_tgid == tgid else gpu
            handed = min(max(irq or wait.enter, cursor), stop)
            path.phases.append(Phase(cursor, handed, WORKER, worker.tid, via, sub))
            kick = self._commands.kick_before(worker.window, mover, irq or wait.enter, rearm, habits)
            kick = min(max(kick, handed), max(rearm, handed))
            path.phases.append(Phase(handed, kick, GUEST, 0, via or NOT_REARMED, sub or "guest"))
            path.phases.append(Phase(kick, max(rearm, kick), GPU, mover, via or NOT_REARMED, sub or "G"))
            cursor = max(handed, kick, rearm)
        path.phases.append(Phase(cursor, stop, WORKER, worker.tid, via, sub))

    # --- from W's choice to the driver's read --------------------------------------

    def _to_completion(
        self,
        path: Path,
        cycle: Cycle,
        worker: Worker,
        gpu: int,
        stop: int,
        habits: Habitual,
        kick_at: int | None,
    ) -> None:
        assert cycle.read_ns is not None
        chosen, driver = path.at_ns, cycle.driver.tid
        if cycle.write_ns is None or cycle.write_enter_ns is None:
            if cycle.stream.completion_expected and cycle.closing_ns is not None:
                path.problem = "completed by a thread that is not traced"
            irq = worker.irq_of_turn(cycle.read_ns, stop) or min(cycle.read_ns, stop)
            path.irq_ns = irq
            path.phases += [Phase(chosen, irq, WORKER, worker.tid), Phase(irq, stop, GUEST, 0)]
            return
        if cycle.write_enter_ns <= cycle.read_ns or worker.answers_itself(cycle):
            # The completion of an earlier cycle closed this one before W served it; or W needs neither
            # guest nor G: it wrote the completion in the very turn in which it read the signal.
            path.phases += [
                Phase(chosen, cycle.write_ns, WORKER, worker.tid),
                Phase(cycle.write_ns, stop, HOST, driver),
            ]
            return
        mover, first, _, _ = self._mover(cycle, worker.window, gpu)
        if self._roles.hands_over(cycle.stream.tgid) and mover != worker.tid:
            path.handed_ns = self._commands.handed_by(worker, mover, cycle.read_ns, first)
            path.phases.append(Phase(chosen, path.handed_ns, WORKER, worker.tid))
            self._to_end(path, cycle, worker.window, gpu, habits, kick_at)
            return
        irq = worker.irq_of_turn(cycle.read_ns, first)
        if irq:
            path.phases.append(Phase(chosen, irq, WORKER, worker.tid))
        else:
            irq = self._irq_by_gpu(path, cycle, worker, mover, chosen, first)
        path.irq_ns = irq
        self._to_end(path, cycle, worker.window, gpu, habits, kick_at)

    def _mover(self, cycle: Cycle, window: Window, gpu: int) -> tuple[int, int, int, int]:
        """Who completes: (G, begin and end of its part, when it handed over to a forwarding task or 0)."""
        assert cycle.write_enter_ns is not None
        assert cycle.write_ns is not None
        writer, handed = cycle.writer_tid, 0
        if writer != gpu and gpu and self._registry.role(writer) in ("task", "W"):
            handed = self._commands.handed_over(window, writer, cycle.write_enter_ns)
        if handed:
            return gpu, handed, handed, handed
        return writer, cycle.write_enter_ns, cycle.write_ns, 0

    def _to_end(
        self,
        path: Path,
        cycle: Cycle,
        window: Window,
        gpu: int,
        habits: Habitual,
        kick_at: int | None,
    ) -> None:
        """From the interrupt on: the guest, G, the driver."""
        assert cycle.write_ns is not None
        path.fixed = len(path.phases)
        mover, first, end, handed = self._mover(cycle, window, gpu)
        self._commands.own(path, cycle, window, mover, first, end, habits, kick_at)
        if handed:
            path.phases.append(Phase(handed, cycle.write_ns, TASK, cycle.writer_tid))
        asleep, awake = _by_its_clock(window, cycle.driver.tid, cycle.write_ns, cycle.end_ns)
        if awake:
            path.phases.append(Phase(cycle.write_ns, asleep, HOST, cycle.driver.tid))
            path.phases.append(Phase(asleep, awake, HOST, cycle.driver.tid, "", CLOCK))
        path.phases.append(Phase(max(cycle.write_ns, awake), cycle.end_ns, HOST, cycle.driver.tid))

    def _irq_by_gpu(
        self, path: Path, cycle: Cycle, worker: Worker, gpu: int, chosen: int, before: int
    ) -> int:
        """No interrupt in W's turn: W until it waits, then G until *its* interrupt write."""
        assert cycle.read_ns is not None
        waits = (worker.parked[i].enter for i in worker.parked_in(cycle.read_ns, before))
        parked = [enter for enter in waits if enter >= cycle.read_ns]
        rest = min(parked[0] if parked else cycle.read_ns, before)
        irqs = self._roles.irq_ids.get(cycle.stream.tgid, set())
        writes = [
            c.end
            for c in worker.window.calls(gpu)
            if is_eventfd_write(c) and c.eventfd in irqs and cycle.read_ns < c.end <= before
        ]
        irq = writes[0] if writes else rest
        rest = min(rest, irq)
        path.phases.append(Phase(chosen, rest, WORKER, worker.tid))
        if irq > rest:
            path.phases.append(Phase(rest, irq, GPU, gpu, HEAD_OF_LINE, "irq_by_G"))
        return irq


def _by_its_clock(window: Window, driver: int, write_ns: int, end_ns: int) -> tuple[int, int]:
    """From when till when a driver that ours was ready for slept till a time of its own; 0, 0: it did not."""
    if end_ns - write_ns < ASLEEP_NS:
        return 0, 0
    for piece in window.pieces(driver, write_ns, end_ns):
        call, off = piece.call, piece.off
        if piece.state is State.SYSCALL_BLOCKED and call is not None and off is not None:
            listens = call.kind == _EPOLL_WAIT or call.eventfd >= 0
            return (0, 0) if listens or not off.in_irq else (piece.start, piece.end)
    return 0, 0


def _insert(spans: list[tuple[int, int]], span: tuple[int, int]) -> None:
    """Add a span to sorted ones without overlap; those that it meets become one with it."""
    met = [one for one in spans if one[0] < span[1] and span[0] < one[1]]
    for one in met:
        spans.remove(one)
    insort(spans, (min(span[0], *(a for a, _ in met)), max(span[1], *(b for _, b in met))) if met else span)


def _count(path: Path, name: str) -> None:
    path.went_first[name] = path.went_first.get(name, 0) + 1


def _tidy(path: Path, start: int, stop: int) -> None:
    """Clip phases to [start, stop), drop empty ones (but the queue); gaps go to the phase before."""
    tidy: list[Phase] = []
    cursor, fixed = start, 0
    for i, phase in enumerate(path.phases):
        end = min(phase.end_ns, stop)
        if end <= cursor and not phase.queued:
            continue
        phase.start_ns, phase.end_ns = cursor, max(end, cursor)
        tidy.append(phase)
        fixed += i < path.fixed
        cursor = phase.end_ns
    if cursor < stop or not tidy:
        last = tidy[-1] if tidy else Phase(start, start, GUEST, 0)
        tidy.append(Phase(cursor, stop, last.who, last.tid, last.via, last.sub))
    path.phases, path.fixed = tidy, fixed
