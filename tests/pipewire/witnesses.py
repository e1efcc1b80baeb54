# SPDX-License-Identifier: Apache-2.0
"""One run of a player behind a VMM under several faults, and what four witnesses counted in each.

xdtrace attached to the VMM; the server's own reads; silence in the recording; PipeWire's profiler.
Run as a program it prints the table of docs/accuracy.md: ``python tests/pipewire/witnesses.py [--rounds N]``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commandline import COMMAND, environment
from graph import RATE_HZ, SERVER, Graph, Proxy, end, until, write_tone
from profiler import Profiler
from server_reads import ServerReads, data_loop

from tracer.audio import Capture, analyse

WRITE_PATHS = ("locked", "dup", "refcount", "task")
#: Seconds of playing before the first window: streams settle, and every eventfd is known by then.
SETTLE_S = 1.5
#: Seconds at both ends of a window in which nothing is done, so that all agree in which one a miss lies.
MARGIN_S = 0.25


@dataclass(frozen=True)
class Window:
    """A stretch of time in which one thing was done, and what each witness counted in it."""

    name: str
    start_ns: int
    end_ns: int
    samples: tuple[int, int]
    xdtrace: int = -1
    server: int = -1
    wav: int = -1
    profiler: int = -1
    ended: tuple[int, ...] = ()  # ends of the server's cycles without a completion, ns
    unlike: tuple[
        float, ...
    ] = ()  # where xdtrace and the server differ, ms, but for cycles that another was late for

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """xdtrace, server, WAV, profiler."""
        return (self.xdtrace, self.server, self.wav, self.profiler)


class Attached:
    """``xdtrace attach --json`` on some VMMs, past its first snapshot.

    Attributes:
        latest: the last snapshot or summary.
    """

    def __init__(self, graph: Graph, words: Iterable[str | int]) -> None:
        self._process = graph.start(
            *(*COMMAND, "attach", *map(str, words), "--json", "--refresh", "0.5"),
            env=environment(),
            stdout=subprocess.PIPE,
        )
        self.latest: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        until(lambda: self.latest, "the first snapshot")

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.latest = json.loads(line)

    def await_server(self, tgid: int) -> None:
        """Until an audio server is traced."""
        until(lambda: any(t["tgid"] == tgid for t in self.latest["targets"]), "the server is traced")

    def await_streams(self, n: int, *tgids: int) -> None:
        """Until so many streams' drivers are seen, and their completions known (of these VMMs)."""
        until(lambda: sum(not tgids or s["tgid"] in tgids for s in self._settled()) == n, f"{n} streams")

    def await_period(self, period_ns: int) -> None:
        """Until a stream has this period, to 10 µs."""
        until(
            lambda: any(abs(s["period_ns"] - period_ns) < 10_000 for s in self._settled()), "another period"
        )

    def _settled(self) -> list[dict[str, Any]]:
        return [s for s in self.latest["streams"] if s["source"] == "exact" and s["cycles"] > 100]

    def finish(self) -> dict[str, Any]:
        """Detach; the summary."""
        self._process.send_signal(signal.SIGINT)
        self._thread.join()
        assert self.latest["type"] == "summary"
        return self.latest


@contextmanager
def window(graph: Graph, name: str, into: list[Window]) -> Iterator[None]:
    """What is done inside lies in one window, with a margin at both ends."""
    start_ns, first = time.monotonic_ns(), graph.recorded()
    time.sleep(MARGIN_S)
    yield
    time.sleep(MARGIN_S)
    into.append(Window(name, start_ns, time.monotonic_ns(), (first, graph.recorded())))


def stopped(pid: int, cycles: Sequence[float], period_s: float) -> list[tuple[int, int]]:
    """Stop a process for so many periods, several times; from when to when it was, ns."""
    spans = []
    for n in cycles:
        start_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(n * period_s)
        spans.append((start_ns, time.monotonic_ns()))
        os.kill(pid, signal.SIGCONT)
        time.sleep(20 * period_s)
    return spans


def held(proxy: Proxy, who: str, context: int, cycles: Sequence[float], period_s: float) -> None:
    """Have an item_state held for so many periods, several times."""
    for n in cycles:
        proxy.hold(who, context, max(1, round(n * period_s * 1000)))
        time.sleep((n + 20) * period_s)


def hogged(seconds: float) -> None:
    """Two busy processes per CPU."""
    hogs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))
    ]
    time.sleep(seconds)
    for hog in hogs:
        hog.kill()
        hog.wait()


def silent_quanta(capture: Capture, samples: tuple[int, int], quantum: int) -> int:
    """Quanta of silence that begin within a stretch of a recording of the tone."""
    silent = [b for b in capture.bursts if b.kind != "jump"]
    return sum(
        round((b.end_s - b.start_s) * RATE_HZ / quantum)
        for b in silent
        if samples[0] <= b.start_s * RATE_HZ < samples[1]
    )


def within(times: Iterable[int], one: Window) -> int:
    """How many times lie in a window."""
    return sum(one.start_ns <= at < one.end_ns for at in times)


def unlike(misses: Iterable[int], ended: Iterable[int], one: Window, period_ns: float) -> list[float]:
    """Where in a window (ms) xdtrace's misses and the server's cycles without a completion differ.

    But for cycles in which the server read a completion, next to one without: it may be the one before's, and
    so on until the VMM has caught up, which the reads alone do not tell.
    """
    told, explained = sorted(misses), list(ended)
    off = [at for at in explained if not any(abs(at - t) < period_ns / 2 for t in told)]
    for at in told:
        if any(-period_ns / 2 < at - t < 1.5 * period_ns for t in explained):
            explained.append(at)
        else:
            off.append(at)
    return [(at - one.start_ns) / 1e6 for at in off if one.start_ns <= at < one.end_ns]


def late_alone(profiler: Profiler, player: str) -> list[int]:
    """Deadlines of the cycles that another client had not finished, and the player had."""
    nodes = {point.node for point in profiler.points} - {player}
    ours = set(profiler.missed(player))
    return sorted({at for node in nodes for at in profiler.missed(node)} - ours)


def run(
    folder: Path,
    quantum: int,
    write_path: str,
    faults: Sequence[str],
    cycles: Sequence[float] = (2.5, 1.5, 6.5),
    *,
    realtime: bool = False,
    record: bool = True,
) -> tuple[list[Window], dict[str, Any]]:
    """A whole run: windows with all counts, and xdtrace's summary.

    Args:
        faults: of ``quiet``, ``client`` and ``vmm`` (stopped), ``hold g``, ``hold w``, ``hogs``, in order.
        cycles: for how many periods each fault lasts, one after the other.
        realtime: give the VMM's threads SCHED_FIFO.
        record: have a client of the server record the sink; without it the player is the only client.
    """
    period_s = quantum / RATE_HZ
    windows: list[Window] = []
    with Graph(folder, quantum) as graph:
        tone = folder / "tone.wav"
        write_tone(tone, 120)
        server = graph.serve()
        proxy = graph.proxy(write_path=write_path, realtime=realtime)
        recorder = graph.record() if record else None
        player = graph.play("player", proxy.socket, tone)
        context = proxy.told("opened")
        with (
            ServerReads(folder, server.pid, data_loop(server.pid)) as reads,
            Profiler(folder / "run" / SERVER) as profiler,
        ):
            attached = Attached(graph, [proxy.pid])
            time.sleep(SETTLE_S)
            do: dict[str, Callable[[], object]] = {
                "quiet": lambda: time.sleep(1.0),
                "client": lambda: stopped(player.pid, cycles, period_s),
                "vmm": lambda: stopped(proxy.pid, cycles, period_s),
                "hold g": lambda: held(proxy, "g", context, cycles, period_s),
                "hold w": lambda: held(proxy, "w", context, cycles, period_s),
                "hogs": lambda: hogged(1.5),
            }
            for name in faults:
                with window(graph, name, windows):
                    do[name]()
            last = windows[-1].end_ns
            until(
                lambda: profiler.points and profiler.points[-1].start_ns > last, "the profiler's last points"
            )
            summary = attached.finish()
            taken = reads.take()
        if recorder is not None:
            end(recorder)
        capture = analyse(graph.wav, join_s=0) if record else None
        missed, ended = [m["deadline_ns"] for m in summary["misses"]], taken.without_completion()
        others, half_ms = late_alone(profiler, "player"), period_s * 500
        counted = [
            replace(
                one,
                xdtrace=within(missed, one),
                server=within(ended, one),
                ended=tuple(at for at in ended if one.start_ns <= at < one.end_ns),
                wav=-1 if capture is None else silent_quanta(capture, one.samples, quantum),
                profiler=within(profiler.missed("player"), one),
                unlike=tuple(
                    ms
                    for ms in unlike(missed, ended, one, period_s * 1e9)
                    if not any(abs((at - one.start_ns) / 1e6 - ms) < half_ms for at in others)
                ),
            )
            for one in windows
        ]
    return counted, summary


def main() -> None:
    """Print one row per run and window."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quantum", type=int, action="append")
    parser.add_argument("--realtime", action="store_true", help="the VMM's threads at SCHED_FIFO, no hogs")
    arguments = parser.parse_args()
    faults = ("quiet", "client", "vmm", "hold g", "hold w", "hogs")[: -1 if arguments.realtime else None]
    print("| quantum | write path | window | xdtrace | server | WAV | profiler |")
    print("|---:|---|---|---:|---:|---:|---:|")
    for _ in range(arguments.rounds):
        for quantum in arguments.quantum or (256, 1024):
            for write_path in WRITE_PATHS:
                with tempfile.TemporaryDirectory() as folder:
                    realtime = arguments.realtime
                    for one in run(Path(folder), quantum, write_path, faults, realtime=realtime)[0]:
                        counts = " | ".join(map(str, one.counts))
                        print(f"| {quantum} | {write_path} | {one.name} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
