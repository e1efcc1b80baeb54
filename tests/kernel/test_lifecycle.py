# SPDX-License-Identifier: Apache-2.0
"""Threads, exec, exit, attach and detach: what begins and ends is seen, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from live import WAIT, Child, Live

from tracer import schema
from tracer.capture import bpfsys
from tracer.capture.session import Session, Settings
from tracer.errors import TargetError
from tracer.schema import Flag, Kind, Life, Losses

Attach = Callable[..., Live]
Start = Callable[[], Child]
# What the verifier may walk in all programs together: a loop that it unrolls by accident shows here.
MAX_VERIFIED = 60_000
# What the child writes to end its reads in "overtake".
OVERTAKEN = 88_001


def test_ten_thousand_short_threads_leave_empty_maps(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    for _ in range(10):
        child.do("threads 1000")
        live.next()
    tids, _threads = live.session.in_flight()
    assert tids.tolist() == [child.tgid]
    child.end()
    done = live.finish()
    lives = done.of(Kind.LIFE)
    assert int((lives["op"] == Life.START).sum()) == 10_000
    assert int((lives["op"] == Life.EXIT).sum()) == 10_001
    assert done.lost == Losses()
    assert len(live.session.in_flight()[0]) == 0


def test_the_session_ends_with_its_target(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    child.do("contend 101")
    child.end()
    live.recording.batches.extend(live.batches)  # without stop(): it ends by itself
    done = live.recording
    assert [info.alive for info in done.batches[-1].targets] == [False]
    assert int((done.of(Kind.FUTEX)["op"] == WAIT).sum()) == 101


def test_exec_keeps_the_target_and_clears_its_words(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    live.session.watch(child.tgid, (child.word,))
    live.next()
    answer = child.do("exec")
    assert answer.startswith("ready")
    word = int(answer.split()[2], 16)
    live.until(lambda so_far: len(so_far.of(Kind.WORDS)) == 2)
    child.do("contend 101")
    done = live.finish()
    (replaced,) = [life for life in done.of(Kind.LIFE) if life["op"] == Life.EXEC]
    assert replaced["tid"] == replaced["tgid"] == replaced["old_tid"] == child.tgid
    words = done.of(Kind.WORDS)
    assert words["words"][:2].tolist() == [[child.word, 0, 0, 0], [0, 0, 0, 0]]
    waits = done.of(Kind.FUTEX)
    assert int(((waits["op"] == WAIT) & (waits["word"] == word)).sum()) == 101


def test_a_wait_that_lasts_is_open_and_then_superseded(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    child.do("block")

    (tid,) = {int(name) for name in os.listdir(f"/proc/{child.tgid}/task")} - {child.tgid}

    def opened() -> schema.Records:
        records = live.recording.records
        mine = (records["kind"] == Kind.READ) & (records["tid"] == tid)
        found: schema.Records = records[mine & (records["flags"] == Flag.OPEN)]
        return found

    live.until(lambda so_far: len(opened()) > 1)
    child.do("unblock")
    done = live.finish()
    (enter_ns,) = set(opened()["enter_ns"].tolist())
    (row,) = done.of(Kind.READ, {tid})
    assert row["ret"] == 1 and row["enter_ns"] == enter_ns and row["dur_ns"] > opened()["dur_ns"].max()
    away = done.records[done.records["kind"] == Kind.OFFCPU]
    assert (away["flags"][away["tid"] == tid] & Flag.OPEN).any()


def test_a_process_that_joins_is_traced_and_does_not_keep_the_session_going(
    start_child: Start, trace: Attach
) -> None:
    vmm, guest = start_child(), start_child()
    live = trace(vmm.tgid)
    live.next()
    for _ in range(2):  # as each batch asks for it again
        live.session.join(vmm.tgid, guest.tgid)
    guest.do("contend 101")
    live.next()
    vmm.end()
    live.recording.batches.extend(live.batches)  # without stop(): it ends by itself
    done = live.recording
    waits = done.of(Kind.FUTEX)
    assert int(((waits["op"] == WAIT) & (waits["word"] == guest.word)).sum()) == 101
    alive = {info.tgid: info.alive for batch in done.batches for info in batch.targets}
    assert alive == {vmm.tgid: False, guest.tgid: True}


def test_a_thread_blocked_at_attach_gives_one_clipped_record(child: Child, trace: Attach) -> None:
    child.do("block")
    (tid,) = {int(name) for name in os.listdir(f"/proc/{child.tgid}/task")} - {child.tgid}
    while Path(f"/proc/{child.tgid}/task/{tid}/syscall").read_text().split()[0] != "0":
        os.sched_yield()
    live = trace(child.tgid)
    child.do("unblock")
    done = live.finish()
    reads = done.of(Kind.READ, {tid})
    (row,) = reads
    assert row["flags"] & Flag.CLIPPED and row["ret"] == 1
    assert row["enter_ns"] >= done.batches[0].host["attach_ns"]
    away = done.of(Kind.OFFCPU, {tid})
    assert away[0]["flags"] & Flag.CLIPPED and away[0]["waker_tid"] == child.tgid


def test_a_stopped_and_continued_wait_is_one_span(child: Child, trace: Attach) -> None:
    """A futex wait without timeout restarts with its own number, a nanosleep as restart_syscall."""
    live = trace(child.tgid, min_other_ns=0)
    child.do("block")
    (tid,) = {int(name) for name in os.listdir(f"/proc/{child.tgid}/task")} - {child.tgid}
    while Path(f"/proc/{child.tgid}/task/{tid}/syscall").read_text().split()[0] != "0":
        os.sched_yield()
    for _ in range(3):
        os.kill(child.tgid, signal.SIGSTOP)
        os.waitpid(child.tgid, os.WUNTRACED)
        os.kill(child.tgid, signal.SIGCONT)
        os.waitpid(child.tgid, os.WCONTINUED)
    child.do("unblock")
    reads = live.finish().of(Kind.READ, {tid})
    assert reads["ret"].tolist() == [1]


def test_a_timer_that_wakes_beside_a_hog_does_not_blame_the_hog(child: Child, trace: Attach) -> None:
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(child.tgid, {cpu})
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as hog:
        try:
            os.sched_setaffinity(hog.pid, {cpu})
            live = trace(child.tgid)
            child.do("nap 211")
            spans = live.finish().of(Kind.OFFCPU, {child.tgid})
        finally:
            hog.kill()
    naps = spans[(spans["preempted"] == 0) & (spans["op"] & 3 != 0) & (spans["woken_ns"] != 0)]
    in_hog = naps[naps["waker_tid"] == hog.pid]
    assert len(in_hog) > 20, "the hog was never running when the timer fired: nothing was tested"
    assert in_hog["waker_in_irq"].all()


def test_who_woke_a_thread_and_who_ran_instead(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    child.do("contend 101")
    done = live.finish()
    waits = done.of(Kind.FUTEX)
    waits = waits[(waits["op"] == WAIT) & (waits["word"] == child.word)]
    (tid,) = set(waits["tid"].tolist())
    spans = done.of(Kind.OFFCPU, {tid})
    blocked = spans[(spans["preempted"] == 0) & (spans["op"] & 3 != 0)]
    inside = [
        span
        for span in blocked
        if ((waits["enter_ns"] <= span["enter_ns"]) & (schema.end_ns(waits) >= span["enter_ns"])).any()
    ]
    assert len(inside) > 10, "no wait slept: nothing was tested"
    assert {int(span["waker_tid"]) for span in inside} == {child.tgid}
    assert not any(span["waker_in_irq"] for span in inside)
    assert all(span["enter_ns"] <= span["woken_ns"] <= schema.end_ns(span) for span in inside)


@pytest.mark.parametrize("use_btf", [True, False])
def test_a_waking_that_ended_no_sleep_is_not_taken_for_the_next_one_s(
    child: Child, trace: Attach, use_btf: bool
) -> None:
    """A timer wakes the thread before it has slept; then it sleeps at once, and another thread wakes it."""
    live = trace(child.tgid, use_btf=use_btf)
    child.do("overtake 211")
    done = live.finish()
    reads = done.of(Kind.READ)
    reads = reads[reads["value"] == OVERTAKEN]
    (tid,) = set(reads["tid"].tolist())
    assert len(reads) == 211
    spans = done.of(Kind.OFFCPU, {tid})
    blocked = spans[(spans["preempted"] == 0) & (spans["op"] & 3 != 0)]
    within = [
        span
        for span in blocked
        if ((reads["enter_ns"] <= span["enter_ns"]) & (schema.end_ns(reads) >= span["enter_ns"])).any()
    ]
    assert len(within) > 100, "hardly a read slept: nothing was tested"
    wrong = [span for span in within if span["waker_tid"] != child.tgid or span["waker_in_irq"]]
    assert not wrong, f"{len(wrong)} of {len(within)} have another waker"


def test_watermarks_hold_and_batches_are_in_order(child: Child, trace: Attach) -> None:
    live = trace(child.tgid, interval_s=0.01)
    for _ in range(20):
        child.do("contend 101")
        live.next()
    done = live.finish()
    published = 0
    for batch in done.batches:
        assert batch.watermark_ns >= published
        late = schema.end_ns(batch.records) < published
        assert (batch.records["flags"][late] & Flag.LATE != 0).all()
        published = batch.watermark_ns
    assert done.lost.ring == done.lost.map == 0


def test_a_consumer_that_takes_its_time_loses_nothing(child: Child, trace: Attach) -> None:
    """More records than the ring holds, and nobody asks for a batch meanwhile."""
    live = trace(child.tgid, ring_bytes=4 << 20)
    for _ in range(5):
        child.do("contend 7919")
    done = live.finish()
    assert len(done.records) > (4 << 20) // 64, "it all fits into the ring: nothing was tested"
    waits = done.of(Kind.FUTEX)
    assert int(((waits["op"] == WAIT) & (waits["word"] == child.word)).sum()) == 5 * 7919
    assert done.lost == Losses()


def test_losses_are_counted_exactly(child: Child, trace: Attach) -> None:
    """A ring of one page holds 64 slots: what does not fit is counted, not forgotten."""
    live = trace(child.tgid, ring_bytes=os.sysconf("SC_PAGESIZE"))
    child.do("contend 2003")
    done = live.finish()
    rows = done.of(Kind.LOSS)
    assert done.lost.ring > 1000
    assert int(rows["count"][rows["op"] == schema.LossClass.RING].sum()) == done.lost.ring
    kept = done.records
    kept = kept[~np.isin(kept["kind"], (Kind.LOSS, Kind.WORDS)) & (kept["flags"] & Flag.OPEN == 0)]
    assert len(kept) + done.lost.ring >= 2 * 2003


def test_the_verifier_walks_few_instructions(child: Child, trace: Attach) -> None:
    live = trace(child.tgid, held_words=16)
    verified = live.session.verified_instructions()
    assert verified["xd_sys_exit"] > 0
    assert sum(verified.values()) < MAX_VERIFIED, verified


def test_kept_probes_see_the_same_and_damaged_ones_are_made_again(
    start_child: Start, trace: Attach, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    folder = tmp_path / "probes"
    compiled = []
    for damage in (False, False, True):
        if damage:
            (kept,) = folder.iterdir()
            kept.write_bytes(kept.read_bytes()[:-1])
        child = start_child()
        live = trace(child.tgid, cache=str(folder))
        compiled.append(live.session.start_times["compile"] > 0)
        child.do("contend 101")
        done = live.finish()
        waits = done.of(Kind.FUTEX)
        assert int(((waits["op"] == WAIT) & (waits["word"] == child.word)).sum()) == 101
        assert done.lost == Losses()
    assert compiled == [True, False, True]


def bpf_ids_of(pid: int) -> tuple[set[int], set[int]]:
    """Ids of the BPF programs and maps that a process holds: other tracers on this host are not ours."""
    programs: set[int] = set()
    maps: set[int] = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("prog_id", "map_id"):
                    (programs if name == "prog_id" else maps).add(int(value))
    return programs, maps


def gone(programs: set[int], maps: set[int]) -> bool:
    """Whether they are freed, which the kernel does after a grace period of its own."""
    for _ in range(1000):
        if not programs & set(bpfsys.program_ids()) and not maps & set(bpfsys.map_ids()):
            return True
        time.sleep(0.01)
    return False


def surroundings() -> tuple[list[str], list[str]]:
    """What a tracer could leave on the host, without what tests beside this one mount in their folders."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in mounts if "/pytest-of-" not in line], sorted(os.listdir("/sys/fs/bpf"))


@pytest.mark.parametrize("cache", [False, True], ids=["compiled", "kept"])
def test_attaching_mounts_nothing_and_detaching_leaves_nothing(child: Child, cache: bool) -> None:
    before, held = surroundings(), bpf_ids_of(os.getpid())
    with Session([child.tgid], Settings(audio=False, cache=cache)) as session:
        next(iter(session))
        programs, maps = bpf_ids_of(os.getpid())
        assert len(programs - held[0]) == 15 and len(maps - held[1]) == 6
        assert surroundings() == before
    assert surroundings() == before
    assert bpf_ids_of(os.getpid()) == held
    assert gone(programs - held[0], maps - held[1])


def test_sigkill_leaves_no_program(child: Child) -> None:
    script = (
        "from tracer.capture.session import *\n"
        f"with Session([{child.tgid}], Settings(audio=False)) as session:\n"
        "    for batch in session: print('batch', flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as tracer:
        assert tracer.stdout
        assert tracer.stdout.readline() == b"batch\n"
        programs, maps = bpf_ids_of(tracer.pid)
        assert len(programs) == 15 and len(maps) == 6
        tracer.kill()
        tracer.wait()
    assert gone(programs, maps)
    assert child.do("contend 3") == ""


def test_without_btf_the_ids_come_from_proc_and_the_target_says_so(child: Child, trace: Attach) -> None:
    live = trace(child.tgid, use_btf=False)
    (info,) = live.recording.batches[0].targets
    assert any("/proc" in note for note in info.notes)
    fds = [int(fd) for fd in child.do("eventfds 1").split()]
    done = live.finish()
    writes = done.of(Kind.WRITE)
    mine = writes[writes["fd"] == fds[0]]
    (number,) = [
        int(line.split()[1])
        for line in Path(f"/proc/{child.tgid}/fdinfo/{fds[0]}").read_text().splitlines()
        if line.startswith("eventfd-id")
    ]
    assert mine["eventfd_id"].tolist() == [number]


def test_without_btf_threads_and_wakers_are_told_all_the_same(child: Child, trace: Attach) -> None:
    """Where the kernel keeps ids in a task is learnt from our own, whose ids are known."""
    live = trace(child.tgid, use_btf=False)
    (info,) = live.recording.batches[0].targets
    assert any("steal time is not seen" in note for note in info.notes)
    child.do("contend 101")
    done = live.finish()
    waits = done.of(Kind.FUTEX)
    (tid,) = set(waits["tid"][(waits["op"] == WAIT) & (waits["word"] == child.word)].tolist())
    assert [life["tid"] for life in done.of(Kind.LIFE) if life["op"] == Life.START] == [tid]
    spans = done.of(Kind.OFFCPU, {tid})
    blocked = spans[(spans["preempted"] == 0) & (spans["op"] & 3 != 0)]
    assert len(blocked) > 10 and not spans["stolen_ns"].any()
    assert (blocked["woken_ns"] != 0).all() and child.tgid in set(blocked["waker_tid"].tolist())


def test_xdtrace_does_not_trace_itself_nor_what_is_not_there(live_host: None) -> None:
    for pid in (os.getpid(), 2**22 + 1):
        with pytest.raises(TargetError), Session([pid]):
            pass


def test_a_target_that_is_gone_is_left_out_where_not_all_are_needed(child: Child, trace: Attach) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    live = trace(ended.pid, child.tgid, ended.pid, need_all=False)
    assert [target.tgid for target in live.session.targets] == [child.tgid]
    with pytest.raises(TargetError):
        trace(ended.pid, need_all=False)
    with pytest.raises(TargetError):
        trace(child.tgid, ended.pid)
