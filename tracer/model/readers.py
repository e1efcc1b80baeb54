# SPDX-License-Identifier: Apache-2.0
"""The readings of W and G, kept with their tracks and brought up to date when first asked for.

Owns when a reading is still good: what a word, a poll or a wait means may be known better since.
"""

from __future__ import annotations

from collections.abc import Callable

from tracer.model.gpureading import GpuReading
from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.roles import Roles
from tracer.model.track import Track
from tracer.model.workerreading import WorkerReading

#: Where some of a thread's syscalls begin and end, and some of its off-CPU spans.
Bounds = tuple[tuple[int, int], tuple[int, int]]


class Readers:
    """Reads W's and G's spans, each once."""

    def __init__(self, registry: Registry, locks: Locks, roles: Roles) -> None:
        self._registry = registry
        self._locks = locks
        self._roles = roles
        self._up_to_date: set[WorkerReading | GpuReading] = set()

    def forget(self) -> None:
        """There are more records, or more is known of locks and roles."""
        self._up_to_date.clear()

    def _is_lock(self, tgid: int) -> Callable[[int], bool]:
        is_lock = self._locks.is_lock
        return lambda word: is_lock(tgid, word)

    def worker(self, track: Track, tid: int, tgid: int) -> WorkerReading:
        """W's spans as turns."""
        reading = track.worker
        if reading is None or reading not in self._up_to_date:
            is_lock, works = self._is_lock(tgid), self._roles.other_waits(tid)
            by_wake = self._roles.interrupts_by_wake(tgid)
            if reading is not None and reading.holds(track, is_lock, by_wake=by_wake, works=works):
                reading.read_on()
            else:
                reading = track.worker = WorkerReading(track, is_lock, by_wake=by_wake, works=works)
            self._up_to_date.add(reading)
        return reading

    def gpu(self, track: Track, tid: int, bounds: Bounds) -> GpuReading:
        """G's spans as commands.

        Args:
            bounds: what must be known of it; where G shows no call for its queue, that is read by itself.
        """
        reading, tgid = track.gpu, self._registry.tgid(tid)
        if reading is None or reading not in self._up_to_date:
            is_lock, parks = self._is_lock(tgid), self._roles.parks(tid)
            if reading is not None and reading.holds(track, is_lock, parks=parks):
                reading.read_on()
            else:
                reading = track.gpu = GpuReading(track, is_lock, parks=parks)
            self._up_to_date.add(reading)
        if reading.kicked(*bounds[0]):
            return reading
        return GpuReading(track, self._is_lock(tgid), parks=self._roles.parks(tid), only=bounds)
