# SPDX-License-Identifier: Apache-2.0
"""Names of locks: who is believed in which order, and what behaviour may not name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import records as r

from tracer.model.held import Held
from tracer.model.locks import Locks
from tracer.model.names import Names
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.turns import Turns
from tracer.schema import CallSite, Frame, LockSymbol, Records, Target, Thread

VMM = 100
W, G, FENCE, W2, OTHER = 1, 2, 3, 4, 5
ITEM, QUEUE, JOBS, RESOURCES, COND = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
STREAM, IRQ = 7, 8
PLAIN = 128  # glibc's wait


@dataclass(frozen=True)
class FakeSite:
    lock: str
    operation: str = ""
    evidence: str = "function f"


class FakeProfile:
    def site(self, frames: Sequence[Frame], /) -> FakeSite | None:
        name = frames[0].function
        return FakeSite(*name.split("/")) if "/" in name else None


def names(trace: Records, known: Registry | None = None) -> Names:
    known = known or Registry()
    known.learn(
        targets=[Target(VMM, "vmm", "vmm")],
        threads=[Thread(tid, VMM, f"t{tid}") for tid in (W, G, FENCE, W2, OTHER)],
    )
    for tid, role in ((W, "W"), (G, "G"), (FENCE, "fence"), (W2, "W")):
        known.threads[tid].role = role
    locks = Locks(known)
    held = Held(known, locks, lambda tgid, kind, fd, eventfd: {STREAM: "stream", IRQ: "irq"}.get(eventfd, ""))
    seen = Turns(known, held)
    for part, end in r.steps(trace, (10_000_000, 400_000_000)):
        step = Step(part, end)
        locks.step(step)
        held.step(step)
        seen.step(step)
    return Names(known, locks, held, FakeProfile(), seen)


def contend(waiter: int, holder: int, word: int, at: int, **wait: int) -> Records:
    return r.trace(
        r.wait(waiter, word, at, at + 5_000, **wait),
        r.wake(holder, word, at + 4_900),
        r.wake(waiter, word, at + 9_000),
    )


def turns(read: int, irq: int, *, n: int = 40, channel: int = 0, worker: int = W) -> Records:
    """W serves a stream n times under masks (bits of words), and received fds under no lock at all."""
    out = [r.words(VMM, 1, 1, [ITEM, QUEUE, RESOURCES, JOBS])]
    for i in range(n):
        t = 1_000_000 * (i + 1)
        out.append(r.read(worker, t, t + 900, eventfd=STREAM, generation=1, held_in=read, readable_in=15))
        out.append(
            r.write(worker, t + 2_000, t + 2_900, eventfd=IRQ, generation=1, held_in=irq, readable_in=15)
        )
    for i in range(channel):
        t = 1_000_000 * (i + 1) + 500_000
        out.append(r.write(worker, t, t + 900, eventfd=IRQ, generation=1, held_in=irq & ~1, readable_in=15))
    return r.trace(out)


@pytest.mark.parametrize("channel", [0, 300])
def test_item_state_is_what_is_held_at_ws_read_and_at_its_irq(channel: int) -> None:
    found = names(r.trace(contend(G, W, ITEM, 10_000), turns(0b0101, 0b0011, channel=channel)))
    name, instance, named_by, evidence = found.lock(VMM, ITEM)
    assert (name, instance, named_by) == ("item_state", f"context {W}", "behaviour")
    assert "40 of 40 reads of its worker" in evidence
    assert found.item_states(VMM) == {ITEM}


def test_glibc_locks_are_named_in_a_program_without_rust_mutexes() -> None:
    glibc = r.trace(turns(0b0001, 0b0011), contend(W, G, ITEM, 10_000, op=PLAIN))
    told = names(glibc)
    assert told.lock(VMM, ITEM)[0] == "item_state" and told.item_states(VMM) == {ITEM}
    # beside a std mutex a glibc lock is malloc's
    told = names(r.trace(glibc, contend(W, G, JOBS, 50_000)))
    assert told.lock(VMM, ITEM)[2] == "none" and told.item_states(VMM) == set()


def test_item_state_is_told_where_bystanders_find_it_held_as_often_as_ws_interrupts() -> None:
    """Under churn 96 of 100 interrupts follow received fds, and item_state is free at those."""
    bystander = [
        r.read(FENCE, t, t + 900, eventfd=9, generation=1, held_in=t % 3 == 0, readable_in=15)
        for t in range(2_000_000, 2_300_000, 1_000)
    ]
    found = names(r.trace(contend(G, W, ITEM, 10_000), turns(1, 1, n=8, channel=400), bystander))
    assert found.lock(VMM, ITEM)[:3] == ("item_state", f"context {W}", "behaviour")


def test_item_state_is_told_by_epoll_ctl_where_no_item_is_ever_read() -> None:
    """A worker that serves only its channel still registers what the guest asks for."""
    parts = [r.words(VMM, 1, 1, [ITEM, QUEUE])]
    for t in range(1_000_000, 9_000_000, 1_000_000):
        parts.append(r.epoll_ctl(W, t, t + 900, generation=1, held_in=1, readable_in=3))
        parts.append(r.write(W, t + 2_000, t + 2_900, eventfd=IRQ, generation=1, held_in=2, readable_in=3))
    found = names(r.trace(contend(G, W, ITEM, 10_000), contend(G, W, QUEUE, 30_000), parts))
    assert found.lock(VMM, ITEM)[:3] == ("item_state", f"context {W}", "behaviour")
    assert "8 of 8 epoll_ctl" in found.lock(VMM, ITEM)[3]
    assert found.lock(VMM, QUEUE)[2] == "none"


def test_fewer_than_eight_turns_name_nothing() -> None:
    assert names(r.trace(contend(G, W, ITEM, 10_000), turns(1, 1, n=7))).lock(VMM, ITEM)[2] == "none"


@pytest.mark.parametrize(("turns_seen", "named_by"), [(12, "none"), (80, "behaviour")])
def test_a_lock_held_most_of_the_time_needs_more_turns(turns_seen: int, named_by: str) -> None:
    """G in a slow write keeps item_state held for most of the time: chance needs ruling out."""
    bystander = [
        r.read(FENCE, t, t + 900, eventfd=9, generation=1, held_in=t % 3 != 0, readable_in=15)
        for t in range(2_000_000, 2_300_000, 1_000)
    ]
    found = names(r.trace(contend(G, W, ITEM, 10_000), turns(1, 1, n=turns_seen), bystander))
    assert found.lock(VMM, ITEM)[2] == named_by


def test_turns_under_different_generations_of_watched_words_do_not_count() -> None:
    parts = [r.words(VMM, 1, 1, [ITEM]), r.words(VMM, 2, 1, [QUEUE])]
    for t in range(1_000_000, 21_000_000, 1_000_000):
        parts += [r.read(W, t, t + 900, eventfd=STREAM, generation=1, held_in=1, readable_in=1)]
        parts += [r.write(W, t + 2_000, t + 2_900, eventfd=IRQ, generation=2, held_in=1, readable_in=1)]
    assert names(r.trace(contend(G, W, ITEM, 10_000), parts)).lock(VMM, ITEM)[2] == "none"


def test_each_context_has_its_own_item_state() -> None:
    """Two workers in turn, each with its word; to the other its word is free."""
    parts = [r.words(VMM, 1, 1, [ITEM, QUEUE])]
    for t in range(1_000_000, 21_000_000, 1_000_000):
        for worker, held, at in ((W, 1, t), (W2, 2, t + 500_000)):
            parts += [r.read(worker, at, at + 900, eventfd=STREAM, generation=1, held_in=held, readable_in=3)]
            parts += [
                r.write(
                    worker, at + 2_000, at + 2_900, eventfd=IRQ, generation=1, held_in=held, readable_in=3
                )
            ]
    found = names(r.trace(contend(G, W, ITEM, 10_000), contend(G, W2, QUEUE, 30_000), parts))
    assert found.lock(VMM, ITEM)[:3] == ("item_state", f"context {W}", "behaviour")
    assert found.lock(VMM, QUEUE)[:3] == ("item_state", f"context {W2}", "behaviour")


def test_neighbours_of_item_state_are_not_called_so() -> None:
    trace = r.trace(
        contend(G, W, ITEM, 10_000), contend(G, W, QUEUE, 30_000), contend(G, W, RESOURCES, 50_000),
        turns(0b0101, 0b0011),
    )  # fmt: skip
    found = names(trace)
    assert found.lock(VMM, QUEUE)[::2] == (f"lock@{QUEUE:#x}", "none")
    assert found.lock(VMM, RESOURCES)[:3] == ("context_resources", f"context {W}", "behaviour")
    assert "fence handler" in found.lock(VMM, QUEUE)[3]


@pytest.mark.parametrize(("held", "name"), [(0b0100, "item_state"), (0, "context_resources")])
def test_a_table_that_w_leaves_before_its_interrupt_is_told_by_what_g_writes_under_it(
    held: int, name: str
) -> None:
    wrote = [
        r.write(G, t, t + 900, eventfd=STREAM, generation=1, held_in=held, readable_in=15)
        for t in range(1_500_000, 41_500_000, 1_000_000)
    ]
    bystander = [
        r.read(FENCE, t, t + 900, eventfd=9, generation=1, held_in=0, readable_in=15)
        for t in range(2_000_000, 2_100_000, 1_000)
    ]
    trace = r.trace(contend(G, W, RESOURCES, 10_000), turns(0b0100, 0), wrote, bystander)
    assert names(trace).lock(VMM, RESOURCES)[:3] == (name, f"context {W}", "behaviour")


def test_a_lock_that_a_third_thread_uses_is_not_item_state() -> None:
    found = names(r.trace(contend(G, W, ITEM, 10_000), contend(FENCE, W, ITEM, 40_000), turns(1, 1)))
    assert found.lock(VMM, ITEM)[0] == f"lock@{ITEM:#x}"


@pytest.mark.parametrize(("held", "name"), [(1, "item_state"), (0, f"lock@{ITEM:#x}")])
def test_a_thread_without_a_role_may_use_item_state_too(held: int, name: str) -> None:
    used = r.trace(contend(G, W, ITEM, 10_000), contend(OTHER, W, ITEM, 40_000), turns(held, held))
    assert names(used).lock(VMM, ITEM)[0] == name


def test_what_a_thread_without_a_role_finds_held_all_the_time_gets_no_name() -> None:
    """Eight turns are not enough where a third thread uses the lock too."""
    used = r.trace(contend(G, W, ITEM, 10_000), contend(OTHER, W, ITEM, 40_000), turns(1, 1, n=9))
    assert names(used).lock(VMM, ITEM)[0] == f"lock@{ITEM:#x}"


def test_a_lock_of_two_workers_is_not_item_state() -> None:
    found = names(r.trace(contend(G, W, ITEM, 10_000), contend(W2, G, ITEM, 40_000), turns(1, 1)))
    assert found.lock(VMM, ITEM)[0] == f"lock@{ITEM:#x}"


def test_jobs_is_the_relock_of_ws_condvar_and_never_item_state() -> None:
    parts = [
        r.trace(r.wait(W, COND, t, t + 900, expected=9), contend(W, G, JOBS, t + 1_000))
        for t in range(10_000, 200_000, 20_000)
    ]
    found = names(r.trace(*parts, turns(0b1000, 0b1000)))
    assert found.lock(VMM, JOBS)[:3] == ("jobs", f"context {W}", "behaviour")
    assert found.item_states(VMM) == set()


def test_without_held_words_surroundings_name_item_state() -> None:
    parts = []
    for t in range(100_000, 1_100_000, 100_000):
        parts += [r.epoll_wait(W, t, t + 900), contend(W, G, ITEM, t + 1_000)]
        parts += [r.read(W, t + 12_000, t + 12_900, eventfd=STREAM)]
        parts += [contend(G, W, ITEM, t + 30_000), r.write(G, t + 40_000, t + 41_000, eventfd=50)]
    found = names(r.trace(*parts, r.loss(3_000_000_000, 0)))
    assert found.lock(VMM, ITEM)[:3] == ("item_state", f"context {W}", "behaviour")


def test_surroundings_of_a_fence_lock_name_nothing() -> None:
    parts = []
    for t in range(100_000, 1_100_000, 100_000):
        parts += [r.read(W, t, t + 900, eventfd=STREAM), contend(W, G, QUEUE, t + 1_000)]
        parts += [r.write(W, t + 12_000, t + 12_900, eventfd=IRQ)]
        parts += [contend(G, W, QUEUE, t + 30_000), r.write(G, t + 40_000, t + 41_000, eventfd=50)]
    assert names(r.trace(*parts, r.loss(3_000_000_000, 0))).lock(VMM, QUEUE)[2] == "none"


def test_the_users_word_comes_before_call_sites_and_those_before_behaviour() -> None:
    known = Registry()
    known.learn(
        sites=[
            CallSite(VMM, 0x77, frames=(Frame("export_table/lookup"),)),
            CallSite(VMM, 0x78, frames=(Frame("main"),)),
        ],
        lock_symbols=[LockSymbol(VMM, QUEUE, "mine", "user")],
    )
    trace = r.trace(
        contend(G, W, ITEM, 10_000, caller=0x77), contend(G, W, QUEUE, 30_000, caller=0x77), turns(1, 1)
    )
    found = names(trace, known)
    assert found.lock(VMM, QUEUE)[::2] == ("mine", "user")
    assert found.lock(VMM, ITEM) == ("export_table", "", "symbols", "function f")
    assert found.operation(VMM, ITEM, 0x77, G, "") == ("lookup", "symbols")
    assert found.operation(VMM, ITEM, 0x78, G, "") == ("main", "symbols")
    assert found.operation(VMM, ITEM, 0x79, G, "") == ("", "none")


def test_call_sites_that_disagree_name_nothing() -> None:
    known = Registry()
    known.learn(
        sites=[CallSite(VMM, 0x77, frames=(Frame("a/x"),)), CallSite(VMM, 0x78, frames=(Frame("b/y"),))]
    )
    trace = r.trace(contend(G, W, QUEUE, 10_000, caller=0x77), contend(G, W, QUEUE, 30_000, caller=0x78))
    assert names(trace, known).lock(VMM, QUEUE)[2] == "none"


def test_locks_of_one_name_are_numbered() -> None:
    known = Registry()
    known.learn(sites=[CallSite(VMM, 0x77, frames=(Frame("gralloc/alloc"),))])
    trace = r.trace(contend(G, W, QUEUE, 10_000, caller=0x77), contend(G, W, JOBS, 30_000, caller=0x77))
    found = names(trace, known)
    assert [found.lock(VMM, word)[:2] for word in (QUEUE, JOBS)] == [("gralloc", "#1"), ("gralloc", "#2")]


def test_other_programs_get_no_names_by_behaviour() -> None:
    found = names(r.trace(contend(G, W, ITEM, 10_000), turns(1, 1)))
    found.registry.targets[VMM] = Target(VMM, "other", "python3")
    assert found.lock(VMM, ITEM)[0] == f"lock@{ITEM:#x}"
