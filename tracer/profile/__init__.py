# SPDX-License-Identifier: Apache-2.0
"""Profiles: what is known of a VMM, read from profiles/*.toml or a user's own file.

Owns the choice of a profile for a target, and is the door: rules.py holds what a profile
says, reader.py the TOML format (docs/profiles.md). A profile is a hint: model/ weighs it
against behaviour. Never looks at a process or a binary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from tracer import schema
from tracer.profile.reader import default_profiles, load
from tracer.profile.rules import GENERIC, ROLES, Function, Line, Lock, Match, Profile, Site, Version

__all__ = [
    "GENERIC",
    "ROLES",
    "Function",
    "Line",
    "Lock",
    "Match",
    "Profile",
    "Site",
    "Version",
    "default_profiles",
    "load",
    "match",
]


def match(
    profiles: Sequence[Profile], target: schema.Target, threads: Iterable[schema.Thread] = ()
) -> Profile:
    """The profile that fits a target best; GENERIC where none does.

    The device's crate counts most, then the executable's name, the process's name, thread names.
    """
    exe = target.exe.removesuffix(" (deleted)").rsplit("/", 1)[-1]
    comms = {thread.comm for thread in threads if thread.tgid == target.tgid}

    def score(profile: Profile) -> tuple[bool, bool, bool, int]:
        rules = profile.match
        return (
            _any(rules.crates, target.crate),
            _any(rules.exes, exe),
            _any(rules.comms, target.comm),
            sum(any(fnmatchcase(comm, pattern) for comm in comms) for pattern in rules.threads),
        )

    best = max(profiles, key=score, default=GENERIC)
    return best if any(score(best)) else GENERIC


def _any(patterns: Iterable[str], text: str) -> bool:
    return bool(text) and any(fnmatchcase(text, pattern) for pattern in patterns)
