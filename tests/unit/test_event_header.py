# SPDX-License-Identifier: Apache-2.0
"""probes/event.h, as a compiler sees it, is what tracer/schema says."""

from __future__ import annotations

import enum
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tracer import schema

HEADER = Path(__file__).resolve().parents[2] / "probes" / "event.h"
STRUCTS = {
    "xd_rw": schema.RW,
    "xd_futex": schema.FUTEX,
    "xd_fd": schema.FD,
    "xd_timer": schema.TIMER,
    "xd_epoll_ctl": schema.EPOLL_CTL,
    "xd_epoll_wait": schema.EPOLL_WAIT,
    "xd_msg": schema.MSG,
    "xd_msg_more": schema.MSG_MORE,
    "xd_syscall": schema.SYSCALL,
    "xd_offcpu": schema.OFFCPU,
    "xd_life": schema.LIFE,
    "xd_words": schema.WORDS,
    "xd_loss": schema.LOSS,
}
ENUMS: dict[str, tuple[str, type[enum.IntEnum] | type[enum.IntFlag]]] = {
    "xd_kind": ("XD_", schema.Kind),
    "xd_flag": ("XD_F_", schema.Flag),
    "xd_life_op": ("XD_LIFE_", schema.Life),
    "xd_loss_class": ("XD_LOSS_", schema.LossClass),
}
HEAD = ("kind", "flags", "op", "tid", "enter_ns", "dur_ns")
MASKS = ("held_in", "readable_in", "held_out", "readable_out")


def member(struct: str, name: str) -> str:
    """A column of the dtype as a member of the struct."""
    if name in HEAD:
        return f"head.{name}"
    if name == "timer_flags":
        return "flags"
    masked = struct in ("xd_rw", "xd_futex", "xd_fd", "xd_epoll_wait", "xd_msg")
    return f"masks.{name}" if masked and name in MASKS else name


def enumerators() -> dict[str, list[str]]:
    """All enumerators that the header has, by enum: one that it lacks is found, too."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    bodies = re.findall(r"enum (\w+) \{(.*?)\}", text, re.DOTALL)
    return {name: re.findall(r"(\w+)\s*=", body) for name, body in bodies}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Sizes, offsets and enumerators, printed by a program that includes the header."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    wanted = [
        "XD_RECORD_BYTES",
        "XD_RING_HEADER_BYTES",
        *(n for names in enumerators().values() for n in names),
    ]
    for struct, family in STRUCTS.items():
        wanted.append(f"sizeof(struct {struct})")
        for name in family.names or ():
            field = member(struct, name)
            wanted.append(f"offsetof(struct {struct}, {field})")
            wanted.append(f"sizeof(((struct {struct} *)0)->{field})")
    lines = "\n".join(f'printf("%lld\\n", (long long)({expression}));' for expression in wanted)
    folder = tmp_path_factory.mktemp("header")
    source = folder / "header.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\nint main(void){{{lines}}}'
    )
    program = folder / "header"
    subprocess.run([compiler, "-Wall", "-Werror", "-o", str(program), str(source)], check=True)
    values = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(wanted, map(int, values), strict=True))


def test_sizes(header: dict[str, int]) -> None:
    assert header["XD_RECORD_BYTES"] == schema.RECORD_BYTES
    assert header["XD_RING_HEADER_BYTES"] == schema.RING_HEADER_BYTES
    assert (schema.RECORD_BYTES + schema.RING_HEADER_BYTES) & (schema.RECORD_BYTES + 7) == 0


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_column_lies_where_the_compiler_puts_it(header: dict[str, int], struct: str) -> None:
    family = STRUCTS[struct]
    assert header[f"sizeof(struct {struct})"] == family.itemsize
    assert family.fields
    for name in family.names or ():
        dtype, offset = family.fields[name][:2]
        field = member(struct, name)
        assert header[f"offsetof(struct {struct}, {field})"] == offset, name
        assert header[f"sizeof(((struct {struct} *)0)->{field})"] == np.dtype(dtype).itemsize, name


def test_every_struct_of_a_kind_is_compared() -> None:
    assert {id(family) for family in STRUCTS.values()} == {id(family) for family in schema.FAMILY.values()}
    assert set(schema.FAMILY) == set(schema.Kind)


@pytest.mark.parametrize("name", ENUMS)
def test_enums_are_equal(header: dict[str, int], name: str) -> None:
    prefix, python = ENUMS[name]
    c_side = {constant.removeprefix(prefix): header[constant] for constant in enumerators()[name]}
    assert c_side == {item.name: int(item) for item in python}
