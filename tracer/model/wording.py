# SPDX-License-Identifier: Apache-2.0
"""Sentences: a verdict in words, and the one thing to do about it.

Owns the wording only. Lock names are asked for here, at summary time, never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tracer.model.blame import syscall_name
from tracer.model.counterfactual import MEASURED, Key
from tracer.model.leaves import (
    BLOCKED,
    GUEST_LEAF,
    HOST_LEAF,
    LOCK,
    NOT_SCHEDULED,
    ON_CPU,
    SLOW_SYSCALL,
    Leaf,
    Word,
)
from tracer.model.misses import MissState
from tracer.model.registry import Registry
from tracer.schema import Kind

#: What to do where no stream was seen; read live and, of a trace, long afterwards.
PLAY: Final = "trace while audio plays in the guest, with the audio server traced too (--audio PID names it)"

LockName = Callable[[Word], str]

#: Cause -> the one thing to do about it.
TODO: Final = {
    "lock": "do not hold {object} over what its holder does here (see Blame)",
    "not_scheduled": "give {object} real-time priority, or keep other work off these CPUs",
    "stolen": "the hypervisor took the CPU away: give this host dedicated CPUs; nothing in the VMM helps",
    "slow_syscall": "find out why {object} takes so long: what it waits for is below the VMM",
    "on_cpu": "profile {object}: its own work takes longer than usual",
    "blocked": "{object} slept outside any lock: look for page faults, memory throttling or stop signals",
    "serialised": "let the worker serve ready eventfds in turn; or give the stream its own context",
    "head_of_line": "keep long commands off the gpu worker, or complete audio on a thread of its own",
    "not_rearmed": "the guest re-arms the worker late: re-arm first, or keep several fences queued",
    "guest_late": "the guest took too long between interrupt and kick: look at its client and its vCPU",
    "host_late": "the audio server itself was late: check its priority (SCHED_FIFO) and its load",
    "forward_failed": "the wakeup was not forwarded: look at the failed syscall, restart the guest's client",
    "mixed": "no single remedy is named: look at the list of sufficient ones, and remove the largest first",
    "unknown": "evidence is missing: record again with fewer losses, and closer to the start",
}


def key_text(key: Key, registry: Registry, lock_name: LockName) -> str:
    """A candidate as ``kind`` or ``kind:object``, as in ``sufficient``."""
    kind = str(key[0])
    if len(key) == 1:
        return {GUEST_LEAF: "guest_late", HOST_LEAF: "host_late"}.get(kind, kind)
    if kind == LOCK:
        return f"lock:{lock_name((int(key[1]), int(key[2])))}"
    if kind in (NOT_SCHEDULED, BLOCKED, ON_CPU):
        return f"{kind}:{registry.comm(int(key[1]))}"
    if kind == SLOW_SYSCALL:
        return f"slow_syscall:{syscall_name(Kind(int(key[2])), int(key[3]))}"
    return kind


def key_object(key: Key | None, registry: Registry, lock_name: LockName) -> str:
    """The object of a candidate in words, "" where it has none."""
    if key is None or len(key) == 1:
        return ""
    if key[0] == SLOW_SYSCALL:
        name = syscall_name(Kind(int(key[2])), int(key[3]))
        return f"{name} in {registry.comm(int(key[1]))}"
    return key_text(key, registry, lock_name).partition(":")[2]


def duration(ns: int) -> str:
    """A duration for a sentence."""
    if ns >= 10_000_000_000:
        return f"{ns / 1e9:.0f} s"
    if ns >= 1_000_000_000:
        return f"{ns / 1e9:.1f} s"
    if ns >= 10_000_000:
        return f"{ns / 1e6:.0f} ms"
    if ns >= 1_000_000:
        return f"{ns / 1e6:.1f} ms"
    return f"{ns / 1e3:.0f} µs"


def call_text(call: tuple[int, int, int, int] | None) -> str:
    """A syscall with its object's sort: write(pipe) ... "" outside any."""
    if call is None:
        return ""
    kind, number, _, eventfd = call
    name = syscall_name(Kind(kind), number)
    if kind in (Kind.READ, Kind.WRITE):
        return f"{name}({'eventfd' if eventfd >= 0 else 'pipe or file'})"
    return name


def leaf_object(leaf: Leaf, registry: Registry, lock_name: LockName) -> str:
    """What a segment is about: the lock, the thread, the syscall."""
    if leaf.kind == LOCK and leaf.word is not None:
        return lock_name(leaf.word)
    if leaf.kind == SLOW_SYSCALL:
        return call_text(leaf.call)
    return registry.comm(leaf.tid) if leaf.tid else ""


def leaf_detail(leaf: Leaf, registry: Registry, lock_name: LockName) -> str:
    """The rest of what a segment says: holder and its state, who ran instead."""
    if leaf.kind == LOCK and leaf.holder is not None:
        holder = leaf.holder
        if not holder.tid:
            return "holder not known"
        parts = [f"held by {registry.comm(holder.tid)} (inferred), {holder.state}"]
        if holder.call is not None:
            parts.append(f"in {call_text(holder.call)}")
        if len(holder.chain) > 1:
            parts.append("which waits for " + " -> ".join(lock_name(w) for w in holder.chain[1:]))
        return " ".join(parts)
    if leaf.kind == NOT_SCHEDULED:
        parts = [f"after lock {lock_name(leaf.after)}"] if leaf.after is not None else []
        if leaf.instead:
            parts.append(f"{registry.comm(leaf.instead)}{_of_vmm(leaf, registry)} ran instead")
        elif not parts:
            parts.append("runnable")
        return "; ".join(parts)
    return ""


def _of_vmm(leaf: Leaf, registry: Registry) -> str:
    """Whose thread it was that ran instead, if it was another VMM's."""
    tgid = registry.tgid(leaf.instead)
    return f" of VMM {tgid}" if registry.is_vmm(tgid) and tgid != registry.tgid(leaf.tid) else ""


def chain_of(miss: MissState, registry: Registry, lock_name: LockName) -> tuple[str, ...]:
    """The longest lock chain of a miss, waiter first."""
    if miss.case is None:
        return ()
    waits = [leaf for leaf in miss.case.lock_waits() if leaf.holder is not None]
    if not waits:
        return ()
    by_word: dict[tuple[Word, ...], int] = {}
    for leaf in waits:
        assert leaf.holder is not None
        by_word[leaf.holder.chain] = by_word.get(leaf.holder.chain, 0) + leaf.ns
    longest = max(by_word, key=lambda c: (by_word[c], c))
    leaf = max(
        (w for w in waits if w.holder is not None and w.holder.chain == longest),
        key=lambda w: (w.ns, -w.start_ns),
    )
    assert leaf.holder is not None
    links = [registry.comm(leaf.tid)]
    for word, tid in zip(leaf.holder.chain, leaf.holder.tids, strict=False):
        links.append(f"{lock_name(word)} held by {registry.comm(tid)}")
    if leaf.holder.call is not None and links:
        links[-1] += f" in {call_text(leaf.holder.call)}"
    return tuple(links)


def _mixed(names: Sequence[str], joint: Sequence[str], *, open_kick: bool) -> str:
    """Why no one cause is told."""
    if names and open_kick:
        return (
            "when the guest kicked is not known, as the gpu worker was busy, and the cause depends on it; "
            f"possibly on time without {' or '.join(names)}"
        )
    if names:
        return f"several causes alike; on time without any one of {', '.join(names)}"
    if joint:
        return f"no single cause; only together: {' + '.join(joint)}"
    return "no set of causes explains it"


def sentence(miss: MissState, registry: Registry, lock_name: LockName, period_ns: int) -> str:
    """A miss in one sentence."""
    cycle = miss.cycle
    late = "never answered" if cycle.late_ns is None else f"{duration(cycle.late_ns)} late"
    leg = "wake" if miss.leg == "wake" else "completion"
    head = f"{leg} {late}"
    if cycle.candidates:
        head += f" ({', '.join(s.id for s in cycle.candidates)} share it: whose is not known)"
    if miss.origin is not None:
        return f"{head}: carried over from miss {miss.origin.id} ({miss.cause})"
    if miss.driver_fault or miss.judgement is None:
        return f"{head}: {miss.reason or miss.cause}"
    found = miss.judgement
    names = [key_text(k, registry, lock_name) for k in found.sufficient]
    if found.cause == "mixed":
        joint = [key_text(k, registry, lock_name) for k in found.jointly]
        return f"{head}: {_mixed(names, joint, open_kick=found.open_kick)}"
    assert found.key is not None
    cost = duration(found.excess[found.key])
    what = _what(miss, found.key, registry, lock_name)
    text = f"{head}: {what} for {cost}"
    others = [n for k, n in zip(found.sufficient, names, strict=True) if k != found.key]
    if others:
        text += f"; also sufficient: {', '.join(others)}"
    note = _not_the_lock(miss, found.sufficient, registry, lock_name)
    return text + note + _held_against(miss, str(found.key[0]))


def _held_against(miss: MissState, kind: str) -> str:
    """What a time was held against, where that was no median of on-time cycles."""
    if kind not in MEASURED or miss.baseline == "median":
        return ""
    if miss.baseline == "none":
        return " (baseline:none, no cycle was on time before)"
    return " (baseline:smallest, few cycles were on time before)"


def _what(miss: MissState, key: Key, registry: Registry, lock_name: LockName) -> str:
    kind = str(key[0])
    thing = key_object(key, registry, lock_name)
    if len(key) == 1 and kind == NOT_SCHEDULED:
        names = dict.fromkeys(key_object(k, registry, lock_name) for k in _jointly(miss))
        return f"several threads were runnable but not on a CPU ({', '.join(names)}), together"
    if len(key) == 1 and kind == LOCK:
        names = dict.fromkeys(key_object(k, registry, lock_name) for k in _jointly(miss))
        return f"waited for several locks ({', '.join(names)}), together"
    if kind == LOCK:
        chain = chain_of(miss, registry, lock_name)
        return f"waited for {thing}" + (f" ({chain[1]})" if len(chain) > 1 else "")
    if kind == NOT_SCHEDULED:
        return f"{thing} was runnable but not on a CPU"
    if kind == "serialised":
        went = miss.case.path.went_first if miss.case is not None else {}
        first = ", ".join(f"{name} {n}x" for name, n in sorted(went.items(), key=lambda i: (-i[1], i[0])))
        return f"the worker served others first ({first})" if first else "the worker served others first"
    if kind == "head_of_line":
        return "the gpu worker was busy with another command"
    if kind == "not_rearmed":
        return "the worker waited for the guest's re-arm"
    if kind == SLOW_SYSCALL:
        return f"{thing} took longer than usual"
    if kind == ON_CPU:
        return f"{thing} computed longer than usual"
    if kind == BLOCKED:
        return f"{thing} slept outside any lock"
    if kind == GUEST_LEAF:
        return "the guest took longer than usual"
    if kind == HOST_LEAF:
        return "the audio server was late itself"
    return "the hypervisor took the CPU away"


def _jointly(miss: MissState) -> tuple[Key, ...]:
    return miss.judgement.jointly if miss.judgement is not None else ()


def _not_the_lock(
    miss: MissState, sufficient: tuple[Key, ...], registry: Registry, lock_name: LockName
) -> str:
    """Where W waited for G's lock over a blocking write: say that the lock was not the cause."""
    if miss.case is None:
        return ""
    for leaf in miss.case.lock_waits():
        if leaf.word is None or leaf.holder is None or (LOCK, *leaf.word) in sufficient:
            continue
        held = leaf.holder
        if (
            held.call is not None
            and held.call[0] == Kind.WRITE
            and registry.role(held.tid) == "G"
            and leaf.ns > 500_000
        ):
            return (
                f"; it waited for {lock_name(leaf.word)} meanwhile, "
                "but without that lock it misses all the same: "
                f"{registry.comm(held.tid)} was in {call_text(held.call)}"
            )
    return ""
