# SPDX-License-Identifier: Apache-2.0
"""A session knows what its probes cost a write, and its own measuring leaves no trace."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from live import Child, Live

from tracer.capture import calibrate

Attach = Callable[..., Live]
FACTS = {"probe_write_ns", "probe_dup_ns", "probe_write_words_ns", "probe_dup_words_ns"}


@pytest.mark.parametrize("words", [0, 4])
def test_a_session_says_what_its_probes_add_to_a_write(child: Child, trace: Attach, words: int) -> None:
    live = trace(child.tgid, held_words=words)
    host = live.recording.batches[0].host
    assert set(host) >= FACTS
    # Three syscalls are traced against one; by how much more is for benchmarks to say.
    assert 0 < int(host["probe_write_ns"]) < int(host["probe_dup_ns"])


def test_calibration_leaves_no_record_and_no_thread_of_ours(child: Child, trace: Attach) -> None:
    live = trace(child.tgid)
    tids, _ = live.session.in_flight()
    child.do("contend 7")
    done = live.finish()
    ours = {int(tid) for tid in os.listdir("/proc/self/task")}
    assert not ours & set(tids.tolist())
    assert not ours & set(np.unique(done.records["tid"]).tolist())
    assert {target.tgid for batch in done.batches for target in batch.targets} == {child.tgid}


def test_what_is_not_traced_is_not_calibrated(
    child: Child, trace: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pid namespace, where our tgid is not the kernel's."""
    monkeypatch.setattr(calibrate, "own_tgid", lambda: child.tgid)
    live = trace(child.tgid)
    assert not FACTS & set(live.recording.batches[0].host)
