# SPDX-License-Identifier: Apache-2.0
"""The tables of locks: Locks, Blame and Held.

Owns their columns and order: harm first (misses caused), then time waited, never the
count of waits. Computes nothing but text.
"""

from __future__ import annotations

from rich.text import Text

from tracer.model.summary import Summary
from tracer.model.summaryrows import BlameRow, HeldRow, LockRow
from tracer.views.fmt import BAD, DIM, NONE, WARN, clean, count, duration, percent
from tracer.views.grid import Block, Cell, Column, table, table_wants

#: Behind an operation that no symbol names: told from its thread's syscalls (model/operations.py).
INFERRED = "*"


def sort_locks(rows: tuple[LockRow, ...], order: str) -> list[LockRow]:
    """By misses caused, then time waited, what is no lock last; by time waited; or by name."""
    if order == "name":
        return sorted(rows, key=lambda k: (k.name, k.instance, k.address))
    if order == "time":
        return sorted(rows, key=lambda k: (-k.wait_ns.total, k.name, k.address))
    return sorted(rows, key=lambda k: (not k.is_lock, -k.misses_caused, -k.wait_ns.total, k.name, k.address))


def _caused(misses: int) -> Cell:
    return (count(misses), BAD if misses else "")


def _who(lock: LockRow) -> str:
    return (
        f"{clean(lock.top_waiter)} ← {clean(lock.top_holder)}" if lock.top_waiter or lock.top_holder else ""
    )


def _name(lock: LockRow) -> str:
    return clean(lock.name) or f"lock@{lock.address:#x}"


def _kind(lock: LockRow) -> str:
    return "" if lock.kind == "mutex" else clean(lock.kind.replace("_", " "))


def _hold(lock: LockRow) -> str:
    hold = lock.hold_ns
    return f"{duration(hold.p50)} / {duration(hold.p99)}" if hold.n else NONE


def render_locks(summary: Summary, *, sort: str = "harm") -> Block:
    """One row per contended lock word."""
    several = len({lock.tgid for lock in summary.locks}) > 1
    columns: list[Column[LockRow]] = [
        Column("lock", _name, least=18, most=30),
        Column("instance", lambda k: (clean(k.instance), DIM), 4, least=12, most=18),
        Column("missed", lambda k: _caused(k.misses_caused), right=True),
        Column("wait total", lambda k: duration(k.wait_ns.total), right=True),
        Column("max", lambda k: duration(k.wait_ns.max), 1, right=True),
        Column("p99", lambda k: duration(k.wait_ns.p99), 2, right=True),
        Column("p50", lambda k: duration(k.wait_ns.p50), 5, right=True),
        Column("waits", lambda k: count(k.contended), 2, right=True),
        Column("barged", lambda k: count(k.barged), 6, right=True),
        Column("hold p50 / p99", _hold, 5, right=True),
        Column("top waiter ← holder", _who, 3, least=30, most=44),
        Column("kind", _kind, 6),
        Column("vmm", lambda k: str(k.tgid) if several else "", 3, right=True),
        Column("named by", lambda k: (k.named_by, DIM), 7),
    ]
    rows = sort_locks(summary.locks, sort)
    note = {"harm": "misses caused, then time waited", "time": "time waited", "name": "name"}[sort]
    empty = "no thread waited for a lock"
    return Block(
        lambda width, height: table("Locks", f"sorted by {note}", columns, rows, width, height, empty=empty),
        table_wants(rows, empty),
    )


def _operation(name: str, named_by: str) -> str:
    """What a thread did; told from its syscalls alone it carries a mark."""
    return clean(name) + (INFERRED if named_by == "behaviour" else "")


def render_blame(summary: Summary) -> Block:
    """Who held which lock, doing what, while whom waited."""
    columns: list[Column[BlameRow]] = [
        Column("lock", lambda b: clean(b.lock), least=14, most=28),
        Column("held by", lambda b: _operation(b.holder_operation, b.holder_named_by), least=10, most=34),
        Column("in syscall", lambda b: clean(b.holder_syscall), 2, least=6, most=24),
        Column("waiting", lambda b: _operation(b.victim_operation, b.victim_named_by), least=10, most=34),
        Column("missed", lambda b: _caused(b.misses), 1, right=True),
        Column("wait total", lambda b: duration(b.wait_ns_total), 1, right=True),
        Column("max", lambda b: duration(b.wait_ns_max), 2, right=True),
        Column("waits", lambda b: count(b.waits) if b.waits else "", 4, right=True),
    ]
    inferred = any("behaviour" in (b.holder_named_by, b.victim_named_by) for b in summary.blame)
    note = "what the holder did × who waited" + (f"; {INFERRED}: told by its syscalls" if inferred else "")
    rows = sorted(summary.blame, key=lambda b: (-b.misses, -b.wait_ns_total, b.lock, b.holder_operation))
    return Block(lambda width, height: table("Blame", note, columns, rows, width, height), table_wants(rows))


def _inside(row: HeldRow) -> Cell:
    return ("under it", WARN) if row.inside else ""


def held_order(row: HeldRow) -> tuple[bool, bool, float, int, str, int]:
    """What runs under a lock first; of that, what audio waits for (it tells the write path)."""
    audio = row.object in ("completion", "stream")
    return (not row.inside, not audio, -row.held_fraction, -row.samples, row.lock, row.tid)


def render_held(summary: Summary) -> Block:
    """Which syscalls were entered while a lock word was held: its state, not the thread's."""
    columns: list[Column[HeldRow]] = [
        Column("lock", lambda h: clean(h.lock), least=10, most=28),
        Column("thread", lambda h: f"{h.role} {h.tid}".strip(), 1),
        Column("syscall", lambda h: clean(h.syscall)),
        Column("on", lambda h: clean(h.object), least=8, most=34),
        Column("held", lambda h: percent(h.held_fraction), right=True),
        Column("base", lambda h: percent(h.base), 3, right=True),
        Column("samples", lambda h: count(h.samples), 2, right=True),
        Column("", _inside, 1),
    ]
    rows = sorted(summary.held, key=held_order)
    return Block(
        lambda width, height: table(
            "Held", "how often a lock was held when a syscall began", columns, rows, width, height
        ),
        table_wants(rows),
    )


def render_lock_evidence(summary: Summary) -> Block:
    """Why each lock carries its name, one line each (the screen of locks in full)."""

    def build(width: int, height: int | None) -> list[Text]:
        columns: list[Column[LockRow]] = [
            Column("lock", _name, least=18, most=28),
            Column("address", lambda k: f"{k.address:#x}", 1),
            Column("named by", lambda k: k.named_by),
            Column("because", lambda k: (clean(k.evidence), DIM), least=16, most=100),
        ]
        rows = [lock for lock in sort_locks(summary.locks, "harm") if lock.evidence]
        return table("Names", "", columns, rows, width, height)

    return Block(build)
