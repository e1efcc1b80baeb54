# SPDX-License-Identifier: Apache-2.0
"""G's side of a path: when the kick came, where our command began, what G did for others.

A real guest's kick is no syscall: it shows only as an idle G woken *by* a vCPU. While G
is busy it lies between the interrupt and the last moment at which a vCPU ran, before G
took our command. Commands end with a write, a close, an epoll_ctl or a condvar's wake.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from tracer.model.locks import Locks
from tracer.model.phases import GPU, GUEST, HEAD_OF_LINE, Habitual, Path, Phase
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.spans import Call
from tracer.model.streams import Cycle
from tracer.model.window import BEFORE_NS, State, Window
from tracer.model.worker import Worker
from tracer.schema import Flag, Kind

#: Memory syscalls belong to whatever command runs (mmap, mprotect, munmap, brk, madvise on x86-64).
MEMORY_CALLS: Final = frozenset({9, 10, 11, 12, 28})
#: close on x86-64 and arm64: it ends a command that wrote to a dup.
CLOSE: Final = frozenset({3, 57})
#: What a G idles in: a blocking read of its queue (libkrun), or epoll_wait before the read (crosvm).
IDLE_CALLS: Final = (int(Kind.READ), int(Kind.EPOLL_WAIT))
#: poll, select, pselect6, ppoll on x86-64; pselect6, ppoll on arm64. In G they wait for a device: work.
POLLS: Final = frozenset({7, 23, 270, 271, 72, 73})
_READ, _EVENTFD = int(Kind.READ), int(Flag.EVENTFD)
_FD, _FUTEX, _SYSCALL = int(Kind.FD), int(Kind.FUTEX), int(Kind.SYSCALL)
_WRITE: Final = int(Kind.WRITE)
#: Syscalls that end a command of G.
_ENDS: Final = (_FD, _WRITE, int(Kind.EPOLL_CTL), _FUTEX)


def _computed(window: Window, tid: int, start_ns: int, stop_ns: int) -> int:
    """How long a thread ran in user space within an interval, ns."""
    pieces = window.pieces(tid, start_ns, stop_ns)
    return sum(piece.end - piece.start for piece in pieces if piece.state is State.ON_CPU)


def is_idle(call: Call) -> bool:
    """Whether a G may be idle in a call, as far as that alone tells."""
    return call.kind in IDLE_CALLS and (call.kind == _READ or call.op not in POLLS)


def _woken(sleep: tuple[int, int]) -> int:
    return sleep[1]


def _end(call: Call) -> int:
    return call.end


class Commands:
    """Reads G's spans as commands."""

    def __init__(self, registry: Registry, locks: Locks, roles: Roles) -> None:
        self._registry = registry
        self._locks = locks
        self._roles = roles

    # --- kicks ------------------------------------------------------------------

    def idle(self, window: Window, gpu: int) -> list[tuple[int, int]]:
        """When G slept idle, as (out, woken), in order."""
        reads = self.kicks_of(window, gpu)
        found = []
        i, n = 0, len(reads)
        for off in window.offs(gpu):
            woken = off.woken
            if not woken or not off.slept:
                continue
            if i and reads[i - 1].end >= woken:
                i = bisect_left(reads, woken, key=_end)  # spans that overlap: records are missing
            while i < n and reads[i].end < woken:
                i += 1
            if i < n and reads[i].enter <= off.out:
                found.append((off.out, woken))
        return found

    def woken_before(self, window: Window, gpu: int, before_ns: int) -> int:
        """When G was last woken out of its idle read, at or before a time; 0 where not seen."""
        idle = self.idle_of(window, gpu)
        i = bisect_right(idle, before_ns, key=_woken) - 1
        return idle[i][1] if i >= 0 else 0

    _cache: tuple[Window, int, list[tuple[int, int]]] | None = None
    _kicks: tuple[Window, int, list[Call]] | None = None

    def kicks_of(self, window: Window, gpu: int) -> list[Call]:
        """G's calls for its queue, by end.

        Kicks come by eventfd, so a read of anything else is work. (Without BTF nothing is flagged, and every
        read may be one.)
        """
        if self._kicks is None or self._kicks[0] is not window or self._kicks[1] != gpu:
            reads = [c for c in window.calls(gpu) if is_idle(c)]
            flagged = [c for c in reads if c.kind != _READ or c.flags & _EVENTFD]
            self._kicks = (window, gpu, flagged or reads)
        return self._kicks[2]

    def _takes_kick(self, call: Call, window: Window, gpu: int) -> bool:
        """Whether G is at its queue in a call, not at work."""
        if call.kind != _READ or call.flags & _EVENTFD:
            return is_idle(call)
        kicks = self.kicks_of(window, gpu)
        return not kicks or (not kicks[0].flags & _EVENTFD and kicks[0].kind == _READ)

    def idle_of(self, window: Window, gpu: int) -> list[tuple[int, int]]:
        """``idle``, remembered for the window last asked about."""
        if self._cache is None or self._cache[0] is not window or self._cache[1] != gpu:
            self._cache = (window, gpu, self.idle(window, gpu))
        return self._cache[2]

    def kick_before(self, window: Window, gpu: int, irq_ns: int, done_ns: int, habits: Habitual) -> int:
        """When the guest's kick came whose command ended at ``done_ns``."""
        woken = self.woken_before(window, gpu, done_ns)
        return woken if woken > irq_ns else min(irq_ns + habits.guest_ns, done_ns)

    @staticmethod
    def handed_over(window: Window, writer: int, before_ns: int) -> int:
        """When a forwarding task was woken for its write, 0 if it did not sleep."""
        for off in reversed(window.offs(writer)):
            if off.woken and off.woken <= before_ns and off.slept and not off.in_irq:
                return off.woken
        return 0

    def _latest_kick(self, cycle: Cycle, window: Window, irq: int, start: int, guest_ns: int) -> int:
        """The latest moment at which our kick can have come, given that G took it by ``start``.

        Only a running vCPU kicks; and once every vCPU sleeps although the interrupt is older
        than this guest usually takes, it has nothing left to do: the kick is behind it.
        """
        tids = self._registry.with_role("vcpu", cycle.stream.tgid)
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
        low = max(irq, woken)
        start, others, polled = self._command_start(window, gpu, low, first)
        # A POLL before which G computed so much longer than all of ours usually takes had another command
        # before it: G was woken for that one. (Time without a CPU is no computing.)
        limit = 2 * habits.command_ns
        others = others or (polled and 0 < limit < start - low and limit < _computed(window, gpu, low, start))
        # Had it come while G slept, G would have been woken by it.
        path.kick_low_ns, path.kick_high_ns = low, start
        if woken > irq and not others:
            path.kick, path.kick_ns, start = "exact", woken, woken
            path.kicker = next((o.waker for o in window.offs(gpu) if o.woken == woken and not o.in_irq), 0)
        else:
            if not others and woken <= irq and start < first - habits.command_ns:
                start = first - habits.command_ns  # pure CPU before ours: only our usual share is ours
            path.kick_high_ns = self._latest_kick(cycle, window, irq, max(start, irq), habits.guest_ns)
            guess = kick_at if kick_at is not None else min(irq + habits.guest_ns, path.kick_high_ns)
            path.kick = "inferred"
            path.kick_high_ns = max(path.kick_high_ns, low)
            path.kick_ns = min(max(guess, low), max(start, low))
        kick = path.kick_ns
        start = max(start, kick)
        path.phases.append(Phase(irq, kick, GUEST, 0))
        path.phases.append(Phase(kick, start, GPU, gpu, HEAD_OF_LINE, "", queued=True))
        path.phases.append(Phase(start, end, GPU, gpu))
        path.command_ns = end - start

    def _command_start(self, window: Window, gpu: int, low: int, first: int) -> tuple[int, bool, bool]:
        """Where our own command began: the end of G's last act before it that is not ours.

        Returns:
            (start in ns, whether G worked for somebody else since ``low``, whether it woke W just before).
        """
        tgid, calls = self._registry.tgid(gpu), window.calls(gpu)
        begin, polled = None, False
        for i in range(bisect_right(calls, first, key=_end) - 1, -1, -1):
            call = calls[i]
            if call.end <= low:
                break
            at_queue = self._takes_kick(call, window, gpu)
            if not at_queue and self._is_own(call, tgid):
                continue
            if begin is None:
                begin, polled = call.end, call.is_wake
            # Waking W is the POLL that goes with our command; a read takes the kick.
            if not call.is_wake and not at_queue:
                return max(begin, low), True, polled
        return max(begin or low, low), False, polled

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
        self, cycle: Cycle, window: Window, gpu: int, worker: Worker, stop: int
    ) -> list[tuple[int, int]]:
        """G's commands in the window that are not ours, as (start, end) in ns, sorted.

        Ours are those that wake our W or write our completion.
        """
        tgid = self._registry.tgid(gpu)
        done = cycle.stream.completion.id if cycle.stream.completion is not None else -1
        rearms = sorted(worker.rearmed(wait)[0] for wait in worker.parked)
        commands: list[tuple[int, int]] = []
        begin = cycle.nominal_ns - BEFORE_NS
        idle = self.idle_of(window, gpu)
        gap = 0
        for call in window.calls(gpu):
            if call.enter > stop:
                break
            while gap < len(idle) and idle[gap][1] <= call.enter:
                begin = max(begin, idle[gap][1])
                gap += 1
            kind = call.kind
            if is_idle(call):
                if self._takes_kick(call, window, gpu):
                    # Woken by somebody's kick, G is that command's, even while it waits for a CPU.
                    woken = self.woken_before(window, gpu, call.end)
                    begin = max(begin, woken if woken > call.enter else call.end)
                continue
            if kind not in _ENDS:
                continue
            if kind == _FUTEX and self._is_own(call, tgid):
                continue
            if kind == _FD and call.op not in CLOSE:
                continue
            ours = kind == _WRITE and call.eventfd == done
            if kind == _FUTEX:
                i = bisect_left(rearms, call.enter)
                ours = i < len(rearms) and rearms[i] <= call.end
            if not ours and call.end > begin:
                commands.append((begin, call.end))
            begin = max(begin, call.end)
        return commands
