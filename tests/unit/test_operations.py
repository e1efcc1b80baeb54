# SPDX-License-Identifier: Apache-2.0
"""Operations told by the syscalls before, under and after a lock, and those that must not be told."""

from __future__ import annotations

import pytest
import records as r

from tracer.model.locks import Locks
from tracer.model.names import Names
from tracer.model.operations import RELOCK, tell
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summaryrows import BlameRow
from tracer.schema import LockSymbol, Records, Target, Thread

VMM, W, G = 100, 1, 2
ITEM = 0x1000
IRQ, RESAMPLE, STREAM, TARGET = 8, 9, 10, 11


def blame(*parts: Records, cut_ns: int = 1) -> list[BlameRow]:
    """The rows of a trace, cut at a time, when all of it is settled."""
    known = Registry()
    known.learn(
        targets=[Target(VMM, "vmm", "vmm")],
        threads=[Thread(W, VMM, "cross domain"), Thread(G, VMM, "gpu worker")],
        lock_symbols=[LockSymbol(VMM, ITEM, "item_state", "user")],
    )
    known.threads[W].role, known.threads[G].role = "W", "G"
    locks = Locks(known)
    locks.namer = Names(known, locks)
    for part, end in r.steps(r.trace(*parts), (cut_ns,)):
        locks.step(Step(part, end))
    locks.step(Step(r.trace(), 2_000_000_000))
    return list(locks.blame())


def learnt() -> Records:
    """W raises the interrupt and reads what G writes to hand it a job."""
    return r.trace(
        r.write(G, 1_000, 1_500, eventfd=RESAMPLE),
        r.read(W, 2_000, 2_500, eventfd=RESAMPLE),
        r.write(W, 3_000, 3_500, eventfd=IRQ),
    )


def wait(tid: int, holder: int, at: int, hold: int = 5_000) -> Records:
    """A wait of 5 us for the holder's wake; its own release comes ``hold`` after it has the lock."""
    return r.trace(
        r.wait(tid, ITEM, at, at + 5_000),
        r.wake(holder, ITEM, at + 4_900),
        r.wake(tid, ITEM, at + 5_000 + hold),
    )


AT = 150_000_000


@pytest.mark.parametrize(
    ("calls", "operation"),
    [
        ([r.write(G, AT + 6_000, AT + 6_500, eventfd=TARGET)], "write"),
        ([r.write(G, AT + 6_000, AT + 6_500, fd=70)], "write"),
        ([r.dup(G, AT + 6_000, AT + 6_500, fd=3, new_fd=9, eventfd=TARGET)], "write"),
        ([r.write(G, AT + 6_000, AT + 6_500, eventfd=RESAMPLE)], "read_event_new"),
        ([r.syscall(G, AT + 6_000, AT + 6_500, number=72)], "create_blob"),
        # outside the lock it may be the next command's: not told
        ([r.write(G, AT + 12_000, AT + 12_500, eventfd=TARGET)], ""),
        ([r.write(G, AT + 6_000, AT + 6_500, eventfd=IRQ)], ""),
        ([], ""),
    ],
)
def test_a_command_is_told_by_what_it_does_under_the_lock(calls: list[Records], operation: str) -> None:
    (row,) = blame(learnt(), wait(G, W, AT), *calls)
    assert (row.victim_operation, row.victim_named_by) == (
        (operation, "behaviour") if operation else ("gpu worker", "none")
    )


@pytest.mark.parametrize(
    ("before", "after", "operation"),
    [
        (
            r.epoll_wait(W, AT - 900, AT - 100),
            r.read(W, AT + 6_000, AT + 6_500, eventfd=STREAM),
            "handle_fence",
        ),
        (r.recvmsg(W, AT - 900, AT - 100), r.write(W, AT + 12_000, AT + 12_500, eventfd=IRQ), "add_item"),
        (r.syscall(W, AT - 900, AT - 100, number=89), r.trace(), "add_item"),
        (r.wait(W, 0x77, AT - 900, AT - 100, expected=5), r.epoll_ctl(W, AT + 6_000, AT + 6_500), "run"),
        (r.epoll_wait(W, AT - 900, AT - 100), r.trace(), ""),
        (r.recvmsg(W, AT - 900, AT - 100), r.read(W, AT + 6_000, AT + 6_500, eventfd=STREAM), ""),
        (r.recvmsg(W, AT - 120_000_000, AT - 119_000_000), r.trace(), ""),  # too long ago
    ],
)
def test_a_workers_operation_is_told_by_what_it_did_before_and_does_under_the_lock(
    before: Records, after: Records, operation: str
) -> None:
    (row,) = blame(learnt(), before, wait(W, G, AT), after)
    assert row.victim_operation == (operation or "cross domain")


def test_a_wait_for_another_lock_in_between_hides_nothing() -> None:
    arena = r.wait(W, 0x88, AT - 90, AT - 10, op=128)
    (row,) = [
        row
        for row in blame(learnt(), r.recvmsg(W, AT - 900, AT - 100), arena, wait(W, G, AT))
        if row.lock != "x" and "item_state" in row.lock
    ]
    assert row.victim_operation == "add_item"


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        (r.write(W, AT + 1_000, AT + 1_500, eventfd=IRQ), "handle_fence"),
        (r.read(W, AT - 2_000, AT - 1_500, eventfd=STREAM), "handle_fence"),
        (r.recvmsg(W, AT - 900, AT - 100), "add_item"),
        (r.epoll_ctl(W, AT - 900, AT - 100), "run"),
        (r.epoll_wait(W, AT - 900, AT - 100), ""),
    ],
)
def test_a_worker_that_never_waited_is_told_by_its_last_call_before_the_wake(
    call: Records, operation: str
) -> None:
    (row,) = blame(learnt(), call, wait(G, W, AT))
    assert row.holder_operation == (operation or "cross domain")
    assert row.holder_named_by == ("behaviour" if operation else "none")


@pytest.mark.parametrize(
    ("start", "call", "operation"),
    [
        (AT + 1_000, "target", "write"),
        (AT + 1_000, "resample", "read_event_new"),
        (AT - 1_000, "dup", "write"),
        # it ended before anybody waited: perhaps an earlier command's, outside the lock
        (AT - 1_000, "target", ""),
        (AT - 1_000, "resample", ""),
    ],
)
def test_a_command_that_never_waited_is_told_by_calls_that_were_surely_under_the_lock(
    start: int, call: str, operation: str
) -> None:
    done = {
        "target": r.write(G, start, start + 500, eventfd=TARGET),
        "resample": r.write(G, start, start + 500, eventfd=RESAMPLE),
        "dup": r.dup(G, start, start + 500, fd=3, new_fd=9),
    }
    (row,) = blame(learnt(), done[call], wait(W, G, AT))
    assert row.holder_operation == (operation or "gpu worker")


def test_before_the_hand_over_event_is_known_a_write_is_not_told() -> None:
    (row,) = blame(wait(G, W, AT), r.write(G, AT + 6_000, AT + 6_500, eventfd=RESAMPLE))
    assert row.victim_named_by == "none"


def test_an_id_that_was_closed_and_is_another_eventfd_now_hands_nothing_over() -> None:
    """Ids are reused: what W once read as an item may be the next stream's target."""
    reused = r.trace(
        r.read(W, 5_000, 5_500, eventfd=TARGET),
        r.close(G, 7_000, 7_500, fd=9, eventfd=TARGET),
    )
    write = r.write(G, 450_000_000 + 6_000, 450_000_000 + 6_500, eventfd=TARGET)
    (row,) = blame(learnt(), reused, wait(G, W, 450_000_000), write, cut_ns=200_000_000)
    assert row.victim_operation == "write"


def test_a_call_site_speaks_for_waits_that_leave_it_open() -> None:
    """refcount: nothing under the lock, and always the item's write right after it; eight are enough."""

    def waits(n: int, caller: int, after: int) -> list[Records]:
        out = []
        for i in range(n):
            at = AT + i * 1_000_000
            out += [r.wait(G, ITEM, at, at + 5_000, caller=caller), r.wake(W, ITEM, at + 4_900)]
            out += [r.wake(G, ITEM, at + 6_000), r.write(G, at + 7_000, at + 7_500, eventfd=after)]
        return out

    def told(*parts: list[Records]) -> set[str]:
        return {row.victim_operation for row in blame(learnt(), *[p for part in parts for p in part])}

    assert told(waits(8, 0x77, TARGET)) == {"write"}
    assert told(waits(7, 0x77, TARGET)) == {"gpu worker"}
    other = [
        r.wait(G, ITEM, 290_000_000, 290_005_000, caller=0x77),
        r.wake(W, ITEM, 290_004_900),
        r.wake(G, ITEM, 290_006_000),
        r.write(G, 290_007_000, 290_007_500, eventfd=IRQ),
    ]
    assert told(waits(8, 0x77, TARGET), other) == {"gpu worker"}


@pytest.mark.parametrize(
    ("lock", "role", "sign", "operation"),
    [
        ("jobs", "W", RELOCK, "wait_for_job"),
        ("jobs", "W", "write.irq|?|condvar", "wait_for_job"),
        ("jobs", "W", "read.resample|?|epoll_wait", "add_job"),
        ("jobs", "W", "write.irq|?|epoll_wait", ""),
        ("jobs", "G", "|?|", "add_job"),
        ("context_resources", "W", "recvmsg|?|", "write_to_ring"),
        ("context_resources", "G", "close|?|", ""),
        ("item_state", "G", "read.item|?|write.resample", "read_event_new"),
        ("item_state", "G", "read.item|?|write.item", ""),
        ("item_state", "G", "write.item|close|close", "write"),
        ("item_state", "G", "write.item||close", "write"),
        ("item_state", "G", "read.item||close", ""),
        ("item_state", "G", "read.item||write.irq", ""),
        ("item_state", "vcpu", "receive||", ""),
        ("item_state", "W", RELOCK, "run"),
        ("item_state", "G", RELOCK, ""),
        ("item_state", "W", "", ""),
        ("lock@0x1", "W", "receive||", ""),
    ],
)
def test_what_a_sign_means_depends_on_lock_and_role(lock: str, role: str, sign: str, operation: str) -> None:
    assert tell(lock, role, sign) == operation
