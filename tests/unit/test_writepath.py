# SPDX-License-Identifier: Apache-2.0
"""The write path is told from behaviour, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import records as r

from tracer.model.facts import Facts
from tracer.model.held import Held
from tracer.model.locks import Locks
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.summaryrows import WritePath
from tracer.model.writepath import WritePaths
from tracer.profile import default_profiles
from tracer.schema import Records, Target, Thread

VMM = 100
W, G, VCPU, D = 1, 2, 3, 4
TASKS = (11, 12)
DONE = 50  # the completion eventfd's id
ITEM = 0x1000
CYCLE = 1_000_000


class Named:
    """Names where some words surely are item_state."""

    def __init__(self, *sure: int) -> None:
        self.sure = set(sure)

    def item_states(self, _tgid: int) -> set[int]:
        return self.sure

    def lock(self, _tgid: int, word: int) -> tuple[str, str, str, str]:
        return ("item_state", "", "behaviour", "") if word in self.sure else ("lock@", "", "none", "")


def judge(
    trace: Records,
    cuts: tuple[int, ...] = (),
    ids: tuple[int, ...] = (DONE,),
    names: Named | None = None,
    contexts: tuple[int, ...] = (W,),
    host: dict[str, str | int | float] | None = None,
    known: Callable[[str, str], str] | None = None,
) -> WritePath:
    registry = Registry()
    registry.learn(
        targets=[Target(VMM, "vmm", "vmm", crate="rutabaga_gfx", version="0.1.80")],
        threads=[Thread(tid, VMM, f"t{tid}") for tid in (W, G, VCPU, *TASKS)],
    )
    for tid, role in ((W, "W"), (G, "G"), (VCPU, "vcpu")):
        registry.threads[tid].role = role
    locks = Locks(registry)
    held = Held(registry, locks)
    paths = WritePaths(registry, held, locks, names, known)
    for part, end in r.steps(r.trace(trace, r.loss(1_000 * CYCLE, 0)), cuts):
        locks.step(Step(part, end))
        held.step(Step(part, end))
        paths.step(Step(part, end), dict.fromkeys(ids, contexts))
    return paths.rows(host or {})[str(VMM)]


def contention(start: int) -> Records:
    """W waits for item_state, which G gives back: both are then known to use it."""
    return r.trace(
        r.wait(W, ITEM, start, start + 5_000), r.wake(G, ITEM, start + 4_900), r.wake(W, ITEM, start + 9_000)
    )


def completions(n: int, mask: int | None = None, fd: int = 9, tid: int = G, eventfd: int = DONE) -> Records:
    masks = {} if mask is None else {"held_in": mask, "readable_in": 1, "generation": 1}
    return r.trace(
        r.write(tid, t, t + 2_000, fd=fd, eventfd=eventfd, **masks)
        for t in (CYCLE * i for i in range(1, n + 1))
    )


@pytest.mark.parametrize("cuts", [(), (CYCLE, 2 * CYCLE + 500, 7 * CYCLE)])
def test_a_fresh_dup_per_write_is_dup_and_its_cost_spans_dup_to_close(cuts: tuple[int, ...]) -> None:
    trace = r.trace(
        r.trace(
            r.dup(G, t, t + 1_000, fd=9, new_fd=30 + i % 2, eventfd=DONE),
            r.wake(G, ITEM, t + 1_900),
            r.write(G, t + 2_000, t + 4_000, fd=30 + i % 2, eventfd=DONE),
            r.close(G, t + 5_000, t + 6_000, fd=30 + i % 2, eventfd=DONE),
        )
        for i, t in enumerate(range(CYCLE, 40 * CYCLE, CYCLE))
    )
    found = judge(trace, cuts)
    assert (found.kind, found.evidence, found.writes) == ("dup", "dup_calls", 39)
    assert found.cost_ns.p50 == pytest.approx(6_000, rel=0.05)
    assert (found.crate, found.version) == ("rutabaga_gfx", "0.1.80")


def test_a_dup_made_long_before_is_none() -> None:
    trace = r.trace(r.dup(G, 10, 20, fd=9, new_fd=30, eventfd=DONE), completions(30, fd=30))
    assert judge(trace).kind == "unknown"


@pytest.mark.parametrize(("mask", "kind"), [(1, "locked"), (0, "refcount")])
def test_held_words_tell_locked_from_refcount(mask: int, kind: str) -> None:
    trace = r.trace(r.words(VMM, 5, 1, [ITEM]), contention(100), completions(40, mask))
    found = judge(trace)
    assert (found.kind, found.evidence) == (kind, "held_words")
    assert f"{40 * mask} of 40" in found.why


def test_one_context_whose_item_state_is_unknown_does_not_hide_that_another_is_locked() -> None:
    trace = r.trace(
        r.words(VMM, 5, 1, [ITEM]), contention(100), completions(40, 1), completions(40, 0, tid=G, eventfd=51)
    )
    assert judge(trace, ids=(DONE, 51)).kind == "locked"


@pytest.mark.parametrize(("mask", "kind"), [(1, "locked"), (0, "unknown")])
def test_that_a_lock_of_unknown_name_is_free_at_the_writes_says_nothing(mask: int, kind: str) -> None:
    trace = r.trace(r.words(VMM, 5, 1, [ITEM]), contention(100), completions(40, mask))
    found = judge(trace, names=Named())
    assert found.kind == kind
    assert "item_state was held" not in found.why


def test_that_the_lock_of_another_context_is_free_says_nothing() -> None:
    trace = r.trace(r.words(VMM, 5, 1, [ITEM]), contention(100), completions(40, 0))
    assert judge(trace, names=Named(ITEM)).kind == "refcount"
    assert judge(trace, names=Named(ITEM), contexts=(W, 77)).kind == "unknown"


@pytest.mark.parametrize(
    ("sure", "writes", "kind"), [(True, 7, "unknown"), (True, 8, "locked"), (False, 19, "unknown")]
)
def test_few_samples_of_held_words_decide_nothing(sure: bool, writes: int, kind: str) -> None:
    trace = r.trace(r.words(VMM, 5, 1, [ITEM]), contention(100), completions(writes, 1))
    found = judge(trace, names=Named(*[ITEM] * sure))
    assert found.kind == kind
    if sure and kind == "unknown":
        assert (
            found.why
            == "locked or refcount: only 7 of 7 completion writes came after the first wait for item_state"
        )


@pytest.mark.parametrize(("offset", "kind"), [(2_600, "locked"), (-100, "refcount")])
def test_the_order_of_write_and_wake_tells_without_held_words(offset: int, kind: str) -> None:
    wakes = [r.wake(G, ITEM, CYCLE * i + offset, dur=90) for i in range(2, 8)]
    found = judge(r.trace(contention(100), completions(30), *wakes))
    assert (found.kind, found.evidence) == (kind, "wake_order")


def test_wakes_of_another_lock_are_no_evidence() -> None:
    wakes = [r.wake(G, 0x9000, CYCLE * i - 100, dur=90) for i in range(2, 8)]
    found = judge(r.trace(contention(100), completions(30), *wakes))
    assert found.kind == "unknown" and "locked or refcount" in found.why


def test_without_lock_evidence_it_says_so() -> None:
    found = judge(completions(30))
    assert (found.kind, found.evidence) == ("unknown", "")
    assert found.why.startswith("locked or refcount: ")
    assert found.writes == 30


def test_where_behaviour_leaves_it_open_the_version_of_the_device_decides() -> None:
    facts = Facts(default_profiles())
    found = judge(completions(30), known=facts.write_path)
    assert (found.kind, found.evidence, found.writes) == ("locked", "symbols", 30)
    assert "rutabaga_gfx 0.1.80" in found.why and "ever contended" in found.why
    assert facts.write_path("rutabaga_gfx", "0.1.85") == "refcount"
    for library in ("0.1.0-1.19.7", "1.18.1"):
        assert facts.write_path("krun-rutabaga-gfx", library) == "dup"
    for unknown in (("rutabaga_gfx", "0.1.81"), ("rutabaga_gfx", ""), ("minivmm", ""), ("", "")):
        assert facts.write_path(*unknown) == ""


def test_what_threads_do_outweighs_the_version() -> None:
    free = r.trace(r.words(VMM, 5, 1, [ITEM]), contention(100), completions(40, 0))
    assert judge(free, known=lambda _crate, _version: "locked").kind == "refcount"
    # Bare writes are no dup, whatever the version says.
    assert judge(completions(30), known=lambda _crate, _version: "dup").kind == "unknown"


def test_threads_that_write_one_target_each_are_tasks() -> None:
    trace = r.trace(completions(30, tid=TASKS[0]), completions(30, tid=TASKS[1], eventfd=51))
    assert judge(trace, ids=(DONE, 51)).kind == "task"


def test_a_thread_that_writes_several_targets_is_no_task() -> None:
    trace = r.trace(completions(30, tid=TASKS[0]), r.write(TASKS[0], 10, 20, eventfd=51))
    assert judge(trace, ids=(DONE, 51)).kind == "unknown"


def test_writes_by_vcpus_and_failed_ones_do_not_count() -> None:
    failed = r.trace(r.write(G, t, t + 10, eventfd=DONE, ret=-9) for t in range(CYCLE, 9 * CYCLE, CYCLE))
    found = judge(r.trace(completions(30, tid=VCPU), failed))
    assert (found.kind, found.writes) == ("unknown", 0)
    assert found.cost_ns.p50 is None


CALIBRATED: dict[str, str | int | float] = {
    "held_words": 4,
    "probe_write_ns": 600,
    "probe_write_words_ns": 1_000,
    "probe_dup_ns": 1_600,
    "probe_dup_words_ns": 2_800,
}


def dupped(watched: int) -> Records:
    """Completions by dup (1 µs), write (2 µs) and close (1 µs) with 1 µs between, some words watched."""
    masks = {"held_in": 0, "readable_in": (1 << watched) - 1, "generation": 1}
    return r.trace(
        r.trace(
            r.dup(G, t, t + 1_000, fd=9, new_fd=30, eventfd=DONE),
            r.write(G, t + 2_000, t + 4_000, fd=30, eventfd=DONE, **masks),
            r.close(G, t + 5_000, t + 6_000, fd=30, eventfd=DONE),
        )
        for t in range(CYCLE, 40 * CYCLE, CYCLE)
    )


@pytest.mark.parametrize(("watched", "share"), [(0, 1_000), (4, 1_800), (2, 1_400)])
def test_what_the_probes_add_to_dup_and_close_is_taken_out_by_calibration(watched: int, share: int) -> None:
    found = judge(dupped(watched), host=CALIBRATED)
    assert found.correction_ns == share
    assert found.cost_ns.p50 is not None
    assert found.cost_corrected_ns == found.cost_ns.p50 - share
    assert found.write_ns.p50 == pytest.approx(2_000, rel=0.05)
    assert found.extra_ns.p50 == pytest.approx(4_000, rel=0.05)


def test_a_write_without_a_dup_needs_no_correction() -> None:
    found = judge(completions(30), host=CALIBRATED)
    assert found.correction_ns == 0
    assert found.cost_corrected_ns == found.cost_ns.p50 == found.write_ns.p50
    assert found.extra_ns.p50 == 0


@pytest.mark.parametrize("host", [{}, {**CALIBRATED, "probe_dup_ns": "?"}])
def test_without_calibration_there_is_no_corrected_cost(host: dict[str, str | int | float]) -> None:
    found = judge(dupped(0), host=host)
    assert (found.correction_ns, found.cost_corrected_ns) == (None, None)
    assert found.cost_ns.p50 is not None


@pytest.mark.parametrize(
    ("out", "back", "cost"),
    [
        (4_200, 4_900, 5_300),  # between write and close: whoever the write woke took the CPU
        (3_000, 3_500, 5_500),  # within the write
        (-500, 400, 5_600),  # begins before the dup
        (5_900, 9_000, 5_900),  # outlasts the close
        (7_000, 9_000, 6_000),  # behind it
    ],
)
def test_time_off_the_cpu_is_no_cost_of_the_write(out: int, back: int, cost: int) -> None:
    away = [
        r.offcpu(G, t + out, t + back, preempted=True, instead=D) for t in range(CYCLE, 40 * CYCLE, CYCLE)
    ]
    found = judge(r.trace(dupped(0), *away))
    assert found.cost_ns.p50 == pytest.approx(cost, rel=0.05)
