# SPDX-License-Identifier: Apache-2.0
"""Streams, drivers, cycles: which cycles were missed, by how much, on which leg.

The definitions are PipeWire's cycle as seen from outside: the driver starts
cycle k at S_k (its timerfd read, or its first follower write), signals each follower's eventfd, and cycle
k's deadline is S_{k+1}. A cycle is missed if no completion written after its
signal had been *read by the driver* by then. Owns which streams there are and the
deciding of cycles; each step costs what happened in it, not what there ever was.
Attributes nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model import completions, others
from tracer.model.cycles import CLOSES_NS, GRACE_NS, MIN_COMPLETIONS, SETTLE_NS, Cycle, Stream
from tracer.model.drivers import Driver
from tracer.model.eventfds import Completion, Eventfd, Series
from tracer.model.inferred import Inferred
from tracer.model.ownloops import OwnLoops
from tracer.model.registry import Registry
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
#: A stream without a signal for this long rests: it costs nothing until it is signalled again.
REST_NS: Final = 1_000_000_000
#: Streams at rest that are kept (for their tables, and to go on), the longest; others are kept as counts.
KEEP_RESTING: Final = 64
#: A stream of fewer cycles is not worth keeping once it rests.
MIN_CYCLES: Final = 8
#: Streams of an audio server that was just attached to show within this time; none is inferred till then.
APPEAR_NS: Final = 1_000_000_000
#: Syscall number of eventfd2 on x86-64 and arm64: an id's birth.
EVENTFD2: Final = (290, 19)


@dataclass(slots=True)
class Past:
    """Streams that are kept as counts only."""

    streams: int = 0
    cycles: int = 0


class Streams:
    """All eventfds, drivers and streams; ``step`` takes records, ``decide`` gives back cycles.

    Attributes:
        streams: those signalled of late, or with a cycle that is not decided yet.
        resting: those that ended or pause, oldest first.
        past: what was dropped from ``resting``, as counts.
        dropped: streams dropped since somebody last emptied this list.
    """

    def __init__(self, registry: Registry, period: tuple[int, int] | None = None) -> None:
        self._registry = registry
        self.eventfds: dict[int, Eventfd] = {}
        self.drivers: dict[tuple[int, int], Driver] = {}
        self.streams: list[Stream] = []
        self.resting: deque[Stream] = deque()
        self.past = Past()
        self.dropped: list[Stream] = []
        self.inferred = Inferred(registry, self._new_stream, period)
        self._by_eventfd: dict[int, Stream] = {}
        self._loops: dict[int, list[Driver]] = {}  # drivers of a data loop's thread
        self._untimed = Untimed(self._loops, self._new_driver)
        self._own_loops = OwnLoops(registry)
        self._answers: set[int] = set()  # eventfds that the audio server has read
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
        return sorted([*self.streams, *self.resting], key=lambda s: s.serial)

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
        vmms = [t.tgid for t in self._registry.targets.values() if t.role == "vmm"]
        self._births(step.of(Kind.FD))
        rows = step.of(Kind.READ, Kind.WRITE)
        is_eventfd = ((rows["flags"] & Flag.EVENTFD) != 0) & (rows["ret"] == 8) & (rows["eventfd_id"] >= 0)
        rw = rows.take(np.flatnonzero(is_eventfd))
        tgids = self._registry.tgids_of(rw["tid"])
        served = {s.tgid for s in self.streams} | {f.stream.tgid for f in self.inferred.followers.values()}
        self._own_loops.step(step, rw, tgids, [tgid for tgid in vmms if tgid not in served])
        if audio or self._own_loops.tids:
            self._timers(step.of(Kind.TIMER), rows)
        own = np.isin(rw["tid"], list(self._own_loops.tids))
        if len(rw) and (audio or own.any()):
            touched = self._eventfds(rw, tgids, np.isin(tgids, audio) | own, np.isin(tgids, vmms))
            self._untimed.step(self.eventfds[number] for number in sorted(touched))
            self._find_streams(touched)
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
        self._match_completions(step.end_ns)
        for driver in self.drivers.values():
            driver.update_period()
        self._objects = {s.completion.id: "completion" for s in self.streams if s.completion is not None}
        self._objects |= {s.wake.id: "stream" for s in self.streams if s.alive}

    def _just_attached(self, step: Step, audio: list[int]) -> bool:
        """Whether an audio server has been traced for so short a time that its streams may still show."""
        for tgid in audio:
            self._audio_since_ns.setdefault(tgid, step.end_ns)
        return any(step.end_ns < self._audio_since_ns[tgid] + APPEAR_NS for tgid in audio)

    def _births(self, rows: Records) -> None:
        born = ((rows["op"] == EVENTFD2[0]) | (rows["op"] == EVENTFD2[1])) & (rows["eventfd_id"] >= 0)
        for row in rows.take(np.flatnonzero(born)):
            number = int(row["eventfd_id"])
            if number in self.eventfds:
                stream = self._by_eventfd.pop(number, None)
                if stream is not None:
                    self._take_signals(stream)
                    stream.alive = False
                self._untimed.forget(number)
                self.eventfds[number] = Eventfd(number, int(row["enter_ns"]))
                self._answers.discard(number)

    def _timers(self, settimes: Records, rw: Records) -> None:
        is_timer = (rw["kind"] == Kind.READ) & ((rw["flags"] & Flag.TIMERFD) != 0)
        reads = rw.take(np.flatnonzero(is_timer))
        events = [
            (
                int(row["enter_ns"]) + int(row["dur_ns"]),
                1,
                int(row["tid"]),
                int(row["fd"]),
                int(row["value"]),
                0,
                0,
            )
            for row in reads[reads["ret"] == 8]
        ]
        events += [
            (
                int(row["enter_ns"]) + int(row["dur_ns"]),
                0,
                int(row["tid"]),
                int(row["fd"]),
                int(row["value_ns"]),
                int(row["interval_ns"]),
                int(row["timer_flags"]),
            )
            for row in settimes[settimes["ret"] == 0]
        ]
        for at, read, tid, fd, value, interval, flags in sorted(events):
            target = self._registry.targets.get(self._registry.tgid(tid))
            if target is None or (target.role != "audio" and tid not in self._own_loops.tids):
                continue
            driver = self.drivers.get((tid, fd)) or self._new_driver(tid, fd)
            if read:
                driver.start(at, value)
            else:
                driver.settime(at, value, interval, bool(flags & 1))

    def _new_driver(self, tid: int, fd: int) -> Driver:
        tgid, name = self._registry.tgid(tid), f"{self._registry.comm(tid)}/{tid}"
        driver = self.drivers[tid, fd] = Driver(name if fd < 0 else f"{name}:{fd}", tgid, tid, fd)
        self._loops.setdefault(tid, []).append(driver)
        known = self._registry.fds.get((tgid, fd))
        if known is not None and known.type == "timerfd":
            driver.interval_ns = known.interval_ns
        return driver

    def _eventfds(
        self,
        rw: Records,
        tgids: NDArray[np.uint32],
        by_audio: NDArray[np.bool_],
        by_vmm: NDArray[np.bool_],
    ) -> set[int]:
        """File events under those eventfds that the audio server touches; the ids that had any."""
        for number in np.unique(rw["eventfd_id"][by_audio]).tolist():
            if number not in self.eventfds:
                self.eventfds[number] = Eventfd(number, 0)
        known = np.fromiter(self.eventfds, dtype=np.int64, count=len(self.eventfds))
        keep = np.isin(rw["eventfd_id"], known) & (by_audio | by_vmm)
        rw, by_audio, tgids = rw.take(np.flatnonzero(keep)), by_audio[keep], tgids[keep]
        if not len(rw):
            return set()
        group = rw["eventfd_id"].astype(np.int64) * 4 + by_audio * 2 + (rw["kind"] == Kind.WRITE)
        order = np.argsort(group, kind="stable")
        rw, group, tgids = rw.take(order), group[order], tgids[order]
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        stops = np.r_[starts[1:], len(group)]
        touched = set()
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True):
            code = int(group[a])
            eventfd = self.eventfds[code >> 2]
            if code & 3 == 1:
                eventfd.add_written(rw[a:b], tgids[a:b])
            else:
                (eventfd.read, eventfd.read, eventfd.taken, eventfd.signals)[code & 3].extend(rw[a:b])
            touched.add(eventfd.id)
            if code & 3 == 2:
                self._answers.add(eventfd.id)
        return touched

    # --- streams ---------------------------------------------------------------

    def _new_stream(self, name: str, tgid: int, wake: Eventfd, driver: Driver, source: str) -> Stream:
        self._serial += 1
        stream = Stream(self._serial, name, tgid, wake, driver, wake.read.main_tid(), source)
        self.streams.append(stream)
        return stream

    def _revive(self, stream: Stream) -> None:
        """A stream that may be at rest was signalled."""
        if stream.resting:
            stream.resting = False
            self.resting.remove(stream)
            self.streams.append(stream)

    def _find_streams(self, touched: set[int]) -> None:
        """A stream is an eventfd that a data loop writes and a VMM's thread reads."""
        for number in sorted(touched):
            eventfd = self.eventfds[number]
            if not eventfd.signals.end or not eventfd.read.end:
                continue
            known = self._by_eventfd.get(number)
            if known is not None:
                self._revive(known)
                continue
            driver = self._driver_of(eventfd.signals.tid[-1], eventfd.signals.enter[-1])
            tgid = self._registry.tgid(eventfd.read.main_tid())
            if driver is None or not tgid:
                continue
            stream = self._new_stream(f"eventfd {number}", tgid, eventfd, driver, "exact")
            stream.taken_over = eventfd.signals.total - len(eventfd.signals.end)
            stream.held_since_ns = eventfd.signals.end[0]
            self._by_eventfd[number] = stream

    def _driver_of(self, tid: int, at_ns: int) -> Driver | None:
        """The driver of a thread whose start most recently precedes a time."""
        found = [(c[2], d.fd, d) for d in self._loops.get(tid, ()) if (c := d.cycle_at(at_ns)) is not None]
        return max(found, key=lambda f: f[:2])[2] if found else None

    def _take_signals(self, stream: Stream) -> None:
        """Turn new signals into pending cycles."""
        signals = stream.wake.signals
        first = len(signals.end) - (signals.total - stream.taken_over)
        for i in range(max(first, 0), len(signals.end)):
            enter, end, tid = signals.enter[i], signals.end[i], signals.tid[i]
            driver = self._driver_of(tid, enter)
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

    def _match_completions(self, end_ns: int) -> None:
        """Find each stream's completion eventfd: the one its VMM writes and its data loop reads."""
        groups: dict[tuple[int, int], list[Stream]] = {}
        wanted: dict[tuple[int, int], int] = {}  # by how many signals of the longest one that is looked at
        silent: set[tuple[int, int]] = set()
        for stream in self.streams:
            if stream.exact and stream.alive:
                key = (stream.tgid, id(stream.driver))
                groups.setdefault(key, []).append(stream)
                certain = stream.completion_expected and not stream.guessed
                if not certain and stream.taken_over >= stream.match_at:
                    stream.match_at = stream.taken_over * 3 // 2 + 1
                    wanted[key] = max(wanted.get(key, 0), stream.taken_over)
                elif stream.completion_expected and stream.pending and not stream.pending[0].closing_ns:
                    silent.add(key)
        for key in sorted(wanted.keys() | silent, key=lambda k: groups[k][0].serial):
            peers = groups[key]
            fits = self._answered(peers[0].tgid, peers[0].driver.tid)
            if key not in wanted:
                moved = [s for s in peers if completions.went_elsewhere(s, fits, end_ns)]
                if not moved:
                    continue
                gone = {s.completion.id for s in moved if s.completion is not None}
                peers, fits = moved, [e for e in fits if e.id not in gone]
            completions.match(peers, fits, completions.cycles_for(wanted.get(key, 0)))

    def _answered(self, tgid: int, loop: int) -> list[Completion]:
        """Eventfds that a VMM writes and a data loop reads."""
        found = (self.eventfds[number] for number in sorted(self._answers))
        return [Completion.of(e, tgid) for e in found if tgid in e.written and e.taken.main_tid() == loop]

    # --- cycles ------------------------------------------------------------------

    def decide(self, end_ns: int, *, final: bool = False) -> list[Cycle]:
        """Cycles decided by records that end at or before ``end_ns``, per stream in order.

        A missed cycle is given back once its window and the settling time have passed.
        """
        decided: list[Cycle] = []
        for stream in self.streams:
            n = 0
            for cycle in stream.pending:
                if not self._decide(cycle, end_ns, final):
                    break
                n += 1
                if cycle.leg != "ended":
                    stream.cycles += 1
                    decided.append(cycle)
            if n:
                del stream.pending[:n]
        completions.merge_misses(decided)
        decided.sort(key=lambda c: (c.deadline_ns, c.stream.wake.id))
        return decided

    def _decide(self, cycle: Cycle, end_ns: int, final: bool) -> bool:
        """Fill in a cycle's events; False while it is still open."""
        stream, driver = cycle.stream, cycle.driver
        if not cycle.deadline_ns:
            deadline = driver.deadline(cycle.number, end_ns, final)
            if deadline is None:
                # A driver that has stopped leaves its last cycle without a deadline.
                cycle.leg = "ended"
                left = stream.pending[-1].driver is not driver  # nothing follows on a driver it has left
                return final or left or end_ns >= cycle.start_ns + GRACE_NS + SETTLE_NS
            cycle.deadline_ns = deadline
        cycle.leg = ""
        period = driver.interval_ns or driver.period_ns
        cycle.after_catch_up = bool(period) and cycle.deadline_ns - cycle.start_ns < period // 2
        expected = stream.completion_expected
        if not expected and not final and end_ns < stream.held_since_ns + GRACE_NS:
            return False
        read = stream.wake.read
        if stream.exact and (i := read.after(cycle.signal_enter_ns)) < len(read.end):
            cycle.read_enter_ns, cycle.read_ns, cycle.reader_tid = read.enter[i], read.end[i], read.tid[i]
        woke_in_time = cycle.read_ns is not None and cycle.read_ns <= cycle.deadline_ns
        if expected:
            completions.close(cycle)
            in_time = cycle.closing_ns is not None and cycle.closing_ns <= cycle.deadline_ns
            if not in_time and woke_in_time and cycle.closing_ns is not None and cycle.write_ns is None:
                assert cycle.read_ns is not None
                # Another finished last; the driver waited for us if we read too late even for our fastest.
                late = cycle.read_ns + (stream.fastest_ns or 0) > cycle.deadline_ns
                in_time = not late and not others.waited_for_us(cycle, self.eventfds.values())
                stream.others_late += in_time
            elif in_time:
                others.note(cycle)
            cycle.leg = "" if in_time else ("completion" if woke_in_time else "wake")
            if cycle.leg == "wake" and cycle.write_ns is None:
                cycle.closing_ns = cycle.read_ns  # somebody else finished last: ours is late up to its read
        else:
            cycle.closing_ns = cycle.read_ns
            in_time = woke_in_time
            cycle.leg = "" if in_time else "wake"
        cycle.missed = not in_time
        if in_time:
            if cycle.write_ns is not None and cycle.read_ns is not None and cycle.write_ns > cycle.read_ns:
                answer = cycle.write_ns - cycle.read_ns
                stream.fastest_ns = min(stream.fastest_ns or answer, answer)
            return True
        if cycle.closing_ns is not None:
            return final or end_ns >= cycle.closing_ns + SETTLE_NS
        if not final and end_ns < cycle.deadline_ns + GRACE_NS + SETTLE_NS:
            return False
        if stream.last_signal_ns <= cycle.signal_ns or self._closed(stream, end_ns):
            cycle.missed, cycle.leg = False, "ended"  # the stream was not signalled again: it ended
        return True

    def _closed(self, stream: Stream, end_ns: int) -> bool:
        """Whether a stream's worker exited, and the server stopped signalling it: its client went."""
        worker = self._registry.threads.get(stream.context)
        return (
            worker is not None
            and worker.exit_ns is not None
            and stream.last_signal_ns <= worker.exit_ns + CLOSES_NS
            and end_ns >= stream.last_signal_ns + CLOSES_NS
        )

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
        self._rest(end_ns)
        for number in [n for n, e in self.eventfds.items() if e.trim(horizon) and n not in self._by_eventfd]:
            del self.eventfds[number]
            self._answers.discard(number)
            self._untimed.forget(number)
        self.inferred.trim(horizon, end_ns)
        used = {id(s.driver) for s in (*self.streams, *self.resting)}
        for key, driver in list(self.drivers.items()):
            driver.trim(horizon)
            if not driver.starts and id(driver) not in used:
                del self.drivers[key]
                self._untimed.drop(driver)
                self._loops[driver.tid].remove(driver)

    def _rest(self, end_ns: int) -> None:
        exited = {t.tgid for t in self._registry.targets.values() if not t.alive}
        for stream in self.streams:
            if stream.driver.tgid in exited and stream.last_signal_ns < end_ns - REST_NS:
                stream.alive = False  # its server has exited
        resting = {
            s.serial
            for s in self.streams
            if not s.pending and (not s.alive or s.last_signal_ns < end_ns - REST_NS)
        }
        if not resting:
            return
        for stream in self.streams:
            if stream.serial in resting:
                stream.resting = True
                self.resting.append(stream)
        self.streams = [s for s in self.streams if s.serial not in resting]
        short = [s for s in self.resting if not s.alive and s.cycles < MIN_CYCLES]
        excess = sorted(self.resting, key=lambda s: s.cycles)[: max(0, len(self.resting) - KEEP_RESTING)]
        gone = {s.serial: s for s in (*short, *excess)}
        if gone:
            self.resting = deque(s for s in self.resting if s.serial not in gone)
            self.dropped += gone.values()
        for stream in gone.values():
            self.past.streams += 1
            self.past.cycles += stream.cycles
            if self._by_eventfd.get(stream.wake.id) is stream:
                del self._by_eventfd[stream.wake.id]
            self.inferred.drop(stream)
