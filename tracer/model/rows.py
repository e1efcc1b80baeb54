# SPDX-License-Identifier: Apache-2.0
"""From the state of an analysis to the rows of a Summary.

Owns the assembly, the merging of episodes and the one-sentence verdict. Decides no cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from tracer.model.counterfactual import Names as RemedyNames
from tracer.model.findings import PATIENCE_NS
from tracer.model.lead import REMEDY_TEXT, lead
from tracer.model.leaves import LOCK, Leaf, Word
from tracer.model.misses import EpisodeState, MissState
from tracer.model.remedies import Remedies
from tracer.model.resting import MIN_CYCLES
from tracer.model.streams import Stream
from tracer.model.summary import (
    DriverRow,
    Episode,
    Finding,
    LockRow,
    Lost,
    Miss,
    RecordCounts,
    Remedy,
    Segment,
    SelfCost,
    Slack,
    StreamRow,
    Summary,
    TargetRow,
    ThreadRow,
    Window,
)
from tracer.model.wording import (
    PLAY,
    TODO,
    chain_of,
    duration,
    key_object,
    key_text,
    leaf_detail,
    leaf_object,
    sentence,
)

if TYPE_CHECKING:
    from tracer.model.analysis import Analysis

#: Rows listed of each table.
LOCK_ROWS: Final = 50
HELD_ROWS: Final = 100
HOLDER_ROWS: Final = 200
#: A lock is named with a miss if it was waited for at least 1/LOCK_MATTERS of the lateness.
LOCK_MATTERS: Final = 4
#: Streams that ended are shown this long.
SHOW_ENDED_NS: Final = 10_000_000_000


class Rows:
    """Makes Summaries of an Analysis; caches rows of misses, which do not change once judged."""

    def __init__(self, analysis: Analysis, remedies: Remedies) -> None:
        self._a = analysis
        self._remedies = remedies
        self._misses: dict[int, tuple[tuple[str, ...], Miss]] = {}
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
        causes: dict[str, int] = {}
        for state in (a.verdicts.past, *a.verdicts.states.values()):
            for cause, n in state.by_cause.items():
                causes[cause] = causes.get(cause, 0) + n
        shown = misses if limit is None else misses[-limit:]
        verdict, todo = self._verdict(misses, episodes, table, causes)
        episode_of = {e.id: merged for merged, members in episodes for e in members}
        rows = tuple(self._miss(m, episode_of[m.episode.id].id) for m in shown)
        self._misses = {m.id: self._misses[m.id] for m in shown}  # rows have thousands of segments: no more
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
            lead=lead(table),
            holders=a.locks.by_holder(HOLDER_ROWS) if limit is None else (),
            threads=self._threads(limit is None),
            drivers=tuple(
                DriverRow(d.id, d.tgid, d.period_ns, dict(d.events), d.total) for d in a.streams.all_drivers()
            ),
            streams=tuple(self._stream(s, limit is None) for s in self._shown_streams()),
            locks=self._locks(bins=limit is None),
            blame=a.locks.blame(LOCK_ROWS),
            held=a.held.rows(HELD_ROWS),
            write_path=a.write_paths.rows(a.facts.host),
            episodes=tuple(merged for merged, _ in (episodes if limit is None else episodes[-limit:])),
            misses=rows,
            misses_by_cause=dict(sorted(causes.items(), key=lambda i: (-i[1], i[0]))),
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
        self._misses.clear()

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

    def _miss(self, miss: MissState, episode: int) -> Miss:
        words = miss.case.words if miss.case is not None else set()
        version = (str(episode), *sorted(self._lock_name(w) for w in words))
        cached = self._misses.get(miss.id)
        if cached is not None and cached[0] == version:
            return cached[1]
        row = self._make_miss(miss, episode)
        self._misses[miss.id] = (version, row)
        return row

    def _make_miss(self, miss: MissState, episode: int) -> Miss:
        a, cycle, found = self._a, miss.cycle, miss.judgement
        name = self._lock_name
        window = cycle.end_ns - cycle.nominal_ns
        if miss.origin is not None or miss.case is None:
            kind = "carried" if miss.origin is not None else "unknown"
            segments: tuple[Segment, ...] = (Segment(kind, "", window, 0, "", ""),)
        else:
            told: dict[object, tuple[str, str]] = {}
            segments = tuple(
                Segment(leaf.kind, phase.via, leaf.ns, leaf.tid, what, detail or phase.sub)
                for phase, cut in zip(miss.case.path.phases, miss.case.cuts, strict=True)
                for leaf in cut.leaves
                for what, detail in (self._told(leaf, told),)
            )
        key = found.key if found is not None else None
        lock = self._lock_of(miss.origin or miss)
        via = (
            str(key[0])
            if key is not None and key[0] in ("serialised", "head_of_line", "not_rearmed")
            else None
        )
        if miss.driver_fault:
            via = "driver"
        thing = key_object(key, a.registry, name)
        return Miss(
            id=miss.id,
            episode=episode,
            stream=cycle.stream.id,
            cycle=cycle.number,
            leg=miss.leg,
            deadline_ns=cycle.deadline_ns,
            late_ns=cycle.late_ns,
            cause=miss.cause,
            lock=lock,
            via=via,
            detail=sentence(miss, a.registry, name, cycle.driver.period_ns),
            carried_from=miss.origin.id if miss.origin is not None else None,
            sufficient=tuple(key_text(k, a.registry, name) for k in found.sufficient) if found else (),
            jointly=tuple(key_text(k, a.registry, name) for k in found.jointly) if found else (),
            chain=chain_of(miss, a.registry, name),
            went_first=dict(miss.case.path.went_first) if miss.case is not None else {},
            kick=miss.case.path.kick if miss.case is not None else "none",
            audible="yes" if miss.leg == "wake" else "unknown",
            evidence=miss.evidence,
            segments=segments,
            start_ns=cycle.nominal_ns,
            todo=TODO.get(miss.cause, "").format(object=thing or "the threads concerned"),
            candidates=tuple(s.id for s in cycle.candidates),
        )

    def _told(self, leaf: Leaf, told: dict[object, tuple[str, str]]) -> tuple[str, str]:
        """What a segment is about, and the rest there is to say; once for leaves that are alike."""
        alike = leaf[2:]  # all but when it was
        found = told.get(alike)
        if found is None:
            registry, name = self._a.registry, self._lock_name
            found = told[alike] = leaf_object(leaf, registry, name), leaf_detail(leaf, registry, name)
        return found

    def _lock_of(self, origin: MissState) -> str | None:
        """The lock a miss is about: its cause, else the one waited for longest if that matters."""
        found, case = origin.judgement, origin.case
        if found is not None and found.key is not None and found.key[0] == LOCK and len(found.key) > 1:
            return self._lock_name((int(found.key[1]), int(found.key[2])))
        if case is None:
            return None
        waits = case.waited()
        if not waits:
            return None
        word = max(waits, key=lambda w: (waits[w], w))
        late = origin.cycle.end_ns - origin.cycle.deadline_ns
        return self._lock_name(word) if waits[word] * LOCK_MATTERS >= late else None

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

    # --- episodes ----------------------------------------------------------------

    def episodes(self) -> list[tuple[Episode, list[EpisodeState]]]:
        """Those kept, merged; each with the streams' own."""
        return self._episodes(self._a.verdicts.episodes)

    def _episodes(self, states: Iterable[EpisodeState]) -> list[tuple[Episode, list[EpisodeState]]]:
        """Episodes of several streams with overlapping delay and the same culprit are one."""
        merged: list[list[EpisodeState]] = []
        open_: dict[tuple[str, str], tuple[float, list[EpisodeState]]] = {}
        for state in states:
            key = self._culprit(state)
            end = float("inf") if state.end_ns is None else state.end_ns
            before = open_.get(key)
            known = key[0] != "unknown" or state.end_ns is None
            if (
                known
                and before is not None
                and before[0] > state.start_ns
                and before[1][-1].stream is not state.stream
            ):
                before[1].append(state)
                open_[key] = (max(before[0], end), before[1])
                continue
            group = [state]
            merged.append(group)
            open_[key] = (end, group)
        rows = []
        for group in merged:
            cause, culprit = self._culprit(group[0])
            ends = [s.end_ns for s in group]
            rows.append(
                (
                    Episode(
                        id=group[0].id,
                        start_ns=min(s.start_ns for s in group),
                        end_ns=None
                        if any(e is None for e in ends)
                        else max(e for e in ends if e is not None),
                        streams=tuple(dict.fromkeys(s.stream.id for s in group)),
                        misses=sum(s.misses for s in group),
                        cause=cause,
                        culprit=culprit,
                    ),
                    group,
                )
            )
        return rows

    def _culprit(self, state: EpisodeState) -> tuple[str, str]:
        if not state.origins:
            return "unknown", ""
        first = state.origins[0]
        key = first.judgement.key if first.judgement is not None else None
        return first.cause, key_object(key, self._a.registry, self._lock_name)

    # --- the sentence ----------------------------------------------------------------

    def _verdict(
        self,
        misses: list[MissState],
        episodes: list[tuple[Episode, list[EpisodeState]]],
        table: Mapping[str, Remedy],
        causes: dict[str, int],
    ) -> tuple[str, str]:
        """Still happening? Since when? How often? Why? And the one thing to do."""
        a = self._a
        past = a.streams.rest.past
        streams = [s for s in a.streams.all_kept() if s.cycles]
        if not streams and not past.cycles:
            if a.facts.elapsed_ns < PATIENCE_NS:
                watched = (
                    f"watched for {duration(a.facts.elapsed_ns)}" if a.facts.elapsed_ns else "just attached"
                )
                return f"{watched}; no audio stream yet", f"watch for {duration(PATIENCE_NS)} or longer"
            return "no audio stream seen", PLAY
        cycles, n = past.cycles + sum(s.cycles for s in streams), past.streams + len(streams)
        if not misses:
            states = (a.verdicts.past, *a.verdicts.states.values())
            slacks = [x.min_slack for x in states if x.min_slack is not None]
            least = f", least slack {duration(min(slacks))}" if slacks else ""
            return f"no miss in {cycles} cycles of {_n(n, 'stream')}{least}", ""
        now = a.facts.end_ns
        last = misses[-1].cycle.deadline_ns
        recent = sum(e.start_ns > now - 60_000_000_000 for e, _ in episodes)
        when = "still happening" if now - last < 5_000_000_000 else f"last {duration(now - last)} ago"
        top = max(causes, key=lambda c: (causes[c], c)) if causes else "unknown"
        share = 100 * causes.get(top, 0) // max(1, sum(causes.values()))
        best, avoided, total = "", 0, 0
        for name, row in table.items():
            n, of = row.episodes_avoided, row.episodes_of
            total = of
            if n > avoided:
                best, avoided = name, n
        lock = table.get("item_state")
        without = lock.episodes_avoided if lock is not None else 0
        text = (
            f"{when}: {a.verdicts.total_misses} of {cycles} cycles missed in {_n(len(episodes), 'episode')} "
            f"({recent} in the last minute); mostly {top} ({share} %)"
        )
        if not causes:
            text = text.partition("; mostly")[0] + "; the driver's own fault"
        if best:
            text += f"; {REMEDY_TEXT[best]} alone would have avoided {avoided} of {total}"
            if best != "item_state":
                text += f", no waits on item_state {without}"
        origin = next((m for m in reversed(misses) if m.cause == top and m.origin is None), None)
        thing = ""
        if origin is not None and origin.judgement is not None:
            thing = key_object(origin.judgement.key, a.registry, self._lock_name)
        return text, TODO.get(top, "").format(object=thing or "the threads concerned")


def _n(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
