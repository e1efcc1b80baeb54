# SPDX-License-Identifier: Apache-2.0
"""What tracing costs its target: the mini-VMM bare, under xdtrace, under perf trace, under strace.

Peers: ``perf trace -p`` and ``strace -f -e trace=futex,read,write -p``, output to /dev/null; interleaved
rounds in an order that rotates. *write* is what the mini-VMM's own clock says of each completion's write
path (lock, dup, write, close; MINIVMM_WRITE_TIMES). A *round trip* is from the audio server's signal to the
read of its completion, on the audio server's own clocks (its --log): through W, the lock, the guest (given
no latency of its own) and G's write; missed cycles are in it. Also: an untraced process's syscall
(raw_syscalls slows every task; *empty programs* on sys_enter and sys_exit are the least that any tracer of
syscalls can cost), a traced syscall by held words, and the parts of attaching.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from bench.common import ROOT, Load, Results, clean, options, pieces
from tracer.capture import bpfsys
from tracer.capture.session import Session, Settings
from tracer.cli.minivmm import MiniVmm, binary

_TRACERS = ("bare", "xdtrace", "perf trace", "strace")
_LOADS = {"a stream": ("--streams", "1"), "200 churn": ("--churn", "200")}
# r0 = 0; exit
_RETURN_0 = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])
_TICKS = os.sysconf("SC_CLK_TCK")


def _cpu_s(tgid: int) -> float:
    """User and system CPU seconds of a live process so far (proc(5), fields 14 and 15 of stat)."""
    fields = (
        Path(f"/proc/{tgid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    )
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _attached(tracer: str, child: subprocess.Popen[bytes], tgid: int) -> bool:
    if tracer == "xdtrace":
        assert child.stdout is not None
        return child.stdout.readline() == b"ready\n"
    if tracer == "strace":
        return all(
            "TracerPid:\t0\n" not in (task / "status").read_text(encoding="utf-8", errors="replace")
            for task in Path(f"/proc/{tgid}/task").iterdir()
        )
    fds = [os.readlink(fd) for fd in Path(f"/proc/{child.pid}/fd").iterdir()]
    return any("perf_event" in link for link in fds)


@contextlib.contextmanager
def _traced(tracer: str, tgid: int) -> Iterator[subprocess.Popen[bytes] | None]:
    """*tgid* under a tracer that is attached; None when bare."""
    if tracer == "empty programs":
        with _empty_programs():
            yield None
        return
    command = {
        "xdtrace": [sys.executable, "-m", "bench.overhead", "--drain", str(tgid)],
        "perf trace": ["perf", "trace", "-o", "/dev/null", "-p", str(tgid)],
        "strace": ["strace", "-f", "-qq", "-e", "trace=futex,read,write", "-o", "/dev/null", "-p", str(tgid)],
    }.get(tracer)
    if command is None:
        yield None
        return
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        attached = False
        while not attached:
            with contextlib.suppress(FileNotFoundError):  # a thread or an fd that went while we looked
                attached = _attached(tracer, child, tgid)
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{tracer} did not attach")
            time.sleep(0.01)
        time.sleep(0.3)  # perf opens one event per thread and CPU after the first
        yield child
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _round_trips(results: Results, load: str, tracer: str, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, times = Path(folder) / "log", Path(folder) / "times"
        os.environ["MINIVMM_WRITE_TIMES"] = str(times)
        arguments = [
            "--duration",
            str(seconds),
            "--log",
            str(log),
            "--period",
            "256/48000",
            "--guest-us",
            "0,0",
        ]
        with MiniVmm(binary(), [*arguments, *_LOADS[load]]) as vmm, _traced(tracer, vmm.vmm) as child:
            before = _cpu_s(vmm.vmm), _cpu_s(child.pid) if child else 0.0
            vmm.start()
            while not vmm.tick(False):
                time.sleep(0.05)
            target_s = _cpu_s(vmm.vmm) - before[0]
            tracer_s = _cpu_s(child.pid) - before[1] if child else 0.0
        del os.environ["MINIVMM_WRITE_TIMES"]
        cycles = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        writes = np.fromfile(times, dtype=np.uint64) / 1000 if times.exists() else np.empty(0)
    trips = [
        (cycle["closing_ns"] - cycle["signal_ns"]) / 1000
        for cycle in cycles
        if cycle.get("type") == "cycle" and cycle["closing_ns"]
    ]
    if not trips:
        results.note(f"{load}, {tracer}: a run without a closed cycle is left out")
        return
    results.add(
        f"{load}: {tracer}",
        write_p50_us=float(np.percentile(writes, 50)) if len(writes) else float("nan"),
        write_p99_us=float(np.percentile(writes, 99)) if len(writes) else float("nan"),
        round_trip_p50_us=float(np.percentile(trips, 50)),
        round_trip_p99_us=float(np.percentile(trips, 99)),
        cycles=len(trips),
        missed=sum(cycle.get("missed", False) for cycle in cycles),
        vmm_cpu_percent=100 * target_s / seconds,
        tracer_cpu_percent=100 * tracer_s / seconds,
    )


@contextlib.contextmanager
def _empty_programs() -> Iterator[None]:
    """Two raw tracepoint programs that return 0, and nothing else."""
    fds = []
    try:
        for tracepoint in ("sys_enter", "sys_exit"):
            fds.append(bpfsys.raw_tracepoint_load("empty", _RETURN_0))
            fds.append(bpfsys.raw_tracepoint_open(tracepoint, fds[-1]))
        yield
    finally:
        for fd in fds:
            os.close(fd)


def _bystander(results: Results, tracer: str, count: int) -> None:
    """The syscall of a process that nobody traces, while another, idle one is traced."""
    with (
        Load("cost", "1") as idle,
        Load("bystander", str(count)) as load,
        _traced(tracer, idle.tgid),
    ):
        load.go()
        results.add(f"bystander's getppid: {tracer}", cpu_ns_per_syscall=load.join())


def _held_words(results: Results, count: int, words: int | None) -> None:
    with Load("cost", str(count)) as load, contextlib.ExitStack() as stack:
        if words is not None:
            settings = Settings(audio=False, held_words=words, ring_bytes=32 << 20)
            session = stack.enter_context(Session([load.tgid], settings))
            for name, seconds in session.start_times.items():
                results.add(f"attach: {name}", ms=1000 * seconds)
            session.watch(load.tgid, [load.words + 4 * at for at in range(words)])
            batches = iter(session)
            next(batches), next(batches)
            load.go()
            for _batch in batches:
                if not load.running:
                    session.stop()
        else:
            load.go()
        row = "traced write: bare" if words is None else f"traced write: {words} held words"
        results.add(row, cpu_ns_per_syscall=load.join())


def _drain(tgid: int) -> None:
    """Capture as `xdtrace attach` does, and drop what is captured."""
    with Session([tgid], Settings()) as session:
        signal.signal(signal.SIGINT, lambda _number, _frame: session.stop())
        batches = iter(session)
        next(batches)
        print("ready", flush=True)
        for _batch in batches:
            pass


def main() -> None:
    """Run it."""
    if sys.argv[1:2] == ["--drain"]:
        _drain(int(sys.argv[2]))
        return
    chosen = options(__doc__.splitlines()[0] if __doc__ else "", pieces=True)
    if chosen.save:
        chosen.save = chosen.save.absolute()  # bcc changes the working directory
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    seconds = 3.0 if chosen.quick else 8.0
    count = 200_000 if chosen.quick else 1_000_000
    results = Results("overhead")
    results.note("xdtrace: capture alone, its batches dropped; its screen and analysis are not in it")
    steps: list[tuple[str, Callable[[Results], None]]] = []
    for number in range(rounds):
        order = [_TRACERS[(at + number) % len(_TRACERS)] for at in range(len(_TRACERS))]
        steps += [
            (f"{number} {load} {tracer}", partial(_round_trips, load=load, tracer=tracer, seconds=seconds))
            for load in _LOADS
            for tracer in order
        ]
        steps += [
            (f"{number} bystander {tracer}", partial(_bystander, tracer=tracer, count=count))
            for tracer in (*order, "empty programs")
        ]
        steps += [
            (f"{number} words {words}", partial(_held_words, count=count, words=words))
            for words in (None, 0, 1, 4, 16)
        ]
    try:
        pieces(results, steps, chosen)
    finally:
        clean()
    results.say(chosen.json)


if __name__ == "__main__":
    main()
