# SPDX-License-Identifier: Apache-2.0
"""What the probes add to a write, and to dup + write + close: measured in the session itself.

Owns a few milliseconds before the first batch, in which a thread of our own makes both kinds of
write, traced and not, in turns (the machine's speed changes twofold within a second, so only
neighbours compare). Its records are thrown away. What the raw tracepoints cost every process of
the host is in both turns, hence not in the result (about 0.1 µs a syscall). Judges nothing.
"""

from __future__ import annotations

import fcntl
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from tracer.capture.maps import Maps
from tracer.capture.ring import Ring
from tracer.schema import Kind, Records

_ROUNDS: Final = 9
_WRITES: Final = 40  # a turn is about a tenth of a millisecond: shorter than a time slice
_ONE: Final = (1).to_bytes(8, "little")
_FAR_APART: Final = 64  # bytes: each watched word on a cache line of its own, as in a heap


def calibrate(maps: Maps, ring: Ring, held_words: int) -> dict[str, int]:
    """Measure; facts for the trace's host table, empty where nothing could be measured.

    Args:
        maps, ring: of the loaded probes, before any target is traced; the ring is emptied.
        held_words: how many lock words a target may have watched.

    Returns:
        ``probe_write_ns``, ``probe_dup_ns``: what tracing adds to one write(2), and to one
        fcntl(F_DUPFD_CLOEXEC), write(2) and close(2) together, without watched words;
        ``probe_write_words_ns``, ``probe_dup_words_ns``: with ``held_words`` of them.
    """
    found: list[dict[str, int]] = []
    thread = threading.Thread(
        target=lambda: found.append(_measure(maps, ring, held_words)), name="xdtrace calibrate"
    )
    thread.start()
    thread.join()
    return found[0] if found else {}


def own_tgid() -> int:
    """Our process, as this pid namespace has it."""
    return os.getpid()


def _write(fd: int) -> None:
    os.write(fd, _ONE)


def _dup(fd: int) -> None:
    fresh = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    os.write(fresh, _ONE)
    os.close(fresh)


def _turn(call: Callable[[int], None], fd: int) -> float:
    """ns of one call: the median over a turn, which leaves out the ones that were interrupted."""
    clock = time.perf_counter_ns
    times = []
    for _ in range(_WRITES):
        start = clock()
        call(fd)
        times.append(clock() - start)
    return statistics.median(times)


def _measure(maps: Maps, ring: Ring, held_words: int) -> dict[str, int]:
    tgid = own_tgid()
    lines = np.zeros(max(1, held_words) * _FAR_APART, np.uint8)
    words = tuple(int(lines.ctypes.data) // 4 * 4 + _FAR_APART * at for at in range(held_words))
    added: dict[str, list[float]] = {}
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        for _ in range(_ROUNDS):
            times: dict[str, float] = {}
            for state, watched in (("", None), ("_ns", ()), ("_words_ns", words)):
                if watched is not None:
                    maps.set_target(tgid, 1 if watched else 0, watched)
                for name, call in (("write", _write), ("dup", _dup)):
                    times[f"{name}{state}"] = _turn(call, fd)
            maps.remove_target(tgid)
            for name in ("write", "dup"):
                for state in ("_ns", "_words_ns"):
                    added.setdefault(f"probe_{name}{state}", []).append(times[f"{name}{state}"] - times[name])
    finally:
        maps.remove_target(tgid)
        os.close(fd)
        records = _forget(maps, ring, tgid)
    mine = records["tid"] == threading.get_native_id()
    if int((mine & (records["kind"] == Kind.WRITE)).sum()) < _ROUNDS * _WRITES:
        return {}  # not traced: in a pid namespace our tgid is not the kernel's
    return {name: max(0, round(statistics.median(values))) for name, values in added.items()}


def _forget(maps: Maps, ring: Ring, tgid: int) -> Records:
    """Take our own threads out of the maps and our records out of the ring; returns the records."""
    tids, threads = maps.threads()
    for tid in tids[threads["tgid"] == tgid].tolist():
        maps.delete_thread(tid)
    return ring.read(ring.producer())
