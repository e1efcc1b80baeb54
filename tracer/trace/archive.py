# SPDX-License-Identifier: Apache-2.0
"""A trace as parts with bytes, whether they lie in a folder or in one packed file.

Owns where bytes come from. Never looks into them. The packed file is a plain,
uncompressed tar (the streams in it are compressed already): ``tar xf`` gives the folder back.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import OutputError, TraceError
from tracer.trace import format as fmt
from tracer.trace.folder import owner

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_BLOCK = tarfile.BLOCKSIZE
_MAX_MEMBERS = 64
#: Order in a packed file. The records, nearly all of it, come last: a copy that was cut off keeps what says
#: where its batches are.
_PACKED = (*(name for name in fmt.FILES if name != fmt.EVENTS + fmt.SUFFIX), fmt.EVENTS + fmt.SUFFIX)


@dataclass(slots=True)
class Part:
    """One file of a trace: *size_bytes* from *start* of an open file."""

    fd: int
    start: int
    size_bytes: int

    @staticmethod
    def nothing() -> Part:
        """A part that is not there."""
        return Part(-1, 0, 0)

    def read(self, at: int, size: int) -> bytes:
        """At most *size* bytes from *at*; fewer where the part ends."""
        size = min(size, self.size_bytes - at)
        if at < 0 or size <= 0:
            return b""
        data = os.pread(self.fd, size, self.start + at)
        while 0 < len(data) < size:
            more = os.pread(self.fd, size - len(data), self.start + at + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def open_parts(path: Path) -> dict[str, Part]:
    """The files of the trace at *path*, by name; those missing are left out.

    Raises:
        TraceError: there is no such trace, or it cannot be opened.
    """
    try:
        # The name itself is the user's and may be a link; what lies inside is not trusted.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _cannot_open(path, error, "name a folder made by `xdtrace record`") from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            return _folder_parts(path, fd)
        if stat.S_ISREG(mode):
            return _packed_parts(path, fd)
        raise TraceError(f"{path} is no trace", "name a folder made by `xdtrace record`")
    finally:
        os.close(fd)


def _cannot_open(path: Path, error: OSError, hint: str) -> TraceError:
    if isinstance(error, PermissionError):
        hint = "a trace is readable by the user who recorded it: run this as that user, or chown it"
    return TraceError(f"cannot open {path}: {error.strerror}", hint)


def _folder_parts(path: Path, folder: int) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    try:
        for name in fmt.FILES:
            try:
                fd = os.open(name, _READ, dir_fd=folder)
            except FileNotFoundError:
                continue
            status = os.fstat(fd)
            parts[name] = Part(fd, 0, status.st_size)
            if not stat.S_ISREG(status.st_mode):
                raise fmt.damaged(f"{name} is no file")
    except OSError as error:
        _close(parts)
        raise _cannot_open(path, error, "it must hold no links") from error
    except TraceError:
        _close(parts)
        raise
    return parts


def _packed_parts(path: Path, fd: int) -> dict[str, Part]:
    size = os.fstat(fd).st_size
    parts: dict[str, Part] = {}
    at = 0
    try:
        for _ in range(_MAX_MEMBERS):
            block = os.pread(fd, _BLOCK, at)
            if len(block) < _BLOCK or not any(block):
                break
            member = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
            if member.size < 0:
                raise fmt.damaged(f"a part of {member.size} bytes")
            at += _BLOCK
            name = member.name.rpartition("/")[2]
            if member.isreg() and name in fmt.FILES and name not in parts:
                parts[name] = Part(os.dup(fd), at, max(0, min(member.size, size - at)))
            at += -(-member.size // _BLOCK) * _BLOCK
    except (tarfile.TarError, OverflowError) as error:
        _close(parts)
        raise TraceError(
            f"{path} is no packed trace", "make one with `xdtrace export DIR --to archive`"
        ) from error
    except TraceError:
        _close(parts)
        raise
    return parts


def _close(parts: dict[str, Part]) -> None:
    for part in parts.values():
        part.close()


def pack(
    folder: Path, file: Path, *, beside: Mapping[str, bytes] | None = None, name: str | None = None
) -> None:
    """Put the trace *folder* into the single new *file*.

    Args:
        beside: further members by name, put before the trace: what a bundle holds. Readers pass them over.
        name: of the folder in the archive; None: as it is called now.

    Raises:
        TraceError: *folder* is no trace, or the disk is full.
        OutputError: *file* exists or cannot be made.
    """
    beside = dict(beside or {})
    if clash := set(beside) & set(fmt.FILES):
        raise ValueError(f"{clash} would be taken for parts of the trace")
    parts = open_parts(folder)
    made = False
    try:
        if fmt.META not in parts:
            raise TraceError(f"{folder} is no trace", "name a folder made by `xdtrace record`")
        name = name or Path(os.path.abspath(folder)).name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(file, flags, 0o600)
        made = True
        with (
            os.fdopen(fd, "wb") as out,
            tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive,
        ):
            ours = owner()
            if ours != (os.geteuid(), os.getegid()):
                os.fchown(out.fileno(), *ours)
            for extra, data in beside.items():
                member = tarfile.TarInfo(extra)
                member.size, member.mode = len(data), 0o600
                archive.addfile(member, io.BytesIO(data))
            for part_name in _PACKED:
                if part := parts.get(part_name):
                    member = tarfile.TarInfo(f"{name[:80]}/{part_name}")
                    member.size, member.mode = part.size_bytes, 0o600
                    with os.fdopen(os.dup(part.fd), "rb") as source:
                        source.seek(part.start)
                        archive.addfile(member, source)
    except BaseException as error:
        if made:  # half an archive would be taken for a trace that was cut off
            file.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise (TraceError if made else OutputError)(
            f"cannot write {file}: {error.strerror}", "choose another name, or free some space"
        ) from error
    finally:
        _close(parts)
