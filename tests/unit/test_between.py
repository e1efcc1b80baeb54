# SPDX-License-Identifier: Apache-2.0
"""Two VMMs: whose cause each missed cycle had, and what is said of it."""

from __future__ import annotations

from tracer.model.between import Between
from tracer.model.counterfactual import Judgement
from tracer.model.cycles import Cycle, Stream
from tracer.model.drivers import Driver
from tracer.model.eventfds import Eventfd
from tracer.model.leaves import LOCK, NOT_SCHEDULED, Leaf
from tracer.model.misses import MissState
from tracer.model.phases import WORKER, Path, Phase
from tracer.model.registry import Registry
from tracer.model.replay import Case
from tracer.schema import Target, Thread

AUDIO, D = 10, 11
VMM_A, WORKER_A, VMM_B, WORKER_B, VCPU_B = 20, 21, 30, 31, 32
HOG_1, HOG_2 = 90, 91
DRIVEN = {D: {VMM_A, VMM_B}}


class Misses:
    """Makes missed cycles of two streams on one driver."""

    def __init__(self, *vmms: int) -> None:
        self.registry = Registry()
        targets = [Target(tgid, "vmm", "minivmm") for tgid in vmms] + [Target(AUDIO, "audio", "pipewire")]
        names = {
            D: (AUDIO, "pipewire"),
            WORKER_A: (VMM_A, "cross domain"),
            WORKER_B: (VMM_B, "cross domain"),
            VCPU_B: (VMM_B, "fc_vcpu 0"),
            HOG_1: (HOG_1, "hog 11"),
            HOG_2: (HOG_2, "hog 7"),
        }
        threads = [Thread(tid, tgid, comm) for tid, (tgid, comm) in names.items()]
        self.registry.learn(targets, threads)
        self.between = Between(self.registry)
        self.driver = Driver("pipewire/11:4", AUDIO, D, 4)
        self.streams = {t: Stream(t, f"of {t}", t, Eventfd(t, 0), self.driver) for t in (VMM_A, VMM_B)}
        self.made = 0

    def miss(
        self,
        vmm: int,
        number: int,
        cause: str,
        *leaves: tuple[str, int, int],
        enough: str = "",
        origin: MissState | None = None,
    ) -> MissState:
        """One missed cycle; leaves as (kind, ms, who ran instead); ``enough``: the sufficient kind."""
        stream = self.streams[vmm]
        self.made += 1
        cycle = Cycle(stream, self.driver, number, number, number, number, number)
        cut = [Leaf(0, ms * 1_000_000, kind, 0, 0, instead=instead) for kind, ms, instead in leaves]
        made = MissState(self.made, cycle, 1, "wake", cause, origin=origin)
        made.judgement = Judgement(cause, None, ((enough or cause,),), (), {})
        if origin is None:
            made.case = Case(Path([Phase(0, sum(leaf.ns for leaf in cut), WORKER, 0)], 0), cut)
        self.between.take([made])
        return made

    def said(self) -> list[str]:
        return [finding.what for finding in self.between.findings(DRIVEN)]


def test_with_one_vmm_nothing_is_said_of_others() -> None:
    misses = Misses(VMM_A)
    misses.miss(VMM_A, 1, "host_late")
    assert misses.said() == []


def test_causes_that_are_each_ones_own_need_no_words() -> None:
    misses = Misses(VMM_A, VMM_B)
    misses.miss(VMM_A, 1, "lock", (LOCK, 5, 0))
    misses.miss(VMM_B, 1, "serialised")
    assert misses.said() == []


def test_a_late_audio_server_is_the_cause_of_all() -> None:
    misses = Misses(VMM_A, VMM_B)
    for number in (1, 2):
        misses.miss(VMM_A, number, "host_late")
        misses.miss(VMM_B, number, "host_late")
    misses.miss(VMM_A, 3, "host_late")
    shared, whose = misses.said()
    assert shared == (
        "3 cycle(s) were missed because 'pipewire' (tid 11) of the audio server was late itself; "
        "it drives 2 VMMs"
    )
    assert whose.endswith("VMM 20: 3 the audio server's; VMM 30: 2 the audio server's")


def test_what_a_vmm_does_to_the_other_is_no_own_fault() -> None:
    misses = Misses(VMM_A, VMM_B)
    first = misses.miss(
        VMM_A, 1, "not_scheduled", (NOT_SCHEDULED, 4, VCPU_B), (NOT_SCHEDULED, 1, WORKER_B), (LOCK, 9, 0)
    )
    misses.miss(VMM_A, 2, "not_scheduled", origin=first)
    misses.miss(VMM_A, 3, "lock", (LOCK, 9, 0), (NOT_SCHEDULED, 1, VCPU_B))
    misses.miss(VMM_A, 4, "not_scheduled", (NOT_SCHEDULED, 9, WORKER_A))
    hurt, whose = list(misses.between.findings(DRIVEN))
    assert hurt.what == "VMM 30 had the CPU in 2 of the 4 missed cycles of VMM 20: 5.0 ms"
    assert "'fc_vcpu 0' (tid 32)" in hurt.why
    assert whose.what.endswith("VMM 20: 2 another VMM's, 2 its own")


def test_a_lock_whose_holder_the_other_vmm_kept_off_the_cpu_is_not_its_own() -> None:
    misses = Misses(VMM_A, VMM_B)
    misses.miss(VMM_A, 1, "mixed", (NOT_SCHEDULED, 4, VCPU_B), enough=NOT_SCHEDULED)
    assert misses.said()[0].startswith("VMM 30 had the CPU in 1 of the 1 missed cycles of VMM 20")


def test_what_hardly_ever_happens_is_in_the_tally_only() -> None:
    misses = Misses(VMM_A, VMM_B)
    for number in range(19):
        misses.miss(VMM_A, number, "lock", (LOCK, 9, 0))
    misses.miss(VMM_A, 19, "not_scheduled", (NOT_SCHEDULED, 4, VCPU_B))
    assert len(misses.said()) == 2  # one in twenty is told
    misses.miss(VMM_A, 20, "lock", (LOCK, 9, 0))
    (whose,) = misses.said()
    assert "20 its own, 1 another VMM's" in whose


def test_a_third_program_that_hits_both_is_named_once_though_it_is_many_processes() -> None:
    misses = Misses(VMM_A, VMM_B)
    misses.miss(VMM_A, 1, "not_scheduled", (NOT_SCHEDULED, 4, HOG_1), (NOT_SCHEDULED, 3, HOG_2))
    misses.miss(VMM_B, 1, "not_scheduled", (NOT_SCHEDULED, 3, HOG_1), (NOT_SCHEDULED, 4, HOG_2))
    shared, whose = misses.said()
    assert shared.startswith("'hog' (pid 90 and 1 more) had the CPU in missed cycles of several VMMs: ")
    assert shared.endswith("1 of VMM 20 and 1 of VMM 30")
    assert "VMM 20: 1 another process's; VMM 30: 1 another process's" in whose
