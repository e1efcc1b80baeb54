# SPDX-License-Identifier: Apache-2.0
"""Every table and column that pandas users see: name, type, unit, meaning.

Owns the one list (hence its length) that gives frames their dtypes, docs/frames.md its text, exports their
README and tests their expectation. Builds nothing. Names are those of the records (docs/records.md) and of
the summary (docs/summary.md); columns are in the order shown here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: type of a column -> dtype in pandas, and what it is for.
TYPES: Final[Mapping[str, tuple[str, str]]] = {
    "time": (
        "datetime64[ns, UTC]",
        "a moment, as the trace's clock offset makes it; NaT: not known",
    ),
    "span": ("timedelta64[ns]", "a length of time; NaT: not known"),
    "int": ("int64", "a whole number"),
    "maybe": ("Int64", "a whole number; <NA>: not known, or not of this kind of row"),
    "word": (
        "UInt64",
        "an unsigned number of 64 bits: an address, or what was read or written; <NA> as above",
    ),
    "float": ("float64", "a number; NaN: not known"),
    "bool": ("bool", "yes or no"),
    "category": ("category", "one of few texts; NaN: none"),
    "text": ("str", "any text"),
    "texts": ("object", "a tuple of texts or numbers"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        type: a key of TYPES.
        unit: of its values; "–" where there is none.
        source: where its value is found in a row of the summary ("wait_ns.p50"), "" for its own name.
    """

    name: str
    type: str
    unit: str
    meaning: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table; ``df_NAME()`` gives it."""

    name: str
    rows: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """Its columns' names, in order."""
        return [column.name for column in self.columns]


C = Column

#: Which thread, in the tables made of records.
_WHO = (
    C("tgid", "int", "process id", "process of the thread; 0: not known"),
    C("tid", "int", "thread id", "who"),
    C("comm", "category", "–", "the thread's name"),
    C("role", "category", "–", "of the thread: G, W, D, vcpu, fence, task; empty where none was decided"),
)

_RECORD_COLUMNS = (
    C("enter_ns", "time", "ns", "when it began"),
    C("dur_ns", "span", "ns", "how long it lasted"),
    C("kind", "category", "–", "READ, WRITE, FUTEX …: docs/records.md"),
    *_WHO,
    C(
        "op",
        "int",
        "number",
        "the syscall's number; FUTEX: the futex op; OFFCPU: prev_state; else docs/records.md",
    ),
    C("flags", "int", "bits", "OPEN 1, CLIPPED 2, LATE 4, TIMERFD 8, PENDING 16, EXIT_MASKS 32, EVENTFD 64"),
    C("ret", "maybe", "bytes, count, fd or -errno", "what the syscall returned"),
    C("fd", "maybe", "fd", "the fd concerned; dup: the old one"),
    C("epfd", "maybe", "fd", "EPOLL_…: the epoll's fd"),
    C("eventfd_id", "maybe", "eventfd-id", "as in fdinfo; <NA>: no eventfd, or unknown"),
    C("eventfd_ids", "texts", "eventfd-ids", "RECVMSG, SENDMSG, MSG_MORE: of the fds passed; -1: no eventfd"),
    C("nfds", "maybe", "fds", "RECVMSG, SENDMSG: how many were passed"),
    C("len", "maybe", "bytes", "READ, WRITE: asked for, at most 65535"),
    C("value", "word", "count", "the 8 bytes read or written; eventfd2: the initial count"),
    C("value_ns", "span", "ns", "TIMER: time to the first expiry, or its moment where timer_flags has bit 0"),
    C("interval_ns", "span", "ns", "TIMER: between expiries; 0: once"),
    C("timer_flags", "maybe", "bits", "TIMER: of timerfd_settime"),
    C("expected", "maybe", "value or count", "FUTEX: the value expected, or how many to wake"),
    C("word", "word", "address", "FUTEX: the futex word"),
    C("caller", "word", "address", "FUTEX: the call site of a long wait, else 0"),
    C("data", "word", "–", "EPOLL_…: the registration's data (of the first event)"),
    C("events", "maybe", "bits", "EPOLL_WAIT: of the first event"),
    C("ctl_op", "maybe", "number", "EPOLL_CTL: 1 add, 2 delete, 3 modify"),
    C("arg0", "word", "–", "SYSCALL: first argument"),
    C("arg1", "word", "–", "SYSCALL: second argument"),
    C("woken_ns", "time", "ns", "OFFCPU: when it became runnable; NaT: it never was blocked"),
    C("waker_tid", "maybe", "thread id", "OFFCPU: who woke it"),
    C("waker_tgid", "maybe", "process id", "OFFCPU: the waker's process"),
    C("instead_tid", "maybe", "thread id", "OFFCPU: who ran instead; 0: nobody"),
    C("cpu_out", "maybe", "CPU", "OFFCPU: where it stopped"),
    C("cpu_in", "maybe", "CPU", "OFFCPU: where it went on"),
    C("waker_in_irq", "maybe", "0 or 1", "OFFCPU: the waker was in an interrupt, so it is no cause"),
    C("preempted", "maybe", "0 or 1", "OFFCPU: it did not stop by itself"),
    C("stolen_ns", "span", "ns", "OFFCPU: taken by the hypervisor while it ran before"),
    C("generation", "maybe", "number", "of the watched lock words"),
    C("held_in", "maybe", "mask", "lock words held at entry"),
    C("readable_in", "maybe", "mask", "lock words readable at entry"),
    C("held_out", "maybe", "mask", "lock words held at exit"),
    C("readable_out", "maybe", "mask", "lock words readable at exit"),
    C("new_comm", "text", "–", "LIFE: the name taken (comm in docs/records.md)"),
    C("new_tgid", "maybe", "process id", "LIFE: of the thread (tgid in docs/records.md)"),
    C("old_tid", "maybe", "thread id", "LIFE: at exec, the thread that it was"),
    C("words", "texts", "addresses", "WORDS: the words watched from now on"),
    C("count", "maybe", "records", "LOSS: lost"),
)

_WAIT_COLUMNS = (
    C("start_ns", "time", "ns", "when the piece began"),
    C("wait_ns", "span", "ns", "how long it lasted"),
    C("acquisition_ns", "time", "ns", "start_ns of its row in df_acquisitions (with tid and address)"),
    C("lock", "category", "–", "name and instance of the lock"),
    C("address", "word", "address", "of the lock word"),
    *_WHO,
    C("operation", "category", "–", "what the waiter wanted to do; its name where that is not known"),
    C("holder_tid", "int", "thread id", "who held the lock (inferred from its wake); 0: not known"),
    C("holder", "category", "–", "that thread's name"),
    C("holder_operation", "category", "–", "what the holder was doing; its name where that is not known"),
    C("holder_syscall", "category", "–", "the holder's longest syscall meanwhile; empty where none was seen"),
)

_ACQUISITION_COLUMNS = (
    C("start_ns", "time", "ns", "begin of the first wait"),
    C("wait_ns", "span", "ns", "to the return of the last wait"),
    C("lock", "category", "–", "name and instance of the lock"),
    C("address", "word", "address", "of the lock word"),
    C("lock_kind", "category", "–", "mutex (Rust std) or pthread"),
    *_WHO,
    C("operation", "category", "–", "what the waiter wanted to do; its name where that is not known"),
    C("waits", "int", "waits", "futex waits in it"),
    C("barged", "int", "waits", "woken, and found the lock taken again"),
    C("hold_ns", "span", "ns", "from the last wait's return to the release; NaT: the release was not seen"),
    C("relock", "bool", "yes/no", "the re-lock at the end of a condvar wait"),
)

_PERIOD_COLUMNS = (
    C("stream", "category", "id", "of the stream, as in df_streams"),
    C("cycle", "int", "–", "number of the cycle within its driver"),
    C("driver", "category", "id", "of the driver"),
    C("nominal_ns", "time", "ns", "N_k: when the cycle should have started"),
    C("start_ns", "time", "ns", "S_k: when it started"),
    C("signal_ns", "time", "ns", "the driver had signalled the stream"),
    C("read_ns", "time", "ns", "W had read the signal"),
    C("write_ns", "time", "ns", "the completion was written"),
    C("closing_ns", "time", "ns", "the driver had read the completion"),
    C("deadline_ns", "time", "ns", "S_{k+1}: the next cycle's start"),
    C("slack_ns", "span", "ns", "deadline minus closing; negative: late; NaT: never closed"),
    C("missed", "bool", "yes/no", "missed, and counted on this stream"),
    C("leg", "category", "–", "of a miss: wake, completion or none"),
    C("reader_tid", "maybe", "thread id", "who read the signal"),
    C("writer_tid", "maybe", "thread id", "who wrote the completion; <NA>: nobody that is traced"),
)

_MISS_COLUMNS = (
    C("id", "int", "–", "names it in `carried_from` and df_segments"),
    C("episode", "int", "id", "it belongs to"),
    C("stream", "category", "id", "of the stream"),
    C("cycle", "int", "–", "number of the cycle within its driver"),
    C("leg", "category", "–", "wake, completion or none"),
    C("start_ns", "time", "ns", "when the window began: the cycle's nominal start"),
    C("deadline_ns", "time", "ns", "when the next cycle began"),
    C("late_ns", "span", "ns", "closing read minus deadline; NaT: never closed within 2 s"),
    C("cause", "category", "–", "the label; `sufficient` is the verdict"),
    C("lock", "category", "–", "the lock, where one is the cause or was waited for long"),
    C("via", "category", "–", "serialised, head_of_line or not_rearmed: for whose work the time went"),
    C("detail", "text", "–", "the verdict in one sentence"),
    C("carried_from", "maybe", "id", "of its origin, if it was carried over"),
    C(
        "sufficient",
        "texts",
        "causes",
        'each, taken away alone, puts the cycle on time: "kind" or "kind:object"',
    ),
    C("jointly", "texts", "causes", "where none suffices alone: the smallest set that does"),
    C("chain", "texts", "–", "the chain of locks, the waiter first"),
    C("went_first", "text", "events", "what W served before, e.g. channel 12"),
    C("kick", "category", "–", "exact, inferred or none: how the guest's kick is known"),
    C("audible", "category", "–", "yes, no or unknown"),
    C("evidence", "category", "–", "complete, or degraded where records are missing"),
    C("todo", "text", "–", "the one thing to do"),
    C(
        "candidates",
        "texts",
        "ids",
        "streams that share the completion, any of which may have been late; [] if known",
    ),
)

_SEGMENT_COLUMNS = (
    C("miss", "int", "id", "of the miss in df_misses"),
    C("n", "int", "–", "counts the segments of a miss from 0"),
    C("start_ns", "time", "ns", "when it began"),
    C("ns", "span", "ns", "its length; a miss's segments sum to its window"),
    C(
        "kind",
        "category",
        "–",
        "lock, not_scheduled, stolen, slow_syscall, on_cpu, blocked, guest, host, carried, unknown",
    ),
    C("via", "category", "–", "serialised, head_of_line, not_rearmed or empty"),
    C("tid", "int", "thread id", "the responsible thread; 0: one not seen"),
    C("comm", "category", "–", "that thread's name"),
    C("object", "category", "–", "the lock, syscall or thread concerned"),
    C("detail", "text", "–", "more about it"),
)

_THREAD_COLUMNS = (
    C("tid", "int", "thread id", "the thread"),
    C("tgid", "int", "process id", "its process"),
    C(
        "role",
        "category",
        "–",
        "G (gpu worker), W (cross domain), D (the audio server's data loop), vcpu, fence, task or empty",
    ),
    C("comm", "text", "–", "its name"),
    C("policy", "category", "–", "scheduling policy: OTHER, FIFO, RR, BATCH, IDLE, DEADLINE"),
    C("priority", "int", "–", "real-time priority for FIFO and RR, else the nice value"),
    C("cpus", "text", "list", "CPUs it may run on"),
    C("throttled_ns", "span", "ns", "time its cgroup was throttled; NaT: not known"),
    C("role_by", "category", "–", "what gave the role away: behaviour or name"),
)

_BLAME_COLUMNS = (
    C("lock", "category", "–", "its name"),
    C("holder_operation", "category", "–", "what the holder did"),
    C("holder_syscall", "category", "–", "in which syscall, on what"),
    C("victim_operation", "category", "–", "what the waiter wanted to do"),
    C("wait_ns_total", "span", "ns", "waited in all"),
    C("wait_ns_max", "span", "ns", "the longest wait"),
    C("waits", "int", "waits", "counted"),
    C("misses", "int", "misses", "that these waits caused"),
)

_HELD_COLUMNS = (
    C("lock", "category", "–", "its name"),
    C("tid", "int", "thread id", "who entered the syscall"),
    C("role", "category", "–", "that thread's"),
    C("syscall", "category", "–", "entered"),
    C("object", "category", "–", "what it was about"),
    C("samples", "int", "syscalls", "looked at"),
    C(
        "held_fraction",
        "float",
        "0 to 1",
        "in how many of them the word was held: its state, not the thread's",
    ),
    C("base", "float", "0 to 1", "the same over threads that never wait on it; NaN: there was none"),
    C("inside", "bool", "yes/no", "whether the syscall runs under the lock, by that evidence"),
)

_STREAM_COLUMNS = (
    C("id", "text", "–", "names the stream elsewhere"),
    C("name", "text", "–", "for people"),
    C("tgid", "int", "process id", "the VMM"),
    C("context", "int", "thread id", "of the context's W"),
    C("driver", "category", "id", "of its driver; NaN: the driver cannot be seen"),
    C("wake_eventfd", "int", "eventfd-id", "that the audio server signals every cycle"),
    C("completion_eventfd", "maybe", "eventfd-id", "that is signalled back"),
    C("period_ns", "span", "ns", "of its cycles"),
    C("source", "category", "–", "exact (the audio server was seen) or inferred"),
    C("confidence", "float", "0 to 1", "in an inferred period"),
    C("cycles", "int", "cycles", "watched"),
    C("misses", "int", "cycles", "missed, the carried ones included"),
    C("carried", "int", "cycles", "missed because an earlier miss had not ended"),
    C("episodes", "int", "episodes", "runs of misses from nothing pending to nothing pending"),
    C("slack_p50_ns", "span", "ns", "median slack", "slack_ns.p50"),
    C("slack_p1_ns", "span", "ns", "1st percentile of the slack", "slack_ns.p1"),
    C("slack_min_ns", "span", "ns", "the least slack seen", "slack_ns.min"),
    C("alive", "bool", "yes/no", "false once it has ended"),
)

_LOCK_COLUMNS = (
    C("name", "text", "–", "item_state, jobs …, or lock@ADDRESS, parked@ADDRESS"),
    C("instance", "text", "–", "which one of that name"),
    C("address", "word", "address", "of the lock word"),
    C("tgid", "int", "process id", "its process"),
    C("named_by", "category", "–", "symbols, behaviour, user or none"),
    C("kind", "category", "–", "mutex (Rust std), pthread, condvar_relock, parked, other"),
    C("contended", "int", "acquisitions", "that had to wait; says nothing about harm"),
    C("barged", "int", "waits", "woken, and found the lock taken again"),
    C("wait_p50_ns", "span", "ns", "median wait", "wait_ns.p50"),
    C("wait_p99_ns", "span", "ns", "99th percentile of the waits", "wait_ns.p99"),
    C("wait_max_ns", "span", "ns", "the longest wait", "wait_ns.max"),
    C("wait_total_ns", "span", "ns", "waited in all", "wait_ns.total"),
    C("hold_p50_ns", "span", "ns", "median hold, where seen", "hold_ns.p50"),
    C("hold_p99_ns", "span", "ns", "99th percentile of the holds", "hold_ns.p99"),
    C("misses_caused", "int", "misses", "with this lock as a sufficient cause"),
    C("top_waiter", "text", "–", "who waited most often"),
    C("top_holder", "text", "–", "who held it meanwhile"),
)

_EPISODE_COLUMNS = (
    C("id", "int", "–", "names it in df_misses"),
    C("start_ns", "time", "ns", "when its first cycle began"),
    C("end_ns", "time", "ns", "when nothing was pending any more; NaT: not yet"),
    C("streams", "texts", "ids", "concerned"),
    C("misses", "int", "cycles", "missed in it"),
    C("cause", "category", "–", "of its origin"),
    C("culprit", "text", "–", "who or what"),
)

_REMEDY_COLUMNS = (
    C("remedy", "text", "–", "item_state, dup, refcount, task, fair, own_context, realtime, no_steal"),
    C("avoided", "int", "misses", "that would have been on time"),
    C("of", "int", "misses", "judged"),
    C("episodes_avoided", "int", "episodes", "that would not have been"),
    C("episodes_of", "int", "episodes", "judged"),
)

TABLES: Final[Mapping[str, Table]] = {
    table.name: table
    for table in (
        Table("records", "what the probes wrote, as they wrote it", _RECORD_COLUMNS),
        Table(
            "waits",
            "waits for locks, cut by who held the lock: one piece per holder. What lies between the last "
            "holder's wake and the waiter's return is left out where there was one",
            _WAIT_COLUMNS,
        ),
        Table(
            "acquisitions", "contended acquisitions: all waits of a thread for one lock", _ACQUISITION_COLUMNS
        ),
        Table("periods", "audio cycles, each of each stream, in order of their deadlines", _PERIOD_COLUMNS),
        Table("misses", "missed cycles with their verdicts, the newest 20,000", _MISS_COLUMNS),
        Table("segments", "pieces of the misses' windows", _SEGMENT_COLUMNS),
        Table("threads", "threads of the traced processes", _THREAD_COLUMNS),
        Table("blame", "what holders did while others waited, the first 50", _BLAME_COLUMNS),
        Table("held", "how often a lock's word was held when a syscall began, the first 100", _HELD_COLUMNS),
        Table("streams", "audio streams", _STREAM_COLUMNS),
        Table("locks", "locks that were waited for, the first 50 by harm", _LOCK_COLUMNS),
        Table("episodes", "runs of misses, as a listener would count them", _EPISODE_COLUMNS),
        Table("remedies", "what each remedy alone would have avoided, by replay", _REMEDY_COLUMNS),
    )
}
