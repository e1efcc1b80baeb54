# SPDX-License-Identifier: Apache-2.0
"""Commands: options, errors and exit codes. Sessions are fakes; nothing is traced."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import views_data
from cli_fakes import FakeAnalysis, FakeSession, FakeWriter
from trace_samples import record

from tracer.capture import servers
from tracer.cli import doctor, listing, live, minivmm, options, realdevice, report
from tracer.cli.main import run_command
from tracer.errors import HostError, TargetError, TraceError, UsageError, XdtraceError
from tracer.trace import pack

ROOT = Path(__file__).parents[2]


@dataclass
class Fakes:
    """What the last command was given."""

    session: FakeSession
    writer: FakeWriter
    plans: list[live.Plan]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    found = Fakes(FakeSession(), FakeWriter(), [])

    def open_session(plan: live.Plan) -> FakeSession:
        found.plans.append(plan)
        return found.session

    monkeypatch.setattr(live, "open_session", open_session)
    monkeypatch.setattr(live, "open_writer", lambda path, force: found.writer)
    monkeypatch.setattr(live, "make_analysis", lambda *rest: FakeAnalysis())
    return found


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def complaint(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What happened and what to do: exactly two lines on stderr, nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    what, do, rest = captured.err.split("\n")
    assert rest == ""
    assert what.startswith("xdtrace: ")
    assert do.startswith("  ")
    assert do.strip()
    assert "Traceback" not in captured.err
    return what, do


def test_attach_as_json_prints_lines_and_nothing_else(
    fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["attach", "42", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["snapshot", "summary"]
    assert lines[-1]["records"]["total"] == 4
    assert fakes.session.log == ["attached", "detached"]


def test_attach_to_a_pipe_prints_plain_blocks(fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["attach", "42"]) == 0
    out = capsys.readouterr().out
    assert out.count("Streams") == 2
    assert "\x1b" not in out


def test_options_reach_the_session(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "attach 42 43 42 -o t.xdt --duration 5 --period 256/48000 --audio 9 --held-words 8 --json"
    assert run_command([*words.split(), "--lock", "item_state=0x1000@43", "--lock", "jobs=0x2000@43"]) == 0
    assert fakes.plans == [
        live.Plan(
            tgids=(43, 42),
            output=tmp_path / "t.xdt",
            duration_s=5.0,
            period=(256, 48000),
            locks=(("item_state", 0x1000), ("jobs", 0x2000)),
            audio=9,
            held_words=8,
        )
    ]
    assert fakes.writer.batches == 4
    assert fakes.writer.closed


def test_no_audio_is_told_from_an_audio_server_to_be_found(fakes: Fakes) -> None:
    run_command(["attach", "42", "--no-audio", "--json"])
    run_command(["attach", "42", "--json"])
    assert [plan.audio for plan in fakes.plans] == [False, None]


def test_record_prints_the_last_summary_only(
    fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["record", "42", "-o", str(tmp_path / "t.xdt")]) == 0
    assert capsys.readouterr().out.count("Streams") == 1
    assert fakes.writer.batches == 4


@pytest.mark.parametrize("form", ["text", "json"])
def test_report_replays_a_trace(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = FakeSession(4)
    trace.incomplete = "the last batch is missing"  # type: ignore[attr-defined]
    monkeypatch.setattr(report, "open_trace", lambda path: trace)
    monkeypatch.setattr(report, "make_analysis", lambda *rest: FakeAnalysis())
    assert run_command(["report", "x.xdt", "--format", form]) == 0
    captured = capsys.readouterr()
    assert "the last batch is missing" in captured.err
    if form == "json":
        assert json.loads(captured.out)["records"]["total"] == 5
    else:
        assert "Streams" in captured.out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("w", "d"), 2),
        (TargetError("there is no process 42 here", "look for it"), 3),
        (HostError("no bcc", "install it"), 4),
        (TraceError("corrupt", "record again"), 5),
    ],
)
def test_errors_are_two_lines_with_the_exit_code_of_their_kind(
    error: XdtraceError, code: int, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.session = FakeSession(error=error)
    assert run_command(["attach", "42"]) == code
    assert complaint(capsys) == (f"xdtrace: {error.message}", f"  {error.hint}")


def test_an_error_with_a_hostile_name_stays_two_printable_lines(
    fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "".join(views_data.HOSTILE)
    fakes.session = FakeSession(error=TargetError(f"no {name}", f"try\n{name}"))
    assert run_command(["attach", "42"]) == 3
    what, do = complaint(capsys)
    assert what.isprintable()
    assert do.isprintable()


@pytest.mark.parametrize(
    "words",
    [
        "attach",
        "attach x",
        "attach 0",
        "attach -- -5",
        "attach 42 --frobnicate",
        "frobnicate",
        "attach 42 --period 255/48000",
        "attach 42 --period 256/4",
        "attach 42 --period 256",
        "attach 42 --period ²/48000",
        "attach 42 --duration nan",
        "attach 42 --duration -1",
        "attach 42 --duration inf",
        "attach 42 --refresh 0",
        "attach 42 --held-words 17",
        "attach 42 --audio 1 --no-audio",
        "attach 42 --audio 0",
        "attach 42 --lock item_state",
        "attach 42 --lock item_state=0x1001",
        "attach 42 --lock item_state=0x0",
        "attach 42 43 --lock item_state=0x1000",
        "attach 42 --lock item_state=0x1000@43",
        "attach 42 43 --lock a=0x1000@42 --lock b=0x1000@43",
        "record 42",
        "report",
        "report x.xdt --format html2",
        "demo --write-path async",
        "demo --load lots",
        "demo --period 3/4",
        "demo --streams 0",
        "demo --real task",
        "demo --real dup --write-path locked",
        "demo --real dup --worker fair",
        "demo --real dup --load nested",
        "demo --stripped",
        "demo --duration 0",
    ],
)
def test_wrong_usage_exits_2_with_two_lines(
    words: str, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(words.split()) == 2
    complaint(capsys)
    assert fakes.session.log == []


@pytest.mark.parametrize("command", [["attach", "42"], ["record", "42"], ["record", "42", "--flight", "5"]])
@pytest.mark.parametrize("place", ["file", "none/t.xdt"])
def test_a_trace_that_cannot_be_made_is_refused_before_anything_is_attached(
    command: list[str], place: str, fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run_command([*command, "-o", str(tmp_path / place)]) == 2
    complaint(capsys)
    assert fakes.session.log == []


@pytest.mark.parametrize("words", [["report"], ["export", "--to", "csv"], ["whatif", "--realtime"]])
def test_a_trace_that_may_not_be_read_is_said(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.xdt").mkdir()
    real = os.open

    def refuse(path: Any, *rest: Any, **named: Any) -> int:  # for root no mode does
        if Path(path).name == "a.xdt":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *rest, **named)

    monkeypatch.setattr("tracer.trace.archive.os.open", refuse)
    assert run_command([*words, "a.xdt"]) == 5
    what, do = complaint(capsys)
    assert what.startswith("xdtrace: cannot open ") and what.endswith("a.xdt: Permission denied")
    assert do == "  a trace is readable by the user who recorded it: run this as that user, or chown it"


@pytest.mark.parametrize("damage", ["no records", "cut archive", "no meta"])
def test_a_trace_of_which_nothing_is_left_is_damaged_and_not_empty(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.xdt"
    record(path)
    if damage == "no records":
        (path / "events.arrows").unlink()
    elif damage == "no meta":
        (path / "meta.json").write_text("{")
    else:
        pack(path, tmp_path / "a.tar")
        path = tmp_path / "cut.tar"
        path.write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    assert run_command(["report", str(path)]) == 5
    captured = capsys.readouterr()
    assert captured.out == "" and "playback" not in captured.err
    assert len(captured.err.splitlines()) == 2


def test_a_fault_of_our_own_is_no_traceback_unless_asked_for(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "make_analysis", failing(ZeroDivisionError("oh")))
    monkeypatch.delenv("XDTRACE_DEBUG", raising=False)
    assert run_command(["attach", "42"]) == 70
    what, do = complaint(capsys)
    assert "ZeroDivisionError: oh" in what
    assert "XDTRACE_DEBUG=1" in do
    monkeypatch.setenv("XDTRACE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run_command(["attach", "42"])


def test_the_session_is_detached_and_the_trace_closed_when_the_analysis_fails(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = FakeAnalysis()
    monkeypatch.setattr(analysis, "feed", failing(TraceError("disk full", "make room")))
    monkeypatch.setattr(live, "make_analysis", lambda *rest: analysis)
    assert run_command(["attach", "42", "-o", str(tmp_path / "t")]) == 5
    assert fakes.session.log == ["attached", "detached"]
    assert fakes.writer.closed


def test_a_closed_pipe_ends_quietly_with_success() -> None:
    for words in (["attach", "42", "--json"], ["attach", "42"]):
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("cli_fakes.py")), "0", *words, "--refresh", "0.02"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/unit'}", "PATH": "/usr/bin"},
        )
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline()
        child.stdout.close()
        assert child.wait(20) == 0
        assert child.stderr.read() == b""
        child.stderr.close()


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    what: str
    fix: str


def test_doctor_shows_each_fix_and_exits_4_where_something_is_missing_3_where_only_the_target_is_amiss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (
        Check("kernel", True, "6.18", ""),
        Check("bcc", False, "not there", "apt install python3-bpfcc"),
    )
    monkeypatch.setattr(doctor, "run_checks", lambda pid: ([good], []))
    assert run_command(["doctor"]) == 0
    assert "all is there" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "run_checks", lambda pid: ([good], [bad]))
    assert run_command(["doctor", "42"]) == 3
    assert "1 check failed" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "run_checks", lambda pid: ([good, bad], [bad]))
    assert run_command(["doctor", "42"]) == 4
    out = capsys.readouterr().out
    assert "→ apt install python3-bpfcc" in out
    assert "2 checks failed" in out


@pytest.mark.parametrize(
    "command",
    [["report"], ["whatif", "--as", "dup"], ["export", "--to", "csv"], ["glitches", "x.wav", "--trace"]],
)
def test_a_trace_that_may_not_be_read_is_told_by_its_reader_which_knows_what_to_do(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.xdt").mkdir()
    monkeypatch.setattr(os, "access", lambda *rest, **more: False)
    assert run_command([*command, "x.xdt"]) in (2, 5)  # empty, or there is no x.wav: but said by us
    said = capsys.readouterr().err
    assert "is not readable" not in said and "Invalid value" not in said
    assert len(said.splitlines()) == 2


def test_list_says_so_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "find", list)
    assert run_command(["list"]) == 0
    assert "none found on this host" in capsys.readouterr().out


def test_the_real_devices_demo_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(realdevice, "SOURCES", tmp_path)
    assert run_command(["demo", "--real", "dup"]) == 4
    assert "checkout" in "".join(complaint(capsys))
    (tmp_path / "build.sh").write_text(
        "echo 'build.sh: cargo is 1.63.0, 1.81 or newer is needed' >&2; exit 5"
    )
    (tmp_path / "lib.rs").touch()
    monkeypatch.setattr(realdevice, "_BUILT", tmp_path / "built")
    assert run_command(["demo", "--real", "dup"]) == 4
    assert "cargo is 1.63.0, 1.81 or newer is needed" in capsys.readouterr().err


def test_the_demo_without_its_sources_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(minivmm, "SOURCES", tmp_path)
    assert run_command(["demo"]) == 4
    complaint(capsys)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tracer.cli.main import run_command; run_command(['attach', '--help']); "
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'rich.table', 'bcc') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert out.splitlines()[-1] == "[]"


def test_a_period_is_a_power_of_two_and_a_rate() -> None:
    assert options.parse_period(None) is None
    assert options.parse_period("1024/44100") == (1024, 44100)


@pytest.mark.parametrize("command", [("attach", "--all"), ("record", "--all", "-o", "x.xdt")])
def test_all_takes_every_vmm_that_list_finds(
    command: tuple[str, ...], fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmms = [servers.Vmm(pid, "vmm", "", 0, 0, (), (), ()) for pid in (41, 42)]
    monkeypatch.setattr(listing, "find", lambda: vmms)
    assert run_command(list(command)) == 0
    assert [plan.tgids for plan in fakes.plans] == [(41, 42)]


def test_all_without_any_vmm_here_is_no_target(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "find", list)
    assert run_command(["attach", "--all"]) == 3
    assert "no VMM" in complaint(capsys)[0]


@pytest.mark.parametrize(("words", "what"), [((), "no PID"), (("--all", "42"), "--all")])
def test_which_processes_must_be_said_in_one_way(
    words: tuple[str, ...], what: str, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["attach", *words]) == 2
    assert what in complaint(capsys)[0]
