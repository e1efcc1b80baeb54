# SPDX-License-Identifier: Apache-2.0
"""Reading the ring: ours by mmap and numpy, against BCC's callback per record.

Peer: BCC's ring-buffer callback (libbpf's consume with a ctypes trampoline), once merely counting, which is
the least a callback can do, and once reading two fields by a ctypes structure, as BCC's own examples do. Same
probes, same ring, same target at the same rate; interleaved rounds. All sleep 10 ms in between: our
probes submit without wakeups, so BCC's poll would not return.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import Load, Results, clean, options
from tracer.capture.maps import Maps
from tracer.capture.probes import ProbeConfig, Probes
from tracer.capture.ring import Ring
from tracer.capture.session import Session, Settings

_PAUSE_S = 0.01
_RING_BYTES = 32 << 20


def _measure(read: Callable[[], int], load: Load) -> tuple[int, float]:
    """Read while the load runs; (records, CPU seconds)."""
    load.go()
    start = time.process_time()
    records = 0
    while load.running:
        records += read()
        time.sleep(_PAUSE_S)
    load.join()
    while found := read():
        records += found
    return records, time.process_time() - start


class _Head(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("op", ctypes.c_uint16),
        ("tid", ctypes.c_uint32),
        ("enter_ns", ctypes.c_uint64),
        ("dur_ns", ctypes.c_uint64),
    )


def _bcc_consumer(map_fd: int, callback: Callable[[object, int, int], int]) -> Callable[[], object]:
    """BCC's ring_buffer_consume on a ring of ours: bcc/table.py's wrapper, bcc/libbcc.py's calls."""
    from bcc import libbcc

    def wrapped(context: object, data: int, size: int) -> int:
        return int(callback(context, data, size))

    function: Any = libbcc._RINGBUF_CB_TYPE(wrapped)
    manager: Any = libbcc.lib.bpf_new_ringbuf(map_fd, function, None)
    return lambda: (libbcc.lib.bpf_consume_ringbuf(manager), function)


def _probes(results: Results, row: str, rate: int, seconds: int, callback: str) -> None:
    with Load("rate", str(rate), str(seconds)) as load, Probes(ProbeConfig(ring_bytes=_RING_BYTES)) as probes:
        maps = Maps(probes.maps, probes.config.held_words)
        maps.set_target(load.tgid)
        ring: Ring | None = None
        if callback:
            seen = 0

            def count(_context: object, _data: object, _size: int) -> int:
                nonlocal seen
                seen += 1
                return 0

            pointer = ctypes.POINTER(_Head)
            total_ns = 0

            def decode(_context: object, data: int, _size: int) -> int:
                nonlocal seen, total_ns
                seen += 1
                head = ctypes.cast(data, pointer).contents
                total_ns += head.enter_ns + head.dur_ns
                return 0

            consume = _bcc_consumer(probes.maps["xd_ring"], count if callback == "count" else decode)

            def read() -> int:
                before = seen
                consume()
                return seen - before
        else:
            ring = reader = Ring(probes.maps["xd_ring"], _RING_BYTES)

            def read() -> int:
                return len(reader.read(reader.producer()))

        records, cpu_s = _measure(read, load)
        lost, _map = maps.losses()
        _say(results, row, load, records, cpu_s, lost)
        if ring is not None:
            ring.close()


def _session(results: Results, row: str, rate: int, seconds: int) -> None:
    settings = Settings(audio=False, ring_bytes=_RING_BYTES)
    with Load("rate", str(rate), str(seconds)) as load, Session([load.tgid], settings) as session:
        batches = iter(session)
        next(batches)
        load.go()
        start = time.process_time()
        records = lost = 0
        for batch in batches:
            records += len(batch.records)
            lost = batch.losses.ring
            if not load.running:
                session.stop()
        _say(results, row, load, records, time.process_time() - start, lost)


def _say(results: Results, row: str, load: Load, records: int, cpu_s: float, lost: int) -> None:
    results.add(
        row,
        records_per_cpu_s=records / cpu_s,
        us_per_record=cpu_s / max(1, records) * 1e6,
        records=records,
        lost=lost,
        lost_percent=100 * lost / max(1, lost + records),
        written_per_s=load.count / load.ns * 1e9,
    )


def main() -> None:
    """Run it."""
    chosen = options(__doc__.splitlines()[0] if __doc__ else "")
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    seconds = 2 if chosen.quick else 4
    results = Results("ring")
    try:
        for _ in range(rounds):
            for rate in (100_000, 1_000_000):
                at = f" at {rate:,}/s"
                _probes(results, "xdtrace's reader" + at, rate, seconds, callback="")
                _session(results, "xdtrace's session" + at, rate, seconds)
                _probes(results, "BCC callback, counting" + at, rate, seconds, callback="count")
                _probes(results, "BCC callback, decoding" + at, rate, seconds, callback="decode")
        _session(results, "session, 1 M/s long", 1_000_000, 2 if chosen.quick else 10)
    finally:
        clean()
    results.say(chosen.json)


if __name__ == "__main__":
    main()
