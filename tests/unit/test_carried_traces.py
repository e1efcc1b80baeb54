# SPDX-License-Identifier: Apache-2.0
"""The traces that lie in the repository name nobody's machine: paths that tell nothing, a plain kernel."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tracer.schema import Batch, CallSite, Fd, Frame, Target, empty_records
from tracer.trace import TraceReader

ROOT = Path(__file__).resolve().parents[2]
TRACES = sorted(
    path for folder in ("notebooks/data", "tests/data") for path in (ROOT / folder).rglob("*.tar")
)
#: Where a distribution, a compiler or the examples put things, and the kernel's names for what is no file.
NEUTRAL = re.compile(
    r"/(?:opt|usr|rustc|src|proc|dev)/|/memfd:|/tmp/stderr\Z|(?:anon_inode|pipe|socket):\[|\Z"
)
PLAIN_KERNEL = re.compile(r"\d+\.\d+\.\d+\Z")


def paths(batch: Batch) -> Iterator[str]:
    """Of programs, open files, mapped files and sources."""
    yield from (target.exe for target in batch.targets)
    yield from (fd.path for fd in batch.fds)
    for site in batch.sites:
        yield site.module
        yield from (frame.file for frame in site.frames)


def private(batch: Batch) -> set[str]:
    """Paths that could be somebody's own, notes (they may name paths), and a kernel that is not plain."""
    found = {path for path in paths(batch) if not NEUTRAL.match(path)}
    found |= {note for target in batch.targets for note in target.notes}
    kernel = str(batch.host.get("kernel", "6.1.0"))
    return found if PLAIN_KERNEL.match(kernel) else {*found, kernel}


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


@pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.name)
def test_a_carried_trace_names_nobodys_machine(trace: Path) -> None:
    with TraceReader(trace) as batches:
        seen = list(batches)
    assert any(path for batch in seen for path in paths(batch))
    assert {text for batch in seen for text in private(batch)} == set()
    with tarfile.open(trace) as archive:
        assert {(member.uid, member.gid, member.uname) for member in archive} == {(0, 0, "")}
        member = archive.extractfile(f"{trace.stem}/meta.json")
        assert member is not None
        meta = json.load(member)
    assert [t for t in texts(meta) if "/" in t and not NEUTRAL.match(t)] == []
    assert PLAIN_KERNEL.match(meta["host"].get("kernel", "6.1.0"))


def test_what_is_somebodys_own_would_be_seen() -> None:
    assert len(TRACES) == 30
    files = ("/home/x/a.rs", "src/main.rs", "/rustc/0123/library/std/src/x.rs")
    batch = Batch(
        empty_records(),
        0,
        targets=(Target(1, "vmm", "vmm", exe="/root/vmm", notes=("the program file at /x is gone",)),),
        fds=(Fd(1, 3, "file", path="/tmp/mine"), Fd(1, 4, "pipe", path="pipe:[7]")),
        sites=(CallSite(1, 2, module="/work/vmm", frames=tuple(Frame("f", file) for file in files)),),
        host={"kernel": "6.1.0-mine"},
    )
    assert private(batch) == {
        "/root/vmm",
        "the program file at /x is gone",
        "/tmp/mine",
        "/work/vmm",
        "/home/x/a.rs",
        "src/main.rs",
        "6.1.0-mine",
    }
