# SPDX-License-Identifier: Apache-2.0
"""What a thread was doing with a lock, told by its syscalls before, under and after it: no symbols needed.

Owns the *signs* of waits and holds, the call sites they were seen at, and the rules from a sign to an
operation of the cross-domain device. The rules are of that device alone, read from its published sources and
checked against their symbols (docs/how-it-works.md): what may be two operations has no name.

A contended acquisition leaves the word at 2, so its release always wakes: the calls under the lock are
exactly those between the last wait's end and that wake. Of a holder that never waited only the calls that
ended while somebody waited for it are surely under the lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.model.acquire import CONTENDED, PTHREAD_WAIT, STD_WAIT
from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.model.words import bump
from tracer.schema import FD, FUTEX, RW, Flag, Kind, Records, end_ns, view

Times = NDArray[np.uint64]

AROUND_NS: Final = 100_000_000
_CLOSE, _FCNTL = 3, 72
_DUPS: Final = frozenset((32, 33, 72, 292))
#: lseek, readlink, readlinkat: what W does for an fd that has just arrived.
_LOOKS_AT_FD: Final = frozenset((8, 89, 267))
_PLAIN: Final[dict[int, str]] = {
    Kind.EPOLL_CTL: "epoll_ctl",
    Kind.EPOLL_WAIT: "epoll_wait",
    Kind.FUTEX: "condvar",
}
#: A call site without one telling sign of its own needs so many equal ones.
_SITE_ENOUGH: Final = 8
_MAX_SITES: Final = 4096
_MAX_IDS: Final = 4096

#: What symbols call the operations of ``item_state``, ``jobs`` and ``context_resources``.
WRITE, READ_EVENT_NEW, CREATE_BLOB = "write", "read_event_new", "create_blob"
HANDLE_FENCE, ADD_ITEM, RUN = "handle_fence", "add_item", "run"
ADD_JOB, WAIT_FOR_JOB, WRITE_TO_RING = "add_job", "wait_for_job", "write_to_ring"


@dataclass(slots=True)
class _Ids:
    """Eventfd-ids of a process by use."""

    taken: set[int] = field(default_factory=set)  # read by a worker
    raised: set[int] = field(default_factory=set)  # written by a worker: the interrupt
    signalled: set[int] = field(default_factory=set)  # written, not with 0, by the command thread


class Uses:
    """What eventfds are to a VMM: items, its interrupt, or the event by which G hands W a job.

    Args:
        is_target: whether an eventfd-id is known to be a stream's completion.
    """

    def __init__(self, registry: Registry, is_target: Callable[[int], bool]) -> None:
        self.registry = registry
        self._is_target = is_target
        self._of: dict[int, _Ids] = {}

    def step(self, step: Step) -> None:
        """Learn from one step's reads, writes and closes."""
        for role in ("W", "G"):
            for tid in self.registry.with_role(role):
                calls = step.threads.calls(tid)
                if not len(calls):
                    continue
                ids = self._of.setdefault(self.registry.tgid(tid), _Ids())
                self._learn(ids, role, calls)
        for ids in self._of.values():
            for known in (ids.taken, ids.raised, ids.signalled):
                while len(known) > _MAX_IDS:
                    known.pop()

    @staticmethod
    def _learn(ids: _Ids, role: str, calls: Records) -> None:
        kind, number = calls["kind"], calls.view(RW)["eventfd_id"]
        eventfd = (calls["flags"] & Flag.EVENTFD) != 0
        is_close = (kind == int(Kind.FD)) & (calls["op"] == _CLOSE)
        closed = set(calls.view(FD)["eventfd_id"][is_close].tolist())
        writes = eventfd & (kind == int(Kind.WRITE))
        # An id lives on in another's eventfd: what was only ever an item is forgotten with it.
        ids.taken -= closed
        ids.signalled -= closed
        if role == "W":
            ids.taken |= set(number[eventfd & (kind == int(Kind.READ))].tolist()) - closed
            ids.raised |= set(number[writes].tolist())
        else:
            ids.signalled |= set(number[writes & (calls.view(RW)["value"] != 0)].tolist()) - closed

    def write(self, tgid: int, eventfd_id: int) -> str:
        """What a write to an eventfd is: ``irq``, ``resample``, ``item`` or "" where it may be either."""
        ids = self._of.get(tgid)
        if ids is None:
            return ""
        if eventfd_id in ids.raised:
            return "irq"
        resample = ids.taken & ids.signalled
        if eventfd_id in resample:
            return "resample"
        return "item" if resample or self._is_target(eventfd_id) else ""

    def read(self, tgid: int, eventfd_id: int) -> str:
        """What a worker's read of an eventfd is: ``resample`` or ``item``."""
        ids = self._of.get(tgid)
        return "resample" if ids is not None and eventfd_id in ids.signalled else "item"


class Signs:
    """Signs of the waits and holds of one thread, over its calls of the last seconds.

    Args:
        calls: (n,) closed syscall spans of the thread but wakes, by end.

    Attributes:
        of: those calls.
    """

    def __init__(self, uses: Uses, tgid: int, calls: Records) -> None:
        self.of = calls
        if len(calls):
            futex = calls.view(FUTEX)
            lock = (calls["kind"] == int(Kind.FUTEX)) & (futex["expected"] == CONTENDED)
            lock &= (calls["op"] == STD_WAIT) | (calls["op"] == PTHREAD_WAIT)
            calls = calls.take(np.flatnonzero(~lock))
        self._uses, self._tgid, self._calls = uses, tgid, calls
        self._ends = end_ns(calls)
        self._enters = calls["enter_ns"]

    def of_waits(self, start_ns: Times, end_ns_: Times, hold_ns: NDArray[np.int64]) -> list[str]:
        """``before|under|after``: calls around waits (n,); under ``?`` where the release was not seen."""
        before = np.searchsorted(self._ends, start_ns, side="right") - 1
        first = np.searchsorted(self._enters, end_ns_, side="left")
        released = np.searchsorted(
            self._enters, end_ns_ + np.maximum(hold_ns, 0).astype(np.uint64), side="left"
        )
        early = np.zeros(len(before), dtype=bool)
        if len(self._ends):
            early = (before >= 0) & (self._ends[np.maximum(before, 0)] + np.uint64(AROUND_NS) < start_ns)
        before[early] = -1
        seen = hold_ns >= 0
        after = np.where(seen, released, first)
        name = self._names(before, first, after)
        under = np.where(seen & (first < after), first, -1)
        columns = (column.tolist() for column in (before, under, after, seen))
        return [
            f"{name.get(b, '')}|{name.get(u, '') if known else '?'}|{name.get(a, '')}"
            for b, u, a, known in zip(*columns, strict=True)
        ]

    def of_holds(self, begin_ns: Times, stop_ns: Times) -> list[str]:
        """``in:`` or ``old:`` and the last call before each ``stop`` (n,); in: it ended since ``begin``."""
        if not len(self._ends):
            return [""] * len(begin_ns)
        last = np.searchsorted(self._ends, stop_ns, side="right") - 1
        ended = self._ends[np.maximum(last, 0)]
        known = (last >= 0) & (ended + np.uint64(AROUND_NS) >= begin_ns)
        name = self._names(last)
        columns = (column.tolist() for column in (last, known, ended > begin_ns))
        return [
            (("in:" if inside else "old:") + name[at]) if there else ""
            for at, there, inside in zip(*columns, strict=True)
        ]

    def _names(self, *places: NDArray[np.intp]) -> dict[int, str]:
        """What is at each of these places among the calls, nothing at places where there is no call."""
        at = np.unique(np.concatenate(places))
        at = at[(at >= 0) & (at < len(self._calls))]
        rows = self._calls.take(at)
        flags = rows["flags"] & Flag.EVENTFD
        columns = (rows["kind"], rows["op"], flags, view(rows, RW)["eventfd_id"])
        return dict(zip(at.tolist(), map(self._name, *(column.tolist() for column in columns)), strict=True))

    def _name(self, kind: int, number: int, eventfd: int, eventfd_id: int) -> str:
        if kind == Kind.READ:
            return f"read.{self._uses.read(self._tgid, eventfd_id) if eventfd else 'item'}"
        if kind == Kind.WRITE:
            return f"write.{self._uses.write(self._tgid, eventfd_id) if eventfd else 'item'}"
        if kind == Kind.RECVMSG or (kind == Kind.SYSCALL and number in _LOOKS_AT_FD):
            return "receive"
        if kind == Kind.SYSCALL:
            return "fcntl" if number == _FCNTL else "other"
        if kind == Kind.FD:
            return "close" if number == _CLOSE else "dup" if number in _DUPS else "other"
        return _PLAIN.get(kind, "other")


def tell(lock: str, role: str, sign: str) -> str:
    """The operation on a lock that a thread of a role (W, G) was in, "" where the sign may be of several."""
    if lock == "jobs":
        return _on_jobs(role, sign)
    if lock == "context_resources":
        return WRITE_TO_RING if role == "W" and sign else ""
    if lock != "item_state":
        return ""
    if sign == RELOCK:  # it only looks like one: from the condvar straight to an item, as a job that adds one
        return RUN if role == "W" else ""
    if ":" in sign:
        return _of_holder(role, *sign.split(":", 1))
    if sign.count("|") != 2:
        return ""
    before, under, after = sign.split("|")
    of = {"W": _of_worker, "G": _of_command}.get(role)
    return of(before, under, after) if of is not None else ""


def _on_jobs(role: str, sign: str) -> str:
    if role == "G":
        return ADD_JOB if sign else ""
    before, _, rest = sign.partition("|")
    if role != "W":
        return ""
    if sign == RELOCK or rest.endswith("|condvar"):
        return WAIT_FOR_JOB
    return ADD_JOB if before == "read.resample" else ""


def _of_worker(before: str, under: str, after: str) -> str:
    if before == "receive":
        return ADD_ITEM if under in ("", "?") else ""
    if "epoll_ctl" in (under, after if under == "?" else ""):
        return RUN if before in ("condvar", "write.irq", "epoll_ctl", "") else ""
    if before == "epoll_wait" and "read.item" in (under, after if under == "?" else ""):
        return HANDLE_FENCE
    return ""


def _of_command(before: str, under: str, after: str) -> str:
    if under == "?":  # a wake of another word came before the release: G hands W the job under the lock
        return READ_EVENT_NEW if after == "write.resample" else ""
    if under == "" and (before, after) == (
        "write.item",
        "close",
    ):  # refcount lets go of an item that is hung up
        return WRITE
    return _under(under)


def _under(call: str) -> str:
    """The command that makes a call under item_state."""
    return {
        "write.item": WRITE,
        "dup": WRITE,
        "close": WRITE,  # of an item that is hung up
        "write.resample": READ_EVENT_NEW,
        "fcntl": CREATE_BLOB,
    }.get(call, "")


def _of_holder(role: str, when: str, last: str) -> str:
    if role == "W":
        return {
            "write.irq": HANDLE_FENCE,
            "read.item": HANDLE_FENCE,
            "receive": ADD_ITEM,
            "epoll_ctl": RUN,
        }.get(last, "")
    if role != "G":
        return ""
    if last == "dup":  # the write and the close of the dup come outside the lock
        return WRITE
    if when != "in":
        return ""
    return _under(last)


#: The sign of a re-lock inside a condvar's wait.
RELOCK: Final = "relock"


class Sites:
    """Signs by call site (tgid, return address): what one wait leaves open its neighbours may tell."""

    def __init__(self) -> None:
        self._signs: dict[tuple[int, int], dict[tuple[int, str], int]] = {}
        self._numbers: dict[str, int] = {"": 0}
        self._by_number = [""]

    def number(self, sign: str) -> int:
        """A sign as a number, for arrays; there are some hundreds of them."""
        number = self._numbers.get(sign)
        if number is None:
            number = self._numbers[sign] = len(self._by_number)
            self._by_number.append(sign)
        return number

    def sign(self, number: int) -> str:
        """The sign of a number."""
        return self._by_number[number]

    def note(self, tgid: int, caller: int, tid: int, sign: str) -> None:
        """Count the sign of a wait whose caller is known."""
        key = tgid, caller
        if key not in self._signs and len(self._signs) >= _MAX_SITES:
            del self._signs[next(iter(self._signs))]
        bump(self._signs.setdefault(key, {}), (tid, sign))

    def tell(self, tgid: int, caller: int, lock: str, role: Callable[[int], str]) -> str:
        """The operation at a call site: all signs that tell one agree, or all fit one alone."""
        signs = self._signs.get((tgid, caller), {})
        told: dict[str, int] = {}
        lone = total = 0
        for (tid, sign), n in signs.items():
            total += n
            name = tell(lock, role(tid), sign)
            if name:
                told[name] = told.get(name, 0) + n
            # refcount: nothing under the lock, and always the item's write right after it
            lone += n * (role(tid) == "G" and sign.endswith(("||write.item", "|?|write.item")))
        if len(told) == 1:
            return next(iter(told))
        return WRITE if not told and lock == "item_state" and lone == total >= _SITE_ENOUGH else ""
