# SPDX-License-Identifier: Apache-2.0
"""``xdtrace export``: files hold what the frames hold, and nothing is overwritten or left half made."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pandas as pd
import pytest
from test_captures import DATA

import tracer
from tracer.cli.main import run_command
from tracer.frames import TABLES, Trace
from tracer.frames.columns import TYPES
from tracer.frames.export import export_tables

SOURCE = DATA / "serialised.xdt.tar"


@pytest.fixture(scope="module")
def trace() -> Trace:
    return tracer.open(SOURCE)


@pytest.fixture(scope="module", params=["parquet", "csv"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    assert run_command(["export", str(SOURCE), "--to", request.param, "-o", str(out)]) == 0
    return out


def read(file: Path) -> pd.DataFrame:
    """A file as a user of pandas reads it."""
    if file.suffix == ".parquet":
        return pd.read_parquet(file, dtype_backend="numpy_nullable")
    return pd.read_csv(file, dtype_backend="numpy_nullable")


def plain(values: pd.Series, type_: str, form: str) -> list[object]:
    """Cells in a form in which frames and files can be compared; None where nothing is known."""
    out: list[object] = []
    for value in values:
        if isinstance(value, str) or (not hasattr(value, "__len__") and not pd.isna(value)):
            out.append(value)
        else:
            out.append(tuple(value) if hasattr(value, "__len__") else None)
    if form == "parquet":
        return out
    if type_ == "time":
        return [None if v is None else pd.Timestamp(str(v)) for v in out]
    if type_ == "word":
        return [None if v in ("", None) else int(str(v)) for v in out]
    if type_ == "span":
        return [v.value if isinstance(v, pd.Timedelta) else v for v in out]
    if type_ == "texts":
        texts = ["; ".join(map(str, v)) if isinstance(v, tuple) else v for v in out]
        return [None if v in ("", None) else str(v) for v in texts]
    return [None if v == "" else v for v in out]


@pytest.mark.parametrize("name", TABLES)
def test_a_file_holds_what_its_frame_holds(trace: Trace, folder: Path, name: str) -> None:
    form = "parquet" if (folder / "records.parquet").exists() else "csv"
    found, wanted = read(folder / f"{name}.{form}"), getattr(trace, f"df_{name}")()
    assert list(found.columns) == TABLES[name].names
    assert len(found) == len(wanted) > 0
    for column in TABLES[name].columns:
        pair = [plain(frame[column.name], column.type, form) for frame in (found, wanted)]
        assert pair[0] == pair[1], column.name


def test_parquet_keeps_the_types_of_numbers_and_times(trace: Trace, tmp_path: Path) -> None:
    export_tables(trace, tmp_path / "out", "parquet")
    for name, table in TABLES.items():
        found = pd.read_parquet(tmp_path / "out" / f"{name}.parquet", dtype_backend="numpy_nullable")
        for column in table.columns:
            if column.type in ("time", "span", "maybe", "word"):
                assert str(found[column.name].dtype) == TYPES[column.type][0], column.name


def test_the_readme_says_what_every_column_means(trace: Trace, folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert trace.summary.verdict in text
    for table in TABLES.values():
        assert f"| {table.name}." in text
        for column in table.columns:
            assert f"| `{column.name}` | {column.type} | {column.unit} | {column.meaning} |" in text


def test_others_cannot_read_what_was_exported(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("form", "name"),
    [("parquet", "a-parquet"), ("csv", "a-csv"), ("archive", "a.xdt.tar"), ("perfetto", "a.pftrace")],
)
def test_without_a_name_it_lands_beside_the_trace_and_never_over_it(
    tmp_path: Path, form: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.xdt"
    source.write_bytes(SOURCE.read_bytes())
    assert run_command(["export", str(source), "--to", form]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / name}: ")
    assert (tmp_path / name).exists()
    assert run_command(["export", str(source), "--to", form]) == 2
    assert "exists" in capsys.readouterr().err


def test_an_archive_says_what_the_trace_says(tmp_path: Path, trace: Trace) -> None:
    assert run_command(["export", str(SOURCE), "--to", "archive", "-o", str(tmp_path / "x")]) == 0
    assert tracer.open(tmp_path / "x").summary.to_json() == trace.summary.to_json()


@pytest.mark.parametrize("form", ["parquet", "csv", "archive", "perfetto"])
def test_what_is_no_trace_leaves_nothing_behind(tmp_path: Path, form: str) -> None:
    bad = tmp_path / "bad.xdt"
    bad.write_bytes(SOURCE.read_bytes()[:300])
    assert run_command(["export", str(bad), "--to", form, "-o", str(tmp_path / "out")]) == 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["parquet", "csv", "archive", "perfetto"])
def test_a_place_that_cannot_be_written_is_said(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["export", str(SOURCE), "--to", form, "-o", str(tmp_path / "no" / "out")]) == 2
    error = capsys.readouterr().err
    assert "there is no folder" in error and error.count("\n") == 2


@pytest.mark.parametrize(
    ("form", "broken"),
    [
        ("csv", "tracer.frames.export._write"),
        ("parquet", "tracer.frames.export.readme"),
        ("perfetto", "tracer.views.perfetto.write_perfetto"),
    ],
)
def test_what_cannot_be_written_whole_does_not_stay(
    tmp_path: Path,
    form: str,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*rest: object, **more: object) -> str:
        assert list(tmp_path.iterdir()) == [tmp_path / "out"]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(broken, full)
    assert run_command(["export", str(SOURCE), "--to", form, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "No space left" in said and len(said.splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_an_unknown_form_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["export", str(SOURCE), "--to", "xlsx", "-o", str(tmp_path / "out")]) == 2
    assert "parquet" in capsys.readouterr().err
