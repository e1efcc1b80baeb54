# SPDX-License-Identifier: Apache-2.0
"""The probes' maps as the session uses them: the filter, in-flight threads, losses.

Owns the Python side of probes/maps.bpf.h (sizes are compared with the kernel's
when the maps are opened). Never decides what to trace.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.capture import bpfsys
from tracer.errors import HostError

ROLE_TRACE = 1
ROLE_LEARN = 2

THREAD = np.dtype(
    [
        ("tgid", "<u4"),
        ("kind", "u1"),
        ("flags", "u1"),
        ("op", "<u2"),
        ("enter_ns", "<u8"),
        ("fd", "<i4"),
        ("eventfd_id", "<i4"),
        ("arg", "<u4"),
        ("generation", "<u2"),
        ("held_in", "<u2"),
        ("a", "<u8"),
        ("b", "<u8"),
        ("readable_in", "<u2"),
        ("nr", "<u2"),
        ("paused", "u1"),
        ("kvm", "u1"),
        ("pad", "<u2"),
        ("paused_ns", "<u8"),
        ("out_ns", "<u8"),
        ("woken_ns", "<u8"),
        ("waker_tid", "<u4"),
        ("waker_tgid", "<u4"),
        ("stolen_ns", "<u4"),
        ("cpu_out", "<u2"),
        ("state", "<u2"),
        ("preempted", "u1"),
        ("waker_in_irq", "u1"),
        ("out_flags", "u1"),
        ("pad2", "u1"),
        ("pad3", "<u4"),
        ("steal_in", "<u8"),
    ]
)
_CPU = np.dtype(
    [("irq_depth", "<u4"), ("pad", "<u4"), ("rq", "<u8"), ("lost_ring", "<u8"), ("lost_map", "<u8")]
)
_LEARNT = np.dtype(
    [("eventfd_fops", "<u8"), ("timerfd_fops", "<u8"), ("task_pid", "<u4"), ("task_matches", "<u4")]
)
_FILTER_SLOTS = 8192
_PLACES = 256  # XD_TARGET_PLACES; 0 is none
_PLACES_PER_SLOT = 8


@dataclass(frozen=True, slots=True)
class Learnt:
    """What the probes recognise now (neither in a pid namespace of our own: their ids are not ours).

    Attributes:
        eventfd: eventfds among files; False too where the probes do not look at files.
        task: without BTF: where ids lie in a task. With BTF it is known anyway, and False here.
    """

    eventfd: bool
    task: bool


class Maps:
    """Typed access to the maps of one loaded object.

    Args:
        fds: map name to fd, of all maps of maps.bpf.h.
        held_words: that the object was compiled with.
    """

    def __init__(self, fds: dict[str, int], held_words: int) -> None:
        self._fds = fds
        self._slots = max(held_words, 1)
        self._places: dict[int, int] = {}  # tgid -> place
        self._next_place = 1
        self._cpus = bpfsys.possible_cpus()
        for name, size_bytes in (
            ("xd_threads", THREAD.itemsize),
            ("xd_cpus", _CPU.itemsize),
            ("xd_targets", 16 + 8 * self._slots),
            ("xd_learnt", _LEARNT.itemsize),
        ):
            found = int(bpfsys.fdinfo(fds[name])["value_size"])
            if found != size_bytes:
                raise HostError(
                    f"map {name} has values of {found} bytes, {size_bytes} were expected",
                    "install xdtrace again: its probes and its Python code are of different versions",
                )
        self.max_threads = int(bpfsys.fdinfo(fds["xd_threads"])["max_entries"])
        self._keys: NDArray[np.uint32] = np.zeros(self.max_threads, np.uint32)
        self._values: NDArray[np.void] = np.zeros(self.max_threads, THREAD)

    def set_target(
        self, tgid: int, generation: int = 0, words: tuple[int, ...] = (), role: int = ROLE_TRACE
    ) -> None:
        """Put a tgid into the filter, its watched words replaced as a whole."""
        padded = (*words, *([0] * (self._slots - len(words))))[: self._slots]
        value = np.array([tgid, role, generation, 0], "<u4").tobytes() + np.array(padded, "<u8").tobytes()
        place = self._free_place()
        bpfsys.map_update(self._fds["xd_targets"], place, value)
        self._places[tgid] = place
        self._filter(tgid)

    def remove_target(self, tgid: int) -> None:
        """Take a tgid out of the filter."""
        if self._places.pop(tgid, 0):
            self._filter(tgid)

    def _free_place(self) -> int:
        """The place that has been free for the longest time: a probe may still look at one just freed."""
        taken = set(self._places.values())
        while self._next_place in taken:
            self._next_place = self._next_place % (_PLACES - 1) + 1
        place = self._next_place
        self._next_place = place % (_PLACES - 1) + 1
        return place

    def _filter(self, tgid: int) -> None:
        """Name the places of all targets of a tgid's slot, at once."""
        slot = tgid % _FILTER_SLOTS
        places = [place for other, place in self._places.items() if other % _FILTER_SLOTS == slot]
        if len(places) > _PLACES_PER_SLOT:
            raise HostError(
                f"{len(places)} targets whose process ids are equal modulo {_FILTER_SLOTS}",
                "trace fewer of them at a time",
            )
        bpfsys.map_update(self._fds["xd_filter"], slot, bytes(places).ljust(8, b"\0"))

    def insert_thread(self, tid: int, value: NDArray[np.void]) -> bool:
        """Add a thread unless a probe already knows it. Returns whether it was added."""
        try:
            bpfsys.map_update(self._fds["xd_threads"], tid, value.tobytes(), bpfsys.NOEXIST)
        except FileExistsError:
            return False
        return True

    def delete_thread(self, tid: int) -> None:
        """Forget a thread."""
        bpfsys.map_delete(self._fds["xd_threads"], tid)

    def threads(self) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
        """All threads in flight: tids (n,) and THREAD values (n,), copies."""
        count = bpfsys.map_lookup_all(self._fds["xd_threads"], self._keys, self._values)
        return self._keys[:count].copy(), self._values[:count].copy()

    def losses(self) -> tuple[int, int]:
        """(failed reserves, failed map updates) since the start, over all CPUs."""
        raw = bpfsys.map_lookup(self._fds["xd_cpus"], 0, self._cpus * _CPU.itemsize)
        cpus = np.frombuffer(raw, _CPU)
        return int(cpus["lost_ring"].sum()), int(cpus["lost_map"].sum())

    def learn(self) -> Learnt:
        """Teach the probes what an eventfd, a timerfd and a task look like, by one of each of our own.

        In a thread, whose tid is not its tgid; other threads' syscalls teach nothing.
        """
        thread = threading.Thread(target=self._teach, name="xdtrace learn")
        thread.start()
        thread.join()
        raw = bpfsys.map_lookup(self._fds["xd_learnt"], 0, _LEARNT.itemsize)
        (found,) = np.frombuffer(raw, _LEARNT)
        return Learnt(eventfd=bool(found["eventfd_fops"]), task=bool(found["task_matches"] == 1))

    def _teach(self) -> None:
        tgid = os.getpid()
        eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        timerfd = _timerfd()
        self.set_target(tgid, words=(threading.get_native_id(),), role=ROLE_LEARN)
        try:
            os.eventfd_write(eventfd, 1)
            with contextlib.suppress(BlockingIOError):
                os.read(timerfd, 8)
        finally:
            self.remove_target(tgid)
            os.close(eventfd)
            os.close(timerfd)


def _timerfd() -> int:
    """A timerfd that never fires."""
    return bpfsys.timerfd_create(time.CLOCK_MONOTONIC)
