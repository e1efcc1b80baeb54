# SPDX-License-Identifier: Apache-2.0
"""Summaries to draw: each shows one thing that a screen must survive or say.

Owns fixtures only. Numbers are plausible, not measured.
"""

from __future__ import annotations

from dataclasses import replace

from tracer.model.lead import lead
from tracer.model.summary import (
    Episode,
    Finding,
    Lost,
    Miss,
    RecordCounts,
    Remedy,
    Segment,
    SelfCost,
    Summary,
    Window,
)
from tracer.model.summaryrows import (
    BlameRow,
    CostStats,
    DriverRow,
    HeldRow,
    HoldStats,
    LockRow,
    Slack,
    StreamRow,
    TargetRow,
    ThreadRow,
    WaitStats,
    WritePath,
)

MS = 1_000_000
PERIOD = 21_333_333

#: Names as a hostile guest or program would choose them: markup, escapes, line ends, overrides, wide cells.
HOSTILE = (
    "[bold red]owned[/]",
    "\x1b[2J\x1b]0;title\x07clear",
    "two\nlines\ttab",
    "rtl\u202egnp.exe",
    "音声ストリーム音声ストリーム音声ストリーム",
    "bad\udcff\udc80utf8",
    "",
)


def stream(number: int, *, misses: int = 0, name: str | None = None, **changes: object) -> StreamRow:
    """One stream; with misses, their cause is serialised, with one by lock."""
    recent = tuple(
        None if misses and i % 17 == 5 else (PERIOD * ((i * 7 + number) % 11)) // 11 for i in range(64)
    )
    row = StreamRow(
        id=f"s{number}",
        name=name if name is not None else f"stream {number}",
        tgid=4242,
        context=4300 + number,
        driver="d1",
        wake_eventfd=100 + number,
        completion_eventfd=200,
        period_ns=PERIOD,
        source="exact",
        confidence=1.0,
        cycles=1204 + number,
        misses=misses,
        carried=max(misses - 2, 0),
        episodes=min(misses, 2),
        misses_by_leg={"wake": max(misses - 1, 0), "completion": min(misses, 1)},
        misses_by_cause={"serialised": misses - 1, "lock": 1} if misses else {},
        slack_ns=Slack(
            p50=18 * MS, p1=2 * MS if not misses else -3 * MS, min=1_840_000 if not misses else -138 * MS
        ),
        recent=recent,
        audible={"yes": misses} if misses else {},
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def lock(name: str, *, misses: int = 0, total_ms: int = 12, **changes: object) -> LockRow:
    """One lock word."""
    row = LockRow(
        name=name,
        instance="context 4301",
        address=0x7F12A0B0C4D8,
        tgid=4242,
        named_by="symbols",
        contended=72,
        barged=3,
        wait_ns=WaitStats(p50=42_000, p99=900_000, max=total_ms * MS // 3, total=total_ms * MS),
        hold_ns=HoldStats(n=400, source="held_words", p50=3_100, p99=88_000),
        misses_caused=misses,
        evidence="the caller is CrossDomainContext::write, context.rs:612",
        top_waiter="W process_receive",
        top_holder="G write in write(eventfd)",
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def miss(number: int, cause: str = "serialised", **changes: object) -> Miss:
    """One missed cycle; its segments sum to the window."""
    row = Miss(
        id=number,
        episode=1,
        stream="s1",
        cycle=500 + number,
        leg="wake",
        deadline_ns=12_000 * MS,
        late_ns=38_400_000,
        cause=cause,
        lock=None,
        via="serialised",
        detail="W served 12 events of the channel first; the stream's eventfd was ready for 51.2 ms",
        carried_from=None,
        sufficient=("serialised", "not_scheduled:gpu worker"),
        jointly=(),
        chain=(),
        went_first={"channel": 12, "other streams": 1},
        kick="inferred",
        audible="yes",
        evidence="complete",
        segments=(
            Segment("host", "", 48_000, 977, "D"),
            Segment("on_cpu", "serialised", 18 * MS, 4301, "W", "process_receive"),
            Segment("guest", "serialised", 12 * MS, 4250, "vcpu 0"),
            Segment("not_scheduled", "serialised", 21_200_000, 4299, "gpu worker", "hog 5120 ran instead"),
            Segment("lock", "", 2_100_000, 4301, "item_state", "held by G in write(eventfd)"),
            Segment("slow_syscall", "", 6 * MS, 4301, "read(eventfd)"),
            Segment("host", "", 385_333, 977, "D"),
        ),
        todo="serve ready events in turn (a fair worker), or give the stream a context of its own",
    )
    return replace(row, **changes)  # type: ignore[arg-type]


CARRIED = (Segment("carried", "", PERIOD, 0, ""),)


def base(**changes: object) -> Summary:
    """One stream, no miss, nothing lost."""
    summary = Summary(
        host={"kernel": "6.1.0", "machine": "x86_64", "cpus": 8},
        targets=(
            TargetRow(
                4242, "vmm", "libkrun VM", "/usr/bin/muvm", "abcd", "krun-rutabaga-gfx", "0.1.0-1.19.7"
            ),
            TargetRow(977, "audio", "pipewire", "/usr/bin/pipewire", "ef01"),
        ),
        window=Window(1_000 * MS, 13_500 * MS),
        records=RecordCounts(total=654_321, lost=Lost(), per_s=54_210),
        self=SelfCost(cpu_percent=2.14, probe_ns_per_s=3_100_000),
        steal_ns=0,
        verdict="No missed cycle in 12 s.",
        threads=(
            ThreadRow(4299, 4242, "G", "gpu worker", "OTHER", 0, "0-7", 0, "behaviour"),
            ThreadRow(4301, 4242, "W", "cross domain", "OTHER", 0, "0-7", 0, "behaviour"),
            ThreadRow(978, 977, "D", "data-loop.0", "FIFO", 88, "0-7", -1, "behaviour"),
            ThreadRow(4250, 4242, "vcpu", "fc_vcpu 0", "OTHER", 0, "0-3", 12 * MS, "name"),
        ),
        drivers=(DriverRow("d1", 977, PERIOD, {"late_start": 0, "skipped": 0, "catch_up": 0}, 1204),),
        streams=(stream(1),),
        locks=(lock("item_state"), lock("jobs", total_ms=900, kind="condvar_relock", named_by="behaviour")),
        blame=(BlameRow("item_state", "write", "write(eventfd)", "process_receive", 12 * MS, 4 * MS, 0, 72),),
        held=(
            HeldRow("item_state", 4299, "G", "write", "eventfd 201", 1204, 1.0, 0.02, True),
            HeldRow("item_state", 4301, "W", "write", "irq eventfd", 5021, 0.147, 0.02, True),
            HeldRow("jobs", 4301, "W", "epoll_wait", "epoll 12", 812, 0.002, None, False),
        ),
        write_path={
            "4242": WritePath(
                "dup",
                "dup_calls",
                "krun-rutabaga-gfx",
                "0.1.0-1.19.7",
                CostStats(3_100, 18_400),
                1204,
                "G dups the eventfd, writes the dup and closes it; item_state held in 0.2% of 1,204 writes",
            )
        },
        findings=(
            Finding(
                "W has no real-time priority beside 3 busy threads",
                "cross domain (4301) runs as OTHER 0 on CPUs 0-7",
                "chrt -f -p 60 4301",
            ),
        ),
    )
    return replace(summary, **changes)  # type: ignore[arg-type]


def missing() -> Summary:
    """A churn: serialised and carried misses, a lock miss, remedies."""
    misses = (
        miss(
            1,
            "lock",
            lock="item_state",
            via=None,
            leg="completion",
            detail="G waited 22.1 ms for item_state, held by W, which waited for jobs, held in fsync",
            chain=("G", "item_state: W", "jobs: 4310 in fsync"),
            sufficient=("lock:item_state",),
            went_first={},
            kick="exact",
            segments=(
                Segment("host", "", 40_000, 977, "D"),
                Segment("guest", "", 300_000, 4250, "vcpu 0"),
                Segment("lock", "", 22_100_000, 4299, "item_state", "held by W"),
            ),
        ),
        miss(2),
        *(miss(n, carried_from=2, segments=CARRIED, detail="", sufficient=()) for n in range(3, 8)),
    )
    table = {
        "item_state": Remedy(1, 7, {"serialised": 6}, 1, 2),
        "dup": Remedy(1, 7, {"serialised": 6}, 1, 2),
        "fair": Remedy(6, 7, {"lock": 1}, 1, 2),
        "own_context": Remedy(6, 7, {"lock": 1}, 1, 2),
        "realtime": Remedy(5, 7, {"serialised": 1, "lock": 1}, 1, 2),
        "no_steal": Remedy(0, 7, {"serialised": 6, "lock": 1}, 0, 2),
    }
    return base(
        verdict="Still happening: 2 episodes (7 missed cycles) in the last minute, the last 3 s ago; "
        "W served other events first in most of them (serialised).",
        todo="serve ready events in turn (a fair worker), or give the stream a context of its own",
        streams=(stream(1, misses=7), stream(2)),
        locks=(lock("jobs", total_ms=900, kind="condvar_relock"), lock("item_state", misses=1, total_ms=44)),
        misses=misses,
        misses_by_cause={"serialised": 6, "lock": 1},
        episodes=(
            Episode(1, 1_000 * MS, 1_138 * MS, ("s1",), 6, "serialised", "channel"),
            Episode(2, 3_000 * MS, None, ("s1",), 1, "lock", "item_state"),
        ),
        counterfactual=table,
        lead=lead(table),
        blame=(
            BlameRow("item_state", "write", "write(eventfd)", "process_receive", 12 * MS, 4 * MS, 0, 72),
            BlameRow(
                "item_state",
                "handle_fence",
                "futex(jobs)",
                "write",
                22_100_000,
                22_100_000,
                1,
                2,
                "behaviour",
                "symbols",
            ),
        ),
    )


def many_streams() -> Summary:
    """Forty streams on two VMMs, some ended, some inferred."""
    rows = tuple(
        stream(
            n,
            misses=(n % 5) * 3,
            name=f"media playback stream number {n} of Firefox",
            tgid=4242 + n % 2,
            alive=n % 7 != 0,
            source="inferred" if n % 6 == 0 else "exact",
            confidence=0.82 if n % 6 == 0 else 1.0,
        )
        for n in range(40)
    )
    locks = tuple(
        lock(f"lock@{0x7F0000001000 + 64 * n:#x}", total_ms=n, tgid=4242 + n % 2) for n in range(30)
    )
    return replace(missing(), streams=rows, locks=locks)


def hostile() -> Summary:
    """Every name is an attack."""
    summary = missing()
    return replace(
        summary,
        verdict=f"culprit {HOSTILE[1]} {HOSTILE[0]}",
        targets=tuple(
            replace(t, comm=HOSTILE[0], crate=HOSTILE[2], version=HOSTILE[3]) for t in summary.targets
        ),
        streams=tuple(stream(n, misses=n, name=name) for n, name in enumerate(HOSTILE, 1)),
        locks=tuple(replace(lock(name), instance=HOSTILE[3], top_waiter=HOSTILE[1]) for name in HOSTILE),
        blame=tuple(BlameRow(name, HOSTILE[1], HOSTILE[2], HOSTILE[3], MS, MS, 1, 1) for name in HOSTILE),
        held=tuple(HeldRow(name, 1, "W", HOSTILE[2], HOSTILE[1], 100, 0.5) for name in HOSTILE),
        threads=tuple(ThreadRow(n, 1, "", name, cpus=HOSTILE[1]) for n, name in enumerate(HOSTILE)),
        misses=tuple(
            miss(
                n,
                lock=name,
                detail=name,
                todo=HOSTILE[1],
                chain=HOSTILE,
                sufficient=HOSTILE,
                via=None,
                cause="lock",
            )
            for n, name in enumerate(HOSTILE)
        ),
        findings=tuple(Finding(name, HOSTILE[1], HOSTILE[2]) for name in HOSTILE),
    )


def losing() -> Summary:
    """Records lost, an expensive observer, a target that has exited, stolen CPU; verdicts degraded."""
    summary = missing()
    return replace(
        summary,
        targets=(replace(summary.targets[0], alive=False, crate="", version=""),),
        records=RecordCounts(1_000_000, Lost(ring=12_345, map=2, late=7), 998_000),
        self=SelfCost(cpu_percent=61.0),
        steal_ns=23_600_000,
        misses=tuple(
            replace(m, cause="unknown", evidence="degraded", late_ns=None, audible="unknown")
            for m in summary.misses[:2]
        ),
        write_path={"4242": WritePath("unknown", "held_words", "", "", CostStats(None, None), 0)},
    )


def no_streams() -> Summary:
    """Another program: locks, and no audio."""
    return base(
        targets=(TargetRow(7, "vmm", "python3", "/usr/bin/python3", ""),),
        verdict="no audio stream seen",
        streams=(),
        drivers=(),
        write_path={},
        held=(),
        blame=(),
        findings=(
            Finding(
                "no audio stream seen",
                "no traced thread reads an eventfd that is written at an audio period",
                "play something in the guest, or give the audio server with --audio PID",
                "alert",
            ),
        ),
    )


def mixed() -> Summary:
    """No single cause suffices."""
    summary = missing()
    both = miss(
        9,
        "mixed",
        via=None,
        sufficient=(),
        jointly=("lock:item_state", "stolen"),
        detail="neither the 6.0 ms wait for item_state nor 7.0 ms of stolen CPU alone made it late; both did",
    )
    return replace(summary, misses=(both,), misses_by_cause={"mixed": 1}, streams=(stream(1, misses=1),))


def nothing_yet() -> Summary:
    """The moment of attach."""
    return Summary(
        host={},
        targets=(TargetRow(4242, "vmm", "muvm", "", ""),),
        window=Window(0, 0),
        records=RecordCounts(0, Lost()),
        self=SelfCost(),
        steal_ns=0,
        verdict="just attached; no audio stream yet",
        todo="watch for 1.0 s or longer",
    )


ALL = {
    "clean": base,
    "missing": missing,
    "many_streams": many_streams,
    "hostile": hostile,
    "losing": losing,
    "no_streams": no_streams,
    "mixed": mixed,
    "nothing_yet": nothing_yet,
}
