# SPDX-License-Identifier: Apache-2.0
"""What futex calls and acquisitions tell of lock words: what each is, who uses it, how long it is waited for.

Owns the filling in of ``Word`` and which words are forgotten. Tells nobody's cause.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracer.model.acquire import CONTENDED, NO_OP, PTHREAD_WAIT, STD_WAIT, WAKE, classify, sort_of
from tracer.model.words import (
    SEEN_PRIVATE_OTHER,
    SEEN_PTHREAD,
    SEEN_SHARED,
    SEEN_STD,
    SEEN_STD_OTHER,
    Word,
    bump,
)
from tracer.schema import FUTEX_PRIVATE, Records

#: Words kept, of all processes.
MAX_WORDS = 4096

#: Words by (tgid, address).
Words = dict[tuple[int, int], Word]


def _seen() -> NDArray[np.uint8]:
    """What a futex call shows of its word, by ``acquire.sort_of``."""
    op, contended = np.divmod(np.arange(2 * (NO_OP + 1)), 2)
    cls = classify(op.astype(np.uint16), np.where(contended, CONTENDED, 0).astype(np.uint32))
    std, pthread, two = op == STD_WAIT, op == PTHREAD_WAIT, contended == 1
    return np.select(
        [cls == WAKE, cls == 0, (op & FUTEX_PRIVATE) == 0, std & two, std, pthread & two],
        [0, 0, SEEN_SHARED, SEEN_STD, SEEN_STD_OTHER, SEEN_PTHREAD],
        SEEN_PRIVATE_OTHER,
    ).astype(np.uint8)


_SEEN = _seen()


def learn(words: Words, futex: Records, cls: np.ndarray, tgids: np.ndarray) -> None:
    """Take over what futex calls (n,) show of their words, and who wakes them.

    Args:
        words: by (tgid, address); filled in.
        cls: class of each call (acquire.classify). tgids: its thread's process.
    """
    bits = _SEEN.take(sort_of(futex["op"], futex["expected"]))
    is_wake = cls == WAKE
    order = np.lexsort((futex["tid"], is_wake, futex["word"], tgids))
    word, tgid, tid = futex["word"][order], tgids[order], futex["tid"][order]
    wake = is_wake[order]
    end = (futex["enter_ns"] + futex["dur_ns"])[order]
    n = len(order)
    new_word = np.ones(n, dtype=bool)
    new_word[1:] = (word[1:] != word[:-1]) | (tgid[1:] != tgid[:-1])
    new_run = new_word.copy()
    new_run[1:] |= (tid[1:] != tid[:-1]) | (wake[1:] != wake[:-1])
    starts = np.flatnonzero(new_word)
    seen = np.bitwise_or.reduceat(bits[order], starts)
    last = np.maximum.reduceat(end, starts)
    owners: list[Word | None] = []
    for i, at in enumerate(starts.tolist()):
        key = int(tgid[at]), int(word[at])
        known = words.get(key)
        if known is None and seen[i] and key[1]:  # a wake alone makes no word known
            known = words[key] = Word(*key, first_ns=int(last[i]))
        if known is not None:
            known.seen |= int(seen[i])
            known.last_ns = max(known.last_ns, int(last[i]))
        owners.append(known)
    runs = np.flatnonzero(new_run & wake)
    if len(runs):
        lengths = np.diff(np.append(np.flatnonzero(new_run), n))
        of_run = dict(zip(np.flatnonzero(new_run).tolist(), lengths.tolist(), strict=True))
        belongs = np.cumsum(new_word) - 1
        for at in runs.tolist():
            known = owners[belongs[at]]
            if known is not None and known.seen & (SEEN_STD | SEEN_PTHREAD):
                bump(known.wakers, int(tid[at]), of_run[at])


def count(words: Words, acq: Records) -> None:
    """Count acquisitions (n,) with their words: waits, holds, waiters, call sites."""
    order = np.lexsort((acq["word"], acq["tgid"]))
    acq = acq.take(order)
    change = (acq["word"][1:] != acq["word"][:-1]) | (acq["tgid"][1:] != acq["tgid"][:-1])
    starts = np.concatenate(([0], np.flatnonzero(change) + 1, [len(acq)]))
    for lo, hi in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        rows = acq[lo:hi]
        word = words.get((int(rows["tgid"][0]), int(rows["word"][0])))
        if word is None:
            continue
        word.contended += len(rows)
        word.barged += int(rows["barged"].sum())
        word.waits.add((rows["end_ns"] - rows["start_ns"]).astype(np.int64))
        word.holds.add(rows["hold_ns"][rows["hold_ns"] >= 0])
        relock = rows["cond"] != 0
        word.relocks += int(relock.sum())
        pairs = zip(rows["tid"].tolist(), rows["caller"].tolist(), strict=True)
        for tid, caller in pairs:
            bump(word.waiters, tid)
            bump(word.callers, (tid, caller))
        for cond, caller in zip(
            rows["cond"][relock].tolist(), rows["cond_caller"][relock].tolist(), strict=True
        ):
            bump(word.conds, (cond, caller))


def evict(words: Words) -> set[tuple[int, int]]:
    """Forget the words unused for longest, first those that are no locks; which they were."""
    order = sorted(words.values(), key=lambda w: (bool(w.misses), w.kind in ("mutex", "pthread"), w.last_ns))
    gone = {(w.tgid, w.word) for w in order[: len(order) - MAX_WORDS * 7 // 8]}
    for key in gone:
        del words[key]
    return gone
