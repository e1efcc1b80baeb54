# SPDX-License-Identifier: Apache-2.0
"""What documents and comments point at is there: files, commands and their options."""

from __future__ import annotations

import ast
import functools
import io
import os
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.core

from tracer.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
#: Folders that are made, not written, or hold what others wrote.
MADE = {
    ".git",
    ".venv",
    ".dev",
    "target",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "dist",
}
FILE = re.compile(
    r"(?<![\w./{}*<>$-])((?:[\w.-]+/)*[\w-]+\.(?:bpf\.c|py|rs|c|h|md|toml|sh|ipynb))(?![\w/*-])"
)
#: Files of others that comments give as their source, and names that stand for a reader's own.
ELSEWHERE = re.compile(
    r"(?:fs|kernel|include|uapi|bits|bcc|DIR)/|krun-rutabaga-gfx-|rutabaga_gfx-|my_gfx-|(?:mine\.toml|sched\.h)$"
)
CODE = re.compile(r"```.*?\n(.*?)```|`([^`\n]+)`", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def sources(*suffixes: str) -> list[Path]:
    """The project's own files with these endings, sorted."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in MADE]
        found += [Path(folder, name) for name in names if name.endswith(suffixes)]
    return sorted(found)


def said(path: Path) -> str:
    """What a file says to its reader: all of a document, comments and docstrings of a program."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    words = [
        t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT
    ]
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    words += [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, nodes)]
    return "\n".join(words)


def test_every_file_that_is_named_is_there() -> None:
    parts = [path.relative_to(ROOT).parts for path in sources("")]
    known = {"/".join(names[i:]) for names in parts for i in range(len(names))}
    dead = []
    for path in sources(".md", ".py", ".c", ".h", ".sh"):
        unknown = {
            name
            for name in FILE.findall(path.read_text(encoding="utf-8"))
            if not ELSEWHERE.match(name) and name.removeprefix("./") not in known
        }
        if unknown:  # seldom, and to tell comments from code takes long
            dead += [
                f"{path.relative_to(ROOT)}: {name}" for name in unknown.intersection(FILE.findall(said(path)))
            ]
    assert not dead, "\n".join(dead)


@functools.cache
def options() -> dict[str, set[str]]:
    """Option names by command of xdtrace."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {
        name: {option for part in command.params for option in (*part.opts, *part.secondary_opts)}
        for name, command in group.commands.items()
    }


def calls(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """(program, command, options) of each line of code that calls xdtrace or ./dev."""
    for block, span in CODE.findall(text):
        for line in (block or span).replace("\\\n", " ").splitlines():
            for call in re.findall(r"(?:\bxdtrace|\./dev) [^|;&\n]*", line.partition("# ")[0]):
                words = call.split()
                yield words[0], words[1], OPTION.findall(call)


@pytest.mark.parametrize("path", sources(".md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_option_that_is_named_is_there(path: Path) -> None:
    known, dead = options(), []
    of_dev = set(re.findall(r"^do_(\w+)\(\)", (ROOT / "dev").read_text(encoding="utf-8"), re.MULTILINE))
    for program, command, given in calls(path.read_text(encoding="utf-8")):
        if not re.fullmatch("[a-z]+", command):
            continue
        of_xdtrace = program == "xdtrace" or command == "demo"
        if command not in (known if of_xdtrace else of_dev | {"help"}):
            dead.append(f"{program} {command}")
            continue
        if not of_xdtrace:
            continue
        dead += [
            f"{program} {command} {option}" for option in given if option not in known[command] | {"--help"}
        ]
    assert not dead, "\n".join(dead)
