# SPDX-License-Identifier: Apache-2.0
"""One traced run of a target, beside what its own audio server counted.

Owns what is kept of a run: counts, causes, predictions by replay, and how busy the machine was.
Knows nothing of what runs are compared for.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.common import ROOT
from tracer.capture.session import Session, Settings
from tracer.cli.minivmm import MiniVmm, binary
from tracer.cli.run import Ending, run
from tracer.model.analysis import Analysis
from tracer.model.counterfactual import Case
from tracer.model.leaves import NOT_SCHEDULED
from tracer.model.phases import HEAD_OF_LINE, SERIALISED
from tracer.model.summary import Summary
from tracer.trace import TraceWriter
from tracer.views.base import Action

#: The real device's own choice for its --realtime.
_PRIORITY = 70

#: Candidates taken out of every path at once, beside the remedies that a report lists.
CANDIDATES: Mapping[str, str] = {f"no {kind}": kind for kind in (NOT_SCHEDULED, SERIALISED, HEAD_OF_LINE)}


@dataclass(frozen=True)
class Condition:
    """A target and how it is run.

    Attributes:
        program: minivmm, or the variant of the real device.
        realtime_vcpus: give the VMM's vCPUs SCHED_FIFO before it starts.
    """

    program: str
    arguments: tuple[str, ...]
    realtime_vcpus: bool = False

    def __str__(self) -> str:
        return " ".join((self.program, *self.arguments)) + (" (vCPUs FIFO)" if self.realtime_vcpus else "")

    @property
    def period_s(self) -> float:
        """Of its streams."""
        if "--period" not in self.arguments:
            return 1024 / 48000
        quantum, rate = self.arguments[self.arguments.index("--period") + 1].split("/")
        return int(quantum) / int(rate)


@dataclass(frozen=True)
class Count:
    """Of a run: cycles, missed ones, episodes."""

    cycles: int
    misses: int
    episodes: int


@dataclass(frozen=True)
class Run:
    """What one run gave.

    Attributes:
        truth: what the audio server counted; seen: what xdtrace did.
        remaining: by remedy or candidate, as replayed: misses and episodes left as a report counts them
            (each carried cycle by its own deadline). Runs kept before
            had another count first and this one last.
        steal_percent: of all CPUs' time; load_average: of the machine's last minute, our run in it.
        lost: records lost; trace: folder, "" if none was kept.
    """

    condition: str
    seed: int
    truth: Count
    seen: Count
    by_cause: Mapping[str, int]
    remaining: Mapping[str, tuple[int, int]]
    steal_percent: float
    load_average: float
    lost: int
    trace: str = ""

    @property
    def streams(self) -> int:
        """Sustained streams: each has an edge of its own, at which counts may differ by one."""
        words = self.condition.split()
        return int(words[words.index("--streams") + 1]) if "--streams" in words else 1

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read a line that ``json.dumps(asdict(run))`` wrote."""
        data = json.loads(line)
        data["truth"], data["seen"] = Count(**data["truth"]), Count(**data["seen"])
        left = data["remaining"].items()
        data["remaining"] = {key: (counts[2 if len(counts) > 2 else 0], counts[1]) for key, counts in left}
        return cls(**data)


class _NoView:
    """Shows nothing."""

    refresh_s = 3600.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def poll(self) -> Sequence[Action]:
        return ()

    def show(self, summary: Summary) -> None:
        pass

    def finish(self, summary: Summary, extra: Mapping[str, object]) -> None:
        pass


def program_of(name: str) -> Path:
    """The path of a target's program, built if it is not there.

    Raises:
        HostError: the mini-VMM does not build. CalledProcessError: the real device does not.
    """
    if name == "minivmm":
        return binary()
    found = ROOT / ".dev" / "realdevice" / name / "stripped" / f"rd-{name}"
    if not found.is_file():
        build = ROOT / "tests" / "realdevice" / "build.sh"
        subprocess.run([build, "--profile", "stripped", name], check=True, stdout=subprocess.DEVNULL)
    return found


def realtime(tgid: int, comms: tuple[str, ...] = ("fc_vcpu",)) -> None:
    """Give threads of a VMM SCHED_FIFO, by how their names begin; what they start does not inherit it."""
    for task in Path(f"/proc/{tgid}/task").iterdir():
        if (task / "comm").read_text(encoding="utf-8").startswith(comms):
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(int(task.name), policy, os.sched_param(_PRIORITY))


def _cpu_time() -> tuple[int, int]:
    """Ticks stolen, and all ticks, over all CPUs since boot (proc(5), /proc/stat)."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    ticks = [int(field) for field in fields]
    return ticks[7], sum(ticks)


def traced(
    condition: Condition, seconds: float, seed: int, trace: Path | None = None, log: Path | None = None
) -> Run:
    """Run a target from its first cycle to its last under a session with live analysis, as attach does.

    Args:
        trace: record into this folder too; log: have the audio server log its cycles there.

    Raises:
        HostError: no target, no probes. RuntimeError: the target said nothing at its end.
    """
    arguments = [*condition.arguments, "--duration", f"{seconds:g}", "--seed", str(seed)]
    arguments += ["--log", str(log)] if log else []
    before = _cpu_time()
    analysis = Analysis()
    with ExitStack() as stack:
        target = stack.enter_context(MiniVmm(program_of(condition.program), arguments))
        session = stack.enter_context(Session([target.vmm], Settings()))
        writer = stack.enter_context(TraceWriter(trace, force=True)) if trace else None
        if condition.realtime_vcpus:
            realtime(target.vmm)
        target.start()
        summary = run(
            session,
            analysis,
            _NoView(),
            ending=Ending(),
            writer=writer,
            watch=session.watch,
            stop=session.stop,
            duration_s=seconds + 30,
            may_end=target.tick,
        )
        if target.ground_truth is None:
            raise RuntimeError(f"{condition}: no count from its audio server")
        truth = target.ground_truth
    stolen, total = (now - then for now, then in zip(_cpu_time(), before, strict=True))
    lost = summary.records.lost
    return Run(
        condition=str(condition),
        seed=seed,
        truth=Count(truth["cycles"], truth["missed_cycles"], truth["episodes"]),
        seen=Count(
            *(sum(getattr(s, name) for s in summary.streams) for name in ("cycles", "misses", "episodes"))
        ),
        by_cause=dict(summary.misses_by_cause),
        remaining=_remaining(analysis, summary),
        steal_percent=round(100 * stolen / total, 2),
        load_average=round(os.getloadavg()[0], 2),
        lost=lost.ring + lost.map + lost.late,
        trace=str(trace or ""),
    )


def _remaining(analysis: Analysis, summary: Summary) -> dict[str, tuple[int, int]]:
    """Misses and episodes left, as a report counts them."""
    left = {
        name: (row.of - row.avoided, row.episodes_of - row.episodes_avoided)
        for name, row in summary.counterfactual.items()
    }
    for name, kind in CANDIDATES.items():
        replays = _replays(analysis, lambda case, kind=kind: _without(case, kind))  # type: ignore[misc]
        left[name] = _left(analysis, replays)
    return left


def _without(case: Case, kind: str) -> int:
    """The closing time of a path without all leaves that count for a kind of candidate."""
    gone = {at: 1.0 for key, members in case.members.items() if key[0] == kind for at in members}
    return case.replay(gone, unqueued=kind == HEAD_OF_LINE)


def _replays(analysis: Analysis, replay: Callable[[Case], int]) -> dict[int, int]:
    """The replayed closing time of each origin that was judged, ns."""
    misses = analysis.verdicts.misses
    return {m.id: replay(m.case) for m in misses if m.case is not None and m.judgement is not None}


def _left(analysis: Analysis, replays: Mapping[int, int]) -> tuple[int, int]:
    """Misses and episodes left after replay, each miss by its own deadline."""
    left, episodes = 0, set()
    for miss in analysis.verdicts.misses:
        origin = miss.origin or miss
        if origin.id not in replays or replays[origin.id] > miss.cycle.deadline_ns:
            left += 1
            episodes.add(miss.episode.id)
    return left, len(episodes)
