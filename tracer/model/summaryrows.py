# SPDX-License-Identifier: Apache-2.0
"""The rows of a Summary's tables: processes, threads, streams, locks, blame, held words, write paths.

Owns their shape alone, documented in docs/summary.md. Times are integer ns (CLOCK_MONOTONIC); ``None`` means
not known, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A traced process; crate and version of its cross-domain device, "" where not found."""

    tgid: int
    role: str
    comm: str
    exe: str
    build_id: str
    crate: str = ""
    version: str = ""
    alive: bool = True


@dataclass(frozen=True, slots=True)
class ThreadRow:
    """A thread. ``role``: G, W, D, vcpu, fence, task or ""; ``role_by``: behaviour or name."""

    tid: int
    tgid: int
    role: str
    comm: str
    policy: str = ""
    priority: int = 0
    cpus: str = ""
    throttled_ns: int = -1
    role_by: str = ""
    alive: bool = True


@dataclass(frozen=True, slots=True)
class DriverRow:
    """A driver of cycles. ``events``: late_start, skipped, catch_up -> count."""

    id: str
    tgid: int
    period_ns: int
    events: Mapping[str, int]
    cycles: int = 0


@dataclass(frozen=True, slots=True)
class Slack:
    """Deadline minus closing read, ns; negative: late."""

    p50: int | None = None
    p1: int | None = None
    min: int | None = None


@dataclass(frozen=True, slots=True)
class SlackBin:
    """Cycles whose deadline lies in one stretch of time: what a picture of slack over time is drawn from.

    ``least_ns`` and ``mean_ns``: slack of those on time. ``late_ns``: of the latest missed one, 0 if
    none closed.
    """

    start_ns: int
    cycles: int
    misses: int
    least_ns: int | None
    mean_ns: int | None
    late_ns: int | None


@dataclass(frozen=True, slots=True)
class StreamRow:
    """A stream: one eventfd that the audio server signals every cycle.

    ``context`` is W's tid. ``misses`` counts every missed cycle, the ``carried`` ones included.
    ``recent``: slack per recent cycle (oldest first) for a sparkline, ns, None = missed.
    ``audible``: misses by yes, no, unknown. ``slack_bins``: the whole recording in at most 256 stretches
    of ``slack_bin_ns``, in the last summary only.
    """

    id: str
    name: str
    tgid: int
    context: int
    driver: str | None
    wake_eventfd: int
    completion_eventfd: int | None
    period_ns: int
    source: str
    confidence: float
    cycles: int
    misses: int
    carried: int
    episodes: int
    misses_by_leg: Mapping[str, int]
    misses_by_cause: Mapping[str, int]
    slack_ns: Slack
    alive: bool = True
    recent: tuple[int | None, ...] = ()
    audible: Mapping[str, int] = field(default_factory=dict)
    slack_bin_ns: int = 0
    slack_bins: tuple[SlackBin, ...] = ()

    @property
    def title(self) -> str:
        """What every view calls it."""
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class WaitBin:
    """Waits of at least ``from_ns`` and less than ``to_ns``."""

    from_ns: int
    to_ns: int
    waits: int


#: Kinds of LockRow that are locks; the others are waits of another sort.
LOCK_KINDS: Final = ("mutex", "pthread", "condvar_relock", "parked")


@dataclass(frozen=True, slots=True)
class WaitStats:
    """Of a lock's waits, ns."""

    p50: int
    p99: int
    max: int
    total: int


@dataclass(frozen=True, slots=True)
class HoldStats:
    """Of a lock's holds, ns; ``source`` says how they were seen (held_words, wakes, none)."""

    n: int
    source: str
    p50: int | None
    p99: int | None


@dataclass(frozen=True, slots=True)
class LockRow:
    """A lock word. ``kind``: mutex (Rust std), pthread, condvar_relock; parked: a waiter's own word, which it
    waited on for a lock that a period was late for.

    In a program without a worker of the cross-domain device also what is no lock: park,
    semaphore_or_condvar, condvar, shared, other.

    ``wait_bins``: how long the waits were, half an octave each, in the last summary only.
    """

    name: str
    instance: str
    address: int
    tgid: int
    named_by: str
    contended: int
    barged: int
    wait_ns: WaitStats
    hold_ns: HoldStats
    misses_caused: int
    kind: str = "mutex"
    evidence: str = ""
    top_waiter: str = ""
    top_holder: str = ""
    wait_bins: tuple[WaitBin, ...] = ()

    @property
    def is_lock(self) -> bool:
        """Whether threads exclude each other by it."""
        return self.kind in LOCK_KINDS


@dataclass(frozen=True, slots=True)
class BlameRow:
    """Holder's operation and syscall x victim's operation on one lock.

    ``holder_named_by``, ``victim_named_by``: symbols, behaviour (told by syscalls), none (a thread's name).
    """

    lock: str
    holder_operation: str
    holder_syscall: str
    victim_operation: str
    wait_ns_total: int
    wait_ns_max: int
    misses: int
    waits: int = 0
    holder_named_by: str = "none"
    victim_named_by: str = "none"


@dataclass(frozen=True, slots=True)
class HolderRow:
    """Blame by lock and what its holder did, over all syscalls and victims; ``named_by`` as in BlameRow."""

    lock: str
    operation: str
    wait_ns_total: int
    wait_ns_max: int
    misses: int
    waits: int
    named_by: str = "none"


@dataclass(frozen=True, slots=True)
class HeldRow:
    """How often a lock word was held when a thread entered a syscall on an object.

    ``base``: the word's held fraction over threads that never wait on it, None if none was seen.
    """

    lock: str
    tid: int
    role: str
    syscall: str
    object: str
    samples: int
    held_fraction: float
    base: float | None = None
    inside: bool = False


@dataclass(frozen=True, slots=True)
class CostStats:
    """Cost of forwarding one completion: (dup +) write (+ close), ns."""

    p50: int | None
    p99: int | None


@dataclass(frozen=True, slots=True)
class WritePath:
    """Which of the four write paths a VMM runs. ``why``: the evidence in words.

    ``write_ns``: write(2) alone. ``correction_ns``: what the probes add to dup and close, None where
    the session did not calibrate it; ``cost_corrected_ns``: the median cost without that.
    ``extra_ns``: what a write takes beyond write(2) itself, write by write.
    """

    kind: str
    evidence: str
    crate: str
    version: str
    cost_ns: CostStats
    writes: int
    why: str = ""
    write_ns: CostStats = field(default_factory=lambda: CostStats(None, None))
    correction_ns: int | None = None
    cost_corrected_ns: int | None = None
    extra_ns: CostStats = field(default_factory=lambda: CostStats(None, None))
