# SPDX-License-Identifier: Apache-2.0
"""A thread's time as pieces with one state each.

Owns the rule of what a thread did at an instant, which depends on the spans around that instant alone: any
interval may be cut by itself. Steal is told per window (window.py): where it lay is a matter of the window.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from typing import Final, NamedTuple

from tracer.model.spans import OFF_BY_ITSELF, Call, Off
from tracer.model.track import Track

_new: Final = tuple.__new__


class State(enum.Enum):
    """What a thread does at an instant."""

    ON_CPU = "on_cpu"
    SYSCALL = "syscall"
    SYSCALL_BLOCKED = "syscall_blocked"
    RUNNABLE = "runnable"
    BLOCKED = "blocked"
    STOLEN = "stolen"


# Bound once: looking members up in their class costs more than their use.
_ON_CPU, _BLOCKED, _RUNNABLE = State.ON_CPU, State.BLOCKED, State.RUNNABLE
_IN_SYSCALL, _IN_SYSCALL_BLOCKED = State.SYSCALL, State.SYSCALL_BLOCKED


class Piece(NamedTuple):
    """A thread's state over [start, end); the syscall it is inside of, the off-CPU span it belongs to."""

    start: int
    end: int
    state: State
    call: Call | None
    off: Off | None


def cut(track: Track, start: int, stop: int) -> list[Piece]:
    """Pieces of [start, stop) of a thread, in order, without gaps.

    A thread with no span at all is on a CPU in user space as far as records can say.
    """
    pieces: list[Piece] = []
    append, cursor, ends = pieces.append, start, track.calls.ends
    at = bisect_right(ends, start)
    n = min(bisect_left(ends, stop, at) + 1, len(ends))
    calls = track.calls.between(at, n)
    # The syscall that the thread is in at the cursor, or else the next.
    call: Call | None = None
    enter = leave = cursor
    for until, inside, outside, off in _runs(track, start, stop):
        while cursor < until:
            while leave <= cursor:
                if at < n:
                    call = calls[at]
                    enter, leave = call[0], call[1]
                    at += 1
                else:
                    enter = leave = stop
                    break
            if enter >= until:
                append(_new(Piece, (cursor, until, outside, None, off)))
                cursor = until
                break
            if enter > cursor:
                append(_new(Piece, (cursor, enter, outside, None, off)))
                cursor = enter
            if leave >= until:
                append(_new(Piece, (cursor, until, inside, call, off)))
                cursor = until
                break
            append(_new(Piece, (cursor, leave, inside, call, off)))
            cursor = leave
    return pieces


def _runs(track: Track, start: int, stop: int) -> list[tuple[int, State, State, Off | None]]:
    """What a thread was from one end to the next, as (end, state in a syscall, outside of it, span)."""
    runs: list[tuple[int, State, State, Off | None]] = []
    append, cursor, ends = runs.append, start, track.offs.ends
    first = bisect_right(ends, start)
    last = min(bisect_left(ends, stop, first) + 1, len(ends))
    for off in track.offs.between(first, last)[first:last]:
        out, back, woken, _, _, _, _, preempted, state, _, _ = off
        if out >= stop:
            break
        if back <= cursor:
            continue
        if out > cursor:
            append((out, _IN_SYSCALL, _ON_CPU, None))
        if back > stop:
            back = stop
        if not preempted and state & OFF_BY_ITSELF:
            until = back
            if woken and woken < back:
                until = woken if woken > out else out
            append((until, _BLOCKED if off.stopped else _IN_SYSCALL_BLOCKED, _BLOCKED, off))
        cursor = back
        append((back, _RUNNABLE, _RUNNABLE, off))
    append((stop, _IN_SYSCALL, _ON_CPU, None))
    return runs
