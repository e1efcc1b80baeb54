# SPDX-License-Identifier: Apache-2.0
"""The rules of a profile: thread names to roles, frames to a lock and an operation.

Owns Profile and how its rules are tried. Reads no file: reader.py does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from tracer import schema
from tracer.profile.names import closing, is_std, plain_path

WRITE_PATHS = ("locked", "dup", "refcount", "task")
ROLES = ("G", "W", "D", "vcpu", "fence", "task", "watcher", "other")

_LOCKERS = ("Mutex::lock", "Mutex::try_lock", "RwLock::read", "RwLock::write")
_CONDVAR = re.compile(r"(^|::)Condvar::wait\w*$")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Site:
    """What a wait's call site says.

    Attributes:
        lock: the lock's name; "" where the frames do not tell it (a re-lock inside
            Condvar::wait with no frame of its caller; a function of several locks).
        operation: what the program was doing, e.g. ``write``; "" where unknown.
        evidence: in words: function, file and line, type, or "re-lock in Condvar::wait".
    """

    lock: str
    operation: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Match:
    """Which programs a profile is for; shell patterns."""

    crates: tuple[str, ...] = ()
    exes: tuple[str, ...] = ()
    comms: tuple[str, ...] = ()
    threads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock: its name, other names of it, and identifiers that occur in its type alone."""

    name: str
    aliases: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """The lock taken at one line of one version of a file (``file``: the end of its path)."""

    file: str
    line: int
    lock: str


@dataclass(frozen=True, slots=True)
class Function:
    """A function: the end of its path without generics, the operation, the locks it takes itself."""

    name: str
    operation: str
    locks: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """The write path of some versions (shell patterns) of a crate of the cross-domain device."""

    crate: str
    versions: tuple[str, ...]
    write_path: str


@dataclass(frozen=True)
class Profile:
    """What is known of a VMM. Rules are tried in order; a profile's own come before those it extends."""

    name: str
    description: str = ""
    match: Match = field(default_factory=Match)
    wrappers: tuple[str, ...] = ()
    threads: tuple[tuple[str, str], ...] = ()
    locks: tuple[Lock, ...] = ()
    functions: tuple[Function, ...] = ()
    versions: tuple[Version, ...] = ()

    def write_path(self, crate: str, version: str) -> str:
        """The write path that a version of the device is known to have, "" where the profile says none."""
        for known in self.versions:
            if known.crate == crate and any(fnmatchcase(version, pattern) for pattern in known.versions):
                return known.write_path
        return ""

    def role(self, comm: str) -> str:
        """The role of a thread of that name (ROLES), "" where the profile says none."""
        return next((role for pattern, role in self.threads if fnmatchcase(comm, pattern)), "")

    def lock_name(self, name: str) -> str:
        """The name a lock is shown by, given that name or an alias of it."""
        for lock in self.locks:
            if name == lock.name or name in lock.aliases:
                return lock.name
        return name

    def site(self, frames: Sequence[schema.Frame]) -> Site | None:
        """Name the lock and the operation of a wait whose caller has these frames (innermost first).

        The lock is told, in this order, by the type in ``Mutex<T>::lock``, by the line, by the
        function that called lock() if it takes one lock only. None where the frames say nothing.
        """
        condvar = ""
        by_type: tuple[str, str] | None = None
        inner: schema.Frame | None = None
        for frame in frames:
            path = plain_path(frame.function)
            waits = bool(_CONDVAR.search(path))
            if waits:
                condvar = "re-lock in Condvar::wait"
            if waits or self._passes_on(path):
                by_type = by_type or self._by_type(frame.function)
            elif not is_std(path):
                if inner is None:
                    inner = frame
                rule = self._rules.get(path) or self._find(path)
                if rule is not None:
                    return self._site(rule, frame, frame is inner, by_type, condvar)
        if by_type is not None and by_type[0]:
            return Site(by_type[0], "", _words(condvar, by_type[1]))
        return Site("", "", condvar) if condvar else None

    @cached_property
    def _rules(self) -> dict[str, Function]:
        return {}

    def _find(self, path: str) -> Function | None:
        for function in self.functions:
            if path == function.name or path.endswith("::" + function.name):
                self._rules[path] = function
                return function
        return None

    def _passes_on(self, path: str) -> bool:
        """The frame is lock() itself, or what the profile says stands between it and its user."""
        return any(path == end or path.endswith("::" + end) for end in (*_LOCKERS, *self.wrappers))

    def _by_type(self, function: str) -> tuple[str, str] | None:
        """(lock, why) from the type a lock guards; lock "" if that type is none the profile knows."""
        argument = _guarded(function)
        if not argument:
            return None
        words = set(_IDENTIFIER.findall(argument))
        for lock in self.locks:
            for name in lock.types:
                if name in words or (not name.isidentifier() and name in argument):
                    return lock.name, f"type {name}"
        return "", ""

    def _site(
        self,
        rule: Function,
        frame: schema.Frame,
        direct: bool,
        by_type: tuple[str, str] | None,
        condvar: str,
    ) -> Site:
        where = rule.name
        if frame.line:
            where += f" ({frame.file.rsplit('/', 1)[-1]}:{frame.line})"
        lock, why = by_type or ("", "")
        if not lock and direct:
            for line in rule.lines:
                if line.line == frame.line and frame.file.endswith(line.file):
                    lock, why = line.lock, "line"
        if not lock and direct:
            # A type that is known and is no lock's of this profile leaves the locks without types.
            typed = {known.name for known in self.locks if known.types} if by_type else set()
            left = [name for name in rule.locks if name not in typed]
            lock = left[0] if len(left) == 1 else ""
        return Site(lock, rule.operation, _words(condvar, where, why))


GENERIC = Profile("generic", "any program: nothing is known of it")


def _words(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _guarded(function: str) -> str:
    """The T of ``Mutex<T>::lock`` or ``Condvar::wait::<T>``; "" where the name does not tell it."""
    start = max(function.find("Mutex<"), function.find("RwLock<"), function.find("wait::<"))
    start = max(start, function.find("wait_timeout::<"), function.find("wait_while::<"))
    if start < 0:
        return ""
    argument = function[function.index("<", start) + 1 : closing(function, function.index("<", start))]
    return "" if argument in ("T", "_") else argument
