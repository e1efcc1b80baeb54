# SPDX-License-Identifier: Apache-2.0
"""What a VMM's eventfds are to it, told by which of its threads reads and writes each.

Owns the ids by use, of the cross-domain device's worker and command thread alone. Streams are streams.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tracer.model.callkinds import closes
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.schema import FD, RW, Flag, Kind, Records

#: Ids remembered of each use; some are forgotten beyond.
_MAX_IDS: Final = 4096


@dataclass(slots=True)
class _Ids:
    """Eventfd-ids of a process by use."""

    taken: set[int] = field(default_factory=set)  # read by a worker
    raised: set[int] = field(default_factory=set)  # written by a worker: the interrupt
    signalled: set[int] = field(default_factory=set)  # written, not with 0, by the command thread


class Uses:
    """What eventfds are to a VMM: items, its interrupt, or the event by which G hands W a job.

    Args:
        is_target: whether an eventfd-id is known to be a stream's completion.
    """

    def __init__(self, registry: Registry, is_target: Callable[[int], bool]) -> None:
        self.registry = registry
        self._is_target = is_target
        self._of: dict[int, _Ids] = {}

    def step(self, step: Step) -> None:
        """Learn from one step's reads, writes and closes."""
        for role in ("W", "G"):
            for tid in self.registry.with_role(role):
                calls = step.threads.calls(tid)
                if not len(calls):
                    continue
                ids = self._of.setdefault(self.registry.tgid(tid), _Ids())
                self._learn(ids, role, calls)
        for ids in self._of.values():
            for known in (ids.taken, ids.raised, ids.signalled):
                while len(known) > _MAX_IDS:
                    known.pop()

    @staticmethod
    def _learn(ids: _Ids, role: str, calls: Records) -> None:
        kind, number = calls["kind"], calls.view(RW)["eventfd_id"]
        eventfd = (calls["flags"] & Flag.EVENTFD) != 0
        is_close = (kind == int(Kind.FD)) & closes(calls["op"])
        closed = set(calls.view(FD)["eventfd_id"][is_close].tolist())
        writes = eventfd & (kind == int(Kind.WRITE))
        # An id lives on in another's eventfd: what was only ever an item is forgotten with it.
        ids.taken -= closed
        ids.signalled -= closed
        if role == "W":
            ids.taken |= set(number[eventfd & (kind == int(Kind.READ))].tolist()) - closed
            ids.raised |= set(number[writes].tolist())
        else:
            ids.signalled |= set(number[writes & (calls.view(RW)["value"] != 0)].tolist()) - closed

    def write(self, tgid: int, eventfd_id: int) -> str:
        """What a write to an eventfd is: ``irq``, ``resample``, ``item`` or "" where it may be either."""
        ids = self._of.get(tgid)
        if ids is None:
            return ""
        if eventfd_id in ids.raised:
            return "irq"
        resample = ids.taken & ids.signalled
        if eventfd_id in resample:
            return "resample"
        return "item" if resample or self._is_target(eventfd_id) else ""

    def read(self, tgid: int, eventfd_id: int) -> str:
        """What a worker's read of an eventfd is: ``resample`` or ``item``."""
        ids = self._of.get(tgid)
        return "resample" if ids is not None and eventfd_id in ids.signalled else "item"
