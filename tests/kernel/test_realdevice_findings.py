# SPDX-License-Identifier: Apache-2.0
"""Troubles that xdtrace tells without being asked, on the real crates: made, and their finding waited for.

Waited for in record time, so that a busy machine changes nothing. Without cargo 1.81 these tests are skipped;
where XDTRACE_KERNEL_TESTS=1 that is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from test_realdevice import Build, Device, build, running  # noqa: F401

from bench.played import fed
from tracer.capture.session import Session, Settings
from tracer.model.analysis import Analysis
from tracer.model.summary import Finding, Summary

#: Record time after which a trouble must have been told. When a pipe fills is chance: 30 s can be too short.
ENOUGH_NS = 120_000_000_000


@dataclass
class Traced:
    """A device under a session, as attach has it."""

    device: Device
    session: Session
    analysis: Analysis

    def until(self, found: Callable[[Summary], bool]) -> Summary:
        """Go on until a summary has what is asked for."""
        began = 0
        for batch in fed(self.session, self.analysis):
            if not began:
                began = batch.watermark_ns
                self.device.go()
            summary = self.analysis.summary()
            if found(summary):
                return summary
            assert batch.watermark_ns <= began + ENOUGH_NS, [f.what for f in summary.findings]
        raise AssertionError("the session ended by itself")

    def finding(self, *words: str) -> Finding:
        """Go on until there is a finding with all these words."""
        summary = self.until(lambda s: any(_has(f, words) for f in s.findings))
        return next(f for f in summary.findings if _has(f, words))


def _has(finding: Finding, words: tuple[str, ...]) -> bool:
    return all(word in finding.what for word in words)


@contextmanager
def traced(build: Build, variant: str, *options: str, profile: str = "release") -> Iterator[Traced]:  # noqa: F811
    words = ["--hold-start", "--linger", "--duration", "0", *options]
    with running(build(variant, profile), *words) as device:
        settings = Settings()
        with Session([device.ready["vmm"]], settings) as session:
            yield Traced(device, session, Analysis())
            session.stop()


pytestmark = pytest.mark.usefixtures("live_host")


@pytest.mark.parametrize("variant", ["locked", "refcount"])
def test_a_worker_that_reads_the_wrong_event_for_good_is_told(build: Build, variant: str) -> None:  # noqa: F811
    """The id collision of 0.1.80 and 0.1.85: W blocks in read(2) of its own resample event."""
    with traced(build, variant, "--no-id-guard", "--churn", "40") as run:
        finding = run.finding("'cross domain'", "stood in read(eventfd)")
    assert finding.level == "alert" and "collide" in finding.do


def test_a_wait_that_does_not_end_and_the_thread_that_blocks_under_the_lock_are_told(build: Build) -> None:  # noqa: F811
    """Nobody reads the pipe: G stands in a write under item_state, and W waits for the lock."""
    with traced(build, "locked", "--load", "pipe", "--pipe-ms", "3600000") as run:
        waits = run.finding("'cross domain'", "has waited")
        stands = run.finding("'gpu worker'", "stood in write(pipe)")
    assert waits.level == stands.level == "alert"
    assert "the lock stays held" in waits.why


def test_the_lock_that_stays_held_over_a_blocking_call_is_named(build: Build) -> None:  # noqa: F811
    """From the second such write on the word is watched when the call begins."""
    with traced(build, "locked", "--load", "pipe", "--pipe-ms", "1600") as run:
        run.finding("'gpu worker'", "stood in write(pipe)", "item_state", "stayed held")


def test_a_lock_whose_holder_sleeps_in_a_syscall_is_told(build: Build) -> None:  # noqa: F811
    with traced(build, "locked", "--load", "pipe", "--pipe-ms", "60") as run:
        finding = run.finding("item_state", "held by 'gpu worker' over write(pipe)")
    assert "outside the lock" in finding.do


def test_a_stream_that_its_channel_starves_is_told(build: Build) -> None:  # noqa: F811
    with traced(build, "locked", "--churn", "200", "--period", "256/48000") as run:
        finding = run.finding("starved by its context's channel")
    assert "client connection of its own" in finding.do


def test_fds_that_leak_under_churn_are_told(build: Build) -> None:  # noqa: F811
    with traced(build, "locked", "--churn", "10", "--leak") as run:
        run.finding("fds more than it closed")
