# SPDX-License-Identifier: Apache-2.0
"""Leaves on any timeline: they sum to the phases, and do not depend on what else was cut before."""

from __future__ import annotations

import random
from itertools import pairwise

import records as r
from hypothesis import given, settings
from hypothesis import strategies as st
from world import CONDVAR, LOCK, MS, START, VMM, D, F, G, V, W, World

from tracer.model.analysis import Analysis
from tracer.model.columns import Leaves
from tracer.model.cutter import LeafCutter
from tracer.model.leaves import Leaf
from tracer.model.phases import GPU, GUEST, HOST, TASK, WORKER, Path, Phase
from tracer.model.window import Window
from tracer.schema import Records

#: Threads of a path, as who they may be on it; 0: not seen.
WHO = ((HOST, D), (WORKER, W), (GUEST, V), (GUEST, 0), (GPU, G), (TASK, F), (HOST, 0))
#: What is waited for and woken: mutexes, a condvar, a parking_lot's word.
WORDS = ((LOCK, 2), (LOCK, 2), (LOCK, 2), (LOCK + 4, 2), (CONDVAR, 0), (0xA000, 1))
LONG = 2_000


def busy(rng: random.Random, tid: int, steal: bool) -> Records:
    """What a thread did over some microseconds: syscalls and waits for a CPU, some within others."""
    at, parts = START + rng.randrange(40), []

    def off(low: int, high: int) -> None:
        out, back = sorted((rng.randint(low, high), rng.randint(low, high)))
        if out < back:
            preempted = rng.random() < 0.3
            woken = 0 if preempted else rng.randint(out, back)
            waker = rng.choice([w for w in (W, G, V, F) if w != tid])
            stolen = rng.choice([0, 0, 50_000]) if steal else 0
            instead = rng.choice([0, 900])
            parts.append(
                r.offcpu(
                    tid, out, back, woken=woken, waker=waker, waker_tgid=VMM, preempted=preempted,
                    instead=instead, stolen=stolen,
                )
            )  # fmt: skip

    while at < START + LONG:
        end = at + rng.randint(1, 120)
        word, expected = rng.choice(WORDS)
        match rng.randrange(8):
            case 0:
                parts.append(r.syscall(tid, at, end, number=rng.choice([16, 1])))
            case 1 | 2 | 3:
                parts.append(r.wait(tid, word, at, end, expected=expected))
            case 4:
                parts.append(r.wake(tid, word, end, dur=end - at))
            case 5:
                parts.append(r.write(tid, at, end, fd=rng.choice([7, 8]), eventfd=rng.choice([-1, 41])))
        middle = rng.randint(at, end)
        off(at, middle)
        if middle < end and rng.random() < 0.3:
            off(middle + 1, end)
        at = end + rng.choice([0, 1, 30])
    return r.trace(parts)


def paths(rng: random.Random, start: int, stop: int) -> Path:
    """Any phases over a stretch, some of them empty."""
    borders = [start, *sorted(rng.randint(start, stop) for _ in range(rng.randrange(12))), stop]
    phases = [Phase(a, b, *rng.choice(WHO)) for a, b in pairwise(borders)]
    return Path(phases, stop, gpu_tid=G)


def told(leaves: Leaves) -> list[list[Leaf]]:
    intervals = range(len(leaves.firsts) - 1)
    return [[leaves.leaf(i) for i in leaves.of_interval(n)] for n in intervals]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), steal=st.booleans(), share=st.booleans())
def test_leaves_sum_to_their_phases_however_the_thread_was_cut_before(
    seed: int, steal: bool, share: bool
) -> None:
    rng, world, analysis = random.Random(seed), World(), Analysis()
    records = r.trace(*(busy(rng, tid, steal) for tid in (D, W, G, V, F)))
    analysis.feed(world.batch(records, START + 400 * MS, first=True))
    cutter = LeafCutter(analysis.registry, analysis.locks)
    # W's waits, if they are within its turns, may be for a lock that is no mutex.
    every = Window(analysis.timeline, START, START + 2 * LONG, alone=True).calls(W)
    within = frozenset(call.enter for call in every) if rng.random() < 0.5 else frozenset()
    start, stop = START, START + 1
    for _ in range(12):
        start = rng.randrange(start - 50, stop + 50)  # mostly a window that goes on from the one before
        stop = max(start + 1, stop + rng.randrange(-50, 300))
        window = Window(analysis.timeline, start, stop, alone=not share)
        path = paths(rng, start, stop)
        path.within = within
        found = told(cutter.cut(path, window, V))
        assert len(found) == len(path.phases)
        for phase, leaves in zip(path.phases, found, strict=True):
            at = phase.start_ns
            for leaf in leaves:
                assert leaf.start_ns == at < leaf.end_ns
                at = leaf.end_ns
            assert at == phase.end_ns
        alone = [leaves for leaves in found if leaves]
        assert alone == told(LeafCutter(analysis.registry, analysis.locks).direct(path, window, V))
        path.foreign = [(phase.start_ns, phase.end_ns) for phase in path.phases]
        path.phases = [Phase(*interval, GPU, G) for interval in path.foreign if interval[1] > start]
        assert told(cutter.others(path, window)) == told(cutter.cut(path, window, V))
