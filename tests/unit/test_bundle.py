# SPDX-License-Identifier: Apache-2.0
"""A bundle opens like its trace; redacted, it holds no private name anywhere and gets the same verdicts."""

from __future__ import annotations

import dataclasses
import errno
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer import schema
from tracer.cli import bundle as command
from tracer.cli.main import run_command
from tracer.cli.run import replay
from tracer.model.analysis import Analysis
from tracer.model.summary import Summary
from tracer.profile import default_profiles
from tracer.trace import TraceReader, TraceWriter, pack
from tracer.trace.redact import SOURCES, THREADS, Redactor

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
#: In every private name of ``marked``, and nowhere else.
MARK = "zq7x"
PROFILES = tuple(default_profiles())
MEMBERS = ["README.txt", "report.txt", "report.html", "doctor.txt", "versions.txt"]


def marked_comm(name: str) -> str:
    """A private name in place of a real one; one that profiles look for keeps its beginning, so its role."""
    if name in ("cross domain", "gpu worker", "data-loop.0"):
        return name
    return f"{name[:7]} {MARK}"[:15] if name.startswith("fc_vcpu") else f"{MARK}{name}"[:15]


def marked(batch: schema.Batch) -> schema.Batch:
    """A real batch in which all that is private carries the mark."""
    records = batch.records
    if len(records) and batch.threads:  # a thread that takes another name: names are in records too
        life = records[-1:].copy().view(schema.LIFE)
        life["kind"], life["op"], life["flags"] = schema.Kind.LIFE, schema.Life.NAME, 0
        life["tid"], life["tgid"], life["old_tid"] = batch.threads[-1].tid, batch.threads[-1].tgid, 0
        life["comm"], life["dur_ns"] = f"{MARK}renamed".encode(), 0
        records = np.concatenate([records, life.view(schema.RECORD)])
    return dataclasses.replace(
        batch,
        records=records,
        targets=tuple(
            dataclasses.replace(
                t,
                comm=MARK + t.comm[:8],
                exe=f"/home/{MARK}/my vm/{t.comm}",
                notes=(f"runs /srv/{MARK}/x as {MARK}{t.comm[:8]}",),
            )
            for t in batch.targets
        ),
        threads=tuple(dataclasses.replace(t, comm=marked_comm(t.comm)) for t in batch.threads),
        fds=tuple(
            dataclasses.replace(f, path=f"/home/{MARK}/{f.fd}") if f.type == "file" else f for f in batch.fds
        ),
        sites=tuple(
            dataclasses.replace(
                s,
                module=f"/opt/{MARK}/bin",
                frames=tuple(dataclasses.replace(f, file=f"/build/{MARK}{f.file}") for f in s.frames),
            )
            for s in batch.sites
        ),
        lock_symbols=(schema.LockSymbol(batch.targets[0].tgid, 0x1000, MARK, "user"),)
        if batch.targets
        else (),
        host={**batch.host, "note": f"see /home/{MARK}/notes"} if batch.host else {},
    )


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real trace, with its private names marked."""
    path = tmp_path_factory.mktemp("bundle") / f"{MARK}.xdt"
    with TraceReader(CAPTURES / "lock.xdt.tar") as source, TraceWriter(path) as writer:
        for batch in source:
            writer.append(marked(batch))
    return path


@pytest.fixture(autouse=True)
def _quick_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor looks at this machine, which is not what is tested here; what it may say is."""
    said = f"ok  target: 42 ({MARK}minivmm), /home/{MARK}/my vm/minivmm; host {MARK}host\n"
    monkeypatch.setattr(command, "doctor_says", lambda pid: said)
    monkeypatch.setattr(command, "machine_words", lambda: {f"{MARK}host": "host"})


def everything_in(file: Path) -> Iterator[tuple[str, bytes]]:
    """All bytes of an archive: members as they are, and each Arrow stream unpacked, column by column."""
    yield "archive", file.read_bytes()
    with tarfile.open(file) as archive:
        for member in archive:
            assert not member.uname and not member.gname and not member.mtime
            stream = archive.extractfile(member)
            assert stream is not None
            data = stream.read()
            yield member.name, data
            if member.name.endswith(".arrows"):
                for rows in pa.ipc.open_stream(io.BytesIO(data)):
                    yield member.name, repr(rows.to_pylist()).encode()
                    for column in rows.columns:
                        for buffer in column.buffers():
                            yield member.name, b"" if buffer is None else buffer.to_pybytes()


def with_mark(file: Path) -> set[str]:
    return {name for name, data in everything_in(file) if MARK.encode() in data}


def test_nothing_private_remains_in_a_redacted_bundle(trace: Path, tmp_path: Path) -> None:
    plain, redacted = tmp_path / "plain.tar", tmp_path / "redacted.tar"
    assert run_command(["bundle", str(trace), "-o", str(plain)]) == 0
    assert run_command(["bundle", str(trace), "-o", str(redacted), "--redact"]) == 0
    private = {"README.txt", "report.txt", "report.html", "doctor.txt"}
    private |= {
        f"trace.xdt/{name}.arrows"
        for name in ("events", "targets", "threads", "sites", "host", "lock_symbols")
    }
    assert private <= with_mark(plain)
    assert not with_mark(redacted)


def test_what_is_listed_as_private_is_what_redacting_replaces(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is in doctor's answer alone, and in nothing else of the bundle."""
    said = f"ok  environment: /srv/{MARK}/venv on {MARK}host\n"
    monkeypatch.setattr(command, "doctor_says", lambda pid: said)
    counts = []
    for flags in ([], ["--redact"]):
        file = tmp_path / f"{len(flags)}.tar"
        assert run_command(["bundle", str(trace), "-o", str(file), *flags]) == 0
        printed = capsys.readouterr().out.partition("in it")[2]
        with tarfile.open(file) as archive:
            readme = archive.extractfile("README.txt")
            assert readme is not None
            text = readme.read().decode()
        listed = [line.strip() for line in text.splitlines() if re.match(r"  \S.*: \d+$", line)]
        counts.append(listed)
        assert [one for one in listed if one not in printed.replace("\n", " ")] == []
        if not flags:
            assert {f"    /srv/{MARK}/venv", f"    {MARK}host"} <= set(text.splitlines())
    assert counts[0] == counts[1]
    assert "paths in sentences: 3" in counts[0]  # of doctor, of a note and of the host
    assert "names of the machine and its user: 1" in counts[0]


def test_a_bundle_holds_what_a_bug_report_needs_and_opens_like_a_trace(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.tar"
    assert run_command(["bundle", str(trace), "-o", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        names = archive.getnames()
        readme = archive.extractfile("README.txt")
        assert readme is not None
        text = readme.read().decode()
    assert names[:5] == MEMBERS
    assert all(name.startswith("trace.xdt/") for name in names[5:])
    assert f"{MARK}" in text and f"/home/{MARK}/my vm/minivmm" in text
    assert "PRIVATE DATA" in text
    told = capsys.readouterr().out
    assert "private data in it" in told and "--redact" in told
    assert replay_of(file).to_dict() == replay_of(trace).to_dict()
    assert run_command(["report", str(file), "--fail-on", "misses > 0"]) == 1


def replay_of(path: Path) -> Summary:
    with TraceReader(path) as reader:
        return replay(reader, Analysis())


@pytest.mark.parametrize("name", ["lock", "not_scheduled", "serialised"])
def test_a_redacted_trace_gets_the_same_verdicts_under_other_names(name: str) -> None:
    redactor = Redactor(PROFILES)
    with TraceReader(CAPTURES / f"{name}.xdt.tar") as reader:
        batches = [marked(batch) for batch in reader]
    before, after = replay(batches, Analysis()), replay(map(redactor.batch, batches), Analysis())
    names = {old: new for (_, old), new in redactor._new.items()}
    names |= {old.rpartition("/")[2]: "source.rs" for old in redactor.found[SOURCES]}
    assert before.misses and any(MARK in repr(m) for m in before.misses)
    assert renamed(before.to_dict(), names) == renamed(after.to_dict(), {})
    assert MARK not in repr(after)


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The value with names replaced in its strings; lists that are sorted by name in any order."""
    if isinstance(value, str):
        for old in sorted(names, key=len, reverse=True):
            value = value.replace(old, names[old])
        return value
    if isinstance(value, Mapping):
        return {key: renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [renamed(inner, names) for inner in value]
    return value


COMMS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=15
)


@given(
    st.one_of(
        COMMS,
        st.sampled_from(
            ["fc_vcpu 3", "CPU 11/KVM", "vcpu-of-bob", "crosvm_vcpu7", "virgl secret", "kworker/0:1-ev"]
        ),
    )
)
def test_a_name_is_always_replaced_by_the_same_one_which_plays_the_same_role(name: str) -> None:
    redactor = Redactor(PROFILES)
    new = redactor.comm(name)
    assert redactor.comm(name) == new and len(new) <= 15
    for profile in PROFILES:
        assert profile.role(new) == profile.role(name)
    assert redactor.found[THREADS] == ([] if new == name else [name])


@given(st.lists(COMMS, unique=True, max_size=20))
def test_different_names_stay_different(names: list[str]) -> None:
    redactor = Redactor(())
    assert len({redactor.comm(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (
            "/home/bob/.cargo/registry/src/index-1949/rutabaga_gfx-0.1.80/src/lib.rs",
            "/rutabaga_gfx-0.1.80/src/lib.rs",
        ),
        (
            "/rustc/59807616e1fa2540/library/std/src/sync/mutex.rs",
            "/rustc/59807616e1fa2540/library/std/src/sync/mutex.rs",
        ),
        ("/home/bob/secret/main.rs", "/redacted-1/source.rs"),
        ("", ""),
    ],
)
def test_sources_of_published_crates_are_kept_without_where_they_lay(path: str, new: str) -> None:
    site = schema.CallSite(1, 2, "", 0, "", (schema.Frame("f", path, 1),))
    batch = schema.Batch(schema.empty_records(), 0, sites=(site,))
    assert Redactor(PROFILES).batch(batch).sites[0].frames[0].file == new


def test_a_sentence_keeps_the_systems_paths_and_no_others() -> None:
    redactor = Redactor((), {"bobs-laptop": "host"})
    said = redactor.text(
        "on bobs-laptop /usr/lib/x.so and /dev/kvm, not '/srv/bob/x' or /home/bob: 3/4 of it"
    )
    assert said == "on host /usr/lib/x.so and /dev/kvm, not '/redacted-path-1' or /redacted-path-2: 3/4 of it"


def test_errors_are_told_before_anything_is_written(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    there.write_text("mine", encoding="utf-8")
    archive = tmp_path / "trace.tar"
    pack(trace, archive)
    for arguments, code in (
        ([str(trace), "-o", str(there)], 2),
        ([str(trace), "-o", str(tmp_path)], 2),
        ([str(archive), "-o", str(archive), "--force"], 2),
        ([str(trace), "-o", str(tmp_path / "x"), "--duration", "3"], 2),
        ([str(tmp_path / "none"), "-o", str(tmp_path / "x")], 5),
        ([str(trace), "-o", str(tmp_path / "no" / "x")], 2),
    ):
        assert run_command(["bundle", *arguments]) == code, arguments
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == 2, captured.err
        assert not (tmp_path / "x").exists()
    assert there.read_text(encoding="utf-8") == "mine"
    assert run_command(["bundle", str(trace), "-o", str(there), "--force"]) == 0
    assert tarfile.is_tarfile(there)


def test_a_cut_off_trace_is_bundled_and_says_so(trace: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.xdt"
    cut.mkdir()
    for part in trace.iterdir():
        data = part.read_bytes()
        (cut / part.name).write_bytes(data[:-200] if part.name == "index.arrows" else data)
    for flags in ([], ["--redact"]):
        file = tmp_path / f"x{len(flags)}.tar"
        assert run_command(["bundle", str(cut), "-o", str(file), *flags]) == 0
        with tarfile.open(file) as archive:
            for name in ("README.txt", "report.html"):
                stream = archive.extractfile(name)
                assert stream is not None and "is cut off" in stream.read().decode()
        with TraceReader(file) as again:
            assert again.incomplete and "is cut off" in again.incomplete


def test_an_archive_that_cannot_be_written_whole_does_not_stay(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    assert run_command(["bundle", str(trace), "-o", str(tmp_path / "x.tar")]) == 5
    assert not list(tmp_path.iterdir())


def test_what_would_be_taken_for_a_part_of_the_trace_is_refused(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="taken for"):
        pack(trace, tmp_path / "x.tar", beside={"meta.json": b""})
