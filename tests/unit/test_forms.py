# SPDX-License-Identifier: Apache-2.0
"""Which forms of the probes a kernel is offered, by what its BTF has."""

from __future__ import annotations

from tracer.capture.btf import Offsets
from tracer.capture.forms import TRACEPOINTS, forms

TYPED = {f"btf_trace_{tracepoint}": 100 + at for at, (tracepoint, _) in enumerate(TRACEPOINTS)}
STRUCTS = {"list_head": 1, "file": 2, "eventfd_ctx": 3}


def names(types: dict[str, int], name: str = "", have_task: bool = True) -> list[str]:
    return [form.name for form in forms(Offsets(have_task=have_task, types=types), name)]


def test_the_cheapest_comes_first_and_the_one_that_needs_nothing_last() -> None:
    assert names({}) == ["plain"]
    assert names(TYPED) == ["direct", "plain"]
    assert names(TYPED | STRUCTS) == ["direct", "plain"]
    assert names(TYPED | {"bpf_rdonly_cast": 9}) == ["direct", "plain"]
    assert names(TYPED | STRUCTS | {"bpf_rdonly_cast": 9}) == ["cast", "direct", "plain"]


def test_without_a_tracepoint_s_type_or_a_task_s_layout_nothing_is_typed() -> None:
    every = TYPED | STRUCTS | {"bpf_rdonly_cast": 9}
    assert names(every, have_task=False) == ["plain"]
    for missing in TYPED:
        assert names({name: number for name, number in every.items() if name != missing}) == ["plain"]


def test_one_form_can_be_asked_for_and_is_what_is_tried() -> None:
    every = TYPED | STRUCTS | {"bpf_rdonly_cast": 9}
    for name in ("cast", "direct", "plain"):
        assert names(every, name) == [name]
    assert names({}, "cast") == ["plain"]
