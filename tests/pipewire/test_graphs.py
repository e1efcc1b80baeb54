# SPDX-License-Identifier: Apache-2.0
"""Streams of a real PipeWire: several, short ones, several VMMs, a server that restarts, another quantum.

What is expected comes from the server's own reads (server_reads.py), from what was stopped, and from
which process it was done to. The audio path has real-time priority, against strangers' load.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from graph import RATE_HZ, Graph, end, make_realtime, pipewire, until, write_tone  # noqa: F401
from server_reads import ServerReads, data_loop
from witnesses import Attached, Window, stopped, unlike, window, within

pytestmark = pytest.mark.usefixtures("pipewire")

QUANTUM = 256
PERIOD_S = QUANTUM / RATE_HZ
#: Cycles for which a process is stopped, several times over.
STOPS = (2.5, 4.5)


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    write_tone(tmp_path / "tone.wav", 60)
    return tmp_path / "tone.wav"


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return Graph(tmp_path, QUANTUM)


def test_a_late_cycle_of_several_streams_counts_once(graph: Graph, tone: Path) -> None:
    """They share the driver's eventfd, which the last to finish writes: whose client it was shows nowhere."""
    windows: list[Window] = []
    with graph:
        server = graph.serve()
        proxy = graph.proxy(write_path="task", realtime=True)
        players = [graph.play(f"player-{i}", proxy.socket, tone) for i in range(3)]
        with ServerReads(graph.folder, server.pid, data_loop(server.pid)) as reads:
            attached = Attached(graph, [proxy.pid])
            attached.await_streams(3)
            for i, player in enumerate(players):
                with window(graph, f"player {i}", windows):
                    stopped(player.pid, STOPS, PERIOD_S)
            summary = attached.finish()
            ended = reads.take().without_completion()
    assert len({s["context"] for s in summary["streams"] if s["source"] == "exact"}) == 3
    for one in windows:
        late = [m["deadline_ns"] for m in summary["misses"] if m["leg"] == "completion"]
        assert within(ended, one) >= 4
        assert unlike(late, ended, one, PERIOD_S * 1e9) == []


def test_streams_opened_and_closed_two_hundred_times_leave_nothing(graph: Graph, tone: Path) -> None:
    """Neither in the VMM nor in the tracer's tables, and the stream that plays on is not disturbed."""
    with graph:
        graph.serve()
        proxy = graph.proxy(write_path="refcount", realtime=True)
        graph.play("steady", proxy.socket, tone)
        assert proxy.told("opened") == 1
        attached = Attached(graph, [proxy.pid])
        attached.await_streams(1)
        before = len(os.listdir(f"/proc/{proxy.pid}/fd"))
        for _ in range(20):
            short = [graph.launch(f"short-{i}", "pw-play", proxy.socket, tone) for i in range(10)]
            graph.await_nodes(12)
            for process in short:
                end(process)
            graph.await_nodes(2)
        for _ in range(200):
            proxy.told("closed")
        summary = attached.finish()
        until(lambda: len(os.listdir(f"/proc/{proxy.pid}/fd")) <= before, "the VMM closed what it had")
    steady = max(summary["streams"], key=lambda s: s["cycles"])
    assert steady["cycles"] > 500
    assert summary["records"]["lost"] == {"ring": 0, "map": 0, "late": 0}


def test_of_two_vmms_on_one_server_the_one_that_was_stopped_misses(graph: Graph, tone: Path) -> None:
    windows: list[Window] = []
    stops: list[list[tuple[int, int]]] = []
    with graph:
        server = graph.serve()
        proxies = [graph.proxy(f"vmm-{i}", path, realtime=True) for i, path in enumerate(("locked", "dup"))]
        for proxy in proxies:
            graph.play(f"of-{proxy.socket}", proxy.socket, tone)
        with ServerReads(graph.folder, server.pid, data_loop(server.pid)) as reads:
            attached = Attached(graph, [proxy.pid for proxy in proxies])
            attached.await_streams(2)
            for proxy in proxies:
                with window(graph, proxy.socket, windows):
                    stops.append(stopped(proxy.pid, STOPS, PERIOD_S))
            summary = attached.finish()
            ended = reads.take().without_completion()
    # Before the server was found their periods were inferred, each VMM's its own.
    assert len({s["driver"] for s in summary["streams"] if s["source"] == "exact"}) == 1
    assert {t["tgid"] for t in summary["targets"] if t["role"] == "audio"} == {server.pid}
    owner = {s["id"]: s["tgid"] for s in summary["streams"]}
    for one, proxy, spans in zip(windows, proxies, stops, strict=True):
        misses = [m for m in summary["misses"] if one.start_ns <= m["deadline_ns"] < one.end_ns]
        # Outside of the stops, on a busy host, both may be late.
        then = [m for m in misses if any(start < m["deadline_ns"] < end for start, end in spans)]
        mine = [m for m in then if owner[m["stream"]] == proxy.pid]
        assert within(ended, one) >= 4
        assert unlike({m["deadline_ns"] for m in summary["misses"]}, ended, one, PERIOD_S * 1e9) == [], one
        assert len(mine) >= 4
        assert len(mine) * 2 > len(then), one


def test_a_vmm_that_computes_on_the_others_cpu_is_named_as_the_cause(graph: Graph, tone: Path) -> None:
    """Both VMMs have one CPU, and the one that computes has the higher real-time priority there."""
    last = max(os.sched_getaffinity(0))
    with graph:
        graph.serve()
        victim, culprit = (graph.proxy(f"vmm-{i}", realtime=i == 1) for i in range(2))
        for proxy in (victim, culprit):
            graph.play(f"of-{proxy.socket}", proxy.socket, tone)
            for tid in os.listdir(f"/proc/{proxy.pid}/task"):
                os.sched_setaffinity(int(tid), {last})
        make_realtime(victim.pid, 30)  # so that strangers do not starve it as well
        attached = Attached(graph, ["--all"])
        attached.await_streams(2, victim.pid, culprit.pid)
        for _ in range(10):
            culprit.compute(round(3 * PERIOD_S * 1000))
            time.sleep(20 * PERIOD_S)
        summary = attached.finish()
    found = [f["what"] for f in summary["findings"]]
    hurt = [what for what in found if what.startswith(f"VMM {culprit.pid} had the CPU in ")]
    assert sum(f"missed cycles of VMM {victim.pid}: " in what for what in hurt) == 1, found
    assert any("whose cause" in what and "another VMM's" in what for what in found)
    assert any("of VMM" in s["detail"] for m in summary["misses"] for s in m["segments"])


def test_a_late_server_is_no_vmms_own_cause(graph: Graph, tone: Path) -> None:
    with graph:
        server = graph.serve()
        proxies = [graph.proxy(f"vmm-{i}", realtime=True) for i in range(2)]
        for proxy in proxies:
            graph.play(f"of-{proxy.socket}", proxy.socket, tone)
        attached = Attached(graph, [proxy.pid for proxy in proxies])
        attached.await_streams(2)
        stopped(server.pid, (3.5,) * 10, PERIOD_S)
        summary = attached.finish()
    (driver,) = summary["drivers"]
    assert driver["events"]["late_start"] + driver["events"]["skipped"] >= 10
    late = [f["what"] for f in summary["findings"] if "of the audio server was late itself" in f["what"]]
    assert len(late) == 1, summary["findings"]
    assert late[0].endswith("it drives 2 VMMs")


def test_a_server_that_restarts_is_found_again(graph: Graph, tone: Path) -> None:
    counts = []
    with graph:
        proxy = graph.proxy(realtime=True)
        attached = None
        for life in range(2):
            windows: list[Window] = []
            server = graph.serve()
            player = graph.play(f"life-{life}", proxy.socket, tone)
            attached = attached or Attached(graph, [proxy.pid])
            attached.await_server(server.pid)
            attached.await_streams(life + 1)
            folder = graph.folder / f"life-{life}"
            folder.mkdir()
            with ServerReads(folder, server.pid, data_loop(server.pid)) as reads:
                with window(graph, "stopped", windows):
                    stopped(player.pid, STOPS, PERIOD_S)
                counts.append((windows[0], reads.take().without_completion()))
            end(player)
            end(server)
        assert attached
        summary = attached.finish()
    for one, ended in counts:
        assert within(ended, one) >= 4
        assert unlike([m["deadline_ns"] for m in summary["misses"]], ended, one, PERIOD_S * 1e9) == []


def test_another_quantum_is_another_period_of_the_same_stream(graph: Graph, tone: Path) -> None:
    windows: list[Window] = []
    with graph:
        server = graph.serve()
        proxy = graph.proxy(write_path="dup", realtime=True)
        player = graph.play("player", proxy.socket, tone)
        with ServerReads(graph.folder, server.pid, data_loop(server.pid)) as reads:
            attached = Attached(graph, [proxy.pid])
            for quantum in (QUANTUM, 1024, 512):
                graph.run("pw-metadata", "-n", "settings", "0", "clock.force-quantum", str(quantum))
                attached.await_period(round(quantum / RATE_HZ * 1e9))
                with window(graph, str(quantum), windows):
                    stopped(player.pid, STOPS, quantum / RATE_HZ)
            summary = attached.finish()
            ended = reads.take().without_completion()
    assert len([s for s in summary["streams"] if s["source"] == "exact"]) == 1
    for one in windows:
        assert within(ended, one) >= 4
        period_ns = int(one.name) / RATE_HZ * 1e9
        assert unlike([m["deadline_ns"] for m in summary["misses"]], ended, one, period_ns) == [], one
