# SPDX-License-Identifier: Apache-2.0
"""Several VMMs at once: which late cycles were a VMM's own fault, and which they share or do to each other.

Owns the counts of whose cause each missed cycle had: the audio server (late for all of its streams), another
VMM's threads that had the CPU instead, a third process that had it, or none of these: the VMM's own. Looks at
each miss once, when it is judged; with one VMM there is nothing to tell. Judges no cycle itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from tracer.model.leaves import NOT_SCHEDULED, Leaf
from tracer.model.misses import MissState
from tracer.model.registry import Registry
from tracer.model.summary import Finding
from tracer.model.words import bump

OWN, DRIVER, VMM, OUTSIDER = "own", "driver", "vmm", "outsider"
#: Late cycles and origins that are remembered, to count each once.
_CYCLES: Final = 4096

#: Of a VMM's missed cycles, the share from which on what somebody else did in them is told by name.
WORTH_SHARE: Final = 0.05
#: So many threads of a process are told apart.
_THREADS: Final = 64

#: Whose cause it was: one of the four, and the tid of the audio server's loop or the tgid of who had the CPU.
Whose = tuple[str, int]


@dataclass(slots=True)
class Between:
    """Whose cause each missed cycle had, per VMM.

    Attributes:
        causes: per VMM, how many of its missed cycles had whose cause.
        driver_cycles: per data loop (tid), cycles missed by its own lateness.
        threads: per (whose process had the CPU, VMM that waited for it): ns by thread, on such paths.
    """

    registry: Registry
    causes: dict[int, Counter[Whose]] = field(default_factory=dict)
    driver_cycles: Counter[int] = field(default_factory=Counter)
    threads: dict[tuple[int, int], Counter[int]] = field(default_factory=dict)
    _counted: dict[tuple[int, int], None] = field(default_factory=dict)
    _of: dict[int, Whose] = field(default_factory=dict)  # by origin, for those carried from it

    def take(self, misses: Iterable[MissState]) -> None:
        """Look at misses just judged, oldest first."""
        for miss in misses:
            victim = miss.cycle.stream.tgid
            origin = miss.origin or miss
            whose = self._of.get(origin.id) or self._whose(origin, victim)
            if miss is origin:
                self._of[miss.id] = whose
                if len(self._of) > _CYCLES:
                    del self._of[next(iter(self._of))]
            self.causes.setdefault(victim, Counter())[whose] += 1
            if whose[0] == DRIVER:
                self._count(miss)

    def _count(self, miss: MissState) -> None:
        """A cycle that several streams missed is one cycle of the driver."""
        driver, number = miss.cycle.driver, miss.cycle.number
        if (id(driver), number) in self._counted:
            return
        self._counted[id(driver), number] = None
        self.driver_cycles[driver.tid] += 1
        if len(self._counted) > _CYCLES:
            del self._counted[next(iter(self._counted))]

    def _whose(self, miss: MissState, victim: int) -> Whose:
        if miss.cause == "host_late" or miss.driver_fault:
            return DRIVER, miss.cycle.driver.tid
        off = list(miss.case.not_scheduled()) if miss.case is not None else []
        judged = miss.judgement
        keys = (*judged.sufficient, *judged.jointly) if judged is not None else ()
        taken = self._taken(off, victim)
        ns: Counter[int] = Counter()
        for thread, part in taken.items():
            ns[self.registry.tgid(thread)] += part
        waited_ns = sum(leaf.ns for leaf in off)
        if not ns or ns.total() * 2 < waited_ns or all(key[0] != NOT_SCHEDULED for key in keys):
            return OWN, victim
        vmms = sum(part for who, part in ns.items() if self.registry.is_vmm(who))
        kind = VMM if vmms * 2 >= ns.total() else OUTSIDER
        fit = [who for who in ns if self.registry.is_vmm(who) == (kind == VMM)]
        for thread, part in taken.items():
            who = self.registry.tgid(thread)
            if who in fit:
                bump(self.threads.setdefault((who, victim), Counter()), thread, part, limit=_THREADS)
        return kind, max(fit, key=lambda who: (ns[who], -who))

    def _taken(self, off: list[Leaf], victim: int) -> Counter[int]:
        """For how long threads of other processes had the CPU that a path waited for."""
        taken: Counter[int] = Counter()
        for leaf in off:
            tgid = self.registry.tgid(leaf.instead) if leaf.instead else 0
            if self.registry.guests.get(tgid, tgid) not in (0, victim):
                taken[leaf.instead] += leaf.ns
        return taken

    # ---- findings

    def findings(self, driven: Mapping[int, Set[int]]) -> Iterator[Finding]:
        """What is shared, who did it to whom, and what was each one's own.

        Args:
            driven: the VMMs that each data loop (tid) drives streams of.
        """
        vmms = [t.tgid for t in self.registry.targets.values() if t.role == "vmm"]
        if len(set(vmms) - self.registry.guests.keys()) < 2:
            return
        yield from self._shared(driven)
        for victim, causes in sorted(self.causes.items()):
            for (kind, who), n in sorted(causes.items()):
                if kind == VMM and n >= WORTH_SHARE * causes.total():
                    yield self._hurt(victim, who, n, causes.total())
        if any(kind != OWN for causes in self.causes.values() for kind, _ in causes):
            each = "; ".join(f"VMM {tgid}: {_tally(c)}" for tgid, c in sorted(self.causes.items()))
            yield Finding(
                f"whose cause the missed cycles had: {each}",
                "a shared cause cannot be mended in one VMM, nor one VMM's own elsewhere",
                "begin with what is shared",
                "info",
            )

    def _shared(self, driven: Mapping[int, Set[int]]) -> Iterator[Finding]:
        for tid, n in sorted(self.driver_cycles.items()):
            if len(driven.get(tid, ())) >= 2:
                yield Finding(
                    f"{n} cycle(s) were missed because {self.registry.comm(tid)!r} (tid {tid}) of the audio "
                    f"server was late itself; it drives {len(driven[tid])} VMMs",
                    "it starts and ends the cycles of all of them: no VMM caused these",
                    "look at the audio server: its priority, its CPU, its other clients",
                )
        for name, (pids, hits) in sorted(self._outsiders().items()):
            hit = {t: n for t, n in hits.items() if n >= WORTH_SHARE * self.causes[t].total()}
            if len(hit) >= 2:
                counts = " and ".join(f"{n} of VMM {tgid}" for tgid, n in sorted(hit.items()))
                which = f"pid {min(pids)}" + (f" and {len(pids) - 1} more" if len(pids) > 1 else "")
                yield Finding(
                    f"{name!r} ({which}) had the CPU in missed cycles of several VMMs: {counts}",
                    "they share that cause: it is neither VMM's own",
                    f"keep {name!r} off these CPUs, or give the VMMs' threads real-time priority",
                )

    def _outsiders(self) -> dict[str, tuple[set[int], Counter[int]]]:
        """By name without its number (a program may be many processes): pids, missed cycles per VMM."""
        found: dict[str, tuple[set[int], Counter[int]]] = {}
        for victim, causes in sorted(self.causes.items()):
            for (kind, who), n in sorted(causes.items()):
                if kind != OUTSIDER:
                    continue
                names: Counter[str] = Counter()
                for thread, ns in self.threads.get((who, victim), Counter()).items():
                    names[re.sub(r"[\W_]*\d+$", "", comm := self.registry.comm(thread)) or comm] += ns
                name = max(names, key=lambda known: (names[known], known), default=f"pid {who}")
                pids, hit = found.setdefault(name, (set(), Counter()))
                pids.add(who)
                hit[victim] += n
        return found

    def _hurt(self, victim: int, who: int, n: int, of: int) -> Finding:
        most, _ = max(self.threads[who, victim].items(), key=lambda item: (item[1], -item[0]))
        ms = self.threads[who, victim].total() / 1e6
        return Finding(
            f"VMM {who} had the CPU in {n} of the {of} missed cycles of VMM {victim}: {ms:.1f} ms",
            f"most of it its thread {self.registry.comm(most)!r} (tid {most}): not VMM {victim}'s own fault",
            "give the two VMMs CPUs of their own (cpusets), or the one that computes a lower cpu.weight",
        )


def _tally(causes: Counter[Whose]) -> str:
    """``12 its own, 3 the audio server's``: the most first."""
    names = {
        OWN: "its own",
        DRIVER: "the audio server's",
        VMM: "another VMM's",
        OUTSIDER: "another process's",
    }
    counts: Counter[str] = Counter()
    for (kind, _), n in causes.items():
        counts[names.get(kind, "another process's")] += n
    return ", ".join(f"{n} {name}" for name, n in counts.most_common())
