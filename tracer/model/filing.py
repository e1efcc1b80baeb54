# SPDX-License-Identifier: Apache-2.0
"""What was read and written, filed under eventfds: of those alone that an audio server touches.

Owns the births of eventfd-ids, and the forgetting. Ids are used again and again: under churn nearly all
of them are signalled once and never become a stream. Their events stay in the steps' columns, found by
position, until there are events of both sides. Knows no stream.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.eventfds import Eventfd, Series
from tracer.schema import Flag, Kind, Records

#: Syscall number of eventfd2 on x86-64 and arm64: an id's birth.
EVENTFD2: Final = (290, 19)
# Who did what to an eventfd: the last two bits of a group's code.
_VMM_READ, _VMM_WRITE, _AUDIO_READ, _AUDIO_WRITE = 0, 1, 2, 3
#: What must have been done (bit by bit) before somebody asks for an eventfd: signalled and read, or answered.
_STREAM: Final = 1 << _AUDIO_WRITE | 1 << _VMM_READ
_ANSWER: Final = 1 << _AUDIO_READ | 1 << _VMM_WRITE


@dataclass(slots=True)
class _Columns:
    """A step's events on eventfds (n,), those of one eventfd, process role and direction together, by end."""

    enter: list[int]
    end: list[int]
    tid: list[int]
    value: list[int]
    tgid: list[int]
    unread: list[bool]

    def of(self, part: slice) -> tuple[list[int], list[int], list[int], list[int], list[bool]]:
        """A part, as ``Series.append`` takes it."""
        return self.enter[part], self.end[part], self.tid[part], self.value[part], self.unread[part]


class _Loose:
    """An eventfd that nobody asks for yet: where its events are, how many, how many forgotten."""

    __slots__ = ("born_ns", "done", "forgotten", "parts", "total")

    def __init__(self, born_ns: int) -> None:
        self.born_ns = born_ns
        self.done = 0
        self.total = 0
        self.parts: list[tuple[int, _Columns, int, int]] = []  # who did what; from, to
        self.forgotten: dict[tuple[int, int], int] = {}  # by who did what, and tgid

    def signalled_by(self) -> int:
        """The thread that signalled it last, 0 for none."""
        return next((c.tid[b - 1] for how, c, _, b in reversed(self.parts) if how == _AUDIO_WRITE), 0)

    def forget(self, before_ns: int) -> bool:
        """Forget what ended before a time; whether nothing is left."""
        kept = []
        for part in self.parts:
            how, columns, a, b = part
            if columns.end[b - 1] >= before_ns:
                kept.append(part)
                continue
            for tgid in columns.tgid[a:b]:
                self.forgotten[how, tgid] = self.forgotten.get((how, tgid), 0) + 1
        self.parts = kept
        return not kept


class Filing:
    """All eventfds.

    Attributes:
        eventfds: those that an audio server and a VMM use, one writing and the other reading.
        answered: ids of those that the audio server has read.
    """

    def __init__(self) -> None:
        self.eventfds: dict[int, Eventfd] = {}
        self.answered: set[int] = set()
        self._loose: dict[int, _Loose] = {}  # others that an audio server has touched
        self._reborn: dict[int, int] = {}  # ids that were among those, born again since: nothing done yet
        self._forgotten_ns = 0

    def __len__(self) -> int:
        """How many are kept."""
        return len(self.eventfds) + len(self._loose) + len(self._reborn)

    def before_births(self, rows: Records, rw: Records) -> NDArray[np.bool_]:
        """Of a step's events (n,), which were on an eventfd of ``eventfds`` before its id was born again.

        Args:
            rows: the step's FD records. Of an id's births in one step the last counts.
        """
        last = _births(rows)
        found = np.zeros(len(rw), dtype=bool)
        numbers = np.array(sorted(number for number in last if number in self.eventfds), dtype=np.int64)
        if not len(numbers) or not len(rw):
            return found
        born = np.array([last[number] for number in numbers.tolist()], dtype=np.uint64)
        ids = rw["eventfd_id"].astype(np.int64)
        at = np.minimum(np.searchsorted(numbers, ids), len(numbers) - 1)
        before: NDArray[np.bool_] = (numbers[at] == ids) & (rw["enter_ns"] < born[at])
        return before

    def births(self, rows: Records) -> list[int]:
        """Take a step's FD records; those of ``eventfds`` whose ids are other eventfds now."""
        # Of an id's births in one step the last counts: what is done with it is filed after them.
        last = _births(rows)
        over, loose = last.keys() & self.eventfds.keys(), last.keys() & self._loose.keys()
        for number in over:
            del self.eventfds[number]
        self.answered -= over
        for number in loose:
            del self._loose[number]
        again = last.keys() & self._reborn.keys()
        self._reborn.update((number, last[number]) for number in over | loose | again)
        return [number for number in last if number in over]

    def step(self, rw: Records, tgids: NDArray[np.uint32], by_audio: NDArray[np.bool_]) -> set[int]:
        """File a step's events; the ids among ``eventfds`` that had any.

        Args:
            rw: eventfd reads and writes (n,) of VMMs and audio servers, each direction by end.
            tgids: (n,) their processes; by_audio: (n,) whether that is an audio server.
        """
        touched: set[int] = set()
        if not len(rw):
            return touched
        code = rw["eventfd_id"].astype(np.int64) * 4 + by_audio * 2 + (rw["kind"] == Kind.WRITE)
        order = np.argsort(code, kind="stable")
        code, enter = code[order], rw["enter_ns"][order]
        columns = _Columns(
            enter.tolist(),
            (enter + rw["dur_ns"][order]).tolist(),
            rw["tid"][order].tolist(),
            rw["value"][order].tolist(),
            tgids[order].tolist(),
            ((rw["flags"][order] & Flag.PENDING) != 0).tolist(),
        )
        starts = np.flatnonzero(np.concatenate(([True], code[1:] != code[:-1])))
        codes, cuts = code[starts].tolist(), [*starts.tolist(), len(code)]
        for number in dict.fromkeys(group >> 2 for group in codes):
            born_ns = self._reborn.pop(number, None)
            if born_ns is not None:
                self._loose[number] = _Loose(born_ns)
        for group in codes:
            number = group >> 2
            if group & _AUDIO_READ and number not in self.eventfds and number not in self._loose:
                self._loose[number] = _Loose(0)
        for i, group in enumerate(codes):
            number, how = group >> 2, group & 3
            eventfd = self.eventfds.get(number)
            if eventfd is not None:
                self._file(eventfd, how, columns, cuts[i], cuts[i + 1])
                touched.add(number)
                continue
            loose = self._loose.get(number)
            if loose is None:
                continue
            loose.parts.append((how, columns, cuts[i], cuts[i + 1]))
            loose.done |= 1 << how
            loose.total += cuts[i + 1] - cuts[i]
            if loose.done & _STREAM == _STREAM or loose.done & _ANSWER == _ANSWER:
                self._collect(number, self._loose.pop(number))
                touched.add(number)
        return touched

    def only_signalled(self, least: int) -> dict[int, tuple[int, list[int]]]:
        """Eventfds that an audio server signals and nobody reads: how often in all, and when of late.

        Args:
            least: signals in all, of those that are told.
        """
        found = {}
        for number, loose in self._loose.items():
            if loose.total >= least and loose.done == 1 << _AUDIO_WRITE:
                ends = [end for _, columns, a, b in loose.parts for end in columns.end[a:b]]
                found[number] = loose.total, ends
        return found

    def signalled_by(self, tid: int) -> list[Eventfd]:
        """Eventfds that a thread of an audio server was the last to signal, also those that no VMM reads."""
        for number in [n for n, e in self._loose.items() if e.signalled_by() == tid]:
            self._collect(number, self._loose.pop(number))
        return [e for e in self.eventfds.values() if e.signals.tid and e.signals.tid[-1] == tid]

    def _collect(self, number: int, loose: _Loose) -> None:
        """Somebody will ask for an eventfd from now on."""
        eventfd = self.eventfds[number] = Eventfd(number, loose.born_ns)
        for (how, tgid), n in loose.forgotten.items():
            self._series(eventfd, how, tgid).total += n
        for how, columns, a, b in loose.parts:
            self._file(eventfd, how, columns, a, b)
        eventfd.trim(self._forgotten_ns)

    def _series(self, eventfd: Eventfd, how: int, tgid: int) -> Series:
        if how == _VMM_READ:
            return eventfd.read
        if how == _VMM_WRITE:
            return eventfd.written.setdefault(tgid, Series())
        if how == _AUDIO_READ:
            self.answered.add(eventfd.id)
            return eventfd.taken
        return eventfd.signals

    def _file(self, eventfd: Eventfd, how: int, columns: _Columns, a: int, b: int) -> None:
        tgids = columns.tgid[a:b]
        if how != _VMM_WRITE or tgids.count(tgids[0]) == len(tgids):
            self._series(eventfd, how, tgids[0]).append(*columns.of(slice(a, b)))
            return
        for i, tgid in enumerate(tgids, a):  # several VMMs write it
            self._series(eventfd, how, tgid).append(*columns.of(slice(i, i + 1)))

    def forget(self, before_ns: int, kept: Container[int]) -> list[int]:
        """Forget events that ended before a time, and ``eventfds`` without any but ``kept`` ones; which."""
        self._forgotten_ns = max(self._forgotten_ns, before_ns)
        gone = [n for n, e in self.eventfds.items() if e.trim(before_ns) and n not in kept]
        for number in gone:
            del self.eventfds[number]
            self.answered.discard(number)
        for number in [n for n, e in self._loose.items() if e.forget(before_ns)]:
            del self._loose[number]
        self._reborn.clear()
        return gone


def _births(rows: Records) -> dict[int, int]:
    """When each eventfd-id was last born among FD records (n,)."""
    op, ids = rows["op"], rows["eventfd_id"]
    born = np.flatnonzero(((op == EVENTFD2[0]) | (op == EVENTFD2[1])) & (ids >= 0))
    return dict(zip(ids[born].tolist(), rows["enter_ns"][born].tolist(), strict=True))
