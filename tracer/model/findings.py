# SPDX-License-Identifier: Apache-2.0
"""What an engineer would want to be told without asking, before and besides any miss.

Owns the checks; each says what, why it matters and one thing to do. Reads the state of the analysis, changes
nothing: what is counted for findings alone is delays.py's and symptoms.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tracer.model.cycles import CLOSES_NS
from tracer.model.delays import RunDelay, Stuck
from tracer.model.locks import Locks
from tracer.model.registry import Registry, ThreadState
from tracer.model.streams import Streams
from tracer.model.summary import Finding
from tracer.model.unread import unread
from tracer.model.wording import PLAY
from tracer.schema import Losses

#: Waiting for a CPU for more than this share of the time is worth a finding.
RUN_DELAY_SHARE: Final = 0.02
#: A stream is served by threads in turn if of so many reads its main one has less than this part.
SHARED_READS: Final = 16
SHARED: Final = 0.8
#: Streams in one context from which on sharing it is worth a finding.
MANY_STREAMS: Final = 4
#: Steal above this share of one CPU is told.
STEAL_SHARE: Final = 0.02
#: Record time without any stream after which that is said.
PATIENCE_NS: Final = 1_000_000_000
#: krun-rutabaga-gfx up to this release can write pipes only.
EVENTFD_WRITES_SINCE: Final = (1, 18, 1)


@dataclass(slots=True)
class Evidence:
    """What findings are made from."""

    registry: Registry
    streams: Streams
    locks: Locks
    delay: RunDelay
    stuck: Stuck
    losses: Losses
    elapsed_ns: int
    steal_ns: int
    symptoms: tuple[Finding, ...] = ()


def findings(seen: Evidence) -> tuple[Finding, ...]:
    """All findings, alerts first."""
    rank = {"alert": 0, "warn": 1, "info": 2}
    found = [*_alerts(seen), *seen.symptoms, *_audio(seen), *_scheduling(seen), *_device(seen)]
    found += _tracing(seen)
    return tuple(sorted(found, key=lambda f: rank.get(f.level, 1)))


def _alerts(seen: Evidence) -> Iterator[Finding]:
    for stream in seen.streams.streams:
        worker = seen.registry.threads.get(stream.context)
        if worker is None or worker.exit_ns is None or not stream.alive:
            continue
        if stream.last_signal_ns > worker.exit_ns + CLOSES_NS:
            yield Finding(
                f"the worker {worker.comm!r} (tid {worker.tid}) of {stream.title} exited",
                "its streams get no wakeup any more: every cycle is missed from there on",
                "restart the guest's audio client; look for a panic of that thread in the VMM's log",
                "alert",
            )
    for tid, (word, start, age, whole) in sorted(seen.stuck.waits.items()):
        if not _is_lock(seen, tid, word, start, whole):
            continue
        yield Finding(
            f"{seen.registry.comm(tid)!r} (tid {tid}) has waited {age / 1e9:.1f} s for "
            f"{seen.locks.label(seen.registry.tgid(tid), word)}",
            "the lock stays held that long: its holder is blocked or gone",
            f"look at what the holder waits for: /proc/{seen.registry.tgid(tid)}/task/*/syscall "
            "and xdtrace's Held table",
            "alert",
        )


def _is_lock(seen: Evidence, tid: int, word: int, start_ns: int, whole: bool) -> bool:
    """Whether a wait for the value 2 is one for a mutex.

    A mutex that W or G waits for once and for ever has no other record. A condvar's counter is 2 after two
    notifies, and each of them is a wake of its word.
    """
    tgid = seen.registry.tgid(tid)
    if (tgid, word) in seen.locks.words:
        return seen.locks.is_lock(tgid, word)
    ours = whole and seen.registry.role(tid) in ("W", "G")
    return ours and not seen.locks.wakes(tgid, word, 0, start_ns)


def _audio(seen: Evidence) -> Iterator[Finding]:
    alive = [s for s in seen.streams.streams if s.alive]
    audio = [t for t in seen.registry.targets.values() if t.role == "audio"]
    if not seen.streams.any_seen and seen.elapsed_ns >= PATIENCE_NS:
        why = (
            f"no eventfd is written periodically by {audio[0].comm} (pid {audio[0].tgid}) "
            "and read by the target"
            if audio
            else "no process was found that shares the target's eventfds and drives them with a timer"
        )
        yield Finding(
            "no audio stream seen",
            why,
            f"{PLAY}; of a VMM in several processes, trace the one that runs the device",
            "info",
        )
        for target in seen.registry.targets.values():
            threads = [seen.registry.with_role(role, target.tgid) for role in ("W", "G", "vcpu")]
            if target.role == "vmm" and target.alive and not any(threads):
                yield Finding(
                    f"nothing shows that {target.comm} (pid {target.tgid}) is a VMM",
                    "no thread of it is a vCPU, a gpu worker or a device's worker, by name or behaviour",
                    "`xdtrace list` shows the VMMs on this host",
                    "warn",
                )
    for dead in unread(seen.streams.filing, seen.registry):
        yield Finding(
            f"eventfd {dead.eventfd} of pid {dead.tgid} is signalled every {dead.period_ns / 1e6:.1f} ms, "
            "and nobody there reads it",
            "its stream was dead before xdtrace came: the worker that should serve it is stuck or gone, or "
            "never registered it; its cycles are in no figure here",
            f"see where its workers stand (/proc/{dead.tgid}/task/*/syscall); restart the guest's client",
            "alert",
        )
    inferred = [s for s in alive if not s.exact]
    if inferred:
        yield Finding(
            f"the periods of {len(inferred)} stream(s) are inferred, with a confidence of "
            f"{min(s.confidence for s in inferred):.0%} or more: the audio server is not seen",
            "cycles come from what the VMM reads and writes; a late read by the server is not seen, and a "
            "wakeup that the VMM never reads is no miss here",
            "trace the server too: run xdtrace as root in the host's pid namespace, without --no-audio or "
            "with --audio PID; or give --period QUANTUM/RATE",
            "info",
        )
    uring = {fd.tgid for fd in seen.registry.fds.values() if fd.type == "io_uring"}
    for stream in alive:
        if stream.cycles >= 64 and not stream.completion_expected and stream.tgid in uring:
            yield Finding(
                f"no completion ever seen for {stream.title}, and its VMM uses io_uring",
                "what is written through it is no syscall: only the wake leg is judged, and late completions "
                "are not counted",
                "let the VMM write eventfds by write(2) while it is traced, or take the audio server's count",
            )
        elif stream.cycles >= 64 and not stream.completion_expected:
            yield Finding(
                f"no completion ever seen for {stream.title}",
                "the stream is async, never the last to finish, or the device refuses the writes: "
                "only the wake leg can be judged",
                "nothing, if the client is async (PipeWire >= 1.2 default); else check the device's version",
                "info",
            )
        readers = stream.wake.read.tid
        if len(readers) >= SHARED_READS and readers.count(stream.wake.read.main_tid()) < SHARED * len(
            readers
        ):
            yield Finding(
                f"{stream.title} is served by {len(set(readers))} threads in turn",
                "a worker that moves between threads (Go, an async runtime, a pool) is not followed from one "
                "to the next: misses are counted right, their causes may be another thread's",
                "read its causes as hints; pin the worker to a thread to have them told",
                "warn",
            )
        if stream.others_late:
            yield Finding(
                f"{stream.others_late} of {stream.cycles} cycles of {stream.title} were late, but another "
                "client of the audio server finished last",
                "such a cycle is no miss of this VMM's here, because nothing shows that it was the late one",
                "see which client it was: pw-top counts errors per client",
                "info",
            )
    contexts: dict[int, int] = {}
    for stream in alive:
        contexts[stream.context] = contexts.get(stream.context, 0) + 1
    for tid, n in sorted(contexts.items()):
        if n >= MANY_STREAMS:
            yield Finding(
                f"{n} streams share one context (worker tid {tid})",
                "one worker serves them one event per fence round trip: they wait for each other",
                "give latency-critical streams a client connection of their own",
            )


def _more_cpu(registry: Registry, thread: ThreadState) -> str:
    """What to do for a thread that waits for a CPU; W and G go before the vCPUs, which then starve."""
    if _realtime(thread):
        return "two real-time threads compete: spread them over CPUs"
    command = f"chrt -f -p 10 {thread.tid}"
    if thread.role in ("W", "G") and registry.with_role("vcpu", thread.tgid):
        command += ", and the same for the vCPUs, which starve otherwise"
    return command + ", or keep other work off its CPUs"


def _realtime(thread: ThreadState) -> bool:
    return thread.policy in ("FIFO", "RR", "DEADLINE")


def _scheduling(seen: Evidence) -> Iterator[Finding]:
    registry = seen.registry
    drivers = {s.driver.tid for s in seen.streams.streams}
    for tid in sorted(drivers):
        thread = registry.threads.get(tid)
        if thread is not None and thread.policy and not _realtime(thread):
            yield Finding(
                f"the data loop {thread.comm!r} (tid {tid}) runs SCHED_{thread.policy}, not SCHED_FIFO",
                "any CPU hog on the host delays every stream's cycle",
                "give it real-time priority (rtkit, or limits for the pipewire user)",
            )
    for tid in sorted(registry.with_role("W") + registry.with_role("G") + sorted(drivers)):
        thread = registry.threads.get(tid)
        delay = seen.delay.total_ns.get(tid, 0)
        if thread is None or seen.elapsed_ns <= 0 or delay < RUN_DELAY_SHARE * seen.elapsed_ns:
            continue
        by = seen.delay.instead_ns.get(tid, {})
        hog = max(by, key=lambda t: (by[t], -t)) if by else 0
        yield Finding(
            f"{thread.comm!r} (tid {tid}) was runnable without a CPU "
            f"for {100 * delay / seen.elapsed_ns:.1f} % of the time",
            f"most of it {registry.comm(hog)!r} (tid {hog}) ran instead" if hog else "other work ran instead",
            _more_cpu(registry, thread),
        )
    throttled = [t for t in registry.threads.values() if t.throttled_ns > 0 and t.tgid in registry.targets]
    for tgid in sorted({t.tgid for t in throttled}):
        most = max(t.throttled_ns for t in throttled if t.tgid == tgid)
        yield Finding(
            f"the cgroup of pid {tgid} has been throttled for {most / 1e6:.0f} ms",
            "all its threads stop together until the next CPU period",
            "raise cpu.max of that cgroup",
        )
    if seen.elapsed_ns > 0 and seen.steal_ns > STEAL_SHARE * seen.elapsed_ns:
        yield Finding(
            f"the hypervisor took {100 * seen.steal_ns / seen.elapsed_ns:.1f} % of a CPU away (steal)",
            "threads stand still without leaving the CPU; misses from it are shown as stolen",
            "dedicated CPUs for this host",
        )


def _device(seen: Evidence) -> Iterator[Finding]:
    for target in seen.registry.targets.values():
        if target.crate == "krun-rutabaga-gfx":
            numbers = tuple(int(n) for n in re.findall(r"\d+", target.version.rpartition("-")[2]))
            if numbers and numbers < EVENTFD_WRITES_SINCE:
                yield Finding(
                    f"{target.crate} {target.version} in pid {target.tgid} refuses eventfd writes",
                    "completions never reach the audio server",
                    "use release 1.18.1 or newer",
                )
    for fd in seen.registry.fds.values():
        if fd.type == "io_uring" and fd.tgid in seen.registry.targets:
            yield Finding(
                f"pid {fd.tgid} uses io_uring (fd {fd.fd})",
                "what goes through it is no syscall and is invisible here",
                "treat slow_syscall and write counts of this process as lower bounds",
                "info",
            )


def _tracing(seen: Evidence) -> Iterator[Finding]:
    for target in seen.registry.targets.values():
        for note in target.notes:
            yield Finding(
                note,
                f"pid {target.tgid}",
                f"`xdtrace doctor {target.tgid}` shows what there is of it",
                "info",
            )
    if seen.losses.total:
        yield Finding(
            f"{seen.losses.total} records were lost "
            f"(ring {seen.losses.ring}, map {seen.losses.map}, late {seen.losses.late})",
            "verdicts whose window overlaps a loss are unknown",
            "trace fewer targets, or have less load on this CPU",
        )
