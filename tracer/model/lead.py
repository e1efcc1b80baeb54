# SPDX-License-Identifier: Apache-2.0
"""What a report leads with: what each remedy alone would have avoided, in one sentence.

Owns how remedies are called and that sentence. Counts nothing: remedies.py does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tracer.model.summary import REMEDIES, Remedy

#: How a remedy reads after "would have avoided".
REMEDY_TEXT: Final = {
    "item_state": "no waits on item_state",
    "dup": "write path dup",
    "refcount": "write path refcount",
    "task": "write path task",
    "fair": "a fair worker",
    "own_context": "a context of its own",
    "realtime": "real-time for W, G and the vCPUs",
    "no_steal": "no stolen CPU",
}


def ranked(table: Mapping[str, Remedy]) -> list[str]:
    """The remedies of a table, the one that avoids most episodes (then misses) first."""
    known = [name for name in REMEDIES if name in table]
    return sorted(known, key=lambda name: (-table[name].episodes_avoided, -table[name].avoided))


def lead(table: Mapping[str, Remedy], *, newest: bool = False) -> str:
    """The sentence; "" where no episode was judged.

    Args:
        newest: earlier episodes are no longer kept, and not in the table.
    """
    names = ranked(table)
    of = max((table[name].episodes_of for name in names), default=0)
    if not of:
        return ""
    helps = [n for n in names if table[n].episodes_avoided]
    none = _list([REMEDY_TEXT[n] for n in names if not table[n].episodes_avoided])
    if of == 1:
        if not helps:
            return f"None of these alone would have avoided the one episode: {none}."
        some = _list([REMEDY_TEXT[n] for n in helps])
        return f"Each of these alone would have avoided the one episode: {some}" + (
            f"; not: {none}." if none else "."
        )
    which = "last " if newest else ""
    if not helps:
        return f"None of these alone would have avoided any of the {which}{of} episodes: {none}."
    counted = ", ".join(f"{REMEDY_TEXT[n]} {table[n].episodes_avoided}" for n in helps)
    text = f"Each of these alone would have avoided so many of the {which}{of} episodes: {counted}"
    return text + (f"; none: {none}." if none else ".")


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else "" if not words else f"{', '.join(words[:-1])} and {words[-1]}"
