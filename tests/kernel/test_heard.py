# SPDX-License-Identifier: Apache-2.0
"""``xdtrace glitches`` on a traced run's capture: each burst is a missed period, where the clocks say."""

from __future__ import annotations

import json
import time
from pathlib import Path

from commandline import xdtrace

import tracer
from bench.accuracy import json_lines
from tracer.cli.minivmm import MiniVmm, binary

#: Delays made on purpose, so that there is something to hear.
ARGUMENTS = ["--inject", "slow_syscall.w:1.2..3", "--period", "256/48000", "--churn", "0", "--duration", "3"]


def test_every_burst_of_a_traced_run_is_a_missed_period(live_host: None, tmp_path: Path) -> None:
    wav, folder = tmp_path / "x.wav", tmp_path / "x.xdt"
    words = [
        *ARGUMENTS,
        "--wav",
        str(wav),
        "--truth",
        str(tmp_path / "truth"),
        "--log",
        str(tmp_path / "log"),
    ]
    with MiniVmm(binary(), words) as child, tracer.attach(child.vmm, output=folder) as session:
        child.start()
        while not child.tick(False):
            time.sleep(0.05)  # paced by the child, which says when it is done
    done = xdtrace("glitches", str(wav), "--trace", str(folder), "--format", "json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    misses = {miss.id: miss for miss in session.summary.misses}
    assert len(found["bursts"]) >= 3
    assert abs(found["tone_hz"] - 997) < 0.01
    assert all(burst["miss"] in misses for burst in found["bursts"])
    # Only what the server, whose capture it is, had counted as well must be heard.
    counted = [row["deadline_ns"] for row in json_lines(tmp_path / "log") if row.get("leg", "none") != "none"]
    unheard = [misses[number].deadline_ns for number in found["unheard"]]
    assert [at for at in unheard if any(abs(at - own) < 1_000_000 for own in counted)] == []
    assert len(counted) >= 3
    alignment = found["alignment"]
    assert alignment["unique"] and alignment["spread_ns"] < 2_666_667  # half a period
    # The capture's first quantum is cycle 0's: it is played at that cycle's deadline.
    first = session.df_periods().iloc[0]
    begin_ns = first["deadline_ns"].value - session.offset_ns
    assert abs(alignment["begin_ns"] - begin_ns) < 2_666_667
