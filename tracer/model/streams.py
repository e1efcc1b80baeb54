# SPDX-License-Identifier: Apache-2.0
"""Streams, drivers, cycles: which cycles were missed, by how much, on which leg.

The definitions are PipeWire's cycle as seen from outside: the driver starts
cycle k at S_k (its timerfd read), signals each follower's eventfd, and cycle
k's deadline is S_{k+1}. A cycle is missed if no completion written after its
signal had been *read by the driver* by then. Owns eventfd lifetimes and the
matching of signals, reads and completions. Attributes nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tracer.model.registry import Registry
from tracer.schema import FD, RW, TIMER, Flag, Kind, Records, view

#: A completion is expected only of (eventfd, VMM) pairs seen this often.
MIN_COMPLETIONS: Final = 8
#: How long an open cycle is waited for, in record time after its deadline.
GRACE_NS: Final = 2_000_000_000
#: A verdict uses records that end up to this long after the closing event (one sweep of OPEN records, and more).
SETTLE_NS: Final = 200_000_000
#: Event times are kept this long.
KEEP_NS: Final = 8_000_000_000
#: Syscall number of eventfd2 on x86-64 and arm64: an id's birth.
EVENTFD2: Final = frozenset({290, 19})


@dataclass(slots=True)
class Series:
    """Events of one sort on one eventfd or timerfd, in order of their end."""

    enter: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    tid: list[int] = field(default_factory=list)
    value: list[int] = field(default_factory=list)
    total: int = 0

    def extend(self, rows: Records) -> None:
        """Append rows of dtype RW, sorted by end."""
        enter = rows["enter_ns"].tolist()
        self.enter += enter
        self.end += [a + b for a, b in zip(enter, rows["dur_ns"].tolist(), strict=True)]
        self.tid += rows["tid"].tolist()
        self.value += rows["value"].tolist()
        self.total += len(enter)

    def trim(self, before_ns: int) -> None:
        """Forget what ended before a time."""
        if self.end and self.end[0] < before_ns:
            n = bisect_left(self.end, before_ns)
            del self.enter[:n], self.end[:n], self.tid[:n], self.value[:n]

    def after(self, time_ns: int) -> int:
        """Index of the first event that ended after a time."""
        return bisect_right(self.end, time_ns)

    def main_tid(self) -> int:
        """The thread that did most of the kept events, 0 without any."""
        return max(set(self.tid), key=lambda t: (self.tid.count(t), -t)) if self.tid else 0


@dataclass(slots=True)
class Eventfd:
    """One lifetime of an eventfd-id that the audio server and a VMM may share."""

    id: int
    born_ns: int
    signals: Series = field(default_factory=Series)  # written by the audio server
    taken: Series = field(default_factory=Series)  # read by the audio server
    written: Series = field(default_factory=Series)  # written by a VMM
    read: Series = field(default_factory=Series)  # read by a VMM


@dataclass(slots=True)
class Driver:
    """One timer of one data loop: the starts of its cycles and their nominal times."""

    id: str
    tgid: int
    tid: int
    fd: int
    starts: list[int] = field(default_factory=list)
    nominal: list[int] = field(default_factory=list)
    dropped: int = 0  # starts trimmed off the front: cycle number of starts[0]
    interval_ns: int = 0
    expiry_ns: int = 0
    period_ns: int = 0
    total: int = 0
    events: dict[str, int] = field(default_factory=lambda: {"late_start": 0, "skipped": 0, "catch_up": 0})

    def settime(self, at_ns: int, value_ns: int, interval_ns: int, absolute: bool) -> None:
        """The timer was set: the expiry in force from now on."""
        self.interval_ns = interval_ns
        self.expiry_ns = (value_ns if absolute else at_ns + value_ns) if value_ns else 0

    def start(self, at_ns: int, expirations: int) -> None:
        """A cycle starts; its nominal start is the first expiry not served yet, never later than now."""
        period = self.interval_ns or self.period_ns
        nominal = at_ns
        if self.interval_ns:
            if self.expiry_ns and self.expiry_ns <= at_ns:
                latest = self.expiry_ns + (at_ns - self.expiry_ns) // self.interval_ns * self.interval_ns
            else:
                # Phase unknown or ahead of what was seen: the lower envelope of the starts.
                latest = at_ns
            self.expiry_ns = latest
            nominal = latest - max(0, expirations - 1) * self.interval_ns
        elif self.expiry_ns and self.expiry_ns <= at_ns:
            nominal = self.expiry_ns
            self.expiry_ns = 0
        if self.starts:
            delta = at_ns - self.starts[-1]
            if period and delta < period // 2:
                self.events["catch_up"] += 1
            elif period and delta > period * 3 // 2:
                self.events["late_start"] += 1
            nominal = max(nominal, self.starts[-1])
        if expirations > 1:
            self.events["skipped"] += expirations - 1
        self.starts.append(at_ns)
        self.nominal.append(nominal)
        self.total += 1

    def update_period(self) -> None:
        """Period from the timer's interval, else the median of the last 64 distances of starts."""
        if self.interval_ns:
            self.period_ns = self.interval_ns
        elif len(self.starts) >= 3:
            self.period_ns = int(np.median(np.diff(np.array(self.starts[-65:], dtype=np.int64))))

    def trim(self, before_ns: int) -> None:
        """Forget cycles that started before a time."""
        n = bisect_left(self.starts, before_ns)
        if n:
            del self.starts[:n], self.nominal[:n]
            self.dropped += n


@dataclass(slots=True)
class Cycle:
    """One cycle of one stream, decided.

    Times are ns; ``signal_*`` is the driver's write of e_n, ``read_*`` W's read of it,
    ``write_*`` the completion's write that the closing read covers, ``closing_ns`` the end of that read.
    """

    stream: Stream
    number: int
    nominal_ns: int
    start_ns: int
    signal_enter_ns: int
    signal_ns: int
    deadline_ns: int
    read_enter_ns: int | None = None
    read_ns: int | None = None
    reader_tid: int = 0
    write_enter_ns: int | None = None
    write_ns: int | None = None
    writer_tid: int = 0
    closing_ns: int | None = None
    missed: bool = False
    leg: str = ""
    after_catch_up: bool = False

    @property
    def end_ns(self) -> int:
        """End of the window: the closing event, else the deadline plus the grace."""
        return self.closing_ns if self.closing_ns is not None else self.deadline_ns + GRACE_NS

    @property
    def late_ns(self) -> int | None:
        """Closing minus deadline; None if it never closed."""
        return None if self.closing_ns is None else self.closing_ns - self.deadline_ns


@dataclass(slots=True)
class Stream:
    """One eventfd that the audio server signals every cycle and a VMM reads."""

    id: str
    name: str
    tgid: int
    wake: Eventfd
    driver: Driver
    context: int = 0
    completion: Eventfd | None = None
    held_since_ns: int = 0
    cycles: int = 0
    overruns: int = 0
    alive: bool = True
    pending: list[Cycle] = field(default_factory=list)
    _next_signal: int = 0  # count of signals taken over so far (over the whole lifetime)

    @property
    def completion_expected(self) -> bool:
        """Whether completions of this target by this VMM were seen often enough."""
        return self.completion is not None and self.completion.written.total >= MIN_COMPLETIONS


class Streams:
    """All eventfds, drivers and streams; ``step`` takes records, ``decide`` gives back cycles."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.eventfds: dict[int, Eventfd] = {}
        self.drivers: dict[tuple[int, int], Driver] = {}
        self.streams: list[Stream] = []
        self._by_eventfd: dict[int, Stream] = {}
        self._ended: int = 0

    # --- taking records over -------------------------------------------------

    def step(self, records: Records, end_ns: int) -> None:
        """Take over one step's records (sorted)."""
        audio = {t.tgid for t in self._registry.targets.values() if t.role == "audio"}
        vmms = {t.tgid for t in self._registry.targets.values() if t.role == "vmm"}
        closed = (records["flags"] & Flag.OPEN) == 0
        self._births(records[(records["kind"] == Kind.FD) & closed])
        self._timers(records[(records["kind"] == Kind.TIMER) & closed], records, closed)
        rw = records[(records["kind"] <= Kind.WRITE) & closed & ((records["flags"] & Flag.EVENTFD) != 0)]
        rw = view(rw, RW)
        rw = rw[(rw["ret"] == 8) & (rw["eventfd_id"] >= 0)]
        if len(rw):
            tgids = self._registry.tgids_of(rw["tid"])
            self._eventfds(rw, np.isin(tgids, list(audio)), np.isin(tgids, list(vmms)))
        self._find_streams()
        for stream in self.streams:
            if stream.alive:
                self._take_signals(stream)
        self._match_completions()
        for driver in self.drivers.values():
            driver.update_period()

    def _births(self, rows: Records) -> None:
        rows = view(rows, FD)
        rows = rows[(rows["eventfd_id"] >= 0) & np.isin(rows["op"], list(EVENTFD2))]
        for row in rows:
            number = int(row["eventfd_id"])
            if number in self.eventfds:
                stream = self._by_eventfd.pop(number, None)
                if stream is not None:
                    stream.alive = False
                self.eventfds[number] = Eventfd(number, int(row["enter_ns"]))

    def _timers(self, settimes: Records, records: Records, closed: np.ndarray) -> None:
        reads = view(
            records[closed & (records["kind"] == Kind.READ) & ((records["flags"] & Flag.TIMERFD) != 0)], RW
        )
        reads = reads[reads["ret"] == 8]
        settimes = view(settimes, TIMER)
        settimes = settimes[settimes["ret"] == 0]
        events: list[tuple[int, int, int, int, int, int, int]] = []
        for row in reads:
            at = int(row["enter_ns"]) + int(row["dur_ns"])
            events.append((at, 1, int(row["tid"]), int(row["fd"]), int(row["value"]), 0, 0))
        for row in settimes:
            at = int(row["enter_ns"]) + int(row["dur_ns"])
            events.append(
                (
                    at,
                    0,
                    int(row["tid"]),
                    int(row["fd"]),
                    int(row["value_ns"]),
                    int(row["interval_ns"]),
                    int(row["timer_flags"]),
                )
            )
        events.sort()
        for at, is_read, tid, fd, value, interval, flags in events:
            tgid = self._registry.tgid(tid)
            target = self._registry.targets.get(tgid)
            if target is None or target.role != "audio":
                continue
            driver = self.drivers.get((tid, fd))
            if driver is None:
                driver = self.drivers[tid, fd] = Driver(
                    f"{self._registry.comm(tid)}/{tid}:{fd}", tgid, tid, fd
                )
                known = self._registry.fds.get((tgid, fd))
                if known is not None and known.type == "timerfd":
                    driver.interval_ns = known.interval_ns
            if is_read:
                driver.start(at, value)
            else:
                driver.settime(at, value, interval, bool(flags & 1))

    def _eventfds(self, rw: Records, by_audio: np.ndarray, by_vmm: np.ndarray) -> None:
        """File reads and writes under their eventfd; only ids that the audio server touches are kept."""
        touched = np.unique(rw["eventfd_id"][by_audio])
        for number in touched.tolist():
            if number not in self.eventfds:
                self.eventfds[number] = Eventfd(number, 0)
        known = np.array(sorted(self.eventfds), dtype=np.int64)
        if not len(known):
            return
        keep = np.isin(rw["eventfd_id"], known) & (by_audio | by_vmm)
        rw, by_audio = rw[keep], by_audio[keep]
        if not len(rw):
            return
        is_write = rw["kind"] == Kind.WRITE
        group = rw["eventfd_id"].astype(np.int64) * 4 + by_audio * 2 + is_write
        order = np.argsort(group, kind="stable")
        rw, group = rw[order], group[order]
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        stops = np.r_[starts[1:], len(group)]
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True):
            code = int(group[a])
            eventfd = self.eventfds[code >> 2]
            series = (eventfd.read, eventfd.written, eventfd.taken, eventfd.signals)[code & 3]
            series.extend(rw[a:b])

    # --- streams ---------------------------------------------------------------

    def _find_streams(self) -> None:
        """A stream is an eventfd that a data loop writes and a VMM's thread reads."""
        for number, eventfd in self.eventfds.items():
            if number in self._by_eventfd or not eventfd.signals.end or not eventfd.read.end:
                continue
            driver = self._driver_of(eventfd.signals.tid[-1], eventfd.signals.enter[-1])
            reader = eventfd.read.main_tid()
            tgid = self._registry.tgid(reader)
            if driver is None or not tgid:
                continue
            stream = Stream(
                f"s{len(self.streams) + 1}", f"eventfd {number}", tgid, eventfd, driver, context=reader
            )
            stream._next_signal = eventfd.signals.total - len(eventfd.signals.end)
            stream.held_since_ns = eventfd.signals.end[0]
            self.streams.append(stream)
            self._by_eventfd[number] = stream

    def _driver_of(self, tid: int, at_ns: int) -> Driver | None:
        """The driver of a thread whose start most recently precedes a time."""
        best: Driver | None = None
        best_ns = -1
        for driver in self.drivers.values():
            if driver.tid != tid:
                continue
            i = bisect_right(driver.starts, at_ns) - 1
            if i >= 0 and driver.starts[i] > best_ns:
                best, best_ns = driver, driver.starts[i]
        return best

    def _take_signals(self, stream: Stream) -> None:
        """Turn new signals into pending cycles."""
        signals = stream.wake.signals
        first = len(signals.end) - (signals.total - stream._next_signal)
        for i in range(max(first, 0), len(signals.end)):
            enter, end, tid = signals.enter[i], signals.end[i], signals.tid[i]
            driver = self._driver_of(tid, enter)
            if driver is None:
                continue
            stream.driver = driver
            at = bisect_right(driver.starts, enter) - 1
            number = driver.dropped + at
            if stream.pending and stream.pending[-1].number == number:
                continue  # a second signal within one cycle
            stream.pending.append(
                Cycle(stream, number, driver.nominal[at], driver.starts[at], enter, end, deadline_ns=0)
            )
        stream._next_signal = signals.total
        stream.context = stream.wake.read.main_tid() or stream.context

    def _match_completions(self) -> None:
        """Find each stream's completion eventfd: the one its VMM writes and its data loop reads."""
        for stream in self.streams:
            if not stream.alive or stream.completion_expected:
                continue
            fits = [
                e
                for e in self.eventfds.values()
                if e.written.total
                and e.taken.total
                and self._registry.tgid(e.written.main_tid()) == stream.tgid
                and e.taken.main_tid() == stream.driver.tid
            ]
            if len(fits) == 1:
                stream.completion = fits[0]
            elif fits:
                stream.completion = self._by_rank(stream, fits)

    def _by_rank(self, stream: Stream, fits: list[Eventfd]) -> Eventfd | None:
        """Of several completion eventfds, the one whose rank among writes is the stream's among reads.

        G is a serial server, so within a cycle completions are written in the order in
        which W served the streams. Cycles in which the counts differ do not vote.
        """
        peers = [s for s in self.streams if s.alive and s.tgid == stream.tgid and s.driver is stream.driver]
        votes: dict[int, int] = {}
        starts = stream.driver.starts
        for low, high in zip(starts[:-1], starts[1:], strict=True):
            reads = sorted(
                (s.wake.read.end[i], s.wake.id)
                for s in peers
                if (i := s.wake.read.after(low)) < len(s.wake.read.end) and s.wake.read.end[i] <= high
            )
            writes = sorted(
                (e.written.end[i], e.id)
                for e in fits
                if (i := e.written.after(low)) < len(e.written.end) and e.written.end[i] <= high
            )
            if len(reads) != len(writes):
                continue
            for (_, wake), (_, done) in zip(reads, writes, strict=True):
                if wake == stream.wake.id:
                    votes[done] = votes.get(done, 0) + 1
        if not votes:
            return None
        best = max(votes, key=lambda number: (votes[number], -number))
        if votes[best] < MIN_COMPLETIONS or votes[best] * 10 < sum(votes.values()) * 7:
            return None
        return self.eventfds[best]

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
            del stream.pending[:n]
        self._merge_completion_misses(decided)
        decided.sort(key=lambda c: (c.deadline_ns, c.stream.wake.id))
        return decided

    def _decide(self, cycle: Cycle, end_ns: int, final: bool) -> bool:
        """Fill in a cycle's events; False while it is still open."""
        stream, driver = cycle.stream, cycle.stream.driver
        at = cycle.number - driver.dropped + 1
        if at < 1 or at >= len(driver.starts):
            return False
        cycle.deadline_ns = driver.starts[at]
        period = driver.interval_ns or driver.period_ns
        cycle.after_catch_up = bool(period) and cycle.deadline_ns - cycle.start_ns < period // 2
        expected = stream.completion_expected
        if not expected and not final and end_ns < stream.held_since_ns + GRACE_NS:
            return False
        read = stream.wake.read
        i = read.after(cycle.signal_enter_ns)
        if i < len(read.end):
            cycle.read_enter_ns, cycle.read_ns, cycle.reader_tid = read.enter[i], read.end[i], read.tid[i]
        woke_in_time = cycle.read_ns is not None and cycle.read_ns <= cycle.deadline_ns
        if expected:
            self._close(cycle)
            in_time = cycle.closing_ns is not None and cycle.closing_ns <= cycle.deadline_ns
            cycle.leg = "" if in_time else ("completion" if woke_in_time else "wake")
        else:
            cycle.closing_ns = cycle.read_ns
            in_time = woke_in_time
            cycle.leg = "" if in_time else "wake"
        cycle.missed = not in_time
        if in_time:
            return True
        if cycle.closing_ns is not None:
            return final or end_ns >= cycle.closing_ns + SETTLE_NS
        if not final and end_ns < cycle.deadline_ns + GRACE_NS + SETTLE_NS:
            return False
        if not stream.wake.signals.end or stream.wake.signals.end[-1] <= cycle.signal_ns:
            cycle.missed, cycle.leg = False, "ended"  # the stream was not signalled again: it ended
        return True

    def _close(self, cycle: Cycle) -> None:
        """Find the driver's read that closes a cycle: it covers a completion written after the signal.

        A read that covers no write of a traced thread closes too: another client finished last.
        """
        done = cycle.stream.completion
        assert done is not None
        taken, written = done.taken, done.written
        i = taken.after(cycle.signal_ns)
        while i < len(taken.end):
            j = bisect_right(written.enter, taken.end[i]) - 1
            previous = taken.end[i - 1] if i else 0
            if j < 0 or written.enter[j] <= previous:
                cycle.closing_ns = taken.end[i]
                return
            if written.end[j] > cycle.signal_enter_ns:
                while (
                    j > 0 and written.end[j - 1] > cycle.signal_enter_ns and written.enter[j - 1] > previous
                ):
                    j -= 1
                cycle.closing_ns = taken.end[i]
                cycle.write_enter_ns, cycle.write_ns = written.enter[j], written.end[j]
                cycle.writer_tid = written.tid[j]
                return
            i += 1

    def _merge_completion_misses(self, decided: list[Cycle]) -> None:
        """A completion miss belongs to (driver, cycle): keep it on the stream last served before the write."""
        groups: dict[tuple[int, int, int], list[Cycle]] = {}
        for cycle in decided:
            done = cycle.stream.completion
            if cycle.missed and done is not None and cycle.stream.completion_expected:
                groups.setdefault((id(cycle.stream.driver), done.id, cycle.number), []).append(cycle)
        for cycles in groups.values():
            if len(cycles) < 2:
                continue
            late = [c for c in cycles if c.leg == "completion"]
            if not late:
                continue
            if len(late) < len(cycles):
                spare = late  # somebody missed the wake: the completion waited for that one
            else:
                before = [c for c in late if c.read_ns is not None]
                keep = max(before, key=lambda c: (c.read_ns or 0, c.stream.wake.id)) if before else late[0]
                spare = [c for c in late if c is not keep]
            for cycle in spare:
                cycle.missed, cycle.leg = False, ""

    def trim(self, end_ns: int) -> None:
        """Forget events older than ``KEEP_NS``, but none that an open cycle may need."""
        horizon = end_ns - KEEP_NS
        for stream in self.streams:
            if stream.pending:
                horizon = min(horizon, stream.pending[0].start_ns - 1_000_000_000)
        for eventfd in self.eventfds.values():
            for series in (eventfd.signals, eventfd.taken, eventfd.written, eventfd.read):
                series.trim(horizon)
        for driver in self.drivers.values():
            driver.trim(horizon)
        idle = [
            n
            for n, e in self.eventfds.items()
            if n not in self._by_eventfd and not (e.signals.end or e.taken.end or e.written.end or e.read.end)
        ]
        for number in idle:
            del self.eventfds[number]
