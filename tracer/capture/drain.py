# SPDX-License-Identifier: Apache-2.0
"""The ring emptied in time, however long the consumer of batches takes.

Owns a thread that does nothing but copy records out of a filling ring, and the
copies until they are taken. What is taken is exactly what a single reader at
that moment would have read: batches do not depend on when the thread ran.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

import numpy as np

from tracer.capture.ring import Ring
from tracer.schema import RECORD, RECORD_BYTES, Records, empty_records

# So often the ring is looked at; 1 M records/s of 64 bytes fill 16 MiB in 262 ms.
_LOOK_EVERY_S = 0.05
# Below this there is no hurry: the batch will take it.
_HURRY = 16
# Copies are kept up to this; then the ring is left to fill, and the kernel counts what does not fit.
_MAX_KEPT_BYTES = 1 << 30
# The thread must get a CPU on a host where everything else wants one: it asks for little.
_NICE = -10


class Drain:
    """Reads a ring in time. Use take() from one thread only.

    Args:
        ring: its consumer; read by nobody else from now on.
        size_bytes: of its data area.
    """

    def __init__(self, ring: Ring, size_bytes: int) -> None:
        self._ring = ring
        self._hurry_bytes = size_bytes // _HURRY
        self._lock = threading.Lock()
        self._kept: list[Records] = []
        self._kept_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="xdtrace ring", daemon=True)
        self._thread.start()

    def take(self) -> tuple[Records, int, bool]:
        """Everything submitted so far.

        Returns:
            Records (n,) in ring order; CLOCK_MONOTONIC in ns before the end of the ring was
            looked up; whether the ring was read up to there (not where a probe is just writing).
        """
        with self._lock:
            # The time is read before the position: what is submitted later ends later.
            at_ns = time.monotonic_ns()
            until = self._ring.producer()
            kept, self._kept, self._kept_bytes = self._kept, [], 0
            kept.append(self._ring.read(until))
            complete = self._ring.consumed() >= until
        return in_order(kept), at_ns, complete

    def close(self) -> None:
        """Stop the thread, and close the ring."""
        self._stop.set()
        self._thread.join()
        self._ring.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stop.wait(_LOOK_EVERY_S):
            if self._ring.producer() - self._ring.consumed() <= self._hurry_bytes:
                continue
            with self._lock:
                if self._kept_bytes < _MAX_KEPT_BYTES:
                    self._kept.append(self._ring.read(self._ring.producer()))
                    self._kept_bytes += len(self._kept[-1]) * RECORD_BYTES


def in_order(parts: list[Records]) -> Records:
    """Record arrays as one, dtype RECORD (n,); a single one that is not empty is not copied.

    As raw bytes: numpy compares the fields of structured dtypes anew at each concatenation.
    """
    parts = [part for part in parts if len(part)]
    if len(parts) < 2:
        return parts[0] if parts else empty_records()
    raw = np.dtype((np.void, RECORD_BYTES))
    return np.concatenate([part.view(raw) for part in parts]).view(RECORD)
