# SPDX-License-Identifier: Apache-2.0
"""What of a trace is private, and the same trace without it.

Owns which texts name a person, a machine or a private program: names of processes and threads, paths,
notes. Each is replaced everywhere by the same made-up one, in the records too, and so that a redacted trace
gets the same verdicts. Kept is what anybody may know: names that the bundled profiles look for (a thread
``cross domain``, a program ``muvm``), sources of published crates, kernel, crate and version, function names.
Never reads or writes a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

import numpy as np

from tracer import schema
from tracer.profile import Profile

#: Names of an audio server's and of the kernel's own threads, beside those of profiles; ``*`` is a number.
_PUBLIC: Final = ("pipewire", "pipewire-pulse", "wireplumber", "data-loop.*", "module-rt", "ksoftirqd/*",
                  "migration/*", "swapper/*", "kthreadd", "systemd")  # fmt: skip
_KWORKER: Final = re.compile(r"kworker/u?\d+:\d+H?([-+][\w:+-]*)?")
#: Links of /proc/PID/fd that are no paths, and device files: nobody's own.
_NO_PATH: Final = re.compile(
    r"(anon_inode|socket|pipe|net|mnt|user|pid):\S*\Z|/dev/(kvm|null|zero|udmabuf|dri/\w+)\Z"
)
#: Sources of Rust itself, and of published crates: there what stands before is a build's own.
_RUST: Final = re.compile(r"/rustc/[0-9a-f]{8,}/library/")
_PUBLISHED: Final = re.compile(r"/registry/src/[^/]+(/.+)\Z")
#: Paths in a sentence; those of the system are no secret.
_IN_TEXT: Final = re.compile(
    r"(?<![\w.:/<])/(?!proc\b|sys\b|dev\b|usr/(?:s?bin|lib|share|include)\b|lib|bin|etc/os-rel)"
    r"[^\s'\",;()<>]*[^\s'\",;()<>:.!?]"
)
#: Stands for a number in the text that replaces a private one.
_N: Final = "\0"
_COMM_CHARS: Final = 15

THREADS, PROGRAMS, FILES, SOURCES, NOTES, LOCKS, MENTIONED, MACHINE = (
    "names of processes and threads",
    "paths of programs and libraries",
    "paths of open files",
    "paths of source files",
    "notes",
    "names given to locks",
    "paths in sentences",
    "names of the machine and its user",
)
#: Kinds in the order in which they are told.
KINDS: Final = (THREADS, PROGRAMS, FILES, SOURCES, NOTES, LOCKS, MENTIONED, MACHINE)
#: Facts of the host that are no secret.
_HOST_FACTS: Final = ("kernel", "machine", "bcc", "eventfd_ids")


class Redactor:
    """Replaces what is private, the same text always by the same one.

    Args:
        profiles: what is known of VMMs; names they look for are kept, or replaced by one that they find too.
        words: further private words of sentences, such as the host's name, and what replaces them.

    Attributes:
        found: kind -> private texts that were met, in order (KINDS).
    """

    def __init__(self, profiles: Sequence[Profile] = (), words: dict[str, str] | None = None) -> None:
        self._threads = [pattern for profile in profiles for pattern, _ in profile.threads]
        self._threads += [pattern for profile in profiles for pattern in profile.match.threads]
        comms = [pattern for profile in profiles for pattern in profile.match.comms]
        self._comms = [*self._threads, *comms, *_PUBLIC]
        self._exes = [pattern for profile in profiles for pattern in profile.match.exes]
        self._lines = [line.file for p in profiles for function in p.functions for line in function.lines]
        self._locks = {name for p in profiles for lock in p.locks for name in (lock.name, *lock.aliases)}
        #: What sentences are searched for: whole words.
        self._spoken = dict(words or {})
        self._machine = frozenset(self._spoken)
        self._new: dict[tuple[str, str], str] = {}
        self.found: dict[str, list[str]] = {kind: [] for kind in KINDS}

    def batch(self, batch: schema.Batch) -> schema.Batch:
        """The batch without what is private."""
        return replace(
            batch,
            records=self._records(batch.records),
            targets=tuple(self._target(t) for t in batch.targets),
            threads=tuple(replace(t, comm=self.comm(t.comm)) for t in batch.threads),
            fds=tuple(replace(f, path=self._file(f.path)) for f in batch.fds),
            sites=tuple(
                replace(
                    s,
                    module=self.program(s.module),
                    frames=tuple(replace(f, file=self._source(f.file)) for f in s.frames),
                )
                for s in batch.sites
            ),
            lock_symbols=tuple(
                replace(s, name=self._lock(s.name)) if s.source == "user" else s for s in batch.lock_symbols
            ),
            host={
                key: value if key in _HOST_FACTS or not isinstance(value, str) else self.text(value)
                for key, value in batch.host.items()
            },
        )

    def comm(self, name: str) -> str:
        """A thread's or a process's name."""
        if not name or _KWORKER.fullmatch(name):
            return name
        for pattern in self._comms:
            if re.fullmatch(r"[\d:/-]*".join(map(re.escape, pattern.split("*"))), name):
                return name
        for pattern in self._comms:
            if "*" in pattern and fnmatchcase(name, pattern):  # its role may hang on it
                return self._once(THREADS, name, pattern.replace("*", _N, 1))[:_COMM_CHARS]
        return self._once(THREADS, name, f"thread-{_N}")

    def program(self, path: str) -> str:
        """The path of a program or library; its last part is kept where a profile looks for it."""
        if not path or _NO_PATH.match(path) or path.startswith("["):
            return path
        name = path.removesuffix(" (deleted)").rpartition("/")[2]
        known = next((p.replace("*", "") for p in self._exes if fnmatchcase(name, p)), "program")
        return self._once(PROGRAMS, path, f"/redacted-{_N}/{known}")

    def text(self, sentence: str) -> str:
        """A sentence without names and paths of targets, the given words, and paths but the system's."""
        known = {old: new for old, new in self._spoken.items() if len(old) > 1}
        if known:
            longest_first = sorted(known, key=lambda old: (-len(old), old))
            pattern = "|".join(rf"(?<!\w){re.escape(old)}(?!\w)" for old in longest_first)
            for word in re.findall(pattern, sentence):
                if word in self._machine and word not in self.found[MACHINE]:
                    self.found[MACHINE].append(word)
            sentence = re.sub(pattern, lambda m: known[m[0]], sentence)
        return _IN_TEXT.sub(
            lambda m: m[0] if m[0].startswith("/redacted-") else self._mentioned(m[0]), sentence
        )

    # --- kinds ---

    def _target(self, target: schema.Target) -> schema.Target:
        comm, exe = self.comm(target.comm), self.program(target.exe)
        self._spoken |= {old: new for old, new in ((target.comm, comm), (target.exe, exe)) if old != new}
        notes = []
        for note in target.notes:
            notes.append(self.text(note))
            if notes[-1] != note and note not in self.found[NOTES]:
                self.found[NOTES].append(note)
        return replace(target, comm=comm, exe=exe, notes=tuple(notes))

    def _file(self, path: str) -> str:
        if not path or _NO_PATH.match(path):
            return path
        new = self._once(FILES, path, f"/redacted-{_N}/file")
        self._spoken[path] = new
        return new

    def _mentioned(self, path: str) -> str:
        """A path that was met in no list of files or programs (yet)."""
        if _NO_PATH.match(path):
            return path
        return self._once(MENTIONED, path, f"/redacted-path-{_N}")

    def _source(self, path: str) -> str:
        if not path or _RUST.match(path):
            return path
        published = _PUBLISHED.search(path)
        if published:
            return self._once(SOURCES, path, published[1])
        for line in self._lines:
            if path.endswith(line):
                return self._once(SOURCES, path, f"/redacted-{_N}/{line.lstrip('/')}")
        ending = re.search(r"\.[a-z]{1,3}\Z", path)
        return self._once(SOURCES, path, f"/redacted-{_N}/source{ending[0] if ending else ''}")

    def _lock(self, name: str) -> str:
        return name if name in self._locks else self._once(LOCKS, name, f"lock-{_N}")

    def _once(self, kind: str, old: str, new: str) -> str:
        """What replaces a text: what did before, else ``new`` with its number."""
        known = self._new.get((kind, old))
        if known is None:
            self.found[kind].append(old)
            known = self._new[kind, old] = new.replace(_N, str(len(self.found[kind])))
        return known

    def _records(self, records: schema.Records) -> schema.Records:
        at = np.flatnonzero(records["kind"] == schema.Kind.LIFE)
        if not len(at):
            return records
        records = records.copy()
        life = records[at].view(schema.LIFE)
        for row in life:
            name = bytes(row["comm"]).split(b"\0", 1)[0]
            row["comm"] = self.comm(name.decode("utf-8", "replace")).encode()
        records[at] = life.view(schema.RECORD)
        return records
