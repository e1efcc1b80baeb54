# SPDX-License-Identifier: Apache-2.0
"""Two mini-VMMs on one audio server: one table, and every count the server's own."""

from __future__ import annotations

import pytest
from demo_runs import demo

pytestmark = pytest.mark.usefixtures("live_host")


def test_two_vmms_on_one_server_are_one_table_with_the_servers_counts() -> None:
    run = demo(
        *("--vmms", "2", "--streams", "3", "--churn", "100", "--period", "256/48000", "--duration", "4")
    )  # demo() holds cycles, missed cycles and episodes to the audio server's
    vmms = [target["tgid"] for target in run.summary["targets"] if target["role"] == "vmm"]
    assert len(vmms) == 2 and len(run.summary["targets"]) == 3
    assert sorted(stream["tgid"] for stream in run.summary["streams"]) == sorted([*vmms, vmms[0]])
    assert len(run.summary["drivers"]) == 1
    assert set(run.summary["write_path"]) == {str(tgid) for tgid in vmms}
