# SPDX-License-Identifier: Apache-2.0
"""Debug files from a debuginfod server: one on the loopback that we are ourselves, honest or not."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import programs
import pytest

from tracer.capture.names import Names
from tracer.symbols import Symbolizer, debuginfod, elf
from tracer.symbols.cache import Cache
from tracer.symbols.debuginfod import VARIABLE, Debuginfod


class Server(ThreadingHTTPServer):
    """Answers with what it is told to; knows what it was asked.

    Attributes:
        answers: by build id: a file's bytes, a status, or an event to wait for before it hangs up.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, bytes | int | threading.Event] = {}
        self.otherwise: bytes | int = 404
        self.asked: list[str] = []
        self.busy = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        _, kind, build_id, what = self.path.split("/")
        assert (kind, what) == ("buildid", "debuginfo")
        self.server.asked.append(build_id)
        answer = self.server.answers.get(build_id, self.server.otherwise)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        self.send_response(200)
        self.end_headers()
        if isinstance(answer, threading.Event):
            self.wfile.write(b"\x7fELF")
            self.wfile.flush()
            self.server.busy.set()
            answer.wait(30)
            return
        with contextlib.suppress(ConnectionError):  # it has had enough
            self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("debuginfod")


@pytest.fixture(scope="module")
def full(folder: Path) -> Path:
    return programs.build(programs.C, folder / "full", "cc", "-g", "-O1", "-pthread", "-Wl,--build-id")


@pytest.fixture(scope="module")
def stripped(folder: Path, full: Path) -> Path:
    programs.run("strip", "-o", folder / "stripped", full)
    return folder / "stripped"


@pytest.fixture(scope="module")
def debug(folder: Path, full: Path) -> bytes:
    programs.run("objcopy", "--only-keep-debug", full, folder / "debug")
    return (folder / "debug").read_bytes()


@pytest.fixture
def symbolizer(tmp_path: Path) -> Iterator[Symbolizer]:
    made = Symbolizer(cache=Cache(tmp_path / "cache"))
    yield made
    made.close()


def build_id(path: Path) -> str:
    with path.open("rb") as file:
        found = elf.read(file.fileno())
    assert found is not None and found.build_id
    return found.build_id


def functions(symbolizer: Symbolizer, path: Path) -> list[str]:
    with programs.running(path) as program:
        return [frame.function for frame in symbolizer.resolve(program.tgid, program.address).frames]


def test_a_stripped_program_has_its_inlined_frames_from_the_server(
    server: Server, symbolizer: Symbolizer, stripped: Path, debug: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers[build_id(stripped)] = debug
    monkeypatch.setenv(VARIABLE, f"ftp://nowhere {server.url}/")
    with programs.running(stripped) as program:
        site = symbolizer.resolve(program.tgid, program.address)
        locks = symbolizer.lock_symbols(program.tgid)
    assert [frame.function for frame in site.frames] == ["write_item", "submit_cmd"]
    assert [frame.line for frame in site.frames] == [
        programs.line_of(programs.C, "the inlined line"),
        programs.line_of(programs.C, "the outer line"),
    ]
    assert [lock.name for lock in locks] == ["table_lock"]
    assert server.asked.count(build_id(stripped)) == 1, "one file is fetched once, whatever is read of it"


def test_without_the_variable_nobody_is_asked(
    server: Server, symbolizer: Symbolizer, stripped: Path, debug: bytes
) -> None:
    server.answers[build_id(stripped)] = debug

    def fetch(url: str, file: object) -> None:
        raise AssertionError(url)

    assert functions(symbolizer, stripped) == []
    assert Debuginfod(fetch).find(build_id(stripped)) is None
    assert server.asked == []


def test_a_file_of_another_build_is_not_used(
    server: Server, symbolizer: Symbolizer, stripped: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    other = programs.build(
        programs.C.replace("submit_cmd", "other"),
        folder / "other",
        "cc",
        "-g",
        "-O1",
        "-pthread",
        "-Wl,--build-id",
    )
    server.answers[build_id(stripped)] = other.read_bytes()
    monkeypatch.setenv(VARIABLE, server.url)
    assert functions(symbolizer, stripped) == []
    assert build_id(stripped) in server.asked


def test_a_server_without_the_file_is_asked_for_the_next_one_and_others_are_tried(
    server: Server, symbolizer: Symbolizer, stripped: Path, debug: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as second:
        second.answers[build_id(stripped)] = debug
        monkeypatch.setenv(VARIABLE, f"{server.url} {second.url}")
        assert Debuginfod().find("ab" * 20) is None
        assert functions(symbolizer, stripped) == ["write_item", "submit_cmd"]
        assert "ab" * 20 in server.asked and "ab" * 20 in second.asked
        assert build_id(stripped) in server.asked
        second.shutdown()


@pytest.mark.parametrize("answer", [500, 403, b"", b"\x7fELF" + b"\xff" * 200, b"<html>no</html>"])
def test_what_is_no_debug_file_is_no_error(
    server: Server,
    symbolizer: Symbolizer,
    stripped: Path,
    answer: int | bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.otherwise = answer
    monkeypatch.setenv(VARIABLE, server.url)
    assert functions(symbolizer, stripped) == []


def test_a_server_that_fails_is_asked_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.otherwise = 500
    monkeypatch.setenv(VARIABLE, server.url)
    client = Debuginfod()
    assert [client.find(character * 40) for character in "abcd"] == [None] * 4
    assert server.asked == ["a" * 40]


def test_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as gone:
        url = gone.url
        gone.shutdown()
    monkeypatch.setenv(VARIABLE, url)
    assert Debuginfod().find("ab" * 20) is None


def test_an_answer_without_end_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server begins to answer and says no more: one answer has its time, the server no second one."""
    release = threading.Event()
    server.answers["ab" * 20] = release
    monkeypatch.setenv(VARIABLE, server.url)
    monkeypatch.setattr(debuginfod, "TIMEOUT_S", 0.1)
    client = Debuginfod()
    assert client.find("ab" * 20) is None and client.find("cd" * 20) is None
    assert server.asked == ["ab" * 20]
    release.set()


def test_an_answer_too_large_is_given_up(
    server: Server, debug: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.otherwise = debug
    monkeypatch.setenv(VARIABLE, server.url)
    monkeypatch.setattr(debuginfod, "MAX_DOWNLOAD_BYTES", len(debug) - 1)
    assert Debuginfod().find("ab" * 20) is None


def test_files_kept_are_bounded_and_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built = []
    for number in range(3):
        text = programs.C.replace("submit_cmd", f"number{number}")
        flags = ("cc", "-g", "-pthread", "-Wl,--build-id")
        built.append(programs.build(text, tmp_path / str(number), *flags))
    fetched: list[str] = []

    def fetch(url: str, file: object) -> None:
        fetched.append(url.split("/")[-2])
        data = next(path for path in built if build_id(path) == fetched[-1]).read_bytes()
        file.write(data)  # type: ignore[attr-defined]
        file.flush()  # type: ignore[attr-defined]

    monkeypatch.setenv(VARIABLE, "https://server")
    monkeypatch.setattr(debuginfod, "MAX_KEPT", 2)

    def open_fds() -> int:
        return len(os.listdir("/proc/self/fd"))

    before, client = open_fds(), Debuginfod(fetch)
    for path in (*built, built[2], built[0]):
        fd = client.find(build_id(path))
        assert fd is not None
        os.close(fd)
    assert fetched == [build_id(path) for path in (*built, built[0])]
    assert open_fds() == before + 2
    client.close()
    assert open_fds() == before


def test_a_session_learns_the_device_while_a_server_keeps_it_waiting(
    server: Server, stripped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file itself says does not wait for a server, and asking never waits for anything."""
    release = threading.Event()
    server.answers[build_id(stripped)] = release
    monkeypatch.setenv(VARIABLE, server.url)
    monkeypatch.setattr(debuginfod, "TIMEOUT_S", 30.0)
    with programs.running(stripped) as program:
        names = Names()
        names.ask_program(program.tgid)
        names.ask_site(program.tgid, program.address)
        assert server.busy.wait(30)
        learnt = names.take()  # the server still holds the thread of names
        assert ("rutabaga_gfx", "0.1.80") in {(p.crate, p.version) for p in learnt.programs}
        assert not learnt.sites
        release.set()
        names.settle(30)
        (site,) = names.take().sites
        assert site.build_id == build_id(stripped) and site.frames == ()
        names.close()
