# SPDX-License-Identifier: Apache-2.0
"""The face of model/: batches in, a Summary out; the same for live and recorded.

Owns the order in which the parts of the model see each step of record time. Results
depend on records alone, never on where batches were cut: all state changes only at
fixed steps (timeline.Sequencer), and names are asked for when a Summary is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from tracer.model import guests
from tracer.model.acquire import Plain
from tracer.model.between import Between
from tracer.model.counterfactual import Names as RemedyNames
from tracer.model.cutter import LeafCutter
from tracer.model.delays import RunDelay, Stuck
from tracer.model.facts import Facts
from tracer.model.findings import Evidence, findings
from tracer.model.held import Held
from tracer.model.judging import Judge
from tracer.model.locks import Locks
from tracer.model.misses import EpisodeState
from tracer.model.names import Names
from tracer.model.path import PathFinder
from tracer.model.registry import Registry
from tracer.model.remedies import Remedies
from tracer.model.roles import Roles
from tracer.model.rows import Rows
from tracer.model.step import Step
from tracer.model.streams import Streams
from tracer.model.summary import Episode, Summary
from tracer.model.symptoms import Symptoms
from tracer.model.tap import Tap
from tracer.model.timeline import Sequencer, Timeline
from tracer.model.turns import Turns
from tracer.model.verdicts import WHOLE, Keep, Verdicts
from tracer.model.waits import Waits
from tracer.model.watch import Watch
from tracer.model.writepath import WritePaths
from tracer.profile import Profile, default_profiles
from tracer.schema import RECORD, Batch, Kind


@dataclass(frozen=True, slots=True)
class Tally:
    """Missed cycles, the carried ones included, and streams' episodes so far."""

    misses: int
    episodes: int


class Analysis:
    """Turns batches into a Summary.

    Args:
        profiles: what is known of VMMs; None for the bundled ones.
        period: (quantum, rate) of the streams where the driver cannot be seen; None to infer it.
        held_words: how many lock words per process to ask the session to watch.
        tap: is given cycles, acquisitions and waits before they are forgotten.
        keep: how much is kept of misses that were judged.
    """

    def __init__(
        self,
        profiles: Sequence[Profile] | None = None,
        period: tuple[int, int] | None = None,
        held_words: int = 4,
        tap: Tap | None = None,
        keep: Keep = WHOLE,
    ) -> None:
        self._profiles = tuple(default_profiles() if profiles is None else profiles)
        self._period = period
        self._held_words = held_words
        self._tap = tap
        self._keep = keep
        self.reset()

    def reset(self) -> None:
        """Forget everything but what is known of processes, threads and fds."""
        registry = getattr(self, "registry", None)
        self.registry: Registry = registry if isinstance(registry, Registry) else Registry()
        self.sequencer = Sequencer()
        self._plain = Plain(self.registry.tgids_of)
        self.timeline = Timeline()
        self.facts = Facts(self._profiles)
        self.streams = Streams(self.registry, self._period)
        self.roles = Roles(self.registry, self.facts)
        if self._tap is not None:
            self._tap.reset()
        self.locks = Locks(self.registry, tap=self._tap, is_target=self._is_target)
        before = getattr(self, "held", None)
        self.held = Held(self.registry, self.locks, self._object_of)
        if isinstance(before, Held):
            self.held.adopt(before)
        self.turns = Turns(self.registry, self.held)
        self.names = Names(self.registry, self.locks, self.held, self.facts, self.turns)
        self.locks.namer = self.names
        self.waits = Waits(self.registry)
        self.watch = Watch(self.locks, self.names)
        self.write_paths = WritePaths(self.registry, self.held, self.locks, self.names, self.facts.write_path)
        finder = PathFinder(self.registry, self.timeline, self.locks, self.roles)
        cutter = LeafCutter(self.registry, self.locks)
        self._judge = Judge(self.registry, self.timeline, self.locks, finder, cutter, self.roles)
        self.verdicts = Verdicts(self._judge, self._keep)
        self.delay, self.stuck = RunDelay(), Stuck()
        self.symptoms = Symptoms(self.registry, self.held)
        self.between = Between(self.registry)
        self._rows = Rows(self, Remedies())
        self.verdicts.settle = self._rows.settle

    # --- feeding -------------------------------------------------------------------

    def feed(self, batch: Batch) -> None:
        """Take over a batch; everything up to its watermark is analysed."""
        self.registry.learn(
            batch.targets, batch.threads, batch.fds, batch.epolls, batch.sites, batch.lock_symbols
        )
        self.facts.learn(batch, self.registry)
        for records, end_ns in self.sequencer.feed(batch.records, batch.watermark_ns):
            self._step(Step(self._plain.step(records), end_ns))

    def finish(self) -> None:
        """The source has ended: analyse what is left, and decide what can be decided."""
        for records, end_ns in self.sequencer.finish():
            self._step(Step(self._plain.step(records), end_ns))
        self._decide(self.timeline.end_ns, final=True)
        self.locks.finish()
        self._rows.forget_names()

    def _step(self, step: Step) -> None:
        self.facts.step(step)
        self.registry.step(step)
        self.timeline.step(step)
        self.streams.step(step)
        self.roles.step(step, self.streams)
        self.locks.step(step)
        self.waits.step(step)
        self.held.step(step)
        self.turns.step(step)
        completions: dict[int, set[int]] = {}
        for stream in self.streams.streams:
            if stream.completion is not None and stream.completion_expected:
                completions.setdefault(stream.completion.id, set()).add(stream.context)
        self.write_paths.step(step, completions)
        watched = set(self.registry.with_role("W") + self.registry.with_role("G"))
        watched |= {s.driver.tid for s in self.streams.streams}
        self.delay.step(step, watched)
        self.stuck.step(step)
        self.symptoms.step(step)
        lost = step.of(Kind.LOSS)
        if len(lost):
            self._judge.note_losses(lost.view(RECORD))
        self._decide(step.end_ns)
        self.streams.trim(step.end_ns)
        while self.streams.rest.dropped:
            self.verdicts.forget(self.streams.rest.dropped.pop())

    def _decide(self, end_ns: int, *, final: bool = False) -> None:
        cycles = self.streams.decide(end_ns, final=final)
        known = self.verdicts.total_misses
        self.verdicts.take(cycles)
        fresh = min(self.verdicts.total_misses - known, len(self.verdicts.misses))
        self.between.take(list(islice(reversed(self.verdicts.misses), fresh))[::-1])
        self._rows.count_lock_misses()
        if self._tap is not None:
            self._tap.cycles(cycles)

    def _is_target(self, eventfd_id: int) -> bool:
        return self.streams.object_of(eventfd_id) == "completion"

    def _object_of(self, tgid: int, kind: int, fd: int, eventfd_id: int) -> str:
        """What a syscall's fd is, in the model's terms."""
        if eventfd_id >= 0:
            known_as = self.streams.object_of(eventfd_id)
            if known_as:
                return known_as
            if eventfd_id in self.roles.irq_ids.get(tgid, set()):
                return "irq"
            return "eventfd"
        known = self.registry.fds.get((tgid, fd))
        return known.type if known is not None else "fd"

    # --- results ---------------------------------------------------------------------

    def tally(self) -> Tally:
        """Running totals since the beginning (or the last reset): cheap, for whoever waits for a miss."""
        return Tally(self.verdicts.total_misses, self.verdicts.total_episodes)

    def guests_to_join(self) -> list[tuple[int, int]]:
        """(VMM, process): processes that the session should trace as well, for a VMM's guest runs there."""
        return list(guests.elsewhere(self.registry, self.roles))

    def words_to_watch(self) -> dict[int, tuple[int, ...]]:
        """Lock words per VMM that the session should watch in the kernel."""
        wanted: dict[int, tuple[int, ...]] = {}
        for target in self.registry.targets.values():
            if target.role == "vmm":
                words = self.watch.words(target.tgid, self._held_words)
                if words:
                    wanted[target.tgid] = words
        return wanted

    def _driven(self) -> dict[int, set[int]]:
        """VMMs by the data loop that drives streams of theirs."""
        driven: dict[int, set[int]] = {}
        for stream in self.streams.all_kept():
            driven.setdefault(stream.driver.tid, set()).add(stream.tgid)
        return driven

    def episodes(self) -> list[tuple[Episode, list[EpisodeState]]]:
        """Episodes kept, those of several streams with one culprit as one; each with the streams' own."""
        return self._rows.episodes()

    def findings(self) -> Evidence:
        """What findings are made from, now."""
        return Evidence(
            self.registry,
            self.streams,
            self.locks,
            self.delay,
            self.stuck,
            self.facts.losses,
            self.facts.elapsed_ns,
            self.facts.steal_ns,
            (
                *self.symptoms.findings(self.locks, self.verdicts.misses),
                *self.between.findings(self._driven()),
                *guests.findings(self.registry, self.roles),
            ),
        )

    def remedy_names(self) -> RemedyNames:
        """Lock words and threads that remedies concern, as they are known now."""
        return self._rows.remedy_names()

    def summary(self, misses: int | None = None) -> Summary:
        """Everything there is to say now.

        Args:
            misses: at most this many of the latest misses and episodes are listed; None for all kept.
        """
        return self._rows.summary(misses, findings(self.findings()))
