# SPDX-License-Identifier: Apache-2.0
"""From the state of an analysis to a Summary.

Owns the assembly, the rows of threads and streams, which words and threads a remedy concerns, and how many
misses each lock has caused. Decides no cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from tracer.model.counterfactual import Names as RemedyNames
from tracer.model.episodes import culprit, merged
from tracer.model.headline import headline
from tracer.model.heldrows import held_rows
from tracer.model.lead import lead
from tracer.model.leaves import LOCK, Word
from tracer.model.misses import EpisodeState, MissState
from tracer.model.missrows import MissRows
from tracer.model.remedies import Remedies
from tracer.model.resting import MIN_CYCLES
from tracer.model.streams import Stream
from tracer.model.summary import Episode, Finding, Lost, RecordCounts, SelfCost, Summary, Window
from tracer.model.summaryrows import DriverRow, LockRow, Slack, StreamRow, TargetRow, ThreadRow

if TYPE_CHECKING:
    from tracer.model.analysis import Analysis

#: Rows listed of each table.
LOCK_ROWS: Final = 50
HELD_ROWS: Final = 100
HOLDER_ROWS: Final = 200
#: Streams that ended are shown this long.
SHOW_ENDED_NS: Final = 10_000_000_000


class Rows:
    """Makes Summaries of an Analysis."""

    def __init__(self, analysis: Analysis, remedies: Remedies) -> None:
        self._a = analysis
        self._remedies = remedies
        self._misses = MissRows(analysis.registry, self._lock_name)
        self._names: dict[Word, str] = {}
        self._counted = 0
        nothing: frozenset[int] = frozenset()
        self._remedy_names = self._settled_by = RemedyNames(frozenset(), nothing, nothing)
        self._settled_ns = -1

    def summary(self, limit: int | None, found: tuple[Finding, ...]) -> Summary:
        """The Summary now, with the latest ``limit`` misses and episodes."""
        a = self._a
        self._names = {}
        misses = list(a.verdicts.misses)
        episodes = self.episodes()
        table = self._remedies.table(misses, [members for _, members in episodes], self.remedy_names())
        shown = misses if limit is None else misses[-limit:]
        verdict, todo = headline(
            a.registry, a.facts, a.streams, a.verdicts, [e for e, _ in episodes], table, self._lock_name
        )
        episode_of = {e.id: whole for whole, members in episodes for e in members}
        rows = tuple(
            # An episode that went on while so many others came and went is kept no longer than they.
            self._misses.row(m, whole.id if (whole := episode_of.get(m.episode)) else m.episode)
            for m in shown
        )
        self._misses.keep(m.id for m in shown)
        if misses and misses[0].id > 1:
            self._remedies.forget(misses[0].id)
        return Summary(
            host=a.facts.host_facts(),
            targets=tuple(
                TargetRow(t.tgid, t.role, t.comm, t.exe, t.build_id, t.crate, t.version, t.alive)
                for t in a.registry.targets.values()
            ),
            window=Window(a.facts.start_ns, a.facts.end_ns),
            records=RecordCounts(
                a.facts.total,
                Lost(a.facts.losses.ring, a.facts.losses.map, a.facts.losses.late),
                a.facts.per_s,
            ),
            self=SelfCost(a.facts.self_use.cpu_percent, a.facts.self_use.probe_ns_per_s),
            steal_ns=a.facts.steal_ns,
            verdict=verdict,
            todo=todo,
            lead=lead(table, newest=a.verdicts.gone_episodes > 0),
            holders=a.locks.by_holder(HOLDER_ROWS) if limit is None else (),
            threads=self._threads(limit is None),
            drivers=tuple(
                DriverRow(d.id, d.tgid, d.period_ns, dict(d.events), d.total) for d in a.streams.all_drivers()
            ),
            streams=tuple(self._stream(s, limit is None) for s in self._shown_streams()),
            locks=self._locks(bins=limit is None),
            blame=a.locks.blame(LOCK_ROWS, settled=limit is not None),
            held=held_rows(a.held, HELD_ROWS),
            write_path=a.write_paths.rows(a.facts.host),
            episodes=tuple(whole for whole, _ in (episodes if limit is None else episodes[-limit:])),
            misses=rows,
            misses_by_cause=dict(sorted(a.verdicts.by_cause().items(), key=lambda i: (-i[1], i[0]))),
            counterfactual=table,
            findings=found,
        )

    def settle(self, miss: MissState) -> None:
        """A miss's path is about to be let go: judge it under every remedy while it is there."""
        if miss.judgement is not None:
            if self._settled_ns != self._a.timeline.end_ns:  # names do not change while a step is judged
                self._settled_ns, self._settled_by = self._a.timeline.end_ns, self.remedy_names()
            self._remedies.close(miss, self._settled_by)
        # Whoever never asks for a summary (a flight recorder, for weeks) must not grow either.
        self._remedies.forget(self._a.verdicts.misses[0].id)

    def forget_names(self) -> None:
        """No names will follow: the last summary uses all, also in rows made before they were known."""
        self._misses.keep(())

    # --- names -------------------------------------------------------------------

    def _lock_name(self, word: Word) -> str:
        name = self._names.get(word)
        if name is None:
            name = self._names[word] = self._a.names.lock(*word)[0]
        return name

    def remedy_names(self) -> RemedyNames:
        """Lock words and threads that remedies concern, as they are known now."""
        a = self._a
        words: set[Word] = set()
        for tgid in [t.tgid for t in a.registry.targets.values() if t.role == "vmm"]:
            words |= {(tgid, w) for w in a.names.item_states(tgid)}
        # The vCPUs too: with W and G alone at real-time priority the guest starves (docs/accuracy.md).
        movable = [tid for role in ("W", "G", "task", "vcpu") for tid in a.registry.with_role(role)]
        names = RemedyNames(frozenset(words), frozenset(movable), frozenset(a.registry.with_role("G")))
        if names != self._remedy_names:
            self._remedy_names = names
        return self._remedy_names  # the same object as long as they are the same

    def episodes(self) -> list[tuple[Episode, list[EpisodeState]]]:
        """Those kept, merged; each with the streams' own."""
        a = self._a
        return merged(a.verdicts.episodes, lambda state: culprit(state, a.registry, self._lock_name))

    # --- rows --------------------------------------------------------------------

    def _locks(self, bins: bool) -> tuple[LockRow, ...]:
        """Locks by harm; behind them what programs without a worker wait for besides."""
        locks = self._a.locks.rows(LOCK_ROWS, bins=bins)
        waits = self._a.waits.rows({(lock.tgid, lock.address) for lock in locks}, LOCK_ROWS)
        return (*sorted(locks, key=lambda r: (-r.misses_caused, -r.wait_ns.total, r.address)), *waits)

    def _threads(self, whole: bool) -> tuple[ThreadRow, ...]:
        """Threads that live, of the whole recording also those with a role that have exited."""
        a = self._a
        return tuple(
            ThreadRow(
                t.tid,
                t.tgid,
                t.role,
                t.comm,
                t.policy,
                t.priority,
                t.cpus,
                t.throttled_ns,
                t.role_by,
                t.exit_ns is None,
            )
            for t in sorted(a.registry.threads.values(), key=lambda t: (t.tgid, t.tid))
            if t.tgid in a.registry.targets and (t.exit_ns is None or (whole and t.role))
        )

    def _shown_streams(self) -> list[Stream]:
        a = self._a
        horizon = a.facts.end_ns - SHOW_ENDED_NS
        return [
            s
            for s in a.streams.all_kept()
            if s.cycles
            and (
                a.verdicts.state(s).misses
                or (s.alive and s.last_signal_ns > horizon)
                or s.cycles >= MIN_CYCLES
            )
        ]

    def _stream(self, stream: Stream, whole: bool) -> StreamRow:
        state = self._a.verdicts.state(stream)
        slack = Slack()
        if state.slack:
            values = np.array(state.slack, dtype=np.int64)
            slack = Slack(
                int(np.percentile(values, 50, method="lower")),
                int(np.percentile(values, 1, method="lower")),
                state.min_slack,
            )
        done = stream.completion if stream.completion_expected else None
        return StreamRow(
            id=stream.id,
            name=stream.name,
            tgid=stream.tgid,
            context=stream.context,
            driver=stream.driver.id,
            wake_eventfd=stream.wake.id,
            completion_eventfd=done.id if done is not None else None,
            period_ns=stream.driver.period_ns,
            source=stream.source,
            confidence=stream.confidence,
            cycles=stream.cycles,
            misses=state.misses,
            carried=state.carried,
            episodes=state.episodes,
            misses_by_leg=dict(state.by_leg),
            misses_by_cause=dict(sorted(state.by_cause.items())),
            slack_ns=slack,
            alive=stream.alive,
            recent=tuple(state.recent),
            audible={"yes": state.by_leg.get("wake", 0), "unknown": state.by_leg.get("completion", 0)},
            slack_bin_ns=state.bins.width_ns if whole else 0,
            slack_bins=state.bins.rows() if whole else (),
        )

    def count_lock_misses(self) -> None:
        """Tell locks how many misses each caused (label or sufficient), once per miss, in record time.

        Not when a Summary is asked for: in which blame cell a miss is counted depends on what is settled.
        """
        fresh: list[MissState] = []
        for miss in reversed(self._a.verdicts.misses):
            if miss.id <= self._counted:
                break
            fresh.append(miss)
        for miss in reversed(fresh):
            self._counted = miss.id
            origin = miss.origin or miss
            if origin.judgement is None:
                continue
            for key in origin.judgement.sufficient:
                if key[0] != LOCK or len(key) == 1:
                    continue
                holder = waiter = 0
                if origin.case is not None:
                    waits = [w for w in origin.case.lock_waits() if w.word == (key[1], key[2])]
                    if waits:
                        leaf = max(waits, key=lambda w: (w.ns, -w.start_ns))
                        waiter = leaf.tid
                        holder = leaf.holder.tid if leaf.holder is not None else 0
                self._a.locks.note_miss(int(key[1]), int(key[2]), holder, waiter)
