# SPDX-License-Identifier: Apache-2.0
"""Streams where the audio server cannot be seen: from the VMM's own events alone.

An eventfd that an epoll thread reads at an audio period, and that no traced thread
writes, is a stream. A read's value says exactly how many wakeups there were; when W slept,
the waking says when. What remains is put on the grid of the period (cadence.py). Owns the
finding of such streams; their cycles are follower.py's. Nothing here is exact but
values and wakings, so everything is marked as inferred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model import matching
from tracer.model.cadence import Cadence, Grid
from tracer.model.choices import Choices
from tracer.model.cycles import MIN_COMPLETIONS, Stream
from tracer.model.drivers import Driver
from tracer.model.eventfds import Completion, Eventfd
from tracer.model.follower import Follower, Watch
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.schema import Kind, Records, end_ns

#: Reads from which on a cadence is looked for, and how often again.
MIN_READS: Final = 24
AGAIN_READS: Final = 8
#: An eventfd without events for this long is forgotten: more than ten of the longest periods.
FORGET_NS: Final = 2_000_000_000
#: Two streams of a VMM are of one driver if their phases are this close (and within an eighth of a
#: period), or if one worker serves both: the later one is late by the other's round trip.
SAME_DRIVER_NS: Final = 500_000

NewStream = Callable[[str, int, Eventfd, Driver, str], Stream]


class Inferred:
    """Finds streams of VMMs whose audio server is not traced, and has their cycles appended as pending.

    Args:
        new_stream: makes a stream known.
        period: (quantum, rate) if the user gave it.

    Attributes:
        followers: the streams found, by eventfd-id.
    """

    def __init__(
        self, registry: Registry, new_stream: NewStream, period: tuple[int, int] | None = None
    ) -> None:
        self._registry = registry
        self._new_stream = new_stream
        self._period = period
        self._choices = Choices()
        self._watches: dict[int, Watch] = {}
        self._written: dict[int, Eventfd] = {}  # by threads of a VMM
        self._read_ns: dict[int, int] = {}  # when a thread of a VMM last read an eventfd
        self.followers: dict[int, Follower] = {}

    def step(
        self, step: Step, rw: Records, tgids: NDArray[np.uint32], blind: list[int], *, look: bool = True
    ) -> list[Stream]:
        """Take over one step; the streams that were signalled in it.

        Args:
            rw: its eventfd reads and writes (dtype RW); tgids: (n,) of their threads.
            blind: VMMs without an exact stream.
            look: whether new streams may be found already.
        """
        for number, follower in list(self.followers.items()):
            if follower.watch.tgid not in blind:  # the audio server is seen now
                follower.stream.alive = False
                del self.followers[number]
        mine = np.isin(tgids, blind)
        if mine.any():
            self._renewals(step)
            touched = self._take(step, rw.take(np.flatnonzero(mine)), tgids[mine])
            for watch in touched if look else ():
                self._look(watch)
        advanced = [f.stream for f in list(self.followers.values()) if self._follow(f, step.end_ns)]
        self._match()
        return advanced

    def _renewals(self, step: Step) -> None:
        """An eventfd-id that is received (again) may be another eventfd's."""
        if not self.followers:
            return
        messages, more = step.of(Kind.RECVMSG), step.of(Kind.MSG_MORE)
        received = np.concatenate([messages["eventfd_ids"].ravel(), more["eventfd_ids"].ravel()])
        for number in set(received.tolist()) & self.followers.keys():
            self.followers[number].renewed = True

    def _take(self, step: Step, rw: Records, tgids: NDArray[np.uint32]) -> list[Watch]:
        """File reads and writes under their eventfd; gives those that were read."""
        is_write = rw["kind"] == Kind.WRITE
        for number, rows in _by_eventfd(rw.take(np.flatnonzero(is_write))):
            self._written.setdefault(number, Eventfd(number, 0)).add_written(
                rows, self._registry.tgids_of(rows["tid"])
            )
        reads, tgids = rw.take(np.flatnonzero(~is_write)), tgids[~is_write]
        for number, rows in _by_eventfd(reads):
            self._read_ns[number] = int(end_ns(rows)[-1])
        wanted = ~np.isin(reads["eventfd_id"], np.fromiter(self._written, np.int64, len(self._written)))
        reads, tgids = reads.take(np.flatnonzero(wanted)), tgids[wanted]
        choices = self._choices.before(step, reads["tid"], reads["enter_ns"])
        touched: dict[int, Watch] = {}
        for row, tgid, choice in zip(reads, tgids.tolist(), choices, strict=True):
            if choice is None:
                continue
            number, enter = int(row["eventfd_id"]), int(row["enter_ns"])
            watch = self._watches.get(number)
            if watch is None or (enter - watch.last_ns > FORGET_NS and number not in self.followers):
                watch = self._watches[number] = Watch(tgid, Eventfd(number, enter))
            watch.add(row, choice)
            touched[number] = watch
        for number, rows in _by_eventfd(reads):
            if number in touched:
                touched[number].eventfd.read.extend(rows)
        return list(touched.values())

    # --- finding -----------------------------------------------------------------

    def _look(self, watch: Watch) -> None:
        """Whether a watched eventfd is a stream's."""
        number = watch.eventfd.id
        if number in self.followers or watch.total < max(MIN_READS, watch.judged + AGAIN_READS):
            return
        watch.judged = watch.total
        if watch.domestic > watch.foreign:
            return  # woken by the VMM itself (a kick, a job) or by a device
        found = watch.cadence(0, self._period)
        if found is None:
            return
        grid = self._grid(watch, found)
        stream = self._new_stream(f"eventfd {number}", watch.tgid, watch.eventfd, grid, "inferred")
        self.followers[number] = Follower(watch, stream, grid)

    def _grid(self, watch: Watch, found: Cadence) -> Grid:
        """The grid of another stream of the same VMM that fits, else a new one."""
        loop, tid = watch.loop(), watch.tid[-1]
        for follower in self.followers.values():
            grid = follower.grid
            if follower.watch.tgid != watch.tgid or (grid.quantum, grid.rate) != (found.quantum, found.rate):
                continue
            off = found.phase_ns - grid.at(round(grid.place(found.phase_ns)))
            if abs(off) <= min(SAME_DRIVER_NS, found.period_ns // 8) or follower.stream.context == tid:
                grid.advance(-off)
                if loop and not grid.tid:
                    grid.tid, grid.tgid = loop, self._registry.tgid(loop)
                return grid
        name = f"{self._registry.comm(loop)}/{loop}" if loop else f"unseen/{watch.eventfd.id}"
        return Grid(
            f"{name}:{found.quantum}/{found.rate}",
            self._registry.tgid(loop),
            loop,
            -1,
            period_ns=found.period_ns,
            interval_ns=found.period_ns,
            quantum=found.quantum,
            rate=found.rate,
            phase_ns=found.phase_ns,
        )

    # --- following ---------------------------------------------------------------

    def _follow(self, follower: Follower, end_ns: int) -> bool:
        """Take over a stream's new reads; whether there were any."""
        before = follower.stream.taken_over
        while True:
            change = follower.follow(end_ns, self._period)
            if change is None:
                break
            if change == "renewed":
                self._end(follower)
                break
            follower.switch(self._grid(follower.watch, change))
        return follower.stream.taken_over > before

    def _end(self, follower: Follower) -> None:
        """The eventfd-id is another eventfd's now: its reads from here on are watched anew."""
        follower.stream.alive = False
        number = follower.watch.eventfd.id
        self.followers.pop(number, None)
        self._watches[number] = follower.rest()

    def drop(self, stream: Stream) -> None:
        """A stream is no longer kept."""
        follower = self.followers.get(stream.wake.id)
        if follower is not None and follower.stream is stream:
            del self.followers[stream.wake.id]
            self._watches.pop(stream.wake.id, None)

    def _match(self) -> None:
        """Find completion eventfds: written in step with the streams by no worker, read by nobody traced."""
        groups: dict[int, list[Follower]] = {}
        for follower in self.followers.values():
            groups.setdefault(id(follower.grid), []).append(follower)
        for group in groups.values():
            missing = [
                f.stream
                for f in group
                if not f.stream.completion_expected and f.stream.taken_over >= f.stream.match_at
            ]
            if not missing:
                continue
            for stream in missing:
                stream.match_at = stream.taken_over * 3 // 2 + 1
            tgid, windows = group[0].watch.tgid, group[0].grid.windows(matching.RANKED_CYCLES)
            workers = {f.stream.context for f in self.followers.values()}
            pairs = [Completion.of(e, tgid) for _, e in sorted(self._written.items()) if tgid in e.written]
            fits = [
                done
                for done in pairs
                if done.id not in self._read_ns
                and done.written.total >= MIN_COMPLETIONS
                and not workers.intersection(done.written.tid)
                and matching.keeps_step(done, windows)
            ]
            if fits:
                matching.match([f.stream for f in group], fits)

    # --- forgetting --------------------------------------------------------------

    def trim(self, horizon_ns: int, now_ns: int) -> None:
        """Forget events before the horizon, and eventfds without events of late."""
        old = now_ns - FORGET_NS
        for number in [n for n, w in self._watches.items() if w.last_ns < old and n not in self.followers]:
            del self._watches[number]
        used = {f.stream.completion.id for f in self.followers.values() if f.stream.completion is not None}
        for follower in self.followers.values():
            follower.watch.eventfd.trim(horizon_ns)
        for number, eventfd in list(self._written.items()):
            eventfd.trim(horizon_ns if number in used else max(horizon_ns, old))
            if not any(s.end for s in eventfd.written.values()) and number not in used:
                del self._written[number]
        for number in [n for n, at in self._read_ns.items() if at < old]:
            del self._read_ns[number]
        self._choices.forget(horizon_ns)


def _by_eventfd(rw: Records) -> list[tuple[int, Records]]:
    """Rows (n,) of dtype RW per eventfd-id, in order."""
    if not len(rw):
        return []
    order = np.argsort(rw["eventfd_id"], kind="stable")
    rw = rw.take(order)
    numbers = rw["eventfd_id"]
    starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
    stops = np.r_[starts[1:], len(rw)]
    return [(int(numbers[a]), rw[a:b]) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
