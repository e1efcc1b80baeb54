# SPDX-License-Identifier: Apache-2.0
"""A child that does as it is told, and a session whose batches are kept: shared by these tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tracer import schema
from tracer.capture.session import Session
from tracer.schema import Batch, Kind, Records

WAIT, WAKE = 137, 129


@dataclass
class Child:
    """tests/kernel/child.c, running."""

    process: subprocess.Popen[str]
    tgid: int
    word: int
    held: int
    other: int

    def do(self, command: str) -> str:
        """Have a command carried out; what it printed besides "done"."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer.endswith("done\n") or answer.startswith("ready"), answer
        return answer.removesuffix("done\n")

    def end(self) -> None:
        """Have it exit, and wait for that."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)


@dataclass
class Recording:
    """All batches of a session."""

    batches: list[Batch] = field(default_factory=list)

    @property
    def records(self) -> Records:
        return np.concatenate([batch.records for batch in self.batches])

    def of(self, kind: Kind, tids: set[int] | None = None) -> Records:
        """Records of one kind in their family's dtype, OPEN ones left out."""
        records = self.records
        records = records[(records["kind"] == kind) & (records["flags"] & schema.Flag.OPEN == 0)]
        if tids is not None:
            records = records[np.isin(records["tid"], list(tids))]
        return schema.view(records, schema.FAMILY[kind])

    @property
    def lost(self) -> schema.Losses:
        return self.batches[-1].losses


@dataclass
class Live:
    """A session whose batches are kept."""

    session: Session
    recording: Recording
    batches: Iterator[Batch]

    def next(self) -> Batch:
        batch = next(self.batches)
        self.recording.batches.append(batch)
        return batch

    def until(self, condition: Callable[[Recording], bool]) -> None:
        """Take batches until something has been seen; a hundred are enough or it never will be."""
        for _ in range(100):
            if condition(self.recording):
                return
            self.next()
        raise AssertionError("not seen in 100 batches")

    def finish(self) -> Recording:
        """Stop, and take what is left."""
        self.session.stop()
        self.recording.batches.extend(self.batches)
        return self.recording
