# SPDX-License-Identifier: Apache-2.0
"""The replay of made-up paths: exact with nothing taken out, and monotone in what is.

Owns paths that no recording is needed for: any phases, leaves and commands of G, also such as
begin or end in the middle of a leaf.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from world import D, F, G, V, W

from tracer.model.counterfactual import Case, Names, judge, remedied
from tracer.model.leaves import Holder, Leaf
from tracer.model.phases import GPU, GUEST, HEAD_OF_LINE, HOST, NOT_REARMED, SERIALISED, WORKER, Path, Phase
from tracer.schema import Kind

LOCK_WORD = (20, 0x9000)
KINDS = ("lock", "not_scheduled", "slow_syscall", "on_cpu")
SHAPES = (
    (HOST, D, "", False),
    (WORKER, W, "", False),
    (WORKER, W, SERIALISED, False),
    (GUEST, V, NOT_REARMED, False),
    (GPU, G, SERIALISED, False),
    (GPU, G, NOT_REARMED, False),
    (GPU, G, HEAD_OF_LINE, True),
    (GPU, G, "", False),
)


def cuts(rng: random.Random, low: int, high: int, most: int) -> list[int]:
    return sorted({low, high, *(rng.randint(low, high) for _ in range(rng.randint(0, most)))})


def any_case(rng: random.Random) -> Case:
    """A path of up to eight phases over up to 400 ns, leaves of any kind, commands anywhere."""
    end = rng.randint(20, 400)
    phases: list[Phase] = []
    leaves: list[Leaf] = []
    for start, stop in pairwise(cuts(rng, 0, end, 7)):
        who, tid, via, queued = rng.choice(SHAPES)
        for low, high in pairwise(cuts(rng, start, stop, 4)):
            kind = rng.choice(KINDS)
            word = LOCK_WORD if kind == "lock" else None
            leaves.append(Leaf(low, high, kind, tid, len(phases), word=word))
        phases.append(Phase(start, stop, who, tid, via, queued=queued))
    path = Path(phases, rng.randint(0, end), gpu_tid=G)
    foreign = [(a, b) for a, b in pairwise(cuts(rng, -30, end, 9)) if rng.random() < 0.7]
    path.foreign = foreign
    return Case(path, leaves)


def split_command() -> Case:
    """G's command for somebody else ends in the middle of a leaf, 20 before our re-arm is done."""
    phases = [Phase(0, 100, HOST, D), Phase(100, 200, GPU, G, NOT_REARMED)]
    leaves = [Leaf(0, 100, "host", D, 0), Leaf(100, 200, "slow_syscall", G, 1, call=(9, 16, -1, -1))]
    path = Path(phases, 90, gpu_tid=G)
    path.foreign = [(40, 180)]
    return Case(path, leaves)


def test_a_command_that_ends_within_a_leaf_is_taken_out_up_to_its_end() -> None:
    """Half of the host's delay gone: our re-arm comes into that command. All gone: before it."""
    case = split_command()
    assert case.replay({}) == 200
    assert case.replay({0: 0.5}) == 180 + 20
    assert case.replay({0: 0.5}, unqueued=True) == 50 + 20
    assert case.replay({0: 1.0}) == case.replay({0: 1.0}, unqueued=True) == 20


def none_usual(key: tuple[str | int, ...]) -> int:
    return 0


def test_without_a_lock_what_others_had_g_do_is_done_sooner_too() -> None:
    """G waits for the same lock in somebody else's command, and our command waits for that one."""
    held = Holder(F, "blocked", None, (LOCK_WORD,), (F,))
    leaves = [
        Leaf(0, 100, "lock", W, 0, word=LOCK_WORD, holder=held),
        Leaf(100, 110, "guest", V, 1),
        Leaf(110, 140, "lock", G, 2, word=LOCK_WORD, holder=held),
        Leaf(140, 150, "on_cpu", G, 2),
        Leaf(150, 160, "on_cpu", G, 3),
    ]
    phases = [
        Phase(0, 100, WORKER, W),
        Phase(100, 110, GUEST, V),
        Phase(110, 150, GPU, G, HEAD_OF_LINE, queued=True),
        Phase(150, 160, GPU, G),
    ]
    path = Path(phases, 60, gpu_tid=G)
    path.foreign = [(0, 150)]
    case = Case(path, leaves)
    assert judge(case, none_usual).cause == "mixed"
    case.relieve([Leaf(5, 140, "lock", G, 0, word=LOCK_WORD, holder=held)])
    assert case.replay({0: 1.0, 2: 1.0}, freed=case.freed([("lock", *LOCK_WORD)])) == 10 + (150 - 140) + 10
    found = judge(case, none_usual)
    assert (found.cause, found.key) == ("lock", ("lock", *LOCK_WORD))


def test_a_holders_missing_cpu_is_the_label_only_if_that_part_of_the_wait_is_enough() -> None:
    """G misses the CPU for 2 while it holds the lock, and for 32 later, when it holds nothing."""
    held, off = (Holder(G, state, None, (LOCK_WORD,), (G,)) for state in ("running", "runnable"))
    leaves = [
        Leaf(0, 48, "lock", W, 0, word=LOCK_WORD, holder=held),
        Leaf(48, 50, "lock", W, 0, word=LOCK_WORD, holder=off, off_tid=G),
        Leaf(50, 82, "not_scheduled", G, 1),
        Leaf(82, 85, "on_cpu", G, 1),
    ]
    case = Case(Path([Phase(0, 50, WORKER, W), Phase(50, 85, GPU, G)], 55, gpu_tid=G), leaves)
    found = judge(case, none_usual)
    assert found.sufficient == (("lock", *LOCK_WORD), ("not_scheduled", G))
    assert found.cause == "lock"


@pytest.mark.parametrize(("deadline", "label"), [(60, "lock"), (75, "serialised")])
def test_a_group_that_is_enough_only_with_a_lock_in_it_is_that_lock(deadline: int, label: str) -> None:
    """Another event's turn takes 76, of which W waits 50 for a lock; its other 26 may be enough."""
    held = Holder(F, "blocked", None, (LOCK_WORD,), (F,))
    leaves = [
        Leaf(0, 50, "lock", W, 0, word=LOCK_WORD, holder=held),
        Leaf(50, 76, "on_cpu", W, 0),
        Leaf(76, 95, "guest", V, 1),
    ]
    phases = [Phase(0, 76, WORKER, W, SERIALISED), Phase(76, 95, GUEST, V)]
    found = judge(Case(Path(phases, deadline, gpu_tid=G), leaves), none_usual)
    assert {("serialised",), ("lock", *LOCK_WORD)} <= set(found.sufficient)
    assert found.cause == label


@pytest.mark.parametrize(("held", "label"), [(10, "not_scheduled"), (40, "lock")])
def test_a_lock_that_is_only_several_threads_missing_cpu_is_that(held: int, label: str) -> None:
    """G holds it for 50 without a CPU and ``held`` with one; W, woken by it, waits 60 for a CPU."""
    ran, off = (Holder(G, state, None, (LOCK_WORD,), (G,)) for state in ("running", "runnable"))
    end = 110 + held
    leaves = [
        Leaf(0, 50, "lock", W, 0, word=LOCK_WORD, holder=off, off_tid=G),
        Leaf(50, 50 + held, "lock", W, 0, word=LOCK_WORD, holder=ran),
        Leaf(50 + held, end, "not_scheduled", W, 0, after=LOCK_WORD),
        Leaf(end, end + 5, "on_cpu", W, 0),
    ]
    case = Case(Path([Phase(0, end + 5, WORKER, W)], end + 5 - 100, gpu_tid=G), leaves)
    found = judge(case, none_usual)
    assert found.cause == label
    assert ("lock", *LOCK_WORD) in found.sufficient
    assert (("not_scheduled",) in found.sufficient) == (label == "not_scheduled")


@pytest.mark.parametrize(("ran", "label"), [(60, "serialised"), (30, "mixed"), (20, "not_scheduled")])
def test_a_turn_without_a_cpu_is_a_missing_cpu_only_where_both_are_the_same_milliseconds(
    ran: int, label: str
) -> None:
    """W is late only because its turn for another event took so long: 100 of it without a CPU, the rest not.

    Whatever made the turn long, W was not available; the larger of the two is the label (1.25 to 1), where
    they share four fifths of it the more specific one. W needs 5 more without a CPU for its own event.
    """
    leaves = [
        Leaf(0, 100, "not_scheduled", W, 0),
        Leaf(100, 100 + ran, "on_cpu", W, 0),
        Leaf(100 + ran, 105 + ran, "not_scheduled", W, 1),
        Leaf(105 + ran, 110 + ran, "on_cpu", W, 1),
    ]
    end = leaves[-1].end_ns
    phases = [Phase(0, 100 + ran, WORKER, W, SERIALISED), Phase(100 + ran, end, WORKER, W)]
    found = judge(Case(Path(phases, end - 90, gpu_tid=G), leaves), none_usual)
    assert set(found.sufficient) == {("serialised",), ("not_scheduled", W)}
    assert found.cause == label


def test_in_a_context_of_its_own_nobody_waits_for_others_in_the_item_table() -> None:
    """G waits 50 for W, which holds item_state in another event's turn, and 20 for a lock of the VMM's."""
    other = (20, 0x9100)
    held = {word: Holder(W, "blocked", None, (word,), (W,)) for word in (LOCK_WORD, other)}
    leaves = [
        Leaf(0, 50, "lock", G, 0, word=LOCK_WORD, holder=held[LOCK_WORD]),
        Leaf(50, 54, "not_scheduled", G, 0, after=LOCK_WORD),
        Leaf(54, 74, "lock", G, 0, word=other, holder=held[other]),
        Leaf(74, 80, "on_cpu", G, 0),
    ]
    case = Case(Path([Phase(0, 80, GPU, G)], 40, gpu_tid=G), leaves)
    names = Names(frozenset({LOCK_WORD}), frozenset({W, G}), frozenset({G}))
    assert remedied(case, "own_context", names) == 80 - 54
    assert remedied(case, "own_context", Names(frozenset(), frozenset({W, G}), frozenset({G}))) == 80


@pytest.mark.parametrize(("turns", "closing"), [(7, 7 * 30), (40, 40 * 30 + 40 * 10)])
def test_real_time_priority_leaves_what_a_wake_takes(turns: int, closing: int) -> None:
    """In each of many turns W waits 10 for the CPU that it was woken on; in every fourth 90 more."""
    leaves, at = [], 0
    for turn in range(turns):
        waits = 100 if turn % 4 == 3 else 10
        leaves += [
            Leaf(at, at + waits, "not_scheduled", W, 0),
            Leaf(at + waits, at + waits + 30, "on_cpu", W, 0),
        ]
        at += waits + 30
    case = Case(Path([Phase(0, at, WORKER, W, SERIALISED)], 1, gpu_tid=G), leaves)
    names = Names(frozenset(), frozenset({W, G}), frozenset({G}))
    assert remedied(case, "realtime", names) == closing


def test_a_lock_that_g_itself_waits_for_is_more_specific_than_its_command() -> None:
    """W too waited for it; whoever holds it is neither of them."""
    held = Holder(F, "blocked", None, (LOCK_WORD,), (F,))
    leaves = [
        Leaf(0, 20, "lock", W, 0, word=LOCK_WORD, holder=held),
        Leaf(20, 100, "lock", G, 1, word=LOCK_WORD, holder=held),
        Leaf(100, 105, "on_cpu", G, 2),
    ]
    phases = [
        Phase(0, 20, WORKER, W),
        Phase(20, 100, GPU, G, HEAD_OF_LINE, queued=True),
        Phase(100, 105, GPU, G),
    ]
    path = Path(phases, 40, gpu_tid=G)
    path.foreign = [(10, 100)]
    found = judge(Case(path, leaves), none_usual)
    assert ("head_of_line",) in found.sufficient
    assert found.cause == "lock"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 40).map(random.Random))
@example(random.Random(1))
def test_any_path_is_replayed_exactly_and_monotonely(rng: random.Random) -> None:
    case = any_case(rng)
    assert case.replay({}) == case.path.end_ns
    for _ in range(8):
        some = {i: rng.random() for i in range(len(case.leaves)) if rng.random() < 0.5}
        more = {i: min(1.0, share + rng.random() * 0.5) for i, share in some.items()}
        more |= {i: rng.random() for i in range(len(case.leaves)) if rng.random() < 0.3 and i not in more}
        unqueued = rng.random() < 0.3
        before = case.replay(some, unqueued=unqueued)
        assert case.path.start_ns <= before <= case.path.end_ns
        assert case.replay(more, unqueued=unqueued) <= before
        assert case.replay(more, unqueued=True) <= before


def test_what_holds_a_lock_up_that_gs_other_commands_wait_for_moves_those_too() -> None:
    """W writes for 100 with the lock held; G's other command wants the lock, and ours comes behind it."""
    write = (int(Kind.WRITE), 1, 3, 7)
    leaves = [
        Leaf(0, 100, "slow_syscall", W, 0, call=write),
        Leaf(100, 110, "guest", V, 1),
        Leaf(110, 112, "on_cpu", G, 2),
        Leaf(112, 120, "on_cpu", G, 3),
    ]
    phases = [
        Phase(0, 100, WORKER, W),
        Phase(100, 110, GUEST, V),
        Phase(110, 112, GPU, G, HEAD_OF_LINE, queued=True),
        Phase(112, 120, GPU, G),
    ]
    path = Path(phases, 60, gpu_tid=G)
    path.foreign = [(5, 112)]
    case = Case(path, leaves)
    assert judge(case, none_usual).cause == "mixed"
    held = Holder(W, "running", write, (LOCK_WORD,), (W,))
    case.relieve([Leaf(8, 104, "lock", G, 0, word=LOCK_WORD, holder=held)])
    found = judge(case, none_usual)
    assert found.key == ("slow_syscall", W, int(Kind.WRITE), 1)
    assert case.replay({0: 1.0}, freed=case.freed([found.key])) == (112 - (100 - 10)) + 8


@pytest.mark.parametrize(("completes", "cause"), [(False, "lock"), (True, "head_of_line")])
def test_a_lock_that_g_holds_over_anothers_command_is_the_cause_where_nothing_else_needs_g(
    completes: bool, cause: str
) -> None:
    """W waits for G's lock for 100; then nobody answers (an asynchronous stream), or G does."""
    held = Holder(G, "running", None, (LOCK_WORD,), (G,))
    leaves = [Leaf(0, 100, "lock", W, 0, word=LOCK_WORD, holder=held), Leaf(100, 110, "on_cpu", W, 1)]
    phases = [Phase(0, 100, WORKER, W), Phase(100, 110, WORKER, W)]
    if completes:
        leaves.append(Leaf(110, 112, "on_cpu", G, 2))
        phases.append(Phase(110, 112, GPU, G))
    path = Path(phases, 105, gpu_tid=G)
    path.foreign = [(0, 100)]
    found = judge(Case(path, leaves), none_usual)
    assert {("lock", *LOCK_WORD), (HEAD_OF_LINE,)} <= set(found.sufficient)
    assert found.cause == cause
