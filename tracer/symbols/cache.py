# SPDX-License-Identifier: Apache-2.0
"""Symcaches on disk, by build id: $XDG_CACHE_HOME/xdtrace/symcache.

Owns that directory: its permissions, its size, and that a file in it is either
whole or absent. What is in the files is worker.py's. A directory that is not
ours alone is not used; no cache is no error.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

#: The oldest files are removed beyond this many bytes.
MAX_TOTAL_BYTES = 1 << 30


class Cache:
    """The cache directory; ``directory`` is None where it cannot be used."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = self._prepare(directory or _default())

    @staticmethod
    def _prepare(directory: Path) -> Path | None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = os.stat(directory, follow_symlinks=False)
        except OSError:
            return None
        safe = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
        return directory if safe else None

    def open(self, key: str) -> int | None:
        """A descriptor of the cached file, read-only, or None."""
        if self.directory is None:
            return None
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            status = os.fstat(fd)
        except OSError:
            return None
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            return fd
        os.close(fd)
        return None

    def begin(self, key: str) -> int | None:
        """A descriptor of a new file that is not in the cache before ``commit``, or None."""
        if self.directory is None:
            return None
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            return os.open(self._new(key), flags, 0o600)
        except OSError:
            return None

    def commit(self, key: str, *, keep: bool) -> None:
        """Put the file of ``begin`` into the cache, or drop it; then make room."""
        try:
            if keep:
                os.replace(self._new(key), self._path(key))
                self._shrink(self._path(key))
            else:
                os.unlink(self._new(key))
        except OSError:
            return  # the file stays unnamed in the cache, or is gone already: it is built anew next time

    def _path(self, key: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{key}.symcache"

    def _new(self, key: str) -> Path:
        assert self.directory is not None
        return self.directory / f".{key}.{os.getpid()}.new"

    def _shrink(self, newest: Path) -> None:
        assert self.directory is not None
        entries = [(entry.stat(), entry.path) for entry in os.scandir(self.directory)]
        files = sorted(((s.st_mtime_ns, s.st_size, path) for s, path in entries), reverse=True)
        total = 0
        for _, size, path in files:
            total += size
            if total > MAX_TOTAL_BYTES and path != str(newest):
                os.unlink(path)


def _default() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path(os.path.expanduser("~/.cache"))
    return base / "xdtrace" / "symcache"
