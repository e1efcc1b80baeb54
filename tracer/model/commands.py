# SPDX-License-Identifier: Apache-2.0
"""G's side of a path: when the kick came, where our command began, what G did for others.

A real guest's kick is no syscall: it shows only as an idle G woken *by* a vCPU. While G
is busy it lies between the interrupt and the last moment at which a vCPU ran, before G
took our command. Commands end with a write, a close, an epoll_ctl or a condvar's wake.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from tracer.model.callkinds import CLOSE, MEMORY_CALLS
from tracer.model.gpureading import GpuReading
from tracer.model.kickruns import KickRuns
from tracer.model.locks import Locks
from tracer.model.phases import GPU, GUEST, HEAD_OF_LINE, Habitual, Path, Phase
from tracer.model.pieces import State
from tracer.model.readers import Readers
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.spans import Call
from tracer.model.streams import Cycle
from tracer.model.window import AFTER_NS, BEFORE_NS, Window
from tracer.model.worker import Worker
from tracer.schema import Kind

_READ, _FD, _FUTEX, _SYSCALL = int(Kind.READ), int(Kind.FD), int(Kind.FUTEX), int(Kind.SYSCALL)


def _computed(window: Window, tid: int, start_ns: int, stop_ns: int) -> int:
    """How long a thread ran in user space within an interval, ns."""
    pieces = window.pieces(tid, start_ns, stop_ns)
    return sum(piece.end - piece.start for piece in pieces if piece.state is State.ON_CPU)


def _worked(window: Window, tid: int, start_ns: int, stop_ns: int) -> int:
    """How much longer a thread computed or was in syscalls than it waited on futexes in an interval, ns.

    One that has to wait for a lock again and again, and spins for it in between, is at no work of its own.
    """
    ns = 0
    for piece in window.pieces(tid, start_ns, stop_ns):
        call = piece.call
        if call is not None and call.kind == _FUTEX:
            ns -= piece.end - piece.start
        elif piece.state is State.ON_CPU or (call is not None and piece.state is not State.RUNNABLE):
            ns += piece.end - piece.start
    return ns


class Commands:
    """Reads G's spans as commands."""

    def __init__(
        self, registry: Registry, locks: Locks, roles: Roles, kicks: KickRuns, readers: Readers
    ) -> None:
        self._registry = registry
        self._locks = locks
        self._roles = roles
        self._kicks = kicks
        self._readers = readers
        self._last: tuple[Window, int, GpuReading] | None = None

    # --- kicks ------------------------------------------------------------------

    def reading(self, window: Window, gpu: int) -> GpuReading:
        """G's spans in a window, read once for all windows that overlap it."""
        if self._last is not None and self._last[0] is window and self._last[1] == gpu:
            return self._last[2]
        found = self._readers.gpu(window.track(gpu), gpu, window.bounds(gpu))
        self._last = (window, gpu, found)
        return found

    def forget(self) -> None:
        """There are more records, or more is known of locks."""
        self._last = None

    def woken_before(self, window: Window, gpu: int, before_ns: int) -> int:
        """When G was last woken out of its idle read, at or before a time; 0 where not seen."""
        return self.reading(window, gpu).woken_before(before_ns)

    def kick_before(self, window: Window, gpu: int, irq_ns: int, done_ns: int, habits: Habitual) -> int:
        """When the guest's kick came whose command ended at ``done_ns``."""
        woken = self.woken_before(window, gpu, done_ns)
        return woken if woken > irq_ns else min(irq_ns + habits.guest_ns, done_ns)

    def handed_over(self, window: Window, writer: int, before_ns: int) -> int:
        """When a forwarding task was woken for its write, 0 if it did not sleep.

        A worker that writes completions has other things to be woken for: only a G's waking counts.
        """
        gs = self._registry.with_role("G", self._registry.tgid(writer))
        task = self._registry.role(writer) == "task"
        offs, (_, (low, high)) = window.track(writer).offs, window.bounds(writer)
        for i in range(bisect_right(offs.begins, before_ns, low, high) - 1, low - 1, -1):
            off = offs[i]
            if off.woken and off.woken <= before_ns and off.slept and not off.in_irq:
                return off.woken if task or off.waker in gs else 0
        return 0

    def _latest_kick(self, cycle: Cycle, window: Window, irq: int, start: int, guest_ns: int) -> int:
        """The latest moment at which our kick can have come, given that G took it by ``start``.

        Only a running vCPU kicks; and once every vCPU sleeps although the interrupt is older
        than this guest usually takes, it has nothing left to do: the kick is behind it.
        """
        tids = self._roles.vcpus(cycle.stream.tgid)
        if not tids or start <= irq:
            return max(irq, start)
        awake: list[tuple[int, int]] = []
        for tid in tids:
            awake += [
                (p.start, p.end)
                for p in window.pieces(tid, irq, start)
                if p.state not in (State.BLOCKED, State.SYSCALL_BLOCKED)
            ]
        last = irq
        for begin, end in sorted(awake):
            if begin > max(last, irq + guest_ns):
                break
            last = max(last, end)
        return min(last, start)

    def _earliest_kick(self, cycle: Cycle, window: Window, low: int, high: int) -> int:
        """The earliest moment in [low, high] at which our kick can have come: when some vCPU ran."""
        tids = self._roles.vcpus(cycle.stream.tgid)
        runs = [
            piece.start
            for tid in tids
            for piece in window.pieces(tid, low, high)
            if piece.state in (State.ON_CPU, State.SYSCALL, State.STOLEN)
        ]
        return min(runs, default=low)

    # --- our command ------------------------------------------------------------

    def own(
        self,
        path: Path,
        cycle: Cycle,
        window: Window,
        gpu: int,
        first: int,
        end: int,
        habits: Habitual,
        kick_at: int | None,
    ) -> None:
        """Guest until the kick, then G: queued behind other commands, then ours until ``end``."""
        irq = path.irq_ns
        woken = self.woken_before(window, gpu, first)
        if path.handed_ns:
            self._given(path, window, gpu, woken, first, end, habits)
            return
        low = max(irq, woken)
        start, others, polled = self._command_start(window, gpu, low, first)
        # A POLL before which G computed so much longer than all of ours usually takes had another command
        # before it: G was woken for that one. (Time without a CPU is no computing.)
        limit = 2 * habits.command_ns
        others = others or (polled and 0 < limit < start - low and limit < _computed(window, gpu, low, start))
        if woken > irq and not others:
            soon = max(irq, woken - habits.guest_ns) + habits.guest_ns if polled else irq + habits.soon_ns
            ahead = self._computed_ahead(window, gpu, irq, start, soon, first, habits)
            if ahead:
                path.computed, others, start = (start, ahead), True, ahead
        # Had it come while G slept, G would have been woken by it.
        path.kick_low_ns, path.kick_high_ns = low, start
        if woken > irq and not others:
            path.kick, path.kick_ns, start = "exact", woken, woken
            path.kicker = self._waker(window, gpu, woken)
        else:
            if not others and woken <= irq and start < first - habits.command_ns:
                start = first - habits.command_ns  # pure CPU before ours: only our usual share is ours
            path.kick_high_ns = self._latest_kick(cycle, window, irq, max(start, irq), habits.guest_ns)
            path.kick = "inferred"
            path.kick_high_ns = max(path.kick_high_ns, low)
            low = path.kick_low_ns = self._earliest_kick(cycle, window, low, path.kick_high_ns)
            usual = irq + habits.guest_ns if low <= irq + habits.guest_ns else low + habits.guest_ns
            guess = kick_at if kick_at is not None else min(usual, path.kick_high_ns)
            path.kick_ns = min(max(guess, low), max(start, low))
        kick = path.kick_ns
        start = max(start, kick)
        path.phases.append(Phase(irq, kick, GUEST, 0))
        path.phases.append(Phase(kick, start, GPU, gpu, HEAD_OF_LINE, "", queued=True))
        path.phases.append(Phase(start, end, GPU, gpu))
        path.command_ns = end - start

    @staticmethod
    def _waker(window: Window, tid: int, woken_ns: int) -> int:
        """Who woke a thread at a time, 0 for an interrupt."""
        offs, (_, (low, high)) = window.track(tid).offs, window.bounds(tid)
        i = bisect_left(offs.ends, woken_ns, low, high)
        return offs[i].waker if i < high and offs[i].woken == woken_ns and not offs[i].in_irq else 0

    def handed_by(self, worker: Worker, gpu: int, read_ns: int, first: int) -> int:
        """When W gave G the command that answers what it read: it woke G, or, G awake, was done with it."""
        for off in reversed(worker.window.offs(gpu)):
            if read_ns < off.woken <= first and off.waker == worker.tid and not off.in_irq:
                return off.woken
        return min(worker.turn_end(read_ns), first)

    def _given(
        self, path: Path, window: Window, gpu: int, woken: int, first: int, end: int, habits: Habitual
    ) -> None:
        """G's part of a command that W gave it itself: behind what it was at, then ours until ``end``."""
        given = path.handed_ns
        start, others, _ = self._command_start(window, gpu, given, first)
        if woken >= given and not others:
            start = given
        elif not others and start < first - habits.command_ns:
            start = first - habits.command_ns  # pure CPU before ours: only our usual share is ours
        path.kick, path.irq_ns = "exact", given
        path.kick_ns = path.kick_low_ns = path.kick_high_ns = given
        if woken < given < start:
            path.computed = (given, start)
        path.phases.append(Phase(given, start, GPU, gpu, HEAD_OF_LINE, "", queued=True))
        path.phases.append(Phase(start, end, GPU, gpu))
        path.command_ns = end - start

    def _command_start(self, window: Window, gpu: int, low: int, first: int) -> tuple[int, bool, bool]:
        """Where our own command began: the end of G's last act before it that is not ours.

        Returns:
            (start in ns, whether G worked for somebody else since ``low``, whether it woke W just before).
        """
        tgid, calls, reading = self._registry.tgid(gpu), window.track(gpu).calls, self.reading(window, gpu)
        begin, polled, bounds = None, False, window.bounds(gpu)[0]
        for i in range(bisect_right(calls.ends, first, *bounds) - 1, bounds[0] - 1, -1):
            call = calls[i]
            if call.end <= low:
                break
            at_queue = reading.takes_kick(call)
            if not at_queue and self._is_own(call, tgid):
                continue
            if begin is None:
                begin, polled = call.end, call.is_wake
            # Waking W is the POLL that goes with our command; a read takes the kick.
            if not call.is_wake and not at_queue:
                return max(begin, low), True, polled
        return max(begin or low, low), False, polled

    def _computed_ahead(
        self, window: Window, gpu: int, irq: int, begin: int, soon: int, first: int, habits: Habitual
    ) -> int:
        """Where our command began after one that G only computed for, since ``begin``; 0 if there is none.

        What woke G was the kick of the POLL that goes with ours, or one that came before ours ever does.
        Until ours comes (the POLL's: usually; else: at the soonest) it computed for longer than all of ours
        takes, and before it slept it read more kicks than it is seen to end commands.
        """
        limit = 2 * habits.command_ns
        if not 0 < limit < soon - begin:
            return 0
        # Our own begins, at the latest, with what a command does besides computing.
        own = min(
            (c.enter for c in window.calls(gpu) if begin <= c.enter < first and not c.is_wake), default=first
        )
        if own < soon or _computed(window, gpu, begin, soon) <= limit:
            return 0
        tgid, stop = self._registry.tgid(gpu), window.stop_ns + AFTER_NS
        kick, asleep, _ = self._kicks.runs(gpu, tgid, window.start_ns - BEFORE_NS, stop).traceless(irq)
        return max(begin, own - habits.command_ns) if kick and kick < first < asleep else 0

    def _is_own(self, call: Call, tgid: int) -> bool:
        """Whether a syscall of G just before a completion's write belongs to that command."""
        if call.kind == _FUTEX:
            return not call.is_wake or self._locks.is_lock(tgid, call.word)
        if call.kind == _FD:
            return call.op not in CLOSE  # a close ends an earlier dup
        # A command ends with what it writes: what it reads before that is its own.
        return call.kind == _READ or (call.kind == _SYSCALL and call.op in MEMORY_CALLS)

    # --- other commands -----------------------------------------------------------

    def foreign(
        self, cycle: Cycle, window: Window, gpu: int, worker: Worker, stop: int, habits: Habitual
    ) -> list[tuple[int, int]]:
        """G's commands that are not ours and end after the nominal start, as (start, end) in ns, sorted.

        Ours are those that wake our W or write our completion. They answer an interrupt of W, so what a G
        that has not slept did before that interrupt was somebody else's, though nothing else shows its end.
        So is what G works before it wakes W, if that is much more than all of ours usually takes, and what it
        did until it was back at its queue without an act of ours.
        """
        limit = -1  # not known yet
        done = cycle.stream.completion.id if cycle.stream.completion is not None else -1
        reading, earliest = self.reading(window, gpu), cycle.nominal_ns - BEFORE_NS
        found: list[tuple[int, int]] = []
        for i in range(bisect_right(reading.act_ends, cycle.nominal_ns), len(reading.acts)):
            begin, enter, end, last_enter, wakes, written = reading.acts[i]
            if last_enter > stop:
                break
            begin = max(begin, earliest)
            if written == done or (wakes and worker.rearmed_in(enter, end)):
                end = worker.irq_before(begin, enter)
                if wakes:
                    limit = 2 * habits.command_ns if limit < 0 else limit
                    since = max(begin, end)
                    if 0 < limit < enter - since and limit < self._worked(window, gpu, reading, since, enter):
                        end = enter
            if end > begin:
                found.append((begin, end))
        first, last = (bisect_right(reading.unended_backs, at) for at in (cycle.nominal_ns, stop))
        for since, back in reading.unended[first:last]:
            insort(found, (max(since, earliest), back))
        return found

    @staticmethod
    def _worked(window: Window, gpu: int, reading: GpuReading, start_ns: int, stop_ns: int) -> int:
        """``_worked``, known to other windows too."""
        if not window.shared:
            return _worked(window, gpu, start_ns, stop_ns)
        worked = reading.worked.get((start_ns, stop_ns))
        if worked is None:
            worked = reading.worked[start_ns, stop_ns] = _worked(window, gpu, start_ns, stop_ns)
        return worked
