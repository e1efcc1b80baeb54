# SPDX-License-Identifier: Apache-2.0
"""The child process that parses what cannot be trusted: DWARF, symbol tables, mangled names.

Owns native and recursive parsers (symbolic, the demanglers) behind limits on
memory and CPU, and without root where it was root. It imports nothing of
tracer, opens no file (descriptors arrive with the request) and writes only
into the cache descriptor it is given. It may die at any request: client.py,
its only user, then starts another and gives that file up.

A message is a 4-byte little-endian length and JSON. Requests are answered in order:
    {"op": "open", "key", "base", "cached"}, fds: object file[, cache file]  ->  {"ok", "built"}
    {"op": "lookup", "key", "addresses"}  ->  {"frames": [[[function, file, line], ...], ...]}
    {"op": "demangle", "names"}  ->  {"names": [...]}
Run as a script: python -P worker.py FD.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import lzma
import mmap
import os
import re
import resource
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import rust_demangler
from symbolic._lowlevel import ffi
from symbolic.debuginfo import Archive
from symbolic.symcache import SymCache as _SymCache

#: Address space of this process: a symcache of 1 GB of DWARF needs less.
MAX_MEMORY_BYTES = 3 << 30
#: A cache file larger than this is neither written nor read.
MAX_CACHE_BYTES = 512 << 20
#: .gnu_debugdata is unpacked up to this size.
MAX_MINIDEBUG_BYTES = 64 << 20
#: Longer mangled names stay as they are; longer results are cut.
MAX_MANGLED_CHARS = 4096
MAX_NAME_CHARS = 1024
#: Demangled names remembered.
MAX_NAMES = 100_000
#: Deeper inlining than this is cut (rustc's deepest seen: 20).
MAX_FRAMES = 64
NICE = 10
NOBODY = 65534

SymCache: Any = _SymCache  # it has no types
_CXA_DEMANGLE = "__cxa_demangle"  # spelt in a class body, it would be mangled by Python
_LEGACY_HASH = re.compile(r"::h[0-9a-f]{16}$")


def _mapped(fd: int) -> Any:
    """The file behind ``fd`` as a C buffer, without a copy (a mapping outlives the descriptor)."""
    return ffi.from_buffer("uint8_t[]", mmap.mmap(fd, 0, prot=mmap.PROT_READ))


def _symcache(buffer: Any) -> Any:
    # The archive (and its buffer) must outlive what is read from it: symbolic keeps no reference.
    archive = Archive.from_bytes(buffer)
    found = next(archive.iter_objects())
    cache = SymCache.from_object(found)
    del found, archive
    return cache


def _build(fd: int, minidebug: bytes) -> Any:
    if minidebug:
        unpacker = lzma.LZMADecompressor(memlimit=MAX_MINIDEBUG_BYTES)
        return _symcache(unpacker.decompress(minidebug, MAX_MINIDEBUG_BYTES))
    return _symcache(_mapped(fd))


class _Cxx:
    """Itanium C++ names by libstdc++'s own demangler, where it is installed."""

    def __init__(self) -> None:
        self._demangle: Any = None
        try:
            self._demangle = getattr(ctypes.CDLL("libstdc++.so.6"), _CXA_DEMANGLE)
            self._free = ctypes.CDLL(None).free
        except (OSError, AttributeError):
            return
        self._demangle.restype = ctypes.c_void_p
        self._demangle.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        self._free.argtypes = (ctypes.c_void_p,)

    def __call__(self, name: str) -> str:
        if self._demangle is None:
            return name
        result = self._demangle(name.encode(), None, None, ctypes.byref(ctypes.c_int()))
        if not result:
            return name
        try:
            return ctypes.string_at(result).decode("utf-8", "replace")
        finally:
            self._free(result)


def demangler() -> Callable[[str], str]:
    """A function from a linkage name to a readable one; what it cannot read it returns unchanged."""
    cxx = _Cxx()

    def demangle(name: str) -> str:
        if len(name) > MAX_MANGLED_CHARS:
            return name[:MAX_NAME_CHARS]
        readable = name
        if name.startswith("_R") or (name.startswith("_ZN") and re.search(r"17h[0-9a-f]{16}E", name)):
            try:
                readable = rust_demangler.demangle(name)
            except Exception:  # whatever a hostile name does to it, the name stays mangled
                return name[:MAX_NAME_CHARS]
            readable = _LEGACY_HASH.sub("", readable)
        elif name.startswith("_Z"):
            readable = cxx(name)
        return readable[:MAX_NAME_CHARS]

    return demangle


class Worker:
    """The requests."""

    def __init__(self) -> None:
        self._caches: dict[str, tuple[Any, int]] = {}
        self._demangle = demangler()
        self._names: dict[str, str] = {}

    def open(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Build (or read) the symcache of one object file; write it to the second descriptor."""
        cache = None
        if request["cached"]:
            size = os.fstat(fds[1]).st_size
            if 0 < size <= MAX_CACHE_BYTES:
                found = SymCache.from_bytes(_mapped(fds[1]))  # keeps the buffer
                cache = found if found.is_latest_version else None
        built = cache is None
        if cache is None:
            minidebug = b""
            if request.get("minidebug"):
                offset, size = request["minidebug"]
                minidebug = os.pread(fds[0], min(size, MAX_MINIDEBUG_BYTES), offset)
            cache = _build(fds[0], minidebug)
            if len(fds) > 1:
                with os.fdopen(os.dup(fds[1]), "wb") as file:
                    cache.dump_into(file)
                    built = file.tell() <= MAX_CACHE_BYTES
        self._caches[request["key"]] = (cache, int(request["base"]))
        return {"ok": True, "built": built}

    def lookup(self, request: dict[str, Any], _fds: list[int]) -> dict[str, Any]:
        """Frames at virtual addresses, innermost first."""
        cache, base = self._caches[request["key"]]
        return {"frames": [self._frames(cache, address - base) for address in request["addresses"]]}

    def demangle(self, request: dict[str, Any], _fds: list[int]) -> dict[str, Any]:
        """Readable names."""
        return {"names": [self._demangle(name) for name in request["names"]]}

    def _frames(self, cache: Any, address: int) -> list[tuple[str, str, int]]:
        if address < 0:
            return []
        frames = []
        for found in cache.lookup(address)[:MAX_FRAMES]:
            name = self._names.get(found.symbol)
            if name is None:
                name = self._demangle(found.symbol)
                if len(found.symbol) <= MAX_MANGLED_CHARS and len(self._names) < MAX_NAMES:
                    self._names[found.symbol] = name
            if name:
                frames.append((name, (found.full_path or "")[:MAX_NAME_CHARS], int(found.line)))
        return frames


def _confine() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_CACHE_BYTES, MAX_CACHE_BYTES))
    os.nice(NICE)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def main() -> None:
    """Serve requests from the socket with the descriptor of argv[1] until its other end closes."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    worker = Worker()
    _confine()
    operations = {"open": worker.open, "lookup": worker.lookup, "demangle": worker.demangle}
    while True:
        head, fds, _, _ = socket.recv_fds(connection, 4, 2)
        while head and len(head) < 4:
            head += connection.recv(4 - len(head))
        if not head:
            return
        (size,) = struct.unpack("<I", head)
        text = b""
        while len(text) < size:
            piece = connection.recv(min(size - len(text), 1 << 16))
            if not piece:
                return
            text += piece
        request = json.loads(text)
        try:
            answer = operations[request["op"]](request, fds)
        except Exception as error:  # one bad file must not end the others' service
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        finally:
            for fd in fds:
                os.close(fd)
        body = json.dumps(answer).encode()
        connection.sendall(struct.pack("<I", len(body)) + body)


if __name__ == "__main__":
    main()
