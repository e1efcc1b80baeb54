# SPDX-License-Identifier: Apache-2.0
"""The place of a trace: a folder that is made by us, 0700, owned by who runs xdtrace, and no link.

Owns making, checking and emptying it. Knows the names of a trace's files and nothing of what is in them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from tracer.errors import OutputError
from tracer.trace import format as fmt

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KNOWN = (*fmt.FILES, fmt.META + ".new")


def _is_trace(present: Iterable[str]) -> bool:
    return fmt.META in present and not set(present) - set(_KNOWN)


def _exists(path: Path) -> OutputError:
    return OutputError(f"{path} exists", "choose another name, or replace it with --force")


def _foreign(path: Path) -> OutputError:
    return OutputError(f"{path} holds files that are no trace", "choose another name")


def make_trace_folder(path: Path, owned_by: tuple[int, int], *, force: bool) -> int:
    """Make (or, with ``force``, empty) a folder for one trace; returns its descriptor.

    Args:
        path: absolute; its parent must exist.
        owned_by: uid and gid that it shall belong to.

    Raises:
        OutputError: the folder exists, is a link, belongs to somebody else, or cannot be made.
    """
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(
            f"cannot write to {path.parent}: {error.strerror}", "name a folder that exists"
        ) from error
    try:
        existed = False
        try:
            os.mkdir(path.name, 0o700, dir_fd=parent)
        except FileExistsError as error:
            existed = True
            if not force:
                raise _exists(path) from error
        folder = os.open(path.name, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        raise OutputError(
            f"cannot make {path}: {error.strerror}", "choose another name; it must be no link and no file"
        ) from error
    finally:
        os.close(parent)
    try:
        _take(folder, path, owned_by, existed)
    except BaseException:
        os.close(folder)
        raise
    return folder


def _take(folder: int, path: Path, owned_by: tuple[int, int], existed: bool) -> None:
    """Make sure that the open folder is ours, and empty it of an old trace."""
    owners = {os.geteuid(), owned_by[0]} if existed else {os.geteuid()}
    if os.fstat(folder).st_uid not in owners:
        raise OutputError(f"{path} belongs to somebody else", "choose another name")
    present = os.listdir(folder)
    if present and not (existed and _is_trace(present)):
        raise _foreign(path)
    for name in present:
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
    os.fchmod(folder, 0o700)
    give(folder, owned_by)


def check_place(path: Path, *, force: bool = False, shared: bool = False) -> None:
    """Refuse early, and without making anything, what TraceWriter or make_private_folder would refuse.

    Only spares the user the wait: making it checks again.

    Args:
        force: as for TraceWriter.
        shared: the folder is one for traces (make_private_folder) and may exist.

    Raises:
        OutputError: the folder exists or cannot be made.
    """
    path = Path(os.path.abspath(path))
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}", "make it first, or name another")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{path.parent} may not be written to", "name a folder of your own") from None
        return
    except OSError as error:
        raise OutputError(f"cannot make {path}: {error.strerror}", "choose another name") from error
    if not stat.S_ISDIR(mode):
        raise OutputError(f"{path} exists and is no folder", "choose another name")
    if shared:
        return
    if not force:
        raise _exists(path)
    if os.access(path, os.R_OK | os.X_OK) and (present := os.listdir(path)) and not _is_trace(present):
        raise _foreign(path)


def make_private_folder(path: Path) -> None:
    """Make a folder for traces, 0700 and owned as they are, unless there is one already.

    Raises:
        OutputError: it cannot be made, or it is a link or a file.
    """
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            os.close(os.open(path, _DIRECTORY))
            return
        folder = os.open(path, _DIRECTORY)
        try:
            give(folder, owner())
        finally:
            os.close(folder)
    except OSError as error:
        raise OutputError(
            f"cannot use {path} as a folder: {error.strerror}", "name a folder of your own, no link"
        ) from error


def owner() -> tuple[int, int]:
    """Who shall own the trace: the user behind sudo, else ourselves."""
    ours = os.geteuid(), os.getegid()
    texts = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if ours[0] != 0 or not all(text.isascii() and text.isdecimal() and len(text) <= 10 for text in texts):
        return ours
    return int(texts[0]), int(texts[1])


def give(fd: int, owned_by: tuple[int, int]) -> None:
    """Hand a file or folder of ours to its owner."""
    if owned_by != (os.geteuid(), os.getegid()):
        os.fchown(fd, *owned_by)
