# SPDX-License-Identifier: Apache-2.0
"""``tracer.attach`` as in a notebook: real BPF, the frames of the recording, tables that update in place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

import tracer
from tracer.cli.minivmm import MiniVmm, binary
from tracer.errors import TargetError
from tracer.frames import TABLES

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = [
    "--write-path",
    "locked",
    "--load",
    "pipe",
    "--period",
    "256/48000",
    "--streams",
    "2",
    "--churn",
    "50",
]


@pytest.fixture
def vmm(live_host: None) -> Iterator[MiniVmm]:
    with MiniVmm(binary(), [*ARGUMENTS, "--duration", "2"]) as child:
        yield child


def test_a_session_ends_with_the_frames_of_its_recording(vmm: MiniVmm, tmp_path: Path) -> None:
    where = Path.cwd()
    with tracer.attach(vmm.vmm, output=tmp_path / "x.xdt", refresh_s=0.1) as session:
        vmm.start()
        while not vmm.tick(False):
            time.sleep(0.05)  # paced by the child, which says when it is done
            assert session.running
            assert len(session.df_misses()) <= len(session.df_periods())
        assert Path.cwd() == where
    assert not session.running
    recorded = session.trace()
    for name in sorted(TABLES.keys() - {"records"}):
        live, offline = (getattr(frames, f"df_{name}")() for frames in (session, recorded))
        pd.testing.assert_frame_equal(live, offline)
    assert len(session.df_periods()) and len(session.df_waits())
    assert session.summary.to_json() == recorded.summary.to_json()
    truth = vmm.ground_truth
    assert truth is not None
    assert abs(len(session.df_misses()) - truth["missed_cycles"]) <= 1


def test_who_is_not_there_cannot_be_attached(live_host: None) -> None:
    session = tracer.attach(2**22 - 1)
    with pytest.raises(TargetError), session:
        pytest.fail("entered")
    assert not session.running


def test_tables_in_a_notebook_update_in_place(vmm: MiniVmm) -> None:
    """One output, first made on entering, holds the last state after the VMM has exited."""
    cell = f"""
import tracer
with tracer.attach({vmm.vmm}, refresh_s=0.1) as session:
    print("attached")
    session.watch()
print("ended", len(session.df_periods()))
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    pages: list[str] = []
    ended: list[bool] = []

    class Client(NotebookClient):  # type: ignore[misc]
        """Starts the audio once attached, ends the VMM once pages were updated, and keeps every page."""

        def process_message(self, msg, cell, cell_index):  # type: ignore[no-untyped-def]
            kind, content = msg["msg_type"], msg["content"]
            if kind == "stream" and "attached" in content["text"]:
                vmm.start()
            if kind == "update_display_data":
                pages.append(content["data"]["text/html"])
                if not ended and vmm.tick(False):
                    ended.append(True)
                    vmm.close()
            return super().process_message(msg, cell, cell_index)

    Client(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = notebook.cells[0].outputs
    shown = [output for output in outputs if output.output_type == "display_data"]
    assert len(shown) == 1, [output.output_type for output in outputs]
    html = shown[0].data["text/html"]
    assert html == pages[-1]
    assert "ended ·" in html and "Streams" in html
    assert sum("live ·" in page for page in pages) >= 3
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert said.startswith("attached\nended ") and int(said.split()[-1]) > 100
