# SPDX-License-Identifier: Apache-2.0
"""The forms in which the probes can be loaded, the cheapest first.

Owns which tracepoints are attached to and what a form needs of the kernel's
BTF. Facts are the same in each; what differs is what they cost (probes/
memory.bpf.c). Never loads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.capture.btf import Offsets

# In the order of attaching: exits before entries, so that no depth or span is left open by half.
TRACEPOINTS = (
    ("hrtimer_expire_exit", "xd_hrtimer_exit"),
    ("softirq_exit", "xd_softirq_exit"),
    ("irq_handler_exit", "xd_hardirq_exit"),
    ("hrtimer_expire_entry", "xd_hrtimer_enter"),
    ("softirq_entry", "xd_softirq_enter"),
    ("irq_handler_entry", "xd_hardirq_enter"),
    ("sched_process_exit", "xd_process_exit"),
    ("sched_process_exec", "xd_process_exec"),
    ("task_newtask", "xd_task_newtask"),
    ("task_rename", "xd_task_rename"),
    ("sched_waking", "xd_sched_waking"),
    ("sched_wakeup", "xd_sched_wakeup"),
    ("sched_switch", "xd_sched_switch"),
    ("sys_exit", "xd_sys_exit"),
    ("sys_enter", "xd_sys_enter"),
)
_MARK_CAST = 0x786401  # config.h: XD_MARK_CAST
_STRUCTS = {"XD_BTF_LIST_HEAD": "list_head", "XD_BTF_FILE": "file", "XD_BTF_EVENTFD_CTX": "eventfd_ctx"}


@dataclass(frozen=True, slots=True)
class Form:
    """One way to load the probes.

    Attributes:
        name: cast (Linux 6.2: every kernel pointer is followed by a load), direct (5.11: those whose type
            BTF tells), plain (by a helper call each).
        macros: what it is compiled with, beside what all forms are.
        marks: mark in the instructions -> BTF id in its place.
        btf_ids: tracepoint -> id of its type, empty: attached by name.
    """

    name: str
    macros: Mapping[str, int] = field(default_factory=dict)
    marks: Mapping[int, int] = field(default_factory=dict)
    btf_ids: Mapping[str, int] = field(default_factory=dict)


def forms(offsets: Offsets, name: str = "") -> tuple[Form, ...]:
    """What to try on this kernel, in this order; the last one needs nothing.

    Args:
        name: only the form of this name, where this kernel's BTF allows it.
    """
    ids = offsets.types
    typed = {tracepoint: ids.get(f"btf_trace_{tracepoint}", 0) for tracepoint, _ in TRACEPOINTS}
    found = [Form("plain")]
    if offsets.have_task and all(typed.values()):
        found.insert(0, Form("direct", {"XD_DIRECT": 1}, {}, typed))
        if "bpf_rdonly_cast" in ids and all(struct in ids for struct in _STRUCTS.values()):
            macros = {"XD_DIRECT": 1, "XD_HAVE_CAST": 1} | {macro: ids[of] for macro, of in _STRUCTS.items()}
            found.insert(0, Form("cast", macros, {_MARK_CAST: ids["bpf_rdonly_cast"]}, typed))
    return tuple(form for form in found if name in ("", form.name)) or (found[-1],)
