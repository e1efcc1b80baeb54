# SPDX-License-Identifier: Apache-2.0
"""A session with live analysis, driven as attach drives it: fed, and the words watched that it asks for.

Owns the loop over batches and a bundled target's run from its start to its count. What is measured in it is
the benchmark's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from tracer.capture.session import Session
from tracer.cli.minivmm import MiniVmm
from tracer.model.analysis import Analysis
from tracer.schema import Batch
from tracer.trace import TraceWriter

#: Seconds beyond its own duration after which a target is taken for stuck.
_PATIENCE_S = 30.0


def fed(session: Session, analysis: Analysis, writer: TraceWriter | None = None) -> Iterator[Batch]:
    """The session's batches, each written and analysed before it is given."""
    watched: dict[int, tuple[int, ...]] = {}
    for batch in session:
        if writer is not None:
            writer.append(batch)
        analysis.feed(batch)
        for tgid, words in analysis.words_to_watch().items():
            if watched.get(tgid) != words:
                session.watch(tgid, words)
            watched[tgid] = words
        yield batch


def play(
    target: MiniVmm, session: Session, analysis: Analysis, seconds: float, writer: TraceWriter | None = None
) -> None:
    """Let a target that runs for so many seconds start, and go on until it has counted up and all is taken.

    What the session has still to give when the target has ended is part of the run: on a busy
    machine that was up to a second of records.

    Raises:
        RuntimeError: it did not count.
    """
    target.start()
    end = time.monotonic() + seconds + _PATIENCE_S
    stopped = False
    for _ in fed(session, analysis, writer):
        if not stopped and (target.tick(False) or time.monotonic() > end):
            stopped = True
            session.stop()
    if target.ground_truth is None:
        raise RuntimeError(f"no count from its audio server {_PATIENCE_S:g} s after its time")
