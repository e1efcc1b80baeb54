# SPDX-License-Identifier: Apache-2.0
"""What real processes do arrives as records, exactly and completely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from live import WAIT, WAKE, Child, Live

from tracer import schema
from tracer.errors import HostError
from tracer.schema import Flag, Kind, Life, Losses

Attach = Callable[..., Live]
Start = Callable[[], Child]


def fdinfo_id(tgid: int, fd: int) -> int:
    for line in Path(f"/proc/{tgid}/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("eventfd-id:"):
            return int(line.split()[1])
    raise AssertionError(f"fd {fd} is no eventfd")


@pytest.mark.parametrize("count", [101, 7919])
def test_every_contended_wait_and_its_wake_is_recorded(child: Child, trace: Attach, count: int) -> None:
    live = trace(child.tgid)
    child.do(f"contend {count}")
    done = live.finish()
    futexes = done.of(Kind.FUTEX)
    mine = futexes[futexes["word"] == child.word]
    waits, wakes = mine[mine["op"] == WAIT], mine[mine["op"] == WAKE]
    assert len(waits) == count
    assert set(waits["expected"]) == {2} and set(waits["ret"]) == {0}
    assert int((wakes["ret"] == 1).sum()) == count
    assert done.lost == Losses()


def test_a_long_wait_names_its_caller_and_a_short_threshold_does_not_lose_it(
    child: Child, trace: Attach
) -> None:
    live = trace(child.tgid, wait_stack_ns=0)
    child.do("contend 11")
    waits = live.finish().of(Kind.FUTEX)
    waits = waits[(waits["word"] == child.word) & (waits["op"] == WAIT)]
    assert len(waits) == 11 and (waits["caller"] != 0).all()


@pytest.mark.parametrize("form", ["cast", "direct", "plain"])
def test_eventfd_ids_and_values_are_those_of_fdinfo(child: Child, trace: Attach, form: str) -> None:
    live = trace(child.tgid, probe_form=form)
    assert live.recording.batches[0].host["probe_form"] == form
    fds = [int(fd) for fd in child.do("eventfds 13").split()]
    done = live.finish()
    ids = [fdinfo_id(child.tgid, fd) for fd in fds]
    writes, reads, made = done.of(Kind.WRITE), done.of(Kind.READ), done.of(Kind.FD)
    births = made[np.isin(made["op"], (290, 19)) & (made["fd"] == -1)]
    assert births["ret"].tolist() == fds
    assert births["eventfd_id"].tolist() == ids and births["value"].tolist() == list(range(13))
    for i, (fd, number) in enumerate(zip(fds, ids, strict=True)):
        mine = writes[writes["eventfd_id"] == number]
        assert len(mine) == 2 and set(mine["value"]) == {1000 + i}
        # Through a dup first, which has another fd and the same id; then with the first unread.
        assert mine["fd"][0] != fd and mine["fd"][1] == fd
        assert [bool(flags & Flag.PENDING) for flags in mine["flags"]] == [i > 0, True]
        (read,) = reads[reads["eventfd_id"] == number]
        assert read["value"] == 2 * (1000 + i) + i and read["flags"] & Flag.EVENTFD
        dup = made[(made["eventfd_id"] == number) & (made["fd"] == fd)]
        assert dup["ret"].tolist() == [mine["fd"][0]]
        closed = made[(made["eventfd_id"] == number) & (made["fd"] == mine["fd"][0])]
        assert closed["ret"].tolist() == [0], "a close knows its id although the file is gone afterwards"


@pytest.mark.parametrize(
    ("count", "form"), [*((n, "") for n in (1, 3, 4, 11, 12, 35)), (35, "direct"), (35, "plain")]
)
def test_received_fds_come_with_their_eventfd_ids(child: Child, trace: Attach, count: int, form: str) -> None:
    live = trace(child.tgid, probe_form=form)
    fds = [int(fd) for fd in child.do(f"rights {count}").split()]
    done = live.finish()
    ids = [fdinfo_id(child.tgid, fd) for fd in fds]
    for kind in (Kind.SENDMSG, Kind.RECVMSG):
        (message,) = done.of(kind)
        more = done.of(Kind.MSG_MORE)
        more = more[(more["tid"] == message["tid"]) & (more["enter_ns"] == message["enter_ns"])]
        seen = [*message["eventfd_ids"].tolist(), *more["eventfd_ids"].ravel().tolist()]
        assert message["nfds"] == count
        assert [number for number in seen if number >= 0] == ids


def test_timers_and_epoll(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    child.do("timers 5")
    done = live.finish()
    (timer,) = done.of(Kind.TIMER)
    assert (timer["value_ns"], timer["interval_ns"]) == (1_000_000, 2_000_000)
    reads = done.of(Kind.READ)
    reads = reads[(reads["flags"] & Flag.TIMERFD) != 0]
    assert len(reads) == 5 and (reads["value"] >= 1).all() and set(reads["fd"]) == {timer["fd"]}
    (control,) = done.of(Kind.EPOLL_CTL)
    assert (control["fd"], control["ctl_op"], control["data"]) == (timer["fd"], 1, 0x1122334455667788)
    waits = done.of(Kind.EPOLL_WAIT)
    assert len(waits) == 5
    assert set(waits["data"]) == {0x1122334455667788} and set(waits["events"]) == {1}
    assert set(waits["epfd"]) == {control["epfd"]}


def test_polls_that_end_at_once_are_recorded(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    child.do("polls 101")
    waits = live.finish().of(Kind.EPOLL_WAIT)
    by_call = [int(np.count_nonzero(np.isin(waits["op"], numbers))) for numbers in ((7,), (271,), (23, 270))]
    assert by_call == [101, 101, 101]
    assert set(waits["ret"]) == {1} and set(waits["epfd"]) == {-1}


def test_two_targets_are_told_apart(start_child: Start, trace: Attach) -> None:
    one, two, bystander = start_child(), start_child(), start_child()
    live = trace(one.tgid, two.tgid)
    one.do("contend 101")
    two.do("contend 211")
    bystander.do("contend 307")
    done = live.finish()
    threads = {life["tid"]: life["tgid"] for life in done.of(Kind.LIFE) if life["op"] == Life.START}
    waits = done.of(Kind.FUTEX)
    waits = waits[waits["op"] == WAIT]
    counts = {tgid: sum(threads.get(tid) == tgid for tid in waits["tid"]) for tgid in (one.tgid, two.tgid)}
    assert counts == {one.tgid: 101, two.tgid: 211}
    assert set(threads.values()) == {one.tgid, two.tgid}


def test_targets_whose_ids_share_a_slot_of_the_filter_do_not_hide_each_other(
    child: Child, trace: Attach
) -> None:
    live = trace(child.tgid)
    maps = live.session._maps
    others = [child.tgid + 8192 * n for n in range(1, 8)]
    maps.remove_target(child.tgid)
    for tgid in (*others, child.tgid):  # ours comes last of the eight that a slot holds
        maps.set_target(tgid)
    with pytest.raises(HostError, match="equal modulo 8192"):
        maps.set_target(child.tgid + 8192 * 8)
    maps.remove_target(child.tgid + 8192 * 8)
    maps.remove_target(others[3])
    child.do("contend 101")
    waits = live.finish().of(Kind.FUTEX)
    assert int(((waits["word"] == child.word) & (waits["op"] == WAIT)).sum()) == 101


def test_children_are_not_followed(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    child.do("fork 101")
    done = live.finish()
    assert set(done.records["tid"].tolist()) <= {child.tgid}
    assert not (done.of(Kind.FUTEX)["op"] == WAIT).any()


def test_watched_words_show_what_is_held_at_entry(child: Child, trace: Attach) -> None:
    live = trace(child.tgid, held_words=6)
    words = (child.other, child.held)
    live.session.watch(child.tgid, words)
    announced = live.next()
    rows = schema.view(announced.records[announced.records["kind"] == Kind.WORDS], schema.WORDS)
    (row,) = rows
    assert row["tid"] == child.tgid and row["words"].tolist() == [*words, 0, 0]
    child.do("hold")
    done = live.finish()
    writes = done.of(Kind.WRITE)
    writes = writes[writes["value"] >= 77000]
    assert writes["value"].tolist() == [77000, 77001, 77002, 77003]
    assert set(writes["generation"]) == {int(row["op"])}
    # A word above 2 is no std mutex: neither readable nor held.
    assert writes["readable_in"].tolist() == [0b11, 0b11, 0b11, 0b01]
    assert writes["held_in"].tolist() == [0, 0b10, 0b10, 0]


def test_five_words_take_two_records_and_generations_are_not_reused(child: Child, trace: Attach) -> None:
    live = trace(child.tgid, held_words=6)
    generations = []
    for words in ((child.word,), (), (child.word, child.held, child.other, child.word + 4, child.held + 4)):
        live.session.watch(child.tgid, words)
        batch = live.next()
        rows = schema.view(batch.records[batch.records["kind"] == Kind.WORDS], schema.WORDS)
        assert rows["words"].ravel()[: len(words)].tolist() == list(words)
        assert rows["flags"].tolist() == list(range(len(rows)))
        generations.append(int(rows["op"][0]))
    assert len(rows) == 2 and len(set(generations)) == 3


def test_the_session_finds_the_lock_word_by_itself(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    child.do("contend 3")
    live.until(lambda so_far: bool((so_far.records["kind"] == Kind.WORDS).any()))
    (row,) = live.recording.of(Kind.WORDS)
    assert row["words"].tolist() == [child.word, 0, 0, 0]
    # The batch that shows the first wait also announces that its word is watched from now on.
    (first,) = [
        i for i, batch in enumerate(live.recording.batches) if (batch.records["kind"] == Kind.WORDS).any()
    ]
    waits = [
        schema.view(b.records[b.records["kind"] == Kind.FUTEX], schema.FUTEX) for b in live.recording.batches
    ]
    assert [bool(((rows["op"] == WAIT) & (rows["word"] == child.word)).any()) for rows in waits][first]
    assert not any((rows["word"] == child.word).any() for rows in waits[:first])


def test_a_watched_word_is_dropped_when_its_memory_goes(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    word = int(child.do("map 3"), 16)

    def watched() -> list[int]:
        rows = live.recording.of(Kind.WORDS)
        return [w for w in rows["words"][-1].tolist() if w] if len(rows) else []

    live.until(lambda _: watched() == [word])
    child.do("unmap")
    live.until(lambda _: watched() == [])
    child.do("contend 3")
    live.until(lambda _: watched() == [child.word])


def test_another_futex_bit_pattern_is_no_mutex(child: Child, trace: Attach) -> None:
    """pthread_join waits with another op and value: only the mutex-like word is chosen."""
    live = trace(child.tgid)
    child.do("threads 50")
    for _ in range(3):
        live.next()
    assert not len(live.finish().of(Kind.WORDS))
