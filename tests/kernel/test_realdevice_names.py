# SPDX-License-Identifier: Apache-2.0
"""On stripped builds of the real crates a live session names crate, version, write path and item_state by
behaviour, within ten seconds of churn (of record time: how busy the machine is does not count).

With a cargo older than 1.81 these tests are skipped; where XDTRACE_KERNEL_TESTS=1 none at all is a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_realdevice import CRATES, Build, Device, build, running  # noqa: F401

from bench.played import fed
from tracer.capture.session import Session, Settings
from tracer.model.analysis import Analysis
from tracer.model.summary import Summary
from tracer.model.summaryrows import LockRow

ENOUGH_NS = 10_000_000_000


def _item_states(summary: Summary) -> list[LockRow]:
    return [row for row in summary.locks if row.name == "item_state"]


def _until_named(program: Path, contexts: int) -> tuple[Analysis, Summary]:
    """Attach to a device under churn, until all that is asked for is named or ten seconds are over."""
    options = ["--hold-start", "--linger", "--churn", "200", "--contexts", str(contexts)]
    options += ["--streams", str(contexts), "--duration", "0"]
    analysis = Analysis()
    with running(program, *options) as device, Session([device.ready["vmm"]], Settings()) as session:
        began = 0
        for batch in fed(session, analysis):
            if not began:
                began = batch.watermark_ns
                device.go()
            summary = analysis.summary()
            # by the order of wakes a path may be told earlier still; what was held is the better evidence
            told = all(path.evidence in ("held_words", "dup_calls") for path in summary.write_path.values())
            named = len(_item_states(summary)) >= contexts and told
            if named or batch.watermark_ns > began + ENOUGH_NS:
                session.stop()
                return analysis, summary
    raise AssertionError("the session ended by itself")


@pytest.mark.parametrize("variant", CRATES)
def test_a_stripped_device_is_named_by_what_it_does(
    build: Build,  # noqa: F811
    live_host: None,
    variant: str,
) -> None:
    analysis, summary = _until_named(build(variant, "stripped"), contexts=1)
    (path,) = summary.write_path.values()
    assert f"{path.crate}-{path.version}" == CRATES[variant]
    assert path.kind == variant
    assert path.evidence == ("dup_calls" if variant == "dup" else "held_words")
    (item_state,) = _item_states(summary)
    (worker,) = analysis.registry.with_role("W")
    assert (item_state.named_by, item_state.instance) == ("behaviour", f"context {worker}")
    assert not any(row.named_by == "symbols" for row in summary.locks)
    # jobs is known by its condvar, malloc's arenas by how they wait; item_state is neither.
    assert item_state.kind == "mutex" and item_state.address % 4 == 0


def test_each_context_of_a_stripped_device_has_its_item_state(build: Build, live_host: None) -> None:  # noqa: F811
    analysis, summary = _until_named(build("dup", "stripped"), contexts=2)
    workers = analysis.registry.with_role("W")
    assert len(workers) == 2
    assert {row.instance for row in _item_states(summary)} == {f"context {tid}" for tid in workers}
    assert all(row.named_by == "behaviour" for row in _item_states(summary))


def test_a_lock_that_the_user_names_is_called_so_and_watched(build: Build, live_host: None) -> None:  # noqa: F811
    """``--lock NAME=0xADDR``, with the address that an earlier look found."""
    options = ["--hold-start", "--linger", "--churn", "200", "--duration", "0"]
    with running(build("dup", "stripped"), *options) as device:
        device.go()
        (found,) = _until(device, Settings(), lambda s: len(_item_states(s)) == 1).pop("item_state")
        named = Settings(lock_symbols=(("mine", found.address),))
        locks = _until(device, named, lambda s: any(h.lock.startswith("mine") for h in s.held) and s.locks)
    (mine,) = locks["mine"]
    assert (mine.named_by, mine.address) == ("user", found.address)
    assert "item_state" not in locks


def _until(device: Device, settings: Settings, told: Callable[[Summary], object]) -> dict[str, list[LockRow]]:
    """Attach until something is told; the locks by name."""
    analysis = Analysis()
    with Session([device.ready["vmm"]], settings) as session:
        began = 0
        for batch in fed(session, analysis):
            began = began or batch.watermark_ns
            summary = analysis.summary()
            if told(summary) and any(row.name in ("item_state", "mine") for row in summary.locks):
                break
            assert batch.watermark_ns < began + 3 * ENOUGH_NS, [row.name for row in summary.locks]
        session.stop()
    locks = dict[str, list[LockRow]]()
    for row in summary.locks:
        locks.setdefault(row.name, []).append(row)
    return locks
