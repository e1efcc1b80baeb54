# SPDX-License-Identifier: Apache-2.0
"""What a thread was doing with a lock, told by its syscalls before, under and after it: no symbols needed.

Owns the rules from a sign (signs.py) to an operation of the cross-domain device, and the call sites at which
signs were seen. The rules are of that device alone, read from its published sources and checked against their
symbols (docs/how-it-works.md): what may be two operations has no name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tracer.model.words import bump

#: A call site without one telling sign of its own needs so many equal ones.
_SITE_ENOUGH: Final = 8
_MAX_SITES: Final = 4096

#: What symbols call the operations of ``item_state``, ``jobs`` and ``context_resources``.
WRITE, READ_EVENT_NEW, CREATE_BLOB = "write", "read_event_new", "create_blob"
HANDLE_FENCE, ADD_ITEM, RUN = "handle_fence", "add_item", "run"
ADD_JOB, WAIT_FOR_JOB, WRITE_TO_RING = "add_job", "wait_for_job", "write_to_ring"


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
