# SPDX-License-Identifier: Apache-2.0
"""Streams, drivers, cycles: which cycles were missed, by how much, on which leg.

The definitions are PipeWire's cycle as seen from outside: the driver starts
cycle k at S_k (its timerfd read, or its first follower write), signals each follower's eventfd, and cycle
k's deadline is S_{k+1}. A cycle is missed if no completion written after its
signal had been *read by the driver* by then. Owns which streams there are and their
pending cycles; each step costs what happened in it, not what there ever was.
Attributes nothing.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model import completions, matching
from tracer.model.cycles import GRACE_NS, MIN_COMPLETIONS, SETTLE_NS, Cycle, Stream
from tracer.model.deciding import decided
from tracer.model.drivers import Driver, Loops
from tracer.model.eventfds import Eventfd, Series
from tracer.model.filing import Filing
from tracer.model.inferred import Inferred
from tracer.model.ownloops import OwnLoops
from tracer.model.registry import Registry
from tracer.model.resting import Resting
from tracer.model.step import Step
from tracer.model.untimed import Untimed
from tracer.schema import Flag, Kind, Records

__all__ = [
    "GRACE_NS",
    "MIN_COMPLETIONS",
    "SETTLE_NS",
    "Cycle",
    "Driver",
    "Eventfd",
    "Series",
    "Stream",
    "Streams",
]

#: Event times are kept this long.
KEEP_NS: Final = 8_000_000_000
#: Events are forgotten this often.
TRIM_EVERY_NS: Final = 1_000_000_000
#: Streams of an audio server that was just attached to show within this time; none is inferred till then.
APPEAR_NS: Final = 1_000_000_000


_EVENTFD: Final = int(Flag.EVENTFD)


def _among(tgids: NDArray[np.uint32], few: list[int]) -> NDArray[np.bool_]:
    """Which of processes (n,) are among a handful."""
    found = np.zeros(len(tgids), dtype=bool)
    for tgid in few:
        found |= tgids == tgid
    return found


class Streams:
    """All eventfds, drivers and streams; ``step`` takes records, ``decide`` gives back cycles.

    Attributes:
        streams: those signalled of late, or with a cycle that is not decided yet.
        rest: those that ended or pause, and counts of those that are not kept.
    """

    def __init__(self, registry: Registry, period: tuple[int, int] | None = None) -> None:
        self._registry = registry
        self.filing = Filing()
        self.loops = Loops(registry)
        self._untimed = Untimed(self.loops.of_thread, self.loops.new)
        self._own_loops = OwnLoops(registry)
        self.streams: list[Stream] = []
        self.rest = Resting()
        self.inferred = Inferred(registry, self._new_stream, period)
        self._by_eventfd: dict[int, Stream] = {}
        self._objects: dict[int, str] = {}
        self._serial = 0
        self._trimmed_ns = 0
        self._audio_since_ns: dict[int, int] = {}  # by audio server: the first step that knew it

    @property
    def any_seen(self) -> bool:
        """Whether there ever was a stream."""
        return self._serial > 0

    def all_kept(self) -> list[Stream]:
        """Streams that are not counts only, in the order in which they were found."""
        return sorted([*self.streams, *self.rest.streams], key=lambda s: s.serial)

    def object_of(self, eventfd_id: int) -> str:
        """``stream`` or ``completion`` if an eventfd is one's, else "" (of streams that are not at rest)."""
        return self._objects.get(eventfd_id, "")

    def all_drivers(self) -> list[Driver]:
        """Drivers of streams that are kept, in the order in which the streams were found."""
        return list({id(s.driver): s.driver for s in self.all_kept()}.values())

    # --- taking records over -------------------------------------------------

    def step(self, step: Step) -> None:
        """Take over one step's records."""
        audio = [t.tgid for t in self._registry.targets.values() if t.role == "audio"]
        guests = self._registry.guests
        vmms = [t.tgid for t in self._registry.targets.values() if t.role == "vmm" and t.tgid not in guests]
        self._untimed.sleeps(step)
        births = step.of(Kind.FD)
        rows = step.of(Kind.READ, Kind.WRITE)
        is_eventfd = ((rows["flags"] & _EVENTFD) != 0) & (rows["ret"] == 8) & (rows["eventfd_id"] >= 0)
        rw = rows.take(np.flatnonzero(is_eventfd))
        tgids = self._registry.tgids_of(rw["tid"])
        served = {s.tgid for s in self.streams} | {f.stream.tgid for f in self.inferred.followers.values()}
        self._own_loops.step(step, rw, tgids, [tgid for tgid in vmms if tgid not in served])
        own_loops = self._own_loops.tids
        if audio or own_loops:
            self.loops.step(step.of(Kind.TIMER), rows, own_loops)
        by_audio = _among(tgids, audio)
        if own_loops:
            by_audio |= np.isin(rw["tid"], list(own_loops))
        if len(rw) and (audio or by_audio.any()):
            mine = by_audio | _among(tgids, vmms)
            early = self.filing.before_births(births, rw) & mine
            self._file(rw, tgids, by_audio, np.flatnonzero(early))
            self._births(births)
            self._find_streams(self._file(rw, tgids, by_audio, np.flatnonzero(mine & ~early)))
        else:
            self._births(births)
        exact = {s.tgid for s in self.streams if s.exact}
        blind = [tgid for tgid in vmms if tgid not in exact]
        if blind or self.inferred.followers:
            for stream in self.inferred.step(
                step, rw, tgids, blind, look=not self._just_attached(step, audio)
            ):
                self._revive(stream)
        for stream in self.streams:
            if stream.exact and stream.alive:
                self._take_signals(stream)
        matching.look_again(self.streams, self.filing, step.end_ns)
        self.loops.update_periods()
        self._objects = {s.completion.id: "completion" for s in self.streams if s.completion is not None}
        self._objects |= {s.wake.id: "stream" for s in self.streams if s.alive}

    def _file(
        self, rw: Records, tgids: NDArray[np.uint32], by_audio: NDArray[np.bool_], at: NDArray[np.intp]
    ) -> set[int]:
        """File some of a step's events; the eventfds that had any."""
        touched = self.filing.step(rw.take(at), tgids[at], by_audio[at])
        self._untimed.step(self.filing.eventfds[number] for number in sorted(touched))
        return touched

    def _just_attached(self, step: Step, audio: list[int]) -> bool:
        """Whether an audio server has been traced for so short a time that its streams may still show."""
        for tgid in audio:
            self._audio_since_ns.setdefault(tgid, step.end_ns)
        return any(step.end_ns < self._audio_since_ns[tgid] + APPEAR_NS for tgid in audio)

    def _births(self, rows: Records) -> None:
        for number in self.filing.births(rows):
            stream = self._by_eventfd.pop(number, None)
            if stream is not None:
                self._take_signals(stream)
                stream.alive = False
            self._untimed.forget(number)

    # --- streams ---------------------------------------------------------------

    def _new_stream(self, name: str, tgid: int, wake: Eventfd, driver: Driver, source: str) -> Stream:
        self._serial += 1
        stream = Stream(self._serial, name, tgid, wake, driver, wake.read.main_tid(), source)
        self.streams.append(stream)
        return stream

    def _revive(self, stream: Stream) -> None:
        """A stream that may be at rest was signalled."""
        if stream.resting:
            self.rest.wake(stream)
            self.streams.append(stream)

    def _find_streams(self, touched: set[int]) -> None:
        """A stream is an eventfd that a data loop writes in cycle after cycle and a VMM's thread reads.

        One that is signalled now and then is something else, however soon after a cycle's start.
        """
        for number in sorted(touched):
            eventfd = self.filing.eventfds[number]
            if not eventfd.signals.end or not eventfd.read.end:
                continue
            known = self._by_eventfd.get(number)
            if known is not None:
                self._revive(known)
                continue
            driver = self.loops.driver_of(eventfd.signals.tid[-1], eventfd.signals.enter[-1])
            tgid = self._registry.tgid(eventfd.read.main_tid())
            if driver is None or not tgid or not self._in_succession(eventfd):
                continue
            stream = self._new_stream(f"eventfd {number}", tgid, eventfd, driver, "exact")
            stream.taken_over = eventfd.signals.total - len(eventfd.signals.end)
            stream.held_since_ns = eventfd.signals.end[0]
            self._by_eventfd[number] = stream

    def _in_succession(self, eventfd: Eventfd) -> bool:
        """Whether its latest signal and the one before it lie in cycles that follow each other."""
        signals = eventfd.signals
        cycles = []
        for tid, enter in list(zip(signals.tid, signals.enter, strict=True))[-2:]:
            driver = self.loops.driver_of(tid, enter)
            cycle = driver.cycle_at(enter) if driver is not None else None
            if cycle is not None:
                cycles.append((driver, cycle[0]))
        return len(cycles) == 2 and cycles[0][0] is cycles[1][0] and cycles[1][1] - cycles[0][1] == 1

    def _take_signals(self, stream: Stream) -> None:
        """Turn new signals into pending cycles."""
        signals = stream.wake.signals
        first = len(signals.end) - (signals.total - stream.taken_over)
        for i in range(max(first, 0), len(signals.end)):
            enter, end, tid = signals.enter[i], signals.end[i], signals.tid[i]
            driver = self.loops.driver_of(tid, enter)
            cycle = driver.cycle_at(enter) if driver is not None else None
            if driver is None or cycle is None:
                continue
            number, nominal, start = cycle
            if stream.pending and stream.pending[-1].number == number and stream.driver is driver:
                continue  # a second signal within one cycle
            stream.driver, stream.last_signal_ns = driver, end
            stream.pending.append(Cycle(stream, driver, number, nominal, start, enter, end))
        stream.taken_over = signals.total
        stream.context = stream.wake.read.main_tid() or stream.context

    # --- cycles ------------------------------------------------------------------

    def decide(self, end_ns: int, *, final: bool = False) -> list[Cycle]:
        """Cycles decided by records that end at or before ``end_ns``, per stream in order.

        A missed cycle is given back once its window and the settling time have passed.
        """
        found: list[Cycle] = []
        for stream in self.streams:
            n = 0
            for cycle in stream.pending:
                if not decided(cycle, self._registry, self.filing, end_ns, final):
                    break
                n += 1
                if cycle.leg != "ended":
                    stream.cycles += 1
                    found.append(cycle)
            if n:
                del stream.pending[:n]
        completions.merge_misses(found)
        found.sort(key=lambda c: (c.deadline_ns, c.stream.wake.id))
        return found

    # --- forgetting --------------------------------------------------------------

    def trim(self, end_ns: int) -> None:
        """Forget events older than ``KEEP_NS``, but none that an open cycle may need; put streams to rest."""
        if end_ns < self._trimmed_ns + TRIM_EVERY_NS:
            return
        self._trimmed_ns = end_ns
        horizon = end_ns - KEEP_NS
        for stream in self.streams:
            if stream.pending:
                horizon = min(horizon, stream.pending[0].start_ns - 1_000_000_000)
        exited = {t.tgid for t in self._registry.targets.values() if not t.alive}
        self.streams, gone = self.rest.take(self.streams, exited, end_ns)
        for stream in gone:
            if self._by_eventfd.get(stream.wake.id) is stream:
                del self._by_eventfd[stream.wake.id]
            self.inferred.drop(stream)
            stream.let_go()
        for number in self.filing.forget(horizon, self._by_eventfd):
            self._untimed.forget(number)
        self.inferred.trim(horizon, end_ns)
        used = {id(s.driver) for s in (*self.streams, *self.rest.streams)}
        for driver in self.loops.forget(horizon, used):
            self._untimed.drop(driver)
