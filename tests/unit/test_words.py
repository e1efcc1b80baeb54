# SPDX-License-Identifier: Apache-2.0
"""Which lock words are watched."""

from __future__ import annotations

import numpy as np

from tracer import schema
from tracer.capture.words import Words, words_records
from tracer.schema import Kind, Records

MUTEX, PLAIN = 137, 128
TGID = 7


def waits(*rows: tuple[int, int, int]) -> Records:
    """FUTEX records of (word, op, expected)."""
    futexes = np.zeros(len(rows), schema.FUTEX)
    futexes["kind"] = Kind.FUTEX
    for futex, (word, op, expected) in zip(futexes, rows, strict=True):
        futex["word"], futex["op"], futex["expected"] = word, op, expected
    return futexes


def words_of(memory: dict[int, int], limit: int = 4) -> Words:
    return Words(limit, lambda _tgid, address: memory.get(address))


def test_only_contended_mutex_words_are_chosen_in_order_of_appearance() -> None:
    words = words_of({0x30: 2, 0x10: 0, 0x20: 1, 0x40: 2})
    assert words.learn(TGID, waits((0x30, MUTEX, 2), (0x20, PLAIN, 2), (0x10, MUTEX, 2), (0x40, MUTEX, 5)))
    assert words.of(TGID) == (0x30, 0x10)
    assert not words.learn(TGID, waits((0x10, MUTEX, 2)))


def test_glibc_locks_are_watched_in_a_program_that_has_shown_no_rust_mutex() -> None:
    words = words_of({0x10: 2, 0x20: 1, 0x30: 2, 0x40: 7})
    assert words.learn(TGID, waits((0x10, PLAIN, 2), (0x20, PLAIN, 2), (0x40, PLAIN, 2)))
    assert words.of(TGID) == (0x10, 0x20)
    assert words.learn(TGID, waits((0x30, MUTEX, 2)))
    assert words.of(TGID) == (0x30,)
    words.tell(TGID, [0x30])
    words.learn(TGID, waits((0x50, PLAIN, 2)))
    assert words.of(TGID) == (0x30,)


def test_a_glibc_word_ever_waited_on_otherwise_is_no_lock() -> None:
    words = words_of({0x10: 2})
    words.learn(TGID, waits((0x10, PLAIN, 2)))
    assert words.learn(TGID, waits((0x10, PLAIN, 1))) and words.of(TGID) == ()


def test_a_condvar_whose_counter_was_two_once_is_dropped_for_good() -> None:
    words = words_of({0x10: 2})
    words.learn(TGID, waits((0x10, MUTEX, 2)))
    assert words.learn(TGID, waits((0x10, MUTEX, 4)))
    assert words.of(TGID) == ()
    assert not words.learn(TGID, waits((0x10, MUTEX, 2)))


def test_a_word_above_two_or_without_memory_is_no_mutex() -> None:
    memory = {0x10: 3, 0x30: 1}
    words = words_of(memory)
    words.learn(TGID, waits((0x10, MUTEX, 2), (0x20, MUTEX, 2), (0x30, MUTEX, 2)))
    assert words.of(TGID) == (0x30,)
    del memory[0x30]
    assert words.verify(TGID) and words.of(TGID) == ()


def test_more_words_than_room_take_turns_and_named_ones_stay() -> None:
    found = [0x10, 0x20, 0x30, 0x40, 0x50]
    words = words_of(dict.fromkeys([*found, 0x99], 0), limit=3)
    words.learn(TGID, waits(*((word, MUTEX, 2) for word in found)))
    assert words.prefer(TGID, [0x99])
    seen: set[int] = set()
    for _ in range(len(found)):
        assert len(words.of(TGID)) == 3 and words.of(TGID)[0] == 0x99
        seen.update(words.of(TGID))
        assert words.rotate(TGID)
    assert seen == {*found, 0x99}


def test_being_told_ends_the_choice_until_exec() -> None:
    words = words_of({0x10: 0, 0x20: 0, 0x77: 0})
    words.learn(TGID, waits((0x10, MUTEX, 2)))
    for _ in range(2):  # no longer fresh
        words.verify(TGID)
    words.tell(TGID, [0x77])
    assert not words.learn(TGID, waits((0x10, MUTEX, 2))) and not words.rotate(TGID)
    assert words.of(TGID) == (0x77,)
    words.forget(TGID)
    assert words.learn(TGID, waits((0x20, MUTEX, 2))) and words.of(TGID) == (0x20,)


def test_a_word_s_first_wait_makes_it_watched_at_once_beside_what_was_told() -> None:
    words = words_of(dict.fromkeys((0x10, 0x20, 0x30, 0x40), 0), limit=3)
    words.tell(TGID, [0x10, 0x20])
    assert words.learn(TGID, waits((0x30, MUTEX, 2)))
    assert words.of(TGID) == (0x10, 0x20, 0x30)
    words.tell(TGID, [0x10, 0x20])  # told by somebody who has not seen that wait yet
    assert words.of(TGID) == (0x10, 0x20, 0x30)
    words.tell(TGID, [0x30, 0x10, 0x20])
    assert words.of(TGID) == (0x30, 0x10, 0x20)
    assert words.learn(TGID, waits((0x10, MUTEX, 2), (0x30, MUTEX, 2), (0x40, MUTEX, 2)))
    assert words.of(TGID) == (0x30, 0x10, 0x40), "the one waited for longest ago gives way"
    assert not words.learn(TGID, waits((0x40, MUTEX, 2)))
    words.verify(TGID)
    assert words.verify(TGID) and words.of(TGID) == (0x30, 0x10, 0x20), "who tells has had the time to decide"


def test_fresh_words_that_turn_out_to_be_none_and_floods_of_them_stay_within_the_limit() -> None:
    many = [0x1000 + 8 * i for i in range(100)]
    words = words_of(dict.fromkeys(many, 0), limit=4)
    words.tell(TGID, many[:4])
    words.learn(TGID, waits(*((word, MUTEX, 2) for word in many)))
    assert words.of(TGID) == (*many[2:4], *many[-2:]), "half of the places at most"
    assert words.learn(TGID, waits((many[-1], MUTEX, 7)))
    assert many[-1] not in words.of(TGID) and len(words.of(TGID)) == 4


def test_generations_end_instead_of_being_reused() -> None:
    words = words_of({})
    generations = [words.next_generation() for _ in range(70_000)]
    used = [generation for generation in generations if generation]
    assert len(used) == len(set(used)) == 0xFFFF


def test_records_of_a_generation_carry_all_its_words() -> None:
    for count in (0, 1, 4, 5, 16):
        addresses = list(range(100, 100 + count))
        rows = schema.view(words_records(TGID, 9, addresses, 55), schema.WORDS)
        assert rows["flags"].tolist() == list(range(max(1, -(-count // 4))))
        assert set(rows["op"]) == {9} and set(rows["tid"]) == {TGID} and set(rows["enter_ns"]) == {55}
        assert [word for word in rows["words"].ravel().tolist() if word] == addresses
