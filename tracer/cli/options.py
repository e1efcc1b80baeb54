# SPDX-License-Identifier: Apache-2.0

"""What the commands' options mean: parsing, and one definition of each shared option.

Owns the texts of ``--help`` for shared options. Opens nothing but what the user named.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tracer.errors import UsageError

Pids = Annotated[
    list[int] | None, typer.Argument(metavar="PID", help="VMM processes to trace.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="Trace all VMMs that `xdtrace list` finds.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Record into this trace folder too.")
]
Duration = Annotated[
    float | None, typer.Option("--duration", metavar="S", help="End by itself after so many seconds.")
]
Period = Annotated[
    str | None,
    typer.Option("--period", metavar="Q/RATE", help="Audio period, e.g. 256/48000, instead of what is seen."),
]
ProfileFile = Annotated[
    str | None, typer.Option("--profile", metavar="FILE", help="What is known of the VMM (TOML), or a name.")
]
Locks = Annotated[
    list[str] | None,
    typer.Option(
        "--lock", metavar="NAME=0xADDR", help="Name a lock word; NAME=0xADDR@PID with several targets."
    ),
]
Audio = Annotated[
    int | None, typer.Option("--audio", metavar="PID", help="The audio server, instead of the one found.")
]
NoAudio = Annotated[bool, typer.Option("--no-audio", help="Do not look for, nor trace, the audio server.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object per line: snapshots, and a last summary.")
]
HeldWords = Annotated[
    int, typer.Option("--held-words", metavar="N", help="Lock words watched at each syscall (0 to 16).")
]
Refresh = Annotated[
    float | None,
    typer.Option(
        "--refresh", metavar="S", help="Seconds between two refreshes; up to 2 where it costs much."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing trace folder.")]

#: Sample rates beyond these are typing errors, not audio (Hz).
_RATES = range(8_000, 768_001)
_QUANTA = range(16, 65_537)


def parse_period(text: str | None) -> tuple[int, int] | None:
    """``256/48000`` -> (quantum in frames, rate in Hz). Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
    quantum, rate = (int(part) for part in match.groups()) if match else (0, 0)
    if quantum not in _QUANTA or quantum & (quantum - 1) or rate not in _RATES:
        raise UsageError(
            f"--period {text!r} is no audio period",
            "give quantum/rate with a quantum that is a power of two, such as 256/48000 or 1024/44100",
        )
    return quantum, rate


def parse_locks(
    texts: list[str] | None, tgids: tuple[int, ...]
) -> tuple[int | None, tuple[tuple[str, int], ...]]:
    """``NAME=0xADDR`` or ``NAME=0xADDR@PID`` -> whose lock words they are, and (name, address) of each.

    Raises:
        UsageError: not of that form, no futex word, or not all in one of the targets.
    """
    found = []
    owners = set()
    for text in texts or ():
        match = re.fullmatch(r"([^=]+)=(0x[0-9a-fA-F]{1,16})(?:@(\d{1,9}))?", text, re.ASCII)
        if match is None:
            raise UsageError(
                f"--lock {text!r} names no lock word", "give NAME=0xADDR, such as item_state=0x7f12a0b0c4d8"
            )
        name, address, pid = match[1], int(match[2], 16), match[3]
        if address == 0 or address % 4:
            raise UsageError(f"--lock {text!r}: a lock word lies at a multiple of 4", "check the address")
        if pid is None and len(tgids) != 1:
            raise UsageError(
                f"--lock {text!r} does not say in which process",
                f"write {name}={address:#x}@PID with a target's PID",
            )
        owners.add(tgids[0] if pid is None else int(pid))
        found.append((name, address))
    if not owners <= set(tgids):
        raise UsageError(
            "--lock names a process that is no target", f"use one of {', '.join(map(str, tgids))}"
        )
    if len(owners) > 1:
        raise UsageError("--lock names words of several processes", "name those of one process only")
    return next(iter(owners), None), tuple(found)


def check_seconds(name: str, value: float | None, least: float = 0.0) -> None:
    """Refuse nan, infinity and times that are no times. Raises UsageError."""
    if value is not None and not (least < value < 1e9):
        raise UsageError(f"{name} {value:g} is no time", f"give seconds, more than {least:g}")


def check_pids(pids: list[int]) -> tuple[int, ...]:
    """The PIDs, each once, in order. Raises UsageError."""
    for pid in pids:
        if pid <= 0:
            raise UsageError(
                f"{pid} is no process id", "give the PID of a VMM; `xdtrace list` shows those found"
            )
    return tuple(dict.fromkeys(pids))
