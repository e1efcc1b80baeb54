# SPDX-License-Identifier: Apache-2.0
"""Demangled names as rules compare them: without generics, closures and arguments.

Owns that one reduction. It is linear in the name's length (names are cut by symbols/).
"""

from __future__ import annotations

import re

_STD_CRATES = ("std", "core", "alloc")


def plain_path(function: str) -> str:
    """A demangled Rust name without generics, impl brackets, closures and C++ arguments.

    ``<a::B<C> as d::E>::f::<G>::{closure#0}`` becomes ``a::B::f``.
    """
    name = re.sub(r"\{[^{}]*\}", "", function)
    subject = ""
    block = name.find("<impl ")
    if block > 0:  # legacy mangling of an impl outside its type's module: a::<impl b::C>::d
        end = closing(name, block)
        subject, name = _self_type(name[block + 6 : end].rsplit(" for ", 1)[-1]), name[end + 1 :]
    elif name.startswith("<"):
        end = closing(name, 0)
        subject, name = _self_type(name[1:end]), name[end + 1 :]
    else:
        name = name.split("(", 1)[0]
    segments = [part for part in (subject + _drop_generics(name)).split("::") if part]
    return "::".join(segments)


def _self_type(inner: str) -> str:
    depth = 0
    for index, letter in enumerate(inner):
        depth += (letter == "<") - (letter == ">" and inner[index - 1 : index] != "-")
        if depth == 0 and inner.startswith(" as ", index):
            inner = inner[:index]
            break
    return plain_path(inner.lstrip("&*").removeprefix("mut ").removeprefix("dyn "))


def closing(text: str, start: int) -> int:
    """The index of the ``>`` that closes the ``<`` at ``start``; the text's length where none does."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "<":
            depth += 1
        elif text[index] == ">" and text[index - 1 : index] != "-":
            depth -= 1
            if depth == 0:
                return index
    return len(text)


def _drop_generics(name: str) -> str:
    kept: list[str] = []
    depth = 0
    for index, letter in enumerate(name):
        if letter == "<":
            depth += 1
        elif letter == ">" and name[index - 1 : index] != "-":
            depth = max(0, depth - 1)
        elif depth == 0:
            kept.append(letter)
    return "".join(kept)


def is_std(path: str) -> bool:
    """A plain path of Rust's own libraries."""
    return path.split("::", 1)[0] in _STD_CRATES
