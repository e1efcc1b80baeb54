# SPDX-License-Identifier: Apache-2.0
"""The critical path of one cycle: who was responsible at each instant, and for whose work.

From the nominal start to the closing event: the driver until e_n is written; W
until it has served e_n (while it waits for its re-arm, the guest until the kick,
then G); after the interrupt the guest; then G; then the driver until it reads.
Owns phases and kicks. What the responsible thread *did* is leaves.py's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.streams import Cycle
from tracer.model.timeline import State, Timeline
from tracer.schema import (
    FUTEX,
    FUTEX_CMD_MASK,
    FUTEX_WAIT,
    FUTEX_WAIT_BITSET,
    FUTEX_WAKE,
    FUTEX_WAKE_BITSET,
    MSG,
    OFFCPU,
    RW,
    Flag,
    Kind,
    Records,
    empty_records,
    end_ns,
    view,
)

#: Guest latency and own-command time assumed until the stream has shown its own.
DEFAULT_GUEST_NS: Final = 100_000
DEFAULT_COMMAND_NS: Final = 20_000
#: Memory syscalls belong to whatever command runs (mmap, mprotect, munmap, brk, madvise on x86-64).
MEMORY_CALLS: Final = frozenset({9, 10, 11, 12, 28})

HOST, WORKER, GUEST, GPU, TASK = "host", "worker", "guest", "gpu", "task"
SERIALISED, HEAD_OF_LINE, NOT_REARMED = "serialised", "head_of_line", "not_rearmed"


@dataclass(slots=True)
class Phase:
    """[start_ns, end_ns) with one responsible thread.

    Attributes:
        who: HOST, WORKER, GUEST, GPU or TASK.
        tid: the responsible thread, 0 where unseen.
        via: SERIALISED, HEAD_OF_LINE, NOT_REARMED or "".
        sub: sub-label of via (in_progress, chosen, guest, G, irq_by_G ...).
        queued: G was busy with foreign commands when the kick came: replay decides its length.
    """

    start_ns: int
    end_ns: int
    who: str
    tid: int
    via: str = ""
    sub: str = ""
    queued: bool = False


@dataclass(slots=True)
class Path:
    """The phases of one cycle, in order, without gaps, from nominal start to closing event."""

    phases: list[Phase]
    deadline_ns: int
    kick: str = "none"
    kick_ns: int = 0
    kick_low_ns: int = 0
    kick_high_ns: int = 0
    irq_ns: int = 0
    command_ns: int = 0
    foreign: list[tuple[int, int]] = field(default_factory=list)
    went_first: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def start_ns(self) -> int:
        """Start of the window."""
        return self.phases[0].start_ns

    @property
    def end_ns(self) -> int:
        """End of the window."""
        return self.phases[-1].end_ns


@dataclass(frozen=True, slots=True)
class Habits:
    """What a stream usually takes (medians over on-time cycles), ns."""

    guest_ns: int = DEFAULT_GUEST_NS
    command_ns: int = DEFAULT_COMMAND_NS


class PathFinder:
    """Builds paths from the timeline, locks (which words are mutexes) and roles."""

    def __init__(self, registry: Registry, timeline: Timeline, locks: Locks, roles: Roles) -> None:
        self._registry = registry
        self._timeline = timeline
        self._locks = locks
        self._roles = roles

    def find(self, cycle: Cycle, habits: Habits, kick_ns: int | None = None) -> Path:
        """The path of one cycle; ``kick_ns`` places an inferred kick elsewhere within its bounds."""
        stop = cycle.end_ns
        phases = [Phase(cycle.nominal_ns, cycle.signal_ns, HOST, cycle.stream.driver.tid)]
        path = Path(phases, cycle.deadline_ns)
        worker = cycle.reader_tid or cycle.stream.context
        gpu = self._roles.gpu_worker(cycle.stream.tgid)
        self._to_choice(path, cycle, worker, gpu, stop, habits)
        if cycle.read_ns is not None and cycle.read_ns < stop and self._at(path) < stop:
            self._to_completion(path, cycle, worker, gpu, stop, habits, kick_ns)
        path.phases = _tidy(path.phases, cycle.nominal_ns, stop)
        if gpu:
            path.foreign = self._foreign(cycle, gpu, worker, stop)
        return path

    @staticmethod
    def _at(path: Path) -> int:
        return path.phases[-1].end_ns

    # --- from the signal to W's choice of e_n -----------------------------------

    def _to_choice(self, path: Path, cycle: Cycle, worker: int, gpu: int, stop: int, habits: Habits) -> None:
        signal = cycle.signal_ns
        until = min(cycle.read_ns if cycle.read_ns is not None else stop, stop)
        if until <= signal:
            return
        spans = self._timeline.spans(worker, signal - 50_000_000, until)
        polls = spans[(spans["kind"] == Kind.EPOLL_WAIT)]
        ends = end_ns(polls)
        read_enter = cycle.read_enter_ns if cycle.read_enter_ns is not None and cycle.read_ns == until else until
        exits = [int(e) for e in ends if signal < e <= read_enter]
        if not exits:
            if int(np.count_nonzero(ends <= signal)) == 0 or cycle.read_ns is None:
                turn = int(ends[ends <= signal].max()) if (ends <= signal).any() else 0
                self._wait_phases(path, spans, signal, until, worker, gpu, "", "", habits, turn)
            return
        choice = exits[-1]
        before = ends[ends <= signal]
        turn_began = int(before.max()) if len(before) else 0
        first = exits[0]
        row = polls[int(np.searchsorted(ends, first))]
        if int(row["enter_ns"]) <= signal:
            via, sub = "", ""
        else:
            via, sub = self._what_kept(spans, cycle, signal, turn_began)
        self._wait_phases(path, spans, signal, first, worker, gpu, via, sub, habits, turn_began)
        if via == SERIALISED:
            self._count_turn(path, spans, turn_began, first)
        for low, high in zip(exits[:-1], exits[1:], strict=True):
            self._count_turn(path, spans, low, high)
            self._wait_phases(path, spans, low, high, worker, gpu, SERIALISED, "chosen", habits, low)
        if choice < self._at(path):
            path.problem = "choice before signal"
        if cycle.read_ns is None or cycle.read_ns > stop:
            self._wait_phases(path, spans, choice, until, worker, gpu, SERIALISED, "chosen", habits, choice)

    def _what_kept(self, spans: Records, cycle: Cycle, signal: int, turn_began: int) -> tuple[str, str]:
        """Why W was not ready when e_n was written: a turn in progress, or no re-arm yet."""
        irq = self._last_irq(spans, turn_began, signal)
        if irq or self._parked_at(spans, signal):
            return NOT_REARMED, ""
        served = view(spans[(spans["kind"] == Kind.READ)], RW)
        served = served[(served["enter_ns"] >= turn_began) & (served["enter_ns"] <= signal)]
        if len(served) and int(served["eventfd_id"][0]) == cycle.stream.wake.id:
            return NOT_REARMED, "own"
        return SERIALISED, "in_progress"

    def _parked(self, spans: Records) -> Records:
        """Waits that are no mutex waits: the condvar on which W waits for its re-arm."""
        futex = view(spans[spans["kind"] == Kind.FUTEX], FUTEX)
        command = futex["op"] & FUTEX_CMD_MASK
        waits = futex[((command == FUTEX_WAIT) | (command == FUTEX_WAIT_BITSET)) & (futex["dur_ns"] > 0)]
        if not len(waits):
            return empty_records()
        tgid = self._registry.tgid(int(waits["tid"][0]))
        mutex = {w: self._locks.is_mutex(tgid, w) for w in set(waits["word"].tolist())}
        keep = np.array([not (mutex[w] and e == 2) for w, e in zip(waits["word"].tolist(), waits["expected"].tolist(), strict=True)])
        parked: Records = waits[keep]
        return parked

    def _parked_at(self, spans: Records, at_ns: int) -> bool:
        parked = self._parked(spans)
        return bool(((parked["enter_ns"] <= at_ns) & (end_ns(parked) > at_ns)).any())

    def _last_irq(self, spans: Records, after_ns: int, before_ns: int) -> int:
        """End of W's last interrupt write in (after, before], 0 where none."""
        rows = spans[(spans["kind"] == Kind.WRITE) & ((spans["flags"] & Flag.EVENTFD) != 0)]
        ends = end_ns(rows)
        inside = ends[(rows["enter_ns"] >= after_ns) & (ends <= before_ns)]
        return int(inside.max()) if len(inside) else 0

    def _count_turn(self, path: Path, spans: Records, low: int, high: int) -> None:
        """Note what W served in a turn: the channel, another eventfd, or jobs."""
        rows = spans[(spans["enter_ns"] >= low) & (spans["enter_ns"] < high)]
        name = "jobs"
        for row in rows:
            kind = int(row["kind"])
            if kind == Kind.RECVMSG:
                name = "channel"
                break
            if kind == Kind.READ:
                name = "other streams" if row["flags"] & Flag.EVENTFD else "pipes"
                break
        path.went_first[name] = path.went_first.get(name, 0) + 1

    def _wait_phases(
        self,
        path: Path,
        spans: Records,
        start: int,
        stop: int,
        worker: int,
        gpu: int,
        via: str,
        sub: str,
        habits: Habits,
        turn_began: int,
    ) -> None:
        """Phases of [start, stop): W, but guest and then G while W waits for its re-arm."""
        if stop <= start:
            return
        cursor = start
        for wait in self._parked(spans):
            enter = int(wait["enter_ns"])
            leave = enter + int(wait["dur_ns"])
            if leave <= cursor or enter >= stop:
                continue
            rearm, waker = self._woken(spans, wait)
            rearm = min(max(rearm, cursor), stop)
            irq = self._last_irq(spans, turn_began, enter)
            mover = waker if waker and self._registry.tgid(waker) == self._registry.tgid(worker) else gpu
            handed = max(irq, cursor) if irq else max(enter, cursor)
            path_via = via or NOT_REARMED
            if handed > cursor:
                path.phases.append(Phase(cursor, min(handed, stop), WORKER, worker, via, sub))
                cursor = min(handed, stop)
            kick = self._kick_before(mover, irq or enter, rearm, habits)
            kick = min(max(kick, cursor), rearm)
            path.phases.append(Phase(cursor, kick, GUEST, 0, path_via, sub or "guest"))
            path.phases.append(Phase(kick, rearm, GPU, mover, path_via, sub or "G"))
            cursor = max(cursor, rearm)
        path.phases.append(Phase(cursor, stop, WORKER, worker, via, sub))

    def _woken(self, spans: Records, wait: np.void) -> tuple[int, int]:
        """When and by whom a parked thread was woken; the end of its wait where no waking was seen."""
        enter, leave = int(wait["enter_ns"]), int(wait["enter_ns"]) + int(wait["dur_ns"])
        off = view(spans[spans["kind"] == Kind.OFFCPU], OFFCPU)
        inside = off[(off["enter_ns"] >= enter) & (end_ns(off) <= leave + 1)]
        for row in inside[::-1]:
            if int(row["woken_ns"]):
                tid = 0 if row["waker_in_irq"] else int(row["waker_tid"])
                return int(row["woken_ns"]), tid
        return leave, 0

    def _kick_before(self, gpu: int, irq: int, done: int, habits: Habits) -> int:
        """When the guest's kick came whose command ended at ``done``."""
        woken = self._woken_from_idle(gpu, done)
        if woken > irq:
            return woken
        return min(irq + habits.guest_ns, done)

    def _woken_from_idle(self, gpu: int, before: int) -> int:
        """When G was last woken out of its blocking read, at or before a time; 0 where not kept."""
        spans = self._timeline.spans(gpu, before - 30_000_000, before)
        reads = spans[spans["kind"] == Kind.READ]
        off = view(spans[spans["kind"] == Kind.OFFCPU], OFFCPU)
        for row in off[::-1]:
            woken, out = int(row["woken_ns"]), int(row["enter_ns"])
            if not woken or woken > before or row["preempted"]:
                continue
            if ((reads["enter_ns"] <= out) & (end_ns(reads) >= woken)).any():
                return woken
        return 0

    # --- from W's choice to the driver's read --------------------------------------

    def _to_completion(
        self,
        path: Path,
        cycle: Cycle,
        worker: int,
        gpu: int,
        stop: int,
        habits: Habits,
        kick_at: int | None,
    ) -> None:
        assert cycle.read_ns is not None
        chosen = self._at(path)
        if cycle.write_ns is None or cycle.write_enter_ns is None:
            if cycle.stream.completion_expected and cycle.closing_ns is not None and cycle.closing_ns > cycle.read_ns:
                path.problem = "completed by a thread that is not traced"
            late_irq = self._irq_after(worker, cycle.read_ns, stop)
            irq = late_irq or min(cycle.read_ns, stop)
            path.phases.append(Phase(chosen, irq, WORKER, worker))
            path.phases.append(Phase(irq, stop, GUEST, 0))
            path.irq_ns = irq
            return
        if cycle.write_enter_ns <= cycle.read_ns:
            # The completion of an earlier cycle closed this one before W served it.
            path.phases.append(Phase(chosen, cycle.write_ns, WORKER, worker))
            path.phases.append(Phase(cycle.write_ns, stop, HOST, cycle.stream.driver.tid))
            return
        done_enter, done = cycle.write_enter_ns, cycle.write_ns
        writer = cycle.writer_tid
        handed_at = 0
        if writer != gpu and self._registry.role(writer) == "task":
            handed_at = self._handed_over(writer, done_enter)
        g_end = handed_at or done
        g_first = handed_at or done_enter
        mover = gpu if (handed_at and gpu) else writer
        irq = self._irq_after(worker, cycle.read_ns, g_first)
        if irq:
            path.phases.append(Phase(chosen, irq, WORKER, worker))
        else:
            irq = self._irq_by_gpu(path, cycle, worker, mover, chosen, g_first)
        path.irq_ns = irq
        self._own_command(path, mover, irq, g_first, g_end, habits, kick_at, cycle)
        if handed_at:
            path.phases.append(Phase(handed_at, done, TASK, writer))
        path.phases.append(Phase(done, stop, HOST, cycle.stream.driver.tid))

    def _irq_after(self, worker: int, read_ns: int, before: int) -> int:
        """End of W's interrupt write in the turn that read e_n, 0 if the turn wrote none."""
        spans = self._timeline.spans(worker, read_ns, before)
        polls = spans[(spans["kind"] == Kind.EPOLL_WAIT) & (spans["enter_ns"] >= read_ns)]
        turn_end = int(polls["enter_ns"].min()) if len(polls) else before
        rows = spans[(spans["kind"] == Kind.WRITE) & ((spans["flags"] & Flag.EVENTFD) != 0)]
        rows = rows[(rows["enter_ns"] >= read_ns) & (rows["enter_ns"] <= turn_end)]
        ends = end_ns(rows)
        ends = ends[ends <= before]
        return int(ends.min()) if len(ends) else 0

    def _irq_by_gpu(self, path: Path, cycle: Cycle, worker: int, gpu: int, chosen: int, before: int) -> int:
        """No interrupt in W's turn: W until it waits, then G until *its* interrupt write."""
        assert cycle.read_ns is not None
        spans = self._timeline.spans(worker, cycle.read_ns, before)
        parked = self._parked(spans)
        parked = parked[parked["enter_ns"] >= cycle.read_ns]
        rest = int(parked["enter_ns"].min()) if len(parked) else cycle.read_ns
        rest = min(rest, before)
        rows = view(self._timeline.spans(gpu, cycle.read_ns, before), RW)
        irqs = self._roles.irq_ids.get(cycle.stream.tgid, set())
        rows = rows[(rows["kind"] == Kind.WRITE) & np.isin(rows["eventfd_id"], list(irqs))]
        ends = end_ns(rows)
        ends = ends[(ends > cycle.read_ns) & (ends <= before)]
        irq = int(ends.min()) if len(ends) else rest
        rest = min(rest, irq)
        path.phases.append(Phase(chosen, rest, WORKER, worker))
        if irq > rest:
            path.phases.append(Phase(rest, irq, GPU, gpu, HEAD_OF_LINE, "irq_by_G"))
        return irq

    def _handed_over(self, writer: int, before: int) -> int:
        """When a forwarding task was woken for its write, 0 if it did not sleep."""
        spans = self._timeline.spans(writer, before - 30_000_000, before)
        off = view(spans[spans["kind"] == Kind.OFFCPU], OFFCPU)
        for row in off[::-1]:
            if int(row["woken_ns"]) and not row["preempted"] and not row["waker_in_irq"]:
                return int(row["woken_ns"])
        return 0

    def _own_command(
        self,
        path: Path,
        gpu: int,
        irq: int,
        first: int,
        end: int,
        habits: Habits,
        kick_at: int | None,
        cycle: Cycle,
    ) -> None:
        """Guest until the kick, then G: queued behind other commands, then ours until ``end``."""
        woken = self._woken_from_idle(gpu, first)
        spans = self._timeline.spans(gpu, max(irq, woken) - 1, first)
        start, others = self._command_start(spans, gpu, max(irq, woken), first, cycle)
        path.kick_low_ns, path.kick_high_ns = irq, start
        if woken > irq and not others:
            path.kick, path.kick_ns, start = "exact", woken, woken
        else:
            if start < first - habits.command_ns and not others and woken <= irq:
                start = first - habits.command_ns  # pure CPU before ours: only our usual share is ours
                path.kick_high_ns = start
            path.kick_high_ns = self._last_running_vcpu(cycle, irq, max(path.kick_high_ns, irq))
            guess = kick_at if kick_at is not None else min(irq + habits.guest_ns, path.kick_high_ns)
            path.kick = "inferred"
            path.kick_ns = min(max(guess, irq), max(start, irq))
        kick = path.kick_ns
        start = max(start, kick)
        path.phases.append(Phase(irq, kick, GUEST, 0))
        path.phases.append(Phase(kick, start, GPU, gpu, HEAD_OF_LINE, "", queued=True))
        path.phases.append(Phase(start, end, GPU, gpu))
        path.command_ns = end - start

    def _last_running_vcpu(self, cycle: Cycle, low: int, high: int) -> int:
        """The last instant in [low, high] at which some vCPU was not asleep: only a running vCPU kicks."""
        last = low
        tids = self._registry.with_role("vcpu", cycle.stream.tgid)
        for tid in tids:
            for piece in reversed(self._timeline.pieces(tid, low, high)):
                if piece.state not in (State.BLOCKED, State.SYSCALL_BLOCKED):
                    last = max(last, piece.end_ns)
                    break
        return last if tids else high

    def _command_start(self, spans: Records, gpu: int, low: int, first: int, cycle: Cycle) -> tuple[int, bool]:
        """Where our own command began: the end of the last foreign act of G before it.

        Returns:
            (start in ns, whether G did foreign work since ``low``).
        """
        calls = spans[spans["kind"] < Kind.OFFCPU]
        tgid = self._registry.tgid(gpu)
        for row in calls[::-1]:
            end = int(row["enter_ns"]) + int(row["dur_ns"])
            if end > first or end <= low:
                continue
            if not self._is_own(row, tgid):
                kind = int(row["kind"])
                woke = kind == Kind.FUTEX
                return max(end, low), not (woke and self._only_rearm(calls, row, low, tgid)) and kind != Kind.READ
        return low, False

    def _is_own(self, row: np.void, tgid: int) -> bool:
        """Whether a syscall of G just before a completion's write belongs to that command."""
        kind = int(row["kind"])
        if kind == Kind.FUTEX:
            futex = view(np.array([row]), FUTEX)[0]
            command = int(futex["op"]) & FUTEX_CMD_MASK
            if command in (FUTEX_WAKE, FUTEX_WAKE_BITSET):
                return self._locks.is_mutex(tgid, int(futex["word"]))
            return True
        if kind == Kind.FD:
            return int(row["op"]) not in (3, 57)  # a close ends an earlier dup
        return kind == Kind.SYSCALL and int(row["op"]) in MEMORY_CALLS

    def _only_rearm(self, calls: Records, last: np.void, low: int, tgid: int) -> bool:
        """Whether everything foreign since ``low`` was waking W (the POLL that went with our command)."""
        for row in calls:
            end = int(row["enter_ns"]) + int(row["dur_ns"])
            if end <= low or end > int(last["enter_ns"]) + int(last["dur_ns"]):
                continue
            if not self._is_own(row, tgid) and int(row["kind"]) not in (Kind.FUTEX, Kind.READ):
                return False
        return True

    def _foreign(self, cycle: Cycle, gpu: int, worker: int, stop: int) -> list[tuple[int, int]]:
        """G's commands in the window that are not ours, as (start, end) in ns.

        A command ends with a write, a close, an epoll_ctl or a condvar's wake. Ours are
        those that wake our W or write our completion.
        """
        spans = self._timeline.spans(gpu, cycle.signal_ns - 20_000_000, stop)
        tgid = self._registry.tgid(gpu)
        off = view(spans[spans["kind"] == Kind.OFFCPU], OFFCPU)
        reads = spans[spans["kind"] == Kind.READ]
        idle: list[tuple[int, int]] = []
        for row in off:
            out, woken = int(row["enter_ns"]), int(row["woken_ns"])
            if woken and not row["preempted"] and ((reads["enter_ns"] <= out) & (end_ns(reads) >= woken)).any():
                idle.append((out, woken))
        done = cycle.stream.completion.id if cycle.stream.completion is not None else -1
        rearms = self._rearm_times(worker, cycle.signal_ns - 20_000_000, stop)
        commands: list[tuple[int, int]] = []
        begin = cycle.signal_ns - 20_000_000
        gaps = iter([*idle, (stop + 1, stop + 1)])
        gap = next(gaps)
        for row in spans[spans["kind"] < Kind.OFFCPU]:
            enter, end = int(row["enter_ns"]), int(row["enter_ns"]) + int(row["dur_ns"])
            while gap[1] <= enter:
                begin = max(begin, gap[1])
                gap = next(gaps)
            kind = int(row["kind"])
            if kind == Kind.READ:
                begin = max(begin, min(end, stop))
                continue
            if kind in (Kind.FD, Kind.WRITE, Kind.EPOLL_CTL) or (kind == Kind.FUTEX and not self._is_own(row, tgid)):
                ours = False
                if kind == Kind.WRITE:
                    ours = int(view(np.array([row]), RW)[0]["eventfd_id"]) == done
                elif kind == Kind.FUTEX:
                    ours = any(enter <= t <= end for t in rearms)
                elif kind == Kind.FD and int(row["op"]) not in (3, 57):
                    continue
                if not ours and end > begin:
                    commands.append((begin, end))
                begin = end
        return commands

    def _rearm_times(self, worker: int, low: int, high: int) -> list[int]:
        spans = self._timeline.spans(worker, low, high)
        return [self._woken(spans, wait)[0] for wait in self._parked(spans)]

    def received_fds(self, worker: int, low: int, high: int) -> int:
        """Fds that W received in an interval."""
        rows = view(self._timeline.spans(worker, low, high), MSG)
        return int(rows["nfds"][rows["kind"] == Kind.RECVMSG].sum())


def _tidy(phases: list[Phase], start: int, stop: int) -> list[Phase]:
    """Phases clipped to [start, stop) without empty ones; gaps go to the phase before them."""
    tidy: list[Phase] = []
    cursor = start
    for phase in phases:
        end = min(phase.end_ns, stop)
        if end <= cursor and not phase.queued:
            continue
        phase.start_ns, phase.end_ns = cursor, max(end, cursor)
        tidy.append(phase)
        cursor = phase.end_ns
    if cursor < stop or not tidy:
        last = tidy[-1] if tidy else Phase(start, start, GUEST, 0)
        tidy.append(Phase(cursor, stop, last.who, last.tid, last.via, last.sub))
    return tidy
