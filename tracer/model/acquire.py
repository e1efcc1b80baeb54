# SPDX-License-Identifier: Apache-2.0
"""Futex records to acquisitions of lock words.

Owns the rule of what one acquisition is. std's lock_contended and glibc's lll_lock set the
word to 2 before each wait and leave it at 2 when they get the lock, so that an unlock after
a contended acquisition always wakes. Hence, exactly: consecutive futex calls of a thread
that are waits for 2 on one word are one acquisition; its own wake, or any other futex call,
says that it went on. Whether a word is a lock at all is decided in words.py. A mutex with priority
inheritance is locked and unlocked by the kernel: all of model/ sees it as glibc's plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.model.words import join
from tracer.schema import (
    FUTEX,
    FUTEX_CMD_MASK,
    FUTEX_PRIVATE,
    FUTEX_WAIT,
    FUTEX_WAIT_BITSET,
    FUTEX_WAKE,
    Kind,
    Records,
    view,
)

STD_WAIT = FUTEX_WAIT_BITSET | FUTEX_PRIVATE  # 137
PTHREAD_WAIT = FUTEX_WAIT | FUTEX_PRIVATE  # 128
CONTENDED = 2
NO_OP = 511  # an op with more bits than flags and commands have is none
# FUTEX_LOCK_PI, FUTEX_LOCK_PI2 and FUTEX_UNLOCK_PI, private ones
_PI_LOCKS, _PI_UNLOCK = (6 | FUTEX_PRIVATE, 13 | FUTEX_PRIVATE), 7 | FUTEX_PRIVATE
_WITHOUT_CLOCK = 0xFF
_IS_PI = np.isin(np.arange(_WITHOUT_CLOCK + 1), (*_PI_LOCKS, _PI_UNLOCK))
# FUTEX_WAITERS, FUTEX_TID_MASK
_WAITERS, _OWNER = 1 << 31, (1 << 30) - 1
_FUTEX = int(Kind.FUTEX)

# What a futex call is, here.
LOCK_WAIT, OTHER_WAIT, WAKE = 1, 2, 3
# WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAKE_BITSET
_IS_WAKE = np.array([cmd in (1, 3, 4, 5, 10) for cmd in range(128)])

#: One acquisition. hold_ns: -1 where its release was not seen; cond*: the condvar wait just before
#: (0: none); closed_ns: end of the futex call that showed that the thread had gone on.
ACQ = np.dtype(
    [
        ("tgid", "<u4"),
        ("tid", "<u4"),
        ("word", "<u8"),
        ("start_ns", "<u8"),
        ("end_ns", "<u8"),
        ("caller", "<u8"),
        ("waits", "<u4"),
        ("barged", "<u4"),
        ("cond", "<u8"),
        ("cond_caller", "<u8"),
        ("cond_end_ns", "<u8"),
        ("closed_ns", "<u8"),
        ("hold_ns", "<i8"),
    ]
)


class Plain:
    """Gives futex calls on mutexes of other making as waits for, and wakes of, plain ones.

    Mutexes that inherit priority are locked by the kernel. In musl's (and glibc's robust ones) the word is
    the owner's tid (musl's plain mutex: 16) under the bit that says that somebody waits, and this is what a
    waiter expects. A program in which such waits are seen is taken for musl's from then on: there a wait for
    2 is no lock's, but a condvar's, on a word of the waiter's own.

    Args:
        tgids_of: processes of threads (n,), 0 where not known.
    """

    def __init__(self, tgids_of: Callable[[NDArray[np.uint32]], NDArray[np.uint32]]) -> None:
        self._tgids_of = tgids_of
        self._musl: set[int] = set()

    def step(self, records: Records) -> Records:
        """The records (n,) of one step; a copy where there is something to change."""
        at = np.flatnonzero(records["kind"] == _FUTEX)
        op = records["op"][at] & _WITHOUT_CLOCK
        waits = at[op == PTHREAD_WAIT]
        expected = view(records, FUTEX)["expected"][waits]
        owner = expected & _OWNER
        owned = waits[((expected & _WAITERS) != 0) & (owner != 0) & (owner != _OWNER)]
        if len(owned):
            self._musl.update(self._tgids_of(records["tid"][owned]).tolist())
        condvars = waits[expected == CONTENDED] if self._musl else waits[:0]
        if len(condvars):
            condvars = condvars[np.isin(self._tgids_of(records["tid"][condvars]), sorted(self._musl - {0}))]
        inherits = _IS_PI[op]
        if not inherits.any() and not len(owned) and not len(condvars):
            return records
        at, op = at[inherits], op[inherits]
        locks, unlocks = np.append(at[op != _PI_UNLOCK], owned), at[op == _PI_UNLOCK]
        records = records.copy()
        futex = view(records, FUTEX)
        futex["expected"][condvars] = 0
        futex["op"][locks], futex["expected"][locks] = PTHREAD_WAIT, CONTENDED
        futex["op"][unlocks] = FUTEX_WAKE | FUTEX_PRIVATE
        return records


def _classes() -> NDArray[np.uint8]:
    """What a futex call is, at 2 * op + (whether its value is ``CONTENDED``)."""
    op, contended = np.divmod(np.arange(2 * (NO_OP + 1)), 2)
    cmd = op & FUTEX_CMD_MASK
    wait = (cmd == FUTEX_WAIT) | (cmd == FUTEX_WAIT_BITSET)
    lock = ((op == STD_WAIT) | (op == PTHREAD_WAIT)) & (contended == 1)
    out = np.where(lock, LOCK_WAIT, np.where(wait, OTHER_WAIT, 0)).astype(np.uint8)
    out[_IS_WAKE[cmd]] = WAKE
    return out


_CLASSES = _classes()


def sort_of(op: NDArray[np.uint16], expected: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Places (n,) in tables by futex op and whether the expected value is ``CONTENDED``."""
    at: NDArray[np.intp] = np.minimum(op, NO_OP).astype(np.intp) * 2 + (expected == CONTENDED)
    return at


def classify(op: NDArray[np.uint16], expected: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """LOCK_WAIT, OTHER_WAIT, WAKE or 0 for futex ops (n,) and their expected values (n,)."""
    return _CLASSES.take(sort_of(op, expected))


#: Whether a thread made a syscall within each of some intervals: tid, starts (n,), ends (n,).
Between = Callable[[int, NDArray[np.uint64], NDArray[np.uint64]], NDArray[np.bool_]]


def _never(_: int, starts: NDArray[np.uint64], __: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return np.zeros(len(starts), dtype=bool)


@dataclass(slots=True)
class _Last:
    """A thread's last futex call; ``row``: its acquisition as long as it may go on (shape (1,))."""

    cls: int
    word: int
    end_ns: int
    caller: int
    ret: int
    row: Records | None = None


class Acquirer:
    """Turns futex records, step by step, into closed acquisitions.

    State is one small object per thread, dropped by ``forget``.
    """

    def __init__(self) -> None:
        self._last: dict[int, _Last] = {}

    def pending(self) -> Records:
        """Acquisitions (n,) of dtype ACQ whose thread made no futex call since: closed_ns 0."""
        rows = [last.row for last in self._last.values() if last.row is not None]
        return join(rows, ACQ).copy()

    def pending_of(self, tid: int) -> Records:
        """The pending acquisition of a thread, shape (0,) or (1,)."""
        last = self._last.get(tid)
        return last.row if last is not None and last.row is not None else np.empty(0, dtype=ACQ)

    def forget(self, tid: int) -> Records:
        """Drop a thread that has exited; its pending acquisition (0 or 1) is closed."""
        row = self.pending_of(tid)
        if len(row):
            row["closed_ns"] = row["end_ns"]
        self._last.pop(tid, None)
        return row

    def step(
        self, futex: Records, cls: NDArray[np.uint8], tgids: NDArray[np.uint32], between: Between = _never
    ) -> Records:
        """Acquisitions closed by these futex calls.

        Args:
            futex: dtype FUTEX, shape (n,), closed spans in order of their end.
            cls: from ``classify``; tgids: processes of the threads, both (n,).
            between: whether a thread made another syscall within each of some intervals: it had gone on,
                though it woke nobody (musl's unlock need not).

        Returns:
            dtype ACQ in order of closed_ns, tid.
        """
        order = np.lexsort((futex["enter_ns"], futex["tid"]))
        rows, cls, tgids = futex.take(order), cls[order], tgids[order]
        n = len(rows)
        tid, word, enter = rows["tid"], rows["word"], rows["enter_ns"]
        end = enter + rows["dur_ns"]
        first_of_tid = np.ones(n, dtype=bool)
        first_of_tid[1:] = tid[1:] != tid[:-1]
        prev_cls = np.concatenate(([np.uint8(0)], cls[:-1]))
        prev_word = np.concatenate((word[:1], word[:-1]))
        prev_end = np.concatenate((end[:1], end[:-1]))
        prev_caller = np.concatenate((rows["caller"][:1], rows["caller"][:-1]))
        heads = np.flatnonzero(first_of_tid)
        for at in heads.tolist():
            last = self._last.get(int(tid[at]))
            prev_cls[at] = 0 if last is None else last.cls
            if last is not None:
                prev_word[at], prev_end[at], prev_caller[at] = last.word, last.end_ns, last.caller
        goes_on = (cls == LOCK_WAIT) & (prev_cls == LOCK_WAIT) & (prev_word == word)
        again = np.flatnonzero(goes_on)
        for who in np.unique(tid[again]).tolist():
            at = again[tid[again] == who]
            goes_on[at] = ~between(who, prev_end[at], enter[at])

        done: list[Records] = []
        for at in heads.tolist():  # acquisitions of earlier steps that these calls close
            last = self._last.get(int(tid[at]))
            if last is not None and last.row is not None and not goes_on[at]:
                _close(last.row, int(cls[at]), int(word[at]), int(enter[at]), int(end[at]))
                done.append(last.row)
                last.row = None

        locks = np.flatnonzero(cls == LOCK_WAIT)
        if len(locks):
            begin = np.flatnonzero(~goes_on[locks] | first_of_tid[locks])
            final = np.append(begin[1:], len(locks)) - 1
            head, tail = locks[begin], locks[final]
            acq = np.zeros(len(begin), dtype=ACQ)
            acq["tgid"], acq["tid"], acq["word"] = tgids[head], tid[head], word[head]
            acq["start_ns"], acq["end_ns"] = enter[head], end[tail]
            acq["caller"] = np.maximum.reduceat(rows["caller"][locks], begin)
            acq["waits"] = final - begin + 1
            woken = (rows["ret"][locks] == 0).astype(np.uint32)
            acq["barged"] = np.add.reduceat(woken, begin) - woken[final]
            after_cond = (prev_cls[head] == OTHER_WAIT) & ~goes_on[head]
            acq["cond"] = np.where(after_cond, prev_word[head], 0)
            acq["cond_caller"] = np.where(after_cond, prev_caller[head], 0)
            acq["cond_end_ns"] = np.where(after_cond, prev_end[head], 0)
            acq["hold_ns"] = -1
            for i in np.flatnonzero(goes_on[head]).tolist():  # began in an earlier step
                last = self._last[int(tid[head[i]])]
                if last.row is not None:
                    before = last.row[0]
                    acq["waits"][i] += before["waits"]
                    acq["barged"][i] += before["barged"] + (last.ret == 0)
                    acq["caller"][i] = before["caller"] or acq["caller"][i]
                    for name in ("start_ns", "cond", "cond_caller", "cond_end_ns"):
                        acq[name][i] = before[name]
                    last.row = None
            after = np.minimum(tail + 1, n - 1)
            closed = (tail + 1 < n) & ~first_of_tid[after]
            acq["closed_ns"] = np.where(closed, end[after], 0)
            own_wake = closed & (cls[after] == WAKE) & (word[after] == acq["word"])
            acq["hold_ns"] = np.where(
                own_wake, np.maximum(enter[after].astype(np.int64) - acq["end_ns"].astype(np.int64), 0), -1
            )
            done.append(acq.take(np.flatnonzero(closed)))
            open_rows = {int(acq["tid"][i]): acq[i : i + 1].copy() for i in np.flatnonzero(~closed).tolist()}
        else:
            open_rows = {}

        for at in (np.append(heads[1:], n) - 1).tolist():
            who = int(tid[at])
            self._last[who] = _Last(
                int(cls[at]),
                int(word[at]),
                int(end[at]),
                int(rows["caller"][at]),
                int(rows["ret"][at]),
                open_rows.get(who),
            )
        out = join(done, ACQ)
        return out.take(np.lexsort((out["tid"], out["closed_ns"])))


def _close(row: Records, cls: int, word: int, enter: int, end: int) -> None:
    """Write into an acquisition (1,) the futex call that showed that its thread had gone on."""
    row["closed_ns"] = end
    if cls == WAKE and word == int(row["word"][0]):
        row["hold_ns"] = max(0, enter - int(row["end_ns"][0]))
