# SPDX-License-Identifier: Apache-2.0
"""Which lock words are watched: what is still to be learnt first, and everything in its turn."""

from __future__ import annotations

import records as r

from tracer.model.held import Held
from tracer.model.locks import Locks
from tracer.model.names import Names
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.turns import Turns
from tracer.model.watch import Watch
from tracer.schema import Records, Target, Thread

VMM = 100
W, G, FENCE = 1, 2, 3
STREAM, IRQ = 7, 8
SECOND = 1_000_000_000


class World:
    """A VMM whose locks are contended, and the choice of what to watch."""

    def __init__(self) -> None:
        known = Registry()
        known.learn(
            targets=[Target(VMM, "vmm", "vmm")], threads=[Thread(t, VMM, f"t{t}") for t in (W, G, FENCE)]
        )
        for tid, role in ((W, "W"), (G, "G"), (FENCE, "fence")):
            known.threads[tid].role = role
        self.locks = Locks(known)
        self.held = Held(known, self.locks)
        self.turns = Turns(known, self.held)
        self.watch = Watch(self.locks, Names(known, self.locks, self.held, turns=self.turns))
        self.now = 0

    def step(self, *parts: Records) -> None:
        self.now += SECOND
        step = Step(r.trace(*parts, r.loss(self.now, 0)), self.now)
        self.locks.step(step)
        self.held.step(step)
        self.turns.step(step)

    def contend(self, word: int, *, waiter: int = W, holder: int = G) -> None:
        at = self.now + 10_000
        self.step(
            r.wait(waiter, word, at, at + 5_000),
            r.wake(holder, word, at + 4_900),
            r.wake(waiter, word, at + 9_000),
        )

    def turn(self, words: list[int], held: int) -> None:
        """Twenty turns of W with some words held at both ends."""
        parts = [r.words(VMM, self.now + 1, 1, words)]
        for t in range(self.now + 1_000_000, self.now + 21_000_000, 1_000_000):
            parts += [r.read(W, t, t + 900, eventfd=STREAM, generation=1, held_in=held, readable_in=15)]
            parts += [
                r.write(W, t + 2_000, t + 2_900, eventfd=IRQ, generation=1, held_in=held, readable_in=15)
            ]
        self.step(*parts)


def test_what_w_and_g_share_takes_the_place_of_others_at_once() -> None:
    world = World()
    world.contend(0x20, waiter=FENCE, holder=FENCE)
    assert world.watch.words(VMM, 1) == (0x20,)
    world.contend(0x10)
    assert world.watch.words(VMM, 1) == (0x10,)


def test_all_are_watched_where_there_is_room_and_keep_their_places() -> None:
    world = World()
    for word in (0x20, 0x10, 0x30):
        world.contend(word)
        world.watch.words(VMM, 4)
    first = world.watch.words(VMM, 4)
    assert sorted(first) == [0x10, 0x20, 0x30]
    world.contend(0x30)
    assert world.watch.words(VMM, 4) == first


def test_untold_words_take_turns() -> None:
    world = World()
    for word in (0x10, 0x20, 0x30):
        world.contend(word)
    seen = []
    for _ in range(3):
        seen.append(world.watch.words(VMM, 1))
        world.step()
    assert sorted(seen) == [(0x10,), (0x20,), (0x30,)]


def test_a_choice_stands_for_a_while() -> None:
    world = World()
    for word in (0x10, 0x20, 0x30):
        world.contend(word)
    first = world.watch.words(VMM, 1)
    world.now -= SECOND // 2  # half a second of record time
    world.step()
    assert world.watch.words(VMM, 1) == first


def test_item_state_stays_where_no_other_word_could_be_one() -> None:
    world = World()
    for word in (0x10, 0x20):
        world.contend(word)
    world.turn([0x10, 0x20], held=1)  # 0x20 is free over the turns: told, and no item_state
    for _ in range(10):
        assert world.watch.words(VMM, 1) == (0x10,)
        world.step()


def test_an_idle_workers_word_gives_way_to_item_state() -> None:
    """Its worker makes no turns, so nothing is learnt of it."""
    world = World()
    world.contend(0x10)
    world.turn([0x10], held=1)
    world.contend(0x20)
    seen = []
    for _ in range(8):
        seen.append(world.watch.words(VMM, 1))
        world.step()
    assert seen[0] == (0x20,)
    assert seen[-1] == (0x10,)


def test_nothing_is_watched_where_nothing_was_contended() -> None:
    assert World().watch.words(VMM, 4) == ()
