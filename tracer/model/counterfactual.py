# SPDX-License-Identifier: Apache-2.0
"""But for: would the cycle have met its deadline without this? Decided by replay (replay.py).

Owns which candidates suffice, the label, and what remedies take out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from tracer.model.candidates import CAUSE_OF, EVERYWHERE, GROUPS, MEASURED, Key, keys_of, own_key
from tracer.model.leaves import LOCK, NOT_SCHEDULED, STOLEN, Word
from tracer.model.phases import GPU, HEAD_OF_LINE, NOT_REARMED, SERIALISED
from tracer.model.replay import Case, Removal
from tracer.schema import Kind

__all__ = [
    "CAUSE_OF",
    "EVERYWHERE",
    "GROUPS",
    "MEASURED",
    "Case",
    "Judgement",
    "Key",
    "Names",
    "Removal",
    "judge",
    "keys_of",
    "own_key",
    "remedied",
    "remedy_keys",
    "remedy_removal",
]

#: The largest excess is the label if it is at least this much the next one's (docs/how-it-works.md).
DOMINANCE: Final = 1.25
#: Two candidates are "the same milliseconds" if they share this part of the larger one.
SAME_SHARE: Final = 0.8
#: From so many waits for a CPU on it shows what a wake alone takes: a quarter of them take no longer.
MANY: Final = 8
#: At most this many candidates are tried jointly.
MAX_JOINT: Final = 8


@dataclass(frozen=True, slots=True)
class Judgement:
    """Outcome for one origin.

    Attributes:
        cause: a name of summary.CAUSES; key: the candidate behind it, None for mixed and unknown.
        excess: ns above baseline per candidate; of the sufficient ones, of all where none is.
        open_kick: mixed because the cause depends on when an inferred kick came.
    """

    cause: str
    key: Key | None
    sufficient: tuple[Key, ...]
    jointly: tuple[Key, ...]
    excess: Mapping[Key, int]
    open_kick: bool = False


def judge(case: Case, usual: Callable[[Key], int]) -> Judgement:
    """Sufficient candidates and the label of one late cycle.

    Args:
        usual: gives a candidate's usual ns; asked only where the candidate's whole time would be enough
            (the replay is monotone: less of it cannot be), and of those without baseline never.
    """
    totals = case.totals()
    excess: dict[Key, int] = {}
    for key, total in totals.items():
        if total > 0 and case.avoided_without({key: 1.0}):
            above = total - _baseline(key, usual)
            if above == total or (above > 0 and case.avoided_without({key: above / total})):
                excess[key] = above
    sufficient = sorted(excess, key=_by_excess(excess))
    if not sufficient:
        return _nothing_alone(case, totals, usual)
    label = _label(case, sufficient, excess)
    if label is None:
        return Judgement("mixed", None, tuple(sufficient), (), excess)
    missing = _only_missing_cpu(case, label, excess)
    if missing:
        label = (NOT_SCHEDULED,)
        excess[label] = missing
        sufficient = [label, *sufficient]
    cause = CAUSE_OF.get(str(label[0]), str(label[0]))
    return Judgement(cause, label, tuple(sufficient), (), excess)


def _nothing_alone(case: Case, totals: Mapping[Key, int], usual: Callable[[Key], int]) -> Judgement:
    """No candidate suffices: all threads' missing CPU or all locks together, else the smallest set."""
    excess = {key: above for key, total in totals.items() if (above := total - _baseline(key, usual)) > 0}
    share = {key: above / totals[key] for key, above in excess.items()}
    order = sorted(excess, key=_by_excess(excess))
    for kind in (NOT_SCHEDULED, LOCK):
        alike = [key for key in order if key[0] == kind]
        if len(alike) > 1 and case.avoided_without({key: share[key] for key in alike}):
            # No thread's missing CPU (no single lock) suffices, but all of them together do.
            whole: Key = (kind,)
            excess[whole] = sum(excess[key] for key in alike)
            return Judgement(kind, whole, (whole,), tuple(alike), excess)
    order = order[:MAX_JOINT]
    if case.path.foreign and (HEAD_OF_LINE,) not in share:
        # Our command came when G was free; had it come sooner, it might have had to wait.
        order, share = [*order, (HEAD_OF_LINE,)], {**share, (HEAD_OF_LINE,): 1.0}
    return Judgement("mixed", None, (), _jointly(case, order, share), excess)


def _baseline(key: Key, usual: Callable[[Key], int]) -> int:
    return 0 if key[0] in EVERYWHERE or key[0] in GROUPS else usual(key)


def _by_excess(excess: Mapping[Key, int]) -> Callable[[Key], tuple[int, str | int, str]]:
    return lambda key: (-excess[key], key[0], str(key))


def _jointly(case: Case, order: list[Key], share: Mapping[Key, float]) -> tuple[Key, ...]:
    """The smallest sufficient set, of the largest excess among equals; empty if there is none."""
    for size in (2, 3):
        for keys in combinations(order, size):
            if case.avoided_without({k: share[k] for k in keys}):
                return keys
    return tuple(order) if order and case.avoided_without({k: share[k] for k in order}) else ()


def _overlap(case: Case, one: Key, other: Key) -> int:
    return case.ns_of(set(case.members_of(one)).intersection(case.members_of(other)))


def _label(case: Case, sufficient: list[Key], excess: Mapping[Key, int]) -> Key | None:
    """The label among sufficient candidates (largest excess first), None if mixed."""
    best = sufficient[0]
    for other in sufficient[1:]:
        same = _overlap(case, best, other) >= SAME_SHARE * max(excess[best], excess[other])
        if same or _only_with(case, best, other):
            best = _more_specific(case, best, other)
        elif excess[best] < DOMINANCE * excess[other]:
            if best[0] == LOCK and other[0] == NOT_SCHEDULED and _is_holder(case, best, other):
                best = other
                continue
            return None
        elif best[0] == LOCK and other[0] == NOT_SCHEDULED and _is_holder(case, best, other):
            best = other
    return best


def _only_with(case: Case, group: Key, lock: Key) -> bool:
    """Whether a group of turns is enough only because of a lock in it that is enough by itself."""
    if group[0] not in (SERIALISED, NOT_REARMED) or lock[0] != LOCK:
        return False
    parts, whole = set(case.members_of(lock)), case.members_of(group)
    rest = [i for i in whole if i not in parts]
    return len(rest) < len(whole) and not case.meets(dict.fromkeys(rest, 1.0))


def _is_holder(case: Case, lock: Key, missing: Key) -> bool:
    """Whether a not_scheduled candidate is the missing CPU of a lock's holder, and that part is enough."""
    held = [
        i
        for i in set(case.members_of(lock)).intersection(case.members_of(missing))
        if case.like(i).off_tid == missing[1]
    ]
    return bool(held) and case.meets(dict.fromkeys(held, 1.0), freed=case.freed([missing]))


def _only_missing_cpu(case: Case, lock: Key, excess: Mapping[Key, int]) -> int:
    """Of a lock that is nothing but missing CPU: the ns of that; else 0.

    Its holders' and, after their wakes, the waiters': nearly all of it, and enough together. As one holder's
    missing CPU is more specific than its lock, so is several threads'.
    """
    if lock[0] != LOCK:
        return 0
    off = [i for i in case.members_of(lock) if (leaf := case.like(i)).kind == NOT_SCHEDULED or leaf.off_tid]
    ns = case.ns_of(off)
    return ns if ns >= SAME_SHARE * excess[lock] and case.meets(dict.fromkeys(off, 1.0)) else 0


def _more_specific(case: Case, one: Key, other: Key) -> Key:
    """Of two candidates that are the same milliseconds: leaf before group, a holder's CPU before its lock."""
    if {one[0], other[0]} == {HEAD_OF_LINE, LOCK}:
        group, lock = (one, other) if one[0] == HEAD_OF_LINE else (other, one)
        if not any(phase.who == GPU and not phase.via for phase in case.path.phases):
            return lock  # no command of ours needs G (nothing completes this stream): only its lock did
        both = [case.leaf(i) for i in set(case.members_of(group)).intersection(case.members_of(lock))]
        for_gpu = sum(leaf.ns for leaf in both if leaf.holder and leaf.holder.tid == case.path.gpu_tid)
        # The lock's holder was busy for others; or G, and whoever else, waited for a lock of somebody else's.
        return group if 2 * for_gpu > sum(leaf.ns for leaf in both) else lock
    if one[0] in GROUPS and other[0] not in GROUPS:
        return other
    if other[0] in GROUPS:
        return one
    if one[0] == LOCK and other[0] == NOT_SCHEDULED:
        return other
    if one[0] == LOCK and other[0] == LOCK and not _waited_for(case, one):
        return other  # the lock that was waited for names the cause, the chain says what is behind it
    return one


def _waited_for(case: Case, lock: Key) -> bool:
    """Whether the path's own thread waited for a lock (not only the lock's holder)."""
    return any(own_key(case.like(i)) == lock for i in case.members_of(lock))


# --- remedies ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Names:
    """What remedies need to know beyond leaves.

    Attributes:
        item_state: lock words known by that name.
        movable: W, G, forwarding tasks and vCPUs, which real-time priority would move.
        gpu: G's of the VMMs.
        is_pipe: whether (tgid, fd) is no eventfd, for writes under the lock.
    """

    item_state: frozenset[Word]
    movable: frozenset[int]
    gpu: frozenset[int]


def remedied(case: Case, remedy: str, names: Names) -> int:
    """When a cycle would have closed under a remedy."""
    taken = remedy_removal(case, remedy, names)
    if not taken:
        return case.path.end_ns
    return case.replay(taken, freed=case.freed(remedy_keys(remedy, names)))


def remedy_keys(remedy: str, names: Names) -> list[Key]:
    """Candidates that a remedy takes out wherever they are, also where G works for others."""
    if remedy == "item_state":
        return [(LOCK, *word) for word in sorted(names.item_state)]
    if remedy == "realtime":
        return [(NOT_SCHEDULED, tid) for tid in sorted(names.movable)]
    return [(STOLEN,)] if remedy == "no_steal" else []


def remedy_removal(case: Case, remedy: str, names: Names) -> Removal:
    """What a remedy takes out of a path, as a removal for ``Case.replay``."""
    taken = dict.fromkeys(_remedied(case, remedy, names), 1.0)
    if remedy in ("dup", "refcount", "task"):
        for i in _under(case, names.item_state):
            after = case.like(i).after
            if after is not None and i - 1 in taken and case.like(i - 1).word == after:
                taken[i] = 1.0  # woken by an unlock that it would not have waited for
    if remedy == "realtime":
        for tid in names.movable & case.tids:
            _leave_wakes(case, case.members_of((NOT_SCHEDULED, tid)), taken)
    return taken


def _leave_wakes(case: Case, waits: Sequence[int], taken: dict[int, float]) -> None:
    """Leave of each of a thread's many waits for a CPU what waking it takes: no priority shortens that."""
    if len(waits) < MANY:
        return
    wakes = sorted(case.ns(i) for i in waits)[len(waits) // 4]
    for i in waits:
        taken[i] = 1.0 - min(1.0, wakes / max(1, case.ns(i)))


def _under(case: Case, words: frozenset[Word]) -> list[int]:
    """Leaves that wait for one of these locks themselves, or for a CPU after it; in order."""
    if not words:
        return []
    found = {i for word in words & case.words for i in case.members_of((LOCK, *word))}
    return sorted(i for i in found if ((leaf := case.like(i)).word or leaf.after) in words)


def _of_phases(case: Case, via: str, of_sub: Callable[[str], bool]) -> list[int]:
    """Leaves of the phases of one via, as far as their sub is wanted."""
    phases, columns = enumerate(case.path.phases), case.columns
    return [i for n, p in phases if p.via == via and of_sub(p.sub) for i in columns.of_interval(n)]


def _remedied(case: Case, remedy: str, names: Names) -> Iterable[int]:
    def writes(i: int, *, pipes: bool) -> bool:
        held = case.like(i).holder
        if held is None or held.call is None or held.tid not in names.gpu:
            return False
        kind, _, _, eventfd = held.call
        return kind == Kind.WRITE and (pipes or eventfd >= 0)

    if remedy == "item_state":
        return _under(case, names.item_state)
    if remedy in ("dup", "refcount"):
        return [i for i in _under(case, names.item_state) if writes(i, pipes=remedy == "dup")]
    if remedy == "task":
        gone = [
            i
            for i in _under(case, names.item_state)
            if writes(i, pipes=True) or case.like(i).tid in names.gpu
        ]
        return [*gone, *_piped(case, names)] if names.gpu & case.tids else gone
    if remedy == "fair":
        # Each other ready event goes first once ("round"); what W chose beyond that is gone.
        return _of_phases(case, SERIALISED, lambda sub: sub == "chosen")
    if remedy == "own_context":
        kept = _of_phases(case, NOT_REARMED, lambda sub: sub != "own")
        # Who holds the context's item table does so for others' items; a stream alone has its own.
        return [*case.members_of((SERIALISED,)), *kept, *_under(case, names.item_state)]
    if remedy == "realtime":
        movable = names.movable & case.tids
        return [i for tid in sorted(movable) for i in case.members_of((NOT_SCHEDULED, tid))]
    if remedy == "no_steal":
        return case.members_of((STOLEN,))
    return ()


def _piped(case: Case, names: Names) -> Iterable[int]:
    """Leaves in which G itself writes something that is no eventfd."""
    columns = case.columns
    writes = {
        sort
        for sort in set(columns.sorts)
        if (leaf := columns.table.like[sort]).tid in names.gpu
        and leaf.call is not None
        and leaf.call[0] == Kind.WRITE
    }
    for i, sort in enumerate(columns.sorts):
        if sort in writes and (call := case.leaf(i).call) is not None and call[3] < 0:
            yield i
