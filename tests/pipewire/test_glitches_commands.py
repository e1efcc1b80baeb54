# SPDX-License-Identifier: Apache-2.0
"""docs/glitches.md's commands on a real PipeWire: what the sink played, and the misses behind its breaks."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from commandline import COMMAND, ROOT, environment, xdtrace
from graph import RATE_HZ, TONE_HZ, Graph, end, pipewire, until, write_tone  # noqa: F401
from witnesses import stopped

import tracer
from tracer.errors import TraceError

pytestmark = pytest.mark.usefixtures("pipewire")

QUANTUM = 1024
#: Cycles of a stream after which its completion is known.
CYCLES = 60
#: Cycles for which the client is stopped: two are lost at least (one that is late by less than a cycle may
#: still be heard). The distances differ, so that one alignment alone fits.
STOPS = (2.5, 5.5, 6.5, 3.5, 2.5, 4.5)


def documented(program: str) -> list[list[str]]:
    """The command lines of docs/glitches.md that call a program, without comments and sudo."""
    text = (ROOT / "docs" / "glitches.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = (shlex.split(line, comments=True) for block in blocks for line in block.splitlines())
    return [words[words.index(program) :] for words in lines if program in words]


def streams_seen(folder: Path) -> bool:
    """Whether a trace that is still being written shows a stream with its server, for a while."""
    try:
        streams = tracer.open(folder).summary.streams
    except TraceError:  # not even its first batch is whole yet
        return False
    return any(s.source == "exact" and s.cycles > CYCLES for s in streams)


def test_the_documented_commands_name_the_miss_behind_each_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record, *glitches) = documented("xdtrace")
    assert [words[1] for words in (record, *glitches)] == ["record"] + ["glitches"] * 4
    monkeypatch.chdir(tmp_path)
    with Graph(tmp_path, QUANTUM) as graph:
        write_tone(tmp_path / "tone.wav", 60)
        graph.serve()
        proxy = graph.proxy(realtime=True)
        recorder = graph.record()
        player = graph.play("player", proxy.socket, tmp_path / "tone.wav")
        # --all would take along whatever VMM another test has left.
        words = [str(proxy.pid) if word == "--all" else word for word in record[1:]]
        tracing = graph.start(*COMMAND, *words, env=environment())
        until(lambda: (tmp_path / "run.xdt" / "events.arrows").exists(), "the first records")
        until(lambda: streams_seen(tmp_path / "run.xdt"), "the stream in the trace")
        stopped(player.pid, STOPS, QUANTUM / RATE_HZ)
        end(tracing)
        end(recorder)
        assert tracing.returncode == 0
        said = [xdtrace(*words[1:]) for words in glitches]
    assert [done.code for done in said] == [0] * 4, said
    found = json.loads(said[2].out)
    assert abs(found["tone_hz"] - TONE_HZ) < 0.01
    assert found["alignment"]["unique"] and found["alignment"]["pairs"] >= len(STOPS) - 1
    assert found["alignment"]["spread_ns"] < QUANTUM / RATE_HZ * 1e9
    traced = [b for b in found["bursts"] if b["miss"] is not None]
    assert len(traced) >= len(STOPS)
    assert "unexplained" not in said[1].out
    assert f"{len(traced)} of {len(found['bursts'])} bursts explained by missed periods" in said[1].out
    assert (tmp_path / "glitches.png").stat().st_size > 10_000
