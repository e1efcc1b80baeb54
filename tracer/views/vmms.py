# SPDX-License-Identifier: Apache-2.0
"""The tables of ``list`` and ``doctor``.

Owns their columns. Takes rows by their shape, so that it need not import capture/.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from rich.text import Text

from tracer.views.fmt import BAD, DIM, GOOD, clean, count, plural, wrap
from tracer.views.grid import Block, Column, table


class VmmRow(Protocol):
    """A VMM as tracer.capture.servers.Vmm describes it."""

    @property
    def tgid(self) -> int: ...
    @property
    def comm(self) -> str: ...
    @property
    def exe(self) -> str: ...
    @property
    def vcpus(self) -> int: ...
    @property
    def contexts(self) -> int: ...
    @property
    def why(self) -> tuple[str, ...]: ...
    @property
    def audio(self) -> tuple[int, ...]: ...
    @property
    def streams(self) -> Sequence[object]: ...


class CheckRow(Protocol):
    """A check as tracer.capture.doctor.Check describes it."""

    @property
    def name(self) -> str: ...
    @property
    def ok(self) -> bool: ...
    @property
    def what(self) -> str: ...
    @property
    def fix(self) -> str: ...


def render_vmms(rows: Sequence[VmmRow]) -> Block:
    """One row per VMM; those with audio first."""
    columns: list[Column[VmmRow]] = [
        Column("pid", lambda v: str(v.tgid), right=True),
        Column("name", lambda v: clean(v.comm), least=8, most=24),
        Column("streams", lambda v: count(len(v.streams)), right=True),
        Column("audio server", lambda v: ", ".join(map(str, v.audio)) or "none found", 1, least=10),
        Column("contexts", lambda v: count(v.contexts), 2, right=True),
        Column("vcpus", lambda v: count(v.vcpus), 3, right=True),
        Column("seen by", lambda v: (", ".join(v.why), DIM), 5, least=6),
        Column("program", lambda v: (clean(v.exe), DIM), 4, least=12, most=48),
    ]
    ordered = sorted(rows, key=lambda v: (-len(v.streams), v.tgid))
    hidden = "" if os.geteuid() == 0 else "; run it with sudo to see other users' processes"
    empty = f"none found on this host{hidden}. Any process can be traced: xdtrace attach PID"

    def build(width: int, height: int | None) -> list[Text]:
        lines = table("VMMs", "", columns, ordered, width, height, empty=empty)
        if rows and hidden:
            lines.append(Text(f"maybe not all{hidden}", DIM))
        return lines

    return Block(build)


def render_checks(rows: Sequence[CheckRow]) -> Block:
    """One line per check; what is missing comes with its fix."""

    def build(width: int, height: int | None) -> list[Text]:
        lines: list[Text] = []
        for row in rows:
            parts = wrap(f"{clean(row.name)}: {clean(row.what)}", width - 9)
            for i, part in enumerate(parts):
                line = Text(no_wrap=True)
                line.append(
                    ("ok       " if row.ok else "MISSING  ") if i == 0 else " " * 9, GOOD if row.ok else BAD
                )
                line.append(part)
                lines.append(line)
            if not row.ok and row.fix:
                lines.extend(
                    Text(" " * 9 + part, no_wrap=True) for part in wrap(f"→ {clean(row.fix)}", width - 9)
                )
        bad = sum(not row.ok for row in rows)
        lines.append(Text(f"{plural(bad, 'check')} failed" if bad else "all is there", BAD if bad else GOOD))
        return lines

    return Block(build)
