# SPDX-License-Identifier: Apache-2.0
"""Children that do as they are told, and sessions on them.

Where XDTRACE_KERNEL_TESTS=1 a host that cannot trace is a failure, elsewhere a skip with its reason.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live import Child, Live, Recording

from tracer.capture.session import Session, Settings

REQUIRED = os.environ.get("XDTRACE_KERNEL_TESTS") == "1"


def _missing() -> str:
    if os.geteuid() != 0:
        return "BPF needs root"
    if not (shutil.which("cc") or shutil.which("gcc")):
        return "the children need a C compiler"
    try:
        import bcc  # noqa: F401
    except ImportError:
        return "bcc is not installed"
    return ""


@pytest.fixture(scope="session")
def live_host() -> None:
    """Skips (or fails) where real BPF cannot run."""
    missing = _missing()
    if missing and REQUIRED:
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


@pytest.fixture(scope="session")
def child_program(live_host: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("child") / "child"
    source = Path(__file__).with_name("child.c")
    compiler = shutil.which("cc") or "gcc"
    subprocess.run(
        [compiler, "-O0", "-fno-omit-frame-pointer", "-pthread", "-o", str(program), str(source)], check=True
    )
    return program


@pytest.fixture
def start_child(child_program: Path) -> Iterator[Callable[[], Child]]:
    """Starts children; those still there are killed afterwards."""
    children: list[Child] = []

    def start() -> Child:
        process = subprocess.Popen(
            [str(child_program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        ready, pid, word, held, other = process.stdout.readline().split()
        assert ready == "ready" and int(pid) == process.pid
        children.append(Child(process, process.pid, int(word, 16), int(held, 16), int(other, 16)))
        return children[-1]

    yield start
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGKILL)
        child.process.wait(10)
        for pipe in (child.process.stdin, child.process.stdout):
            if pipe and not pipe.closed:
                pipe.close()


@pytest.fixture
def child(start_child: Callable[[], Child]) -> Child:
    return start_child()


@pytest.fixture
def trace(live_host: None) -> Iterator[Callable[..., Live]]:
    """Attaches to processes; the first batch has been taken when it returns."""
    sessions: list[Session] = []

    def attach(*tgids: int, **settings: object) -> Live:
        settings.setdefault("audio", False)
        session = Session(tgids, Settings(**settings))  # type: ignore[arg-type]
        session.__enter__()
        sessions.append(session)
        live = Live(session, Recording(), iter(session))
        live.next()
        return live

    yield attach
    for session in sessions:
        session.close()
