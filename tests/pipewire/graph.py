# SPDX-License-Identifier: Apache-2.0
"""A private PipeWire without D-Bus and session manager, and the mini-VMM between it and its clients.

The server has one null sink, which drives the graph with a quantum of our choice. Owns all processes
and their one runtime directory; whoever starts something here ends it. Knows nothing of tracing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
import soundfile

from tracer.cli.minivmm import binary

RATE_HZ = 48_000
#: Where a skip of whole quanta is heard: 3 x 1024 samples of 1 kHz would be phase-continuous.
TONE_HZ = 997
SERVER, SINK, RECORDER = "pipewire-0", "sink", "recorder"
#: Seconds after which what should have happened never will (not a measure of anything).
PATIENCE_S = 30.0
#: Folder of another system whose PipeWire is taken, e.g. Debian 13 by debootstrap, with /dev and /proc.
ROOT = os.environ.get("XDTRACE_PIPEWIRE_ROOT", "")

_PROGRAMS = ("pipewire", "pw-play", "pw-record", "pw-link", "pw-cli", "pw-dump", "pw-metadata")
_MODULES = """
    { name = libpipewire-module-rt args = { rt.prio = %d } flags = [ ifexists nofail ] }
    { name = libpipewire-module-protocol-native }
    { name = libpipewire-module-client-node }
    { name = libpipewire-module-metadata }
    { name = libpipewire-module-adapter }
"""
_LIBRARIES = """
context.spa-libs = {
    audio.convert.* = audioconvert/libspa-audioconvert
    support.* = support/libspa-support
}
"""
_SERVER = """
context.properties = {
    core.daemon = true
    core.name = %s
    support.dbus = false
    default.clock.rate = %d
    default.clock.quantum = %d
    default.clock.min-quantum = 32
    default.clock.max-quantum = 8192
}
%s
context.modules = [ %s
    { name = libpipewire-module-profiler }
    { name = libpipewire-module-spa-node-factory }
    { name = libpipewire-module-access }
    { name = libpipewire-module-link-factory }
]
context.objects = [
    { factory = metadata args = { metadata.name = default } }
    { factory = adapter args = {
        factory.name = support.null-audio-sink
        node.name = %s
        media.class = Audio/Sink
        audio.position = [ MONO ]
        audio.channels = 1
        node.driver = true
        priority.driver = 30000
        resample.disable = true
    } }
]
"""
_CLIENT = "context.properties = {{ support.dbus = false }}\n{}\ncontext.modules = [ {} ]\n"
_PORTS = (
    "{ direction: %s mode: dsp monitor: %s format: { mediaType: audio mediaSubtype: raw "
    "format: F32P rate: 48000 channels: 1 position: [ MONO ] } }"
)


@dataclass(frozen=True)
class Here:
    """What of a real PipeWire there is: programs that are not installed, and the version's text."""

    root: bool
    absent: tuple[str, ...]
    debian: bool
    version: str

    @staticmethod
    def look() -> Here:
        """On this machine."""
        path = f"{ROOT}/usr/bin" if ROOT else None
        absent = tuple(name for name in _PROGRAMS if shutil.which(name, path=path) is None)
        told = ""
        if "pipewire" not in absent:
            told = subprocess.run(
                [*inside(), "pipewire", "--version"], capture_output=True, text=True, check=False
            ).stdout
        try:
            release = platform.freedesktop_os_release()
        except OSError:
            release = {}
        likes = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
        version = re.search(r"libpipewire (\S+)", told)
        return Here(
            os.geteuid() == 0, absent, bool(likes & {"debian", "ubuntu"}), version[1] if version else ""
        )

    def ours_to_mend(self) -> str:
        """What `./dev test` sees to and is not so, root and on the Debian family PipeWire; "" if nothing."""
        if not self.root:
            return "BPF needs root"
        return (
            f"not installed: {', '.join(self.absent)} (./dev test does)"
            if self.debian and self.absent
            else ""
        )

    def why_not(self) -> str:
        """Why tests with a real PipeWire cannot run on such a machine, "" if they can."""
        if self.absent:
            return f"not installed: {', '.join(self.absent)} (./dev test does on Debian and Ubuntu)"
        if not self.version.startswith(("0.3.", "1.")):
            told = self.version or "a version that it does not tell"
            return f"these tests know PipeWire 0.3 and 1 (their profilers, their streams); here is {told}"
        return ""


@pytest.fixture(scope="session")
def pipewire() -> None:
    """Skips without PipeWire 0.3; fails where XDTRACE_KERNEL_TESTS=1 and `./dev test` installs it."""
    here = Here.look()
    if (reason := here.ours_to_mend()) and os.environ.get("XDTRACE_KERNEL_TESTS") == "1":
        pytest.fail(reason)
    if reason := reason or here.why_not():
        pytest.skip(reason)


def inside() -> tuple[str, ...]:
    """What to put before one of PipeWire's programs, so that it is that of ``ROOT``."""
    return ("chroot", ROOT) if ROOT else ()


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition gives something true, and return that."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what}: not in {PATIENCE_S:g} s")


def write_tone(path: Path, seconds: float) -> None:
    """A mono WAV of the tone, at half of full scale."""
    samples = 0.5 * np.sin(2 * np.pi * TONE_HZ / RATE_HZ * np.arange(round(seconds * RATE_HZ)))
    soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")


class Proxy:
    """The mini-VMM's device between clients and the server."""

    def __init__(self, process: subprocess.Popen[str], socket: str) -> None:
        self._process = process
        self.socket = socket
        self.pid = int(self._line()["vmm"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout
        line: dict[str, Any] = json.loads(self._process.stdout.readline())
        return line

    def told(self, kind: str) -> int:
        """Wait for the next context to be opened or closed; its number."""
        while True:
            line = self._line()
            if line["type"] == kind:
                return int(line["context"])

    def hold(self, who: str, context: int, ms: int) -> None:
        """Have G ("g") or W ("w", at its next event) keep a context's item_state locked."""
        self._tell(f"hold {who} {context} {ms}")

    def compute(self, ms: int) -> None:
        """Have a program of the guest compute on a vCPU of its own."""
        self._tell(f"compute {ms}")

    def _tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


class Graph:
    """Server, proxies, players and the recorder of one test; a context manager."""

    def __init__(self, folder: Path, quantum: int) -> None:
        self.folder = folder
        self.quantum = quantum
        self.wav = folder / "monitor.wav"
        self._stack = ExitStack()
        (folder / "run").mkdir()
        if ROOT:  # the same paths lead to the same files there
            there = Path(f"{ROOT}{folder}")
            there.mkdir(parents=True)
            subprocess.run(["mount", "--bind", str(folder), str(there)], check=True)
            self._stack.callback(subprocess.run, ["umount", str(there)], check=True)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DBUS_", "PIPEWIRE_", "PULSE_"))},
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "PIPEWIRE_CONFIG_DIR": str(folder),
            # Since 1.2 nobody waits for clients whose main thread makes the data, unless they say so.
            "PIPEWIRE_PROPS": "{ node.async = false }",
        }
        server = _SERVER % (SERVER, RATE_HZ, quantum, _LIBRARIES, _MODULES % 88, SINK)
        (folder / "pipewire.conf").write_text(server)
        for name in ("client.conf", "client-rt.conf"):
            (folder / name).write_text(_CLIENT.format(_LIBRARIES, _MODULES % 80))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """A process that ends with the graph, also when it is stopped."""
        log = (self.folder / f"{Path(words[0]).name}.log").open("a")
        process = subprocess.Popen(
            (*(inside() if words[0] in _PROGRAMS else ()), *words),
            text=True,
            stderr=log,
            **{"env": self.env, "stdin": subprocess.DEVNULL, "stdout": log, **more},
        )
        log.close()
        self._stack.callback(end, process)
        return process

    def run(self, *words: str) -> str:
        """One of PipeWire's tools, to its end; what it printed."""
        done = subprocess.run([*inside(), *words], env=self.env, capture_output=True, text=True, check=True)
        return done.stdout

    # --- what there is ---------------------------------------------------------------------------

    def serve(self) -> subprocess.Popen[str]:
        """The server, ready: its sink has its ports."""
        server = self.start("pipewire", "-c", "pipewire.conf")
        until(lambda: SINK in self.nodes(), "the server's sink")
        self.give_ports(SINK, "Input", f"{SINK}:monitor_MONO")
        return server

    def proxy(
        self,
        name: str = "vmm-0",
        write_path: str = "locked",
        worker: str = "first",
        *,
        realtime: bool = False,
    ) -> Proxy:
        """A VMM's device that passes clients of its socket on to the server; at SCHED_FIFO where wished."""
        run = self.folder / "run"
        options = ("--server", str(run / SERVER), "--listen", str(run / name))
        process = self.start(
            *(str(binary()), "pipewire", *options, "--write-path", write_path, "--worker", worker),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        proxy = Proxy(process, name)
        if realtime:
            make_realtime(proxy.pid)
        return proxy

    def play(self, name: str, remote: str, tone: Path) -> subprocess.Popen[str]:
        """A client that plays into the sink, linked."""
        player = self.client(name, "pw-play", remote, tone)
        self.connect(name)
        return player

    def client(self, name: str, program: str, remote: str, path: Path) -> subprocess.Popen[str]:
        """A client whose node is there, without ports."""
        process = self.launch(name, program, remote, path)
        until(lambda: name in self.nodes(), f"the node of {name}")
        make_realtime(process.pid)  # they fill and empty their buffers in their main thread
        return process

    def launch(self, name: str, program: str, remote: str, path: Path) -> subprocess.Popen[str]:
        """A client whose node comes when it comes."""
        return self.start(
            *(program, "-R", remote, "--target", "0", "--latency", str(self.quantum)),
            *("--rate", str(RATE_HZ), "--channels", "1", "--format", "s16"),
            *("-P", f"{{ node.name = {name} }}", str(path)),
        )

    def connect(self, name: str) -> None:
        """Give a player's node its port and link it to the sink."""
        self.give_ports(name, "Output", f"{name}:output_MONO")
        self.run("pw-link", f"{name}:output_MONO", f"{SINK}:playback_MONO")

    def give_ports(self, name: str, direction: str, expected: str) -> None:
        """What a session manager does: a node's ports, and with an input's a monitor where it is a sink's."""
        monitor = "true" if name == SINK else "false"
        self.run("pw-cli", "set-param", str(self.nodes()[name]), "PortConfig", _PORTS % (direction, monitor))
        until(lambda: expected in self.ports(), f"the port {expected}")

    def record(self) -> subprocess.Popen[str]:
        """Record the sink's monitor into ``wav``, by a client of the server itself."""
        process = self.client(RECORDER, "pw-record", SERVER, self.wav)
        self.give_ports(RECORDER, "Input", f"{RECORDER}:input_MONO")
        self.run("pw-link", f"{SINK}:monitor_MONO", f"{RECORDER}:input_MONO")
        until(lambda: self.recorded() > 0, "the first samples")
        return process

    def recorded(self) -> int:
        """Samples recorded so far."""
        return max(0, self.wav.stat().st_size - 44) // 2 if self.wav.exists() else 0

    def await_nodes(self, n: int) -> None:
        """Until there are so many nodes, the sink's among them."""
        until(lambda: len(self.nodes()) == n, f"{n} nodes")

    def _dump(self) -> Iterable[tuple[str, int, dict[str, Any]]]:
        done = subprocess.run(
            [*inside(), "pw-dump"], env=self.env, capture_output=True, text=True, check=False
        )
        for item in json.loads(done.stdout or "[]"):
            props = (item.get("info") or {}).get("props") or {}
            yield item["type"].rsplit(":", 1)[-1], item["id"], props

    def nodes(self) -> dict[str, int]:
        """Nodes by name."""
        return {str(p["node.name"]): i for kind, i, p in self._dump() if kind == "Node"}

    def ports(self) -> set[str]:
        """Ports as ``node:port``."""
        objects = list(self._dump())
        nodes = {i: p["node.name"] for kind, i, p in objects if kind == "Node"}
        return {f"{nodes.get(p['node.id'])}:{p['port.name']}" for kind, _, p in objects if kind == "Port"}


def make_realtime(pid: int, priority: int = 60) -> None:
    """Give the threads of a process SCHED_FIFO, below the server's; threads started later inherit it."""
    for tid in os.listdir(f"/proc/{pid}/task"):
        os.sched_setscheduler(int(tid), os.SCHED_FIFO, os.sched_param(priority))


def end(process: subprocess.Popen[str], number: int = signal.SIGINT) -> None:
    """End a process, and wait for that; one that is stopped or deaf is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            pipe.close()
