# SPDX-License-Identifier: Apache-2.0
"""The notebooks: both forms alike, stored without outputs, executed on the traces that lie beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
#: What each must come to on its recorded traces: pictures drawn, and words said.
WANTED: dict[str, tuple[int, tuple[str, ...]]] = {
    "was-it-the-lock": (
        2,
        (
            "slow pipe: of 8 missed periods 0 would have been in time without waits on item_state",
            "preempted holder: of 19 missed periods 3 would have been in time",
        ),
    ),
    "before-and-after": (2, ("missed cycles: not shown in six rounds", "dup − locked, corrected: +")),
    "the-real-device": (2, ("1 episode of 514 ms, 24 missed periods", "the worker served others first")),
    "your-own-question": (1, ("µs from records", "of the 8 slowest")),
}


def paired() -> set[str]:
    return {path.stem for path in FOLDER.glob("*.md")} - {"README"}


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_notebook_is_tested_and_listed() -> None:
    assert paired() == {path.stem for path in FOLDER.glob("*.ipynb")} == set(WANTED)
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}]({name}.md)" in listed for name in WANTED)
    traces = {path.name for path in (FOLDER / "data").glob("*.xdt.tar")}
    assert len(traces) == 15
    assert sum(path.stat().st_size for path in (FOLDER / "data").iterdir()) < 5_000_000


@pytest.mark.parametrize("name", sorted(WANTED))
def test_both_forms_are_alike_and_carry_no_outputs(name: str) -> None:
    text = jupytext.read(FOLDER / f"{name}.md")
    stored = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert cells(text) == cells(stored), f"run: jupytext --to ipynb notebooks/{name}.md"
    assert "SPDX-License-Identifier: Apache-2.0" in stored.cells[0].source
    assert stored.metadata["jupytext"]["formats"] == "ipynb,md"
    for cell in stored.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_notebook_runs_and_comes_to_what_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    said = "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"
    )
    assert not [
        output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"
    ]
    wanted_pictures, words = WANTED[name]
    assert pictures == wanted_pictures
    for phrase in words:
        assert phrase in said


def test_an_error_that_a_user_can_act_on_is_two_lines_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cell = nbformat.v4.new_code_cell('import tracer\ntracer.open("/nonexistent.xdt")')
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True).execute()
    (error,) = notebook.cells[0].outputs
    assert error.output_type == "error"
    assert error.traceback == [
        "TraceError: cannot open /nonexistent.xdt: No such file or directory",
        "  name a folder made by `xdtrace record`",
    ]
