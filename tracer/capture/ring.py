# SPDX-License-Identifier: Apache-2.0
"""The BPF ring buffer, read by mmap and numpy, without a callback per record.

Owns the layout of the kernel's ring (kernel/bpf/ringbuf.c) and the consumer
position. Never interprets a record.
"""

from __future__ import annotations

import mmap
import threading

import numpy as np
from numpy.typing import NDArray

from tracer.schema import RECORD, RECORD_BYTES, RING_HEADER_BYTES, Records, empty_records

_BUSY = np.uint32(1 << 31)
_DISCARD = np.uint32(1 << 30)
_STRIDE = RECORD_BYTES + RING_HEADER_BYTES
_SLOT = np.dtype([("length", "<u4"), ("page_offset", "<u4"), ("record", RECORD)])
assert _SLOT.itemsize == _STRIDE


class Ring:
    """Consumer of one ring buffer map whose records are all RECORD_BYTES long.

    Args:
        map_fd: fd of the BPF_MAP_TYPE_RINGBUF.
        size_bytes: of its data area, a power of two.
    """

    def __init__(self, map_fd: int, size_bytes: int) -> None:
        page = mmap.PAGESIZE
        self._mask = size_bytes - 1
        self._consumer_map = mmap.mmap(
            map_fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0
        )
        # The data area follows itself once more, so that no copy has to wrap.
        self._producer_map = mmap.mmap(
            map_fd, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )
        self._consumer: NDArray[np.uint64] = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer: NDArray[np.uint64] = np.frombuffer(self._producer_map, np.uint64, 1)
        self._slots: NDArray[np.void] = np.frombuffer(
            self._producer_map, _SLOT, 2 * size_bytes // _STRIDE, offset=page
        )
        self._barrier = threading.Lock()

    def producer(self) -> int:
        """The producer's position in bytes; everything before it is reserved, not yet all submitted."""
        return int(self._producer[0])

    def consumed(self) -> int:
        """The consumer's position in bytes."""
        return int(self._consumer[0])

    def read(self, until: int) -> Records:
        """Copy the records before producer position ``until`` and give their room back.

        Stops at the first record that a probe is still writing. Returns dtype RECORD, shape (n,).
        """
        start = int(self._consumer[0])
        count = (until - start) // _STRIDE
        if count <= 0:
            return empty_records()
        # Weakly ordered machines: the headers may not be read before the position, nor the
        # payload before the headers. Taking a lock orders memory on every machine.
        self._fence()
        first = (start & self._mask) // _STRIDE
        slots = self._slots[first : first + count]
        length = slots["length"].copy()
        busy = np.flatnonzero(length & _BUSY)
        if len(busy):
            count = int(busy[0])
            length = length[:count]
        self._fence()
        records = np.ascontiguousarray(slots["record"][:count])
        self._fence()
        self._consumer[0] = start + count * _STRIDE
        discarded = (length & _DISCARD) != 0
        return records[~discarded] if discarded.any() else records

    def _fence(self) -> None:
        with self._barrier:
            pass

    def close(self) -> None:
        """Unmap. Records that were read stay valid: they are copies."""
        # numpy's views must go first, or mmap refuses to close.
        del self._consumer, self._producer, self._slots
        self._consumer_map.close()
        self._producer_map.close()
