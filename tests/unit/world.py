# SPDX-License-Identifier: Apache-2.0
"""A made-up VMM and audio server, as records: cycles whose delays a test chooses.

Owns one scripted world: data loop D, worker W, gpu worker G, vCPU V. Each cycle is
played in full (timer, signal, choice, read, interrupt, kick, re-arm, completion, read)
with the delays asked for, so a test knows the truth exactly. Times are ns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import records as r

from tracer.model.analysis import Analysis
from tracer.model.verdicts import WHOLE, Keep
from tracer.schema import Batch, Fd, Records, Target, Thread, end_ns

AUDIO, VMM = 10, 20
D, W, G, V, F, V2, HOG = 100, 201, 202, 203, 204, 205, 900
WAKE_ID, DONE_ID, IRQ_ID, KICK_ID = 41, 42, 43, 44
CONDVAR, LOCK = 0x7000, 0x9000
US, MS = 1_000, 1_000_000
PERIOD = 1024 * 1_000_000_000 // 48_000
START = 5_000_000_000
LATE = 40 * MS  # a delay that no cycle survives


@dataclass
class Delays:
    """Extra time (ns) of one cycle, by mechanism."""

    driver_start: int = 0  # D starts late
    lock: int = 0  # W waits for LOCK, held by a fence thread inside a syscall
    lock_preempted: int = 0  # the same, but that thread is runnable off the CPU
    worker_cpu: int = 0  # W computes before its interrupt
    worker_off: int = 0  # W runnable, not running, when woken
    channel_turns: int = 0  # W serves the channel first, each turn a full round trip
    turn: int = 2 * MS  # how long one such round trip takes in the guest
    guest: int = 0  # the guest computes
    gpu_syscall: int = 0  # G is inside another context's ioctl when the kick comes
    gpu_cpu: int = 0  # G computes, in no syscall, between the kick and the re-arm
    write: int = 0  # the completion's write takes long
    host_read: int = 0  # D reads late
    pipe_under_lock: int = 0  # G writes a pipe under LOCK while W waits for it


@dataclass
class World:
    """Plays cycles one after another; ``records`` and ``truth`` grow."""

    period: int = PERIOD
    parts: list[Records] = field(default_factory=list)
    number: int = 0
    busy_until: int = START
    free: dict[int, int] = field(default_factory=dict)
    sequence: int = 10
    unread: int = 0  # wakeups that W has not read yet

    def __post_init__(self) -> None:
        self.free = dict.fromkeys((D, W, G, V, V2, F), START - 2 * MS)

    def add(self, *parts: Records) -> None:
        """Append records."""
        self.parts.extend(parts)

    def sleep(self, tid: int, woken: int, back: int, waker: int, tgid: int, *, irq: bool = False) -> int:
        """A thread is blocked from where it is free to ``woken`` and runs at ``back``; gives when it went."""
        out = self.free[tid] + 1 * US
        self.add(r.offcpu(tid, out, back, woken=woken, waker=waker, waker_tgid=tgid, irq=irq, instead=HOG))
        return out

    def start_of(self, number: int) -> int:
        """Nominal start of a cycle."""
        return START + number * self.period

    def cycle(self, delays: Delays | None = None) -> None:
        """Play one cycle; later cycles must be played after this one has been answered."""
        d = delays or Delays()
        nominal = self.start_of(self.number)
        self.number += 1
        start = nominal + 5 * US + d.driver_start
        signal = start + 20 * US
        self.add(r.timer_read(D, start - 2 * US, start, fd=4))
        self.add(r.write(D, signal - 4 * US, signal, fd=9, eventfd=WAKE_ID))
        self.unread += 1
        t = max(signal, self.busy_until)
        t = self._channel(t, d)
        t = self._choose(t, d)
        t = self._serve(t, d)
        done = self._complete(t, d)
        self._answer(done, d)

    def _choose(self, t: int, d: Delays) -> int:
        woken = t - 1 * US
        back = t + 5 * US + d.worker_off
        if woken > self.free[W] + 2 * US and not d.channel_turns and self.unread < 2:
            self.sleep(W, woken, back, D, AUDIO)
        self.add(r.epoll_wait(W, self.free[W], back + 2 * US, data=1))
        self.free[W] = back + 2 * US
        return back + 2 * US

    def _lock(self, t: int, hold: int, *, preempted: bool, pipe: bool) -> int:
        """W waits for LOCK, which G (pipe) or a fence thread holds until t + hold."""
        holder = G if pipe else F
        release = t + 10 * US + hold
        enter = t + 2 * US
        self.add(r.wait(W, LOCK, enter, release + 6 * US))
        self.add(r.offcpu(W, enter + 1 * US, release + 5 * US, woken=release, waker=holder, waker_tgid=VMM))
        if preempted:
            self.add(r.offcpu(holder, t + 1 * US, release - 3 * US, preempted=True, instead=HOG))
        else:
            begin = t - 500 * US if pipe else t + 1 * US
            call = r.write(holder, begin, release - 3 * US, fd=30, eventfd=-1, ret=1)
            self.add(
                call,
                r.offcpu(
                    holder, begin + 1 * US, release - 4 * US, woken=release - 5 * US, waker=1, waker_tgid=1
                ),
            )
        self.add(r.wake(holder, LOCK, release + 1 * US, dur=2 * US))
        self.free[holder] = release + 1 * US
        return release + 6 * US

    def _serve(self, t: int, d: Delays) -> int:
        if d.lock:
            t = self._lock(t, d.lock, preempted=False, pipe=False)
        if d.lock_preempted:
            t = self._lock(t, d.lock_preempted, preempted=True, pipe=False)
        if d.pipe_under_lock:
            t = self._lock(t, d.pipe_under_lock, preempted=False, pipe=True)
        ahead = 0  # cycles that have begun by now, whose signals _answer will play
        while self.start_of(self.number + ahead) + 25 * US <= t:
            ahead += 1
        self.add(r.read(W, t + 1 * US, t + 2 * US, fd=11, eventfd=WAKE_ID, value=self.unread + ahead))
        self.unread = -ahead
        irq = t + 10 * US + d.worker_cpu
        self.add(r.write(W, irq - 2 * US, irq, fd=12, eventfd=IRQ_ID))
        self.free[W] = irq
        return irq

    def _round(self, irq: int, guest: int, busy: int = 0) -> int:
        """After an interrupt: guest, kick, G re-arms W; gives when G is done."""
        kick = self._guest(irq, guest)
        self.sleep(G, kick, kick + 4 * US, V, VMM)
        self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
        rearm = kick + 12 * US + busy
        self.add(r.wake(G, CONDVAR, rearm, dur=2 * US, count=1))
        self.free[G] = rearm
        self._rearmed(rearm)
        return rearm

    def _guest(self, irq: int, extra: int) -> int:
        """The vCPU is woken by the interrupt, computes, kicks and halts; gives the kick."""
        kick = irq + 100 * US + extra
        self.sleep(V, irq - 1 * US, irq + 3 * US, W, VMM)
        self.free[V] = kick + 2 * US
        return kick

    def _channel(self, t: int, d: Delays) -> int:
        for _ in range(d.channel_turns):
            back = t + 5 * US
            self.add(r.epoll_wait(W, self.free[W], back, data=0))
            self.add(r.recvmsg(W, back + 2 * US, back + 5 * US, eventfds=(7, 8)))
            irq = back + 20 * US
            self.add(r.write(W, irq - 2 * US, irq, fd=12, eventfd=IRQ_ID))
            self.free[W] = irq
            t = self._round(irq, d.turn) + 8 * US
        return t

    def _complete(self, irq: int, d: Delays) -> int:
        if d.gpu_syscall:
            # Another context kicks just before our guest is ready; G is in its ioctl.
            kick = irq + 50 * US
            self._guest(irq, d.guest)
            self.sleep(G, kick, kick + 4 * US, V2, VMM)
            self.add(r.read(G, self.free[G], kick + 5 * US, fd=13, eventfd=KICK_ID))
            end = kick + 10 * US + d.gpu_syscall
            self.add(r.syscall(G, kick + 8 * US, end, number=16))
            self.add(r.offcpu(G, kick + 9 * US, end - 1 * US, woken=end - 3 * US, waker=0, irq=True))
            self.add(r.write(G, end + 2 * US, end + 4 * US, fd=12, eventfd=IRQ_ID))
            self.free[G] = end + 4 * US
            rearm = end + 10 * US
            self.add(r.wake(G, CONDVAR, rearm, dur=2 * US))
            self._rearmed(rearm)
        else:
            rearm = self._round(irq, d.guest, d.gpu_cpu)
        return self._completed(rearm, d.write)

    def _rearmed(self, rearm: int) -> None:
        """W had parked as soon as it could; G has woken it at ``rearm``."""
        self.sequence += 1
        park = self.free[W] + 3 * US
        self.add(r.wait(W, CONDVAR, park, rearm + 5 * US, expected=self.sequence * 3))
        self.free[W] = park
        self.sleep(W, rearm - 1 * US, rearm + 4 * US, G, VMM)
        self.free[W] = rearm + 6 * US

    def _completed(self, rearm: int, write: int = 0) -> int:
        """G writes the completion after a re-arm; gives the write's end."""
        done = rearm + 10 * US + write
        self.add(r.write(G, rearm + 5 * US, done, fd=14, eventfd=DONE_ID))
        self.free[G] = done + 2 * US
        return done

    def _answer(self, done: int, d: Delays) -> None:
        closing = done + 15 * US + d.host_read
        self.add(r.read(D, closing - 2 * US, closing, fd=15, eventfd=DONE_ID))
        self.busy_until = done + 50 * US
        # Cycles that began meanwhile were signalled while this one was pending.
        while self.start_of(self.number) + 25 * US < closing:
            start = self.start_of(self.number) + 5 * US
            self.add(r.timer_read(D, start - 2 * US, start, fd=4))
            self.add(r.write(D, start + 16 * US, start + 20 * US, fd=9, eventfd=WAKE_ID))
            self.number += 1
            self.unread += 1

    def finish(self) -> Records:
        """All records in analysis order, with the last cycle's deadline."""
        start = self.start_of(self.number) + 5 * US
        self.add(r.timer_read(D, start - 2 * US, start, fd=4))
        for tid in (V, V2):  # what a session's sweeps would have said of sleepers
            asleep = r.offcpu(tid, self.free[tid] + 1 * US, start + 400 * MS)
            first = self.free[tid] + 60 * MS
            self.add(*(r.opened(asleep, at) for at in range(first, start + 300 * MS, 100 * MS)))
        return r.trace(self.parts)

    def batch(self, records: Records, watermark: int, *, first: bool) -> Batch:
        """One batch; the first one carries what /proc would say."""
        if not first:
            return Batch(records, watermark)
        return Batch(
            records,
            watermark,
            targets=(Target(AUDIO, "audio", "pipewire"), Target(VMM, "vmm", "minivmm")),
            threads=(
                Thread(D, AUDIO, "data-loop.0", "FIFO", 83),
                Thread(W, VMM, "cross domain", "OTHER"),
                Thread(G, VMM, "gpu worker", "OTHER"),
                Thread(V, VMM, "fc_vcpu 0", "OTHER"),
                Thread(V2, VMM, "fc_vcpu 1", "OTHER"),
                Thread(F, VMM, "virgl fence", "OTHER"),
                Thread(HOG, 900, "hog", "OTHER"),
            ),
            fds=(Fd(AUDIO, 4, "timerfd", interval_ns=self.period),),
        )


def play_on(world: World, *plan: Delays | None, warm: int = 24, tail: int = 12) -> Records:
    """A plan between cycles without delays."""
    for delays in [*([None] * warm), *plan, *([None] * tail)]:
        world.cycle(delays)
    return world.finish()


def feed(world: World, records: Records, keep: Keep = WHOLE) -> Analysis:
    """All records, analysed at once."""
    analysis = Analysis(keep=keep)
    analysis.feed(world.batch(records, int(end_ns(records)[-1]), first=True))
    analysis.finish()
    return analysis
