# SPDX-License-Identifier: Apache-2.0
"""Reads profiles from TOML, and says by file, line and key what is wrong in one.

Owns the format (docs/profiles.md). Decides nothing about targets.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from tracer.errors import UsageError
from tracer.profile.rules import GENERIC, ROLES, WRITE_PATHS, Function, Line, Lock, Match, Profile, Version
from tracer.resources import profiles_dir

#: A profile larger than this is refused, bytes.
MAX_PROFILE_BYTES = 1 << 20
#: A profile may extend another, which may extend another, so many times.
MAX_EXTENDS = 8

_KEYS: Mapping[str, frozenset[str]] = {
    "": frozenset(
        {"name", "description", "extends", "wrappers", "match", "thread", "lock", "function", "version"}
    ),
    "match": frozenset({"crates", "exes", "comms", "threads"}),
    "thread": frozenset({"name", "role"}),
    "lock": frozenset({"name", "aliases", "types"}),
    "function": frozenset({"name", "operation", "locks", "lines"}),
    "lines": frozenset({"file", "line", "lock"}),
    "version": frozenset({"crate", "versions", "write_path"}),
}


def default_profiles() -> tuple[Profile, ...]:
    """The profiles that come with xdtrace, by file name."""
    return tuple(load(path) for path in sorted(profiles_dir().glob("*.toml")))


def load(name_or_path: str | Path) -> Profile:
    """Read a profile: one that comes with xdtrace, by name, or a file (ends in .toml, or has a slash).

    Raises:
        UsageError: it does not exist or is wrong; the message has file, line and key.
    """
    return _load(_path(name_or_path), 0)


def _path(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(".toml"):
        return Path(text)
    return profiles_dir() / f"{text}.toml"


def _load(path: Path, depth: int) -> Profile:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        known = ", ".join(sorted(entry.stem for entry in profiles_dir().glob("*.toml")))
        raise UsageError(
            f"cannot read the profile {path}: {error.strerror}", f"give a file, or one of: {known}"
        ) from error
    if len(data) > MAX_PROFILE_BYTES:
        raise UsageError(
            f"{path}: larger than {MAX_PROFILE_BYTES} bytes", "give a profile, see docs/profiles.md"
        )
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path}: not TOML: {error}", "correct that line; docs/profiles.md has the format"
        ) from error
    return _Reader(path, text, depth).profile(document)


class _Reader:
    """Checks one document and says where it is wrong."""

    def __init__(self, path: Path, text: str, depth: int) -> None:
        self._path = path
        self._lines = text.splitlines()
        self._depth = depth

    def profile(self, document: dict[str, Any]) -> Profile:
        self._known(document, "", 0)
        base = GENERIC
        if "extends" in document:
            if self._depth >= MAX_EXTENDS:
                self._fail("", 0, "extends", f"more than {MAX_EXTENDS} profiles extend each other")
            named = self._string(document, "", 0, "extends")
            own = self._path.parent / f"{named}.toml"
            base = _load(own if own.exists() else _path(named), self._depth + 1)
        rules = self._table(document, "match")
        locks = tuple(self._lock(entry, index) for index, entry in enumerate(self._tables(document, "lock")))
        names = {lock.name for lock in (*locks, *base.locks)}
        functions = tuple(
            self._function(entry, index, names)
            for index, entry in enumerate(self._tables(document, "function"))
        )
        threads = tuple(
            self._thread(entry, index) for index, entry in enumerate(self._tables(document, "thread"))
        )
        versions = tuple(
            self._version(entry, index) for index, entry in enumerate(self._tables(document, "version"))
        )
        return Profile(
            name=self._string(document, "", 0, "name"),
            description=self._string(document, "", 0, "description", ""),
            match=Match(**{key: self._strings(rules, "match", 0, key) for key in sorted(_KEYS["match"])}),
            wrappers=self._strings(document, "", 0, "wrappers") + base.wrappers,
            threads=threads + base.threads,
            locks=locks + tuple(lock for lock in base.locks if lock.name not in {own.name for own in locks}),
            functions=functions + base.functions,
            versions=versions + base.versions,
        )

    def _thread(self, entry: dict[str, Any], index: int) -> tuple[str, str]:
        self._known(entry, "thread", index)
        role = self._string(entry, "thread", index, "role")
        if role not in ROLES:
            self._fail("thread", index, "role", f"must be one of {', '.join(ROLES)}, not {role!r}")
        return self._string(entry, "thread", index, "name"), role

    def _version(self, entry: dict[str, Any], index: int) -> Version:
        self._known(entry, "version", index)
        write_path = self._string(entry, "version", index, "write_path")
        if write_path not in WRITE_PATHS:
            wanted = ", ".join(WRITE_PATHS)
            self._fail("version", index, "write_path", f"must be one of {wanted}, not {write_path!r}")
        versions = self._strings(entry, "version", index, "versions")
        return Version(self._string(entry, "version", index, "crate"), versions, write_path)

    def _lock(self, entry: dict[str, Any], index: int) -> Lock:
        self._known(entry, "lock", index)
        return Lock(
            self._string(entry, "lock", index, "name"),
            self._strings(entry, "lock", index, "aliases"),
            self._strings(entry, "lock", index, "types"),
        )

    def _function(self, entry: dict[str, Any], index: int, names: set[str]) -> Function:
        self._known(entry, "function", index)
        name = self._string(entry, "function", index, "name")
        locks = self._strings(entry, "function", index, "locks")
        lines: list[Line] = []
        for line in self._list(entry, "function", index, "lines", dict):
            if set(line) != _KEYS["lines"] or not isinstance(line["line"], int):
                self._fail("function", index, "lines", 'each is { file = "…", line = 1, lock = "…" }')
            lines.append(Line(str(line["file"]), line["line"], str(line["lock"])))
        for lock in (*locks, *(line.lock for line in lines)):
            if lock not in names:
                self._fail("function", index, "locks", f"no [[lock]] is named {lock!r}")
        operation = self._string(entry, "function", index, "operation", name.rsplit("::", 1)[-1])
        return Function(name, operation, locks, tuple(lines))

    def _known(self, table: dict[str, Any], section: str, index: int) -> None:
        for key in table:
            if key not in _KEYS[section]:
                self._fail(section, index, key, f"unknown; known here: {', '.join(sorted(_KEYS[section]))}")

    def _table(self, document: dict[str, Any], key: str) -> dict[str, Any]:
        table = document.get(key, {})
        if not isinstance(table, dict):
            self._fail("", 0, key, f"must be a table: [{key}]")
        self._known(table, key, 0)
        return table

    def _tables(self, document: dict[str, Any], key: str) -> list[dict[str, Any]]:
        return self._list(document, "", 0, key, dict)

    def _list(self, table: dict[str, Any], section: str, index: int, key: str, kind: type) -> list[Any]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            what = "a list of strings" if kind is str else "a list of tables"
            self._fail(section, index, key, f"must be {what}")
        return value

    def _strings(self, table: dict[str, Any], section: str, index: int, key: str) -> tuple[str, ...]:
        return tuple(self._list(table, section, index, key, str))

    def _string(
        self, table: dict[str, Any], section: str, index: int, key: str, default: str | None = None
    ) -> str:
        value = table.get(key, default)
        if value is None:
            self._fail(section, index, key, "is missing")
        if not isinstance(value, str) or not (value or default == ""):
            self._fail(section, index, key, "must be a string that is not empty")
        return value

    def _fail(self, section: str, index: int, key: str, what: str) -> NoReturn:
        label = f"{section}[{index}].{key}" if section in ("thread", "lock", "function", "version") else key
        if section == "match":
            label = f"match.{key}"
        raise UsageError(
            f"{self._path}:{self._line(section, index, key)}: {label}: {what}",
            "correct that line; docs/profiles.md has the format",
        )

    def _line(self, section: str, index: int, key: str) -> int:
        """The line of a key in the index-th table of a section, or of that table's header; from 1."""
        header = re.compile(r"^\s*(\[\[?)\s*([\w-]+)")
        wanted = re.compile(rf"^\s*[\"']?{re.escape(key)}[\"']?\s*=|^\s*\[\[?\s*{re.escape(key)}\s*\]")
        current, seen, best = "", -1, 1
        for number, text in enumerate(self._lines, 1):
            found = header.match(text)
            if found:
                current = found[2]
                seen += current == section
                if current == section and seen == index:
                    best = number
            inside = current == section and (not section or seen == index)
            if (inside or (not section and found)) and wanted.match(text):
                return number
        return best
