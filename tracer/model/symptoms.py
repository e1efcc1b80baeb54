# SPDX-License-Identifier: Apache-2.0
"""Troubles that show in syscalls long before, or without, a missed period; as findings.

Owns four checks: a W or G that stands in one call for seconds (and under which lock), lock waits that
were sleeps of the holder, fds that are taken in and never closed, a stream starved by its own channel.
Reads the state of the analysis, changes nothing of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tracer.model.blame import syscall_label
from tracer.model.callkinds import closes
from tracer.model.held import Held
from tracer.model.locks import Locks
from tracer.model.misses import MissState
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summary import Finding
from tracer.schema import RECORD, RW, Kind, Records, view

#: A call of W or G that takes so long is told: no cycle of any period survives it.
STANDS_NS: Final = 1_000_000_000
#: A holder's sleep is told from this longest wait, and from this much waiting in all.
SLEEP_NS: Final = 5_000_000
SLEEPS_NS: Final = 20_000_000
#: Buckets of the fd balance; a leak grows in nearly all of them, and by more than streams alive at a time.
BUCKET_NS: Final = 1_000_000_000
BUCKETS: Final = 10
LEAKED_FDS: Final = 200
#: So many origins served after the channel make starvation by it a finding.
STARVED: Final = 3
_MAX_STANDS: Final = 64


@dataclass(slots=True)
class _Stand:
    longest_ns: int
    words: frozenset[int]
    tgid: int


@dataclass(slots=True)
class Symptoms:
    """What the checks count; ``held`` says which word a mask's bit means."""

    registry: Registry
    held: Held
    stands: dict[tuple[int, str], _Stand] = field(default_factory=dict)
    _fds: dict[int, deque[list[int]]] = field(default_factory=dict)  # per tgid: [bucket, taken in, closed]

    def step(self, step: Step) -> None:
        """Take over one step's records."""
        for kind in (Kind.READ, Kind.WRITE, Kind.RECVMSG, Kind.SENDMSG, Kind.SYSCALL):
            opened = step.opened(kind)
            for i in np.flatnonzero(opened["dur_ns"] >= np.uint64(STANDS_NS)).tolist():
                self._stands(opened[i : i + 1])
        self._balance(step)

    def _stands(self, row: Records) -> None:
        tid, kind = int(row["tid"][0]), int(row["kind"][0])
        role, tgid = self.registry.role(tid), self.registry.tgid(tid)
        label = syscall_label(row.view(RECORD), tgid, self.registry)
        idle = (
            role == "G" and kind == int(Kind.READ) and int(view(row.view(RECORD), RW)["eventfd_id"][0]) >= 0
        )
        if role not in ("W", "G") or idle:
            return
        watched = self.held.words_of(tgid, int(row["generation"][0]))
        mask = int(row["held_in"][0]) & int(row["readable_in"][0])
        words = frozenset(word for bit, word in enumerate(watched) if word and mask >> bit & 1)
        known = self.stands.get((tid, label))
        if known is None and len(self.stands) >= _MAX_STANDS:
            return
        if known is None or known.longest_ns < int(row["dur_ns"][0]):
            self.stands[tid, label] = _Stand(int(row["dur_ns"][0]), words, tgid)

    def _balance(self, step: Step) -> None:
        received, fds = step.of(Kind.RECVMSG), step.of(Kind.FD)
        bucket = step.end_ns // BUCKET_NS
        receivers, users = self.registry.tgids_of(received["tid"]), self.registry.tgids_of(fds["tid"])
        is_close = closes(fds["op"])
        made, closed_well = ~is_close & (fds["ret"] >= 0), is_close & (fds["ret"] == 0)
        for tgid, target in self.registry.targets.items():
            if target.role != "vmm":
                continue
            mine = users == tgid
            taken = int(received["nfds"][receivers == tgid].sum()) + int((mine & made).sum())
            closed = int((mine & closed_well).sum())
            rows = self._fds.setdefault(tgid, deque(maxlen=BUCKETS + 1))
            if not rows or rows[-1][0] != bucket:
                rows.append([bucket, 0, 0])
            rows[-1][1] += taken
            rows[-1][2] += closed

    # ---- findings

    def findings(self, locks: Locks, misses: Iterable[MissState]) -> Iterator[Finding]:
        """What the counts amount to."""
        yield from self._standing(locks)
        yield from self._leaks()
        yield from _sleeps(self.registry, locks)
        yield from _starved(misses)

    def _standing(self, locks: Locks) -> Iterator[Finding]:
        for (tid, label), stand in sorted(self.stands.items()):
            names = [locks.label(stand.tgid, word) for word in sorted(stand.words)]
            under = f" while {' and '.join(names)} stayed held" if names else ""
            who = (
                "every context waits for it"
                if self.registry.role(tid) == "G"
                else "its streams get no wakeup"
            )
            hint = f"see what it waits for: /proc/{stand.tgid}/task/{tid}/stack and fdinfo"
            if self.registry.role(tid) == "W" and label == "read(eventfd)":
                hint += "; item ids that collide with event tokens (rutabaga_gfx 0.1.8x) do this"
            yield Finding(
                f"{self.registry.comm(tid)!r} (tid {tid}) stood in {label} for "
                f"{stand.longest_ns / 1e9:.1f} s{under}",
                f"{who} meanwhile" + (", and so does who needs the lock" if names else ""),
                hint,
                "alert",
            )

    def _leaks(self) -> Iterator[Finding]:
        for tgid, rows in sorted(self._fds.items()):
            whole = list(rows)[:-1]  # the last bucket may still be going on
            net = [taken - closed for _, taken, closed in whole]
            if len(net) == BUCKETS and sum(net) >= LEAKED_FDS and sum(n > 0 for n in net) >= BUCKETS - 1:
                yield Finding(
                    f"pid {tgid} took in {sum(net)} fds more than it closed in the last {BUCKETS} s",
                    "they grow without end: at its limit of open files new streams fail",
                    f"compare `ls /proc/{tgid}/fd | wc -l` over time; look for items that are never hung up",
                )


def _sleeps(registry: Registry, locks: Locks) -> Iterator[Finding]:
    """Locks whose waiters waited for a holder that stood in a syscall."""
    worst: dict[tuple[int, int], tuple[int, int, int, str]] = {}
    for cell in locks.holders.cells.cells.values():
        if not cell.syscall or cell.syscall.startswith("futex") or cell.max_ns < SLEEP_NS:
            continue
        if cell.total_ns >= SLEEPS_NS and registry.is_vmm(cell.tgid) and locks.is_lock(cell.tgid, cell.word):
            found = cell.total_ns, cell.max_ns, cell.holder_tid, cell.syscall
            worst[cell.tgid, cell.word] = max(worst.get((cell.tgid, cell.word), found), found)
    for (tgid, word), (total, longest, tid, syscall) in sorted(worst.items()):
        yield Finding(
            f"{locks.label(tgid, word)} is held by {registry.comm(tid)!r} over {syscall}: "
            f"waited for {total / 1e6:.0f} ms in all, {longest / 1e6:.1f} ms at worst",
            "whoever needs the lock waits as long as that call takes",
            "do that call outside the lock, or make it non-blocking",
        )


def _starved(misses: Iterable[MissState]) -> Iterator[Finding]:
    """Streams whose eventfd was ready while W served the channel."""
    origins: dict[str, int] = {}
    for miss in misses:
        case = miss.case
        if case is None or "serialised" not in miss.cause:
            continue
        first = case.path.went_first
        if first and first.get("channel", 0) == max(first.values()):
            origins[miss.cycle.stream.title] = origins.get(miss.cycle.stream.title, 0) + 1
    for stream, n in sorted(origins.items()):
        if n >= STARVED:
            yield Finding(
                f"{stream} is starved by its context's channel: {n} times W served arriving fds first",
                "W serves one event per fence round trip; the channel stays first while fds keep arriving",
                "give the stream a client connection of its own, or let the worker serve ready fds in turn",
            )
