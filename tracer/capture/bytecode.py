# SPDX-License-Identifier: Apache-2.0
"""Compiled probes as a value: maps, instructions that name them, and the copy on disk.

Owns how instructions refer to maps, and the cache folder's format and
permissions. What cannot be trusted is not used: a folder or file that is not
ours alone, a wrong checksum, an instruction of an unknown kind. No cache is no
error. Never compiles, and touches no map that it did not make.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pwd
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from tracer.capture import bpfsys

# struct bpf_insn (uapi/linux/bpf.h): code, dst | src << 4, offset, immediate.
_INSN = struct.Struct("<BBhi")
_LD_IMM64 = 0x18  # BPF_LD | BPF_DW | BPF_IMM: two instructions long
_PSEUDO_MAP_FD = 1
_CALL = 0x85  # BPF_JMP | BPF_CALL; source 1 is another function of the object
_PSEUDO_KERNEL_CALL = 2  # a function of the kernel's, by BTF id
_FORMAT = 2
_MAX_BYTES = 4 << 20
# So many configurations are kept: each change of an option or of xdtrace makes one.
_MAX_FILES = 16


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What a map is made of (union bpf_attr, BPF_MAP_CREATE)."""

    name: str
    type: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """One object: no file descriptor in it.

    Attributes:
        maps: all that any program refers to.
        programs: by function; instructions whose map references are indices of ``maps``.
    """

    maps: tuple[MapSpec, ...]
    programs: Mapping[str, bytes]


def map_spec(name: str, fd: int) -> MapSpec:
    """What an existing map was made of, from its fdinfo."""
    info = bpfsys.fdinfo(fd)
    kind, key, value, entries = (
        int(info[field]) for field in ("map_type", "key_size", "value_size", "max_entries")
    )
    return MapSpec(name, kind, key, value, entries, flags=int(info["map_flags"], 16))


def relocated(instructions: bytes, places: Mapping[int, int]) -> bytes:
    """The same instructions with every map reference replaced by ``places``.

    Raises:
        ValueError: a reference that is not in ``places``, or one of a kind that no probe has
            (another function, a map's value, a kernel symbol).
    """
    if len(instructions) % _INSN.size:
        raise ValueError("not whole instructions")
    out = bytearray(instructions)
    at = 0
    while at < len(out):
        code, registers, offset, immediate = _INSN.unpack_from(out, at)
        source = registers >> 4
        if code == _LD_IMM64:
            if source == _PSEUDO_MAP_FD and immediate in places:
                _INSN.pack_into(out, at, code, registers, offset, places[immediate])
            elif source:
                raise ValueError(f"a reference of kind {source} to {immediate}")
            at += _INSN.size
        elif code == _CALL and source not in (0, _PSEUDO_KERNEL_CALL):
            raise ValueError(f"a call of kind {source}")
        at += _INSN.size
    return bytes(out)


def marked(instructions: bytes, marks: Mapping[int, int]) -> bytes:
    """The same instructions with the kernel's functions called where the compiler was given marks.

    Args:
        marks: immediate of a call -> BTF id of the function.
    """
    out = bytearray(instructions)
    at = 0
    while at < len(out):
        code, registers, offset, immediate = _INSN.unpack_from(out, at)
        if code == _CALL and not registers >> 4 and immediate in marks:
            _INSN.pack_into(out, at, code, registers | _PSEUDO_KERNEL_CALL << 4, offset, marks[immediate])
        at += 2 * _INSN.size if code == _LD_IMM64 else _INSN.size
    return bytes(out)


def taken_apart(map_fds: Mapping[str, int], programs: Mapping[str, bytes]) -> Compiled:
    """What a compiler made: maps that exist, and instructions with their descriptors in them.

    Raises ValueError where the instructions refer to anything else.
    """
    names = sorted(map_fds)
    places = {map_fds[name]: place for place, name in enumerate(names)}
    return Compiled(
        tuple(map_spec(name, map_fds[name]) for name in names),
        {function: relocated(code, places) for function, code in programs.items()},
    )


class Cache:
    """The folder of compiled objects, by key. Nothing here raises.

    Args:
        directory: where to keep them; by default ~/.cache/xdtrace/probes of the user whose rights
            we have, as the user database says: under sudo $HOME may be somebody else's.
    """

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory

    def get(self, key: str) -> Compiled | None:
        """The object of a key, None where there is none that can be trusted."""
        try:
            with contextlib.ExitStack() as stack:
                folder = self._open(stack)
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                file = stack.enter_context(open(os.open(key, flags, dir_fd=folder), "rb"))
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or not _ours(status) or status.st_size > _MAX_BYTES:
                    return None
                return _decoded(file.read(_MAX_BYTES))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, compiled: Compiled) -> bool:
        """Keep an object; whole or not at all. Returns whether it is there now."""
        try:
            with contextlib.ExitStack() as stack:
                folder = self._open(stack)
                new = f".{key}.{os.getpid()}"
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                with open(os.open(new, flags, 0o600, dir_fd=folder), "wb") as file:
                    file.write(_encoded(compiled))
                os.replace(new, key, src_dir_fd=folder, dst_dir_fd=folder)
                _shrink(folder)
        except OSError:
            return False
        return True

    def _open(self, stack: contextlib.ExitStack) -> int:
        """The folder's descriptor, made where it is missing. Raises OSError where it is not ours alone."""
        if self._directory is not None:
            start, parts = os.path.split(self._directory)[0] or "/", [os.path.basename(self._directory)]
        else:
            start, parts = pwd.getpwuid(os.geteuid()).pw_dir, [".cache", "xdtrace", "probes"]
        flags = os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC
        folder = os.open(start, flags)
        stack.callback(os.close, folder)
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=folder)
            folder = os.open(part, flags | os.O_NOFOLLOW, dir_fd=folder)
            stack.callback(os.close, folder)
            if not _ours(os.fstat(folder)):
                raise PermissionError(part)
        if stat.S_IMODE(os.fstat(folder).st_mode) & 0o077:
            raise PermissionError(parts[-1])
        return folder


def _ours(status: os.stat_result) -> bool:
    """Whether nobody but us can write it."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _shrink(folder: int) -> None:
    ages = {}
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            ages[os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns, name] = name
    for age in sorted(ages, reverse=True)[_MAX_FILES:]:
        with contextlib.suppress(OSError):
            os.unlink(ages[age], dir_fd=folder)


def _encoded(compiled: Compiled) -> bytes:
    fields = MapSpec.__slots__
    content = {
        "format": _FORMAT,
        "maps": [[getattr(spec, field) for field in fields] for spec in compiled.maps],
        "programs": {
            name: base64.b64encode(code).decode("ascii") for name, code in compiled.programs.items()
        },
    }
    body = json.dumps(content).encode("ascii")
    return hashlib.sha256(body).digest() + body


def _decoded(raw: bytes) -> Compiled:
    """Raises ValueError, KeyError or TypeError for what put() did not write."""
    digest, body = raw[:32], raw[32:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("checksum")
    content = json.loads(body)
    if content["format"] != _FORMAT:
        raise ValueError("format")
    maps = tuple(MapSpec(str(row[0]), *(int(value) for value in row[1:])) for row in content["maps"])
    indices = {place: place for place in range(len(maps))}
    programs = {
        str(name): base64.b64decode(code, validate=True) for name, code in content["programs"].items()
    }
    # A reference to no map must be found here, not by the kernel.
    return Compiled(maps, {name: relocated(code, indices) for name, code in programs.items()})
