# SPDX-License-Identifier: Apache-2.0
"""Eventfd ids from /proc, for kernels whose file structures are unknown.

Owns the map fd -> eventfd id of each target and fills it into records. What it
gives is true for fds that live long enough to be looked at; a dup that is
written once and closed stays without an id. Only used without BTF.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tracer import schema
from tracer.schema import Fd, Flag, Kind, Records

_FAMILIES = (
    ((Kind.READ, Kind.WRITE), schema.RW),
    ((Kind.FD,), schema.FD),
    ((Kind.EPOLL_CTL,), schema.EPOLL_CTL),
)


@dataclass(slots=True)
class FdIds:
    """What is known of the targets' eventfds and timerfds."""

    _ids: dict[tuple[int, int], int] = field(default_factory=dict)
    _timers: set[tuple[int, int]] = field(default_factory=set)

    def learn(self, fds: Iterable[Fd]) -> None:
        """Take what /proc said; a later word on an fd replaces an earlier one."""
        for item in fds:
            key = (item.tgid, item.fd)
            self._ids.pop(key, None)
            self._timers.discard(key)
            if item.type == "eventfd" and item.eventfd_id >= 0:
                self._ids[key] = item.eventfd_id
            elif item.type == "timerfd":
                self._timers.add(key)

    def fill(self, records: Records, tgid_of: Mapping[int, int]) -> None:
        """Write ids and flags into records (n,), dtype RECORD, in place."""
        for kinds, family in _FAMILIES:
            chosen = np.flatnonzero(np.isin(records["kind"], kinds))
            rows = schema.view(records[chosen], family)
            for place in np.flatnonzero(rows["eventfd_id"] < 0).tolist():
                row = rows[place]
                key = (tgid_of.get(int(row["tid"]), 0), int(row["fd"]))
                if key in self._ids:
                    row["eventfd_id"] = self._ids[key]
                    row["flags"] |= np.uint8(Flag.EVENTFD)
                elif key in self._timers and row["kind"] == Kind.READ:
                    row["flags"] |= np.uint8(Flag.TIMERFD)
            records[chosen] = rows.view(schema.RECORD)
