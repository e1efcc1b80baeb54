# SPDX-License-Identifier: Apache-2.0
"""Addresses of a live process to frames, and the device it carries. ``Symbolizer`` is the door.

Owns what is remembered of processes and files: mappings per process, one
symcache per file (by build id), one answer per address. What cannot be trusted
is parsed in a child process (worker.py) with limits. Never raises for what a
binary contains or for a process that has gone: the answer is then a call site
without frames. One call may take up to client.OPEN_TIMEOUT_S, so it belongs
into a background thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tracer import schema
from tracer.symbols import debugfiles, device, elf, maps, statics
from tracer.symbols.cache import Cache
from tracer.symbols.client import LOOKUP_TIMEOUT_S, OPEN_TIMEOUT_S, Client
from tracer.symbols.debuginfod import Debuginfod
from tracer.symbols.device import Device

__all__ = ["Device", "Symbolizer"]

#: Files larger than this get no names (a debug build of a VMM has 0.1 to 0.5 GB).
MAX_FILE_BYTES = 4 << 30
#: Call sites remembered per process; a VMM has some hundred.
MAX_SITES = 100_000


@dataclass(slots=True)
class _Module:
    """A mapped file: what its headers say, and which worker (its generation) has its symcache."""

    elf: elf.Elf
    key: str
    path: str
    worker: int = 0
    failed: bool = False


class Symbolizer:
    """Resolves addresses of live processes.

    Args:
        debug_dirs: searched for separate debug files before /usr/lib/debug.
        cache: where symcaches are kept; by default $XDG_CACHE_HOME/xdtrace/symcache.
    """

    def __init__(self, debug_dirs: Sequence[Path] = (), cache: Cache | None = None) -> None:
        self._debug_dirs = tuple(path.absolute() for path in debug_dirs)
        self._cache = cache or Cache()
        self._client = Client()
        self._debuginfod = Debuginfod()
        self._lock = threading.RLock()
        self._maps: dict[int, maps.Maps] = {}
        self._modules: dict[tuple[int, int, int, int], _Module | None] = {}
        self._by_file: dict[tuple[int, tuple[str, int, str]], _Module | None] = {}
        self._sites: dict[int, dict[int, schema.CallSite]] = {}
        self._devices: dict[int, Device] = {}

    def resolve(self, tgid: int, address: int) -> schema.CallSite:
        """The call site of a return address (the instruction before it is looked up).

        Frames are innermost first; a file without symbols gives none, but still
        module, offset and build id. An address in no file gives neither.
        """
        with self._lock:
            known = self._sites.setdefault(tgid, {})
            site = known.get(address)
            if site is None:
                site = self._resolve(tgid, address)
                if len(known) < MAX_SITES:
                    known[address] = site
            return site

    def lock_symbols(self, tgid: int) -> tuple[schema.LockSymbol, ...]:
        """Static locks of the program itself that its symbols name; best effort, often none."""
        with self._lock:
            for mapping in maps.read(tgid).mappings:
                try:
                    if mapping.path == os.readlink(f"/proc/{tgid}/exe").removesuffix(" (deleted)"):
                        return self._lock_symbols(tgid, mapping)
                except OSError:
                    break
        return ()

    def _lock_symbols(self, tgid: int, mapping: maps.Mapping) -> tuple[schema.LockSymbol, ...]:
        module = self._module(tgid, mapping)
        source = self._source(tgid, mapping, module) if module else None
        if module is None or source is None:
            return ()
        try:
            found = elf.read(source)
            locks = statics.find(source, found, self._readable) if found else []
        except OSError:
            return ()
        finally:
            os.close(source)
        first = module.elf.vaddr(mapping.file_offset)
        if first is None:
            return ()
        bias = mapping.start - first
        return tuple(schema.LockSymbol(tgid, bias + address, name, "symbols") for name, address in locks)

    def _readable(self, names: Sequence[str]) -> Sequence[str]:
        answer = self._client.ask({"op": "demangle", "names": list(names)}) if names else None
        return answer.get("names", ()) if answer else ()

    def device(self, tgid: int) -> Device:
        """The cross-domain device of the program or one of its libraries; ``Device()`` if none is found."""
        with self._lock:
            found = self._devices.get(tgid)
            if found is None:
                found = self._devices[tgid] = self._device(tgid)
            return found

    def build_id(self, tgid: int) -> str:
        """The build id of the program itself, hex, "" where it has none or cannot be read."""
        with self._lock:
            try:
                fd = os.open(f"/proc/{tgid}/exe", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return ""
            try:
                found = elf.read(fd)
            except OSError:
                found = None
            finally:
                os.close(fd)
            return found.build_id if found else ""

    def forget(self, tgid: int) -> None:
        """Forget a process: it called exec, or it is gone. Files stay known."""
        with self._lock:
            self._maps.pop(tgid, None)
            self._sites.pop(tgid, None)
            self._devices.pop(tgid, None)
            for key in [key for key in self._by_file if key[0] == tgid]:
                del self._by_file[key]

    def close(self) -> None:
        """End the child process, if one was started."""
        with self._lock:
            self._client.close()
            self._debuginfod.close()

    def _resolve(self, tgid: int, address: int) -> schema.CallSite:
        wanted = address - 1
        mapping = self._mapping(tgid, wanted)
        if mapping is None:
            return schema.CallSite(tgid, address)
        module = self._module(tgid, mapping)
        if module is None:
            return schema.CallSite(tgid, address, mapping.path, wanted - mapping.start + mapping.file_offset)
        offset = module.elf.vaddr(wanted - mapping.start + mapping.file_offset)
        if offset is None:
            return schema.CallSite(tgid, address, mapping.path, 0, module.elf.build_id)
        frames = self._frames(tgid, mapping, module, offset)
        return schema.CallSite(tgid, address, mapping.path, offset, module.elf.build_id, frames)

    def _mapping(self, tgid: int, address: int) -> maps.Mapping | None:
        known = self._maps.get(tgid)
        found = known.find(address) if known else None
        if found is None:  # a library may have been loaded since
            known = self._maps[tgid] = maps.read(tgid)
            found = known.find(address)
        return found

    def _module(self, tgid: int, mapping: maps.Mapping) -> _Module | None:
        key = (tgid, mapping.file)
        if key not in self._by_file:
            fd = maps.open_mapped(tgid, mapping)
            if fd is None:
                return None  # not remembered: it may have been a moment's failure
            try:
                self._by_file[key] = self._read(fd, mapping)
            finally:
                os.close(fd)
        return self._by_file[key]

    def _read(self, fd: int, mapping: maps.Mapping) -> _Module | None:
        try:
            status = os.fstat(fd)
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if identity not in self._modules:
                found = elf.read(fd) if status.st_size <= MAX_FILE_BYTES else None
                self._modules[identity] = _Module(found, "", mapping.path) if found else None
            return self._modules[identity]
        except OSError:
            return None

    def _frames(
        self, tgid: int, mapping: maps.Mapping, module: _Module, offset: int
    ) -> tuple[schema.Frame, ...]:
        if not self._open(tgid, mapping, module):
            return ()
        answer = self._client.ask(
            {"op": "lookup", "key": module.key, "addresses": [offset]}, timeout_s=LOOKUP_TIMEOUT_S
        )
        if answer is None:
            module.failed = True
            return ()
        found = (answer.get("frames") or [[]])[0]
        last = len(found) - 1
        return tuple(
            schema.Frame(function, file, line, inlined=index < last)
            for index, (function, file, line) in enumerate(found)
        )

    def _open(self, tgid: int, mapping: maps.Mapping, module: _Module) -> bool:
        """Have the current worker hold the module's symcache; False if it cannot be had."""
        if module.failed:
            return False
        if module.worker and module.worker == self._client.generation:
            return True
        source = self._source(tgid, mapping, module)
        if source is None:
            module.failed = True
            return False
        try:
            module.failed = not self._load(source, module)
        finally:
            os.close(source)
        return not module.failed

    def _source(self, tgid: int, mapping: maps.Mapping, module: _Module) -> int | None:
        """A descriptor of the file with the best names of a module, None if it has none."""
        own = module.elf
        if not own.has_dwarf:
            fd = debugfiles.find(own, os.path.dirname(mapping.path), tgid, self._debug_dirs)
            fd = fd if fd is not None else self._debuginfod.find(own.build_id)
            if fd is not None:
                return fd
        if own.has_dwarf or own.has_symtab or ".gnu_debugdata" in own.sections:
            return maps.open_mapped(tgid, mapping)
        return None

    def _load(self, source: int, module: _Module) -> bool:
        status = os.fstat(source)
        found = elf.read(source)
        if found is None or status.st_size > MAX_FILE_BYTES:
            return False
        # A build id is a claim of the file's; the rest keeps one file's names from being another's.
        identity = f"{status.st_dev:x}-{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
        module.key = f"{module.elf.build_id or 'none'}-{identity}"
        request: dict[str, object] = {"op": "open", "key": module.key, "base": found.load_address}
        request["cached"] = False
        if not found.has_dwarf and not found.has_symtab:
            data = found.sections[".gnu_debugdata"]
            request["minidebug"] = (data.offset, data.size)
        cached = self._cache.open(module.key)
        if cached is not None:
            try:
                answer = self._client.ask(request | {"cached": True}, (source, cached), OPEN_TIMEOUT_S)
            finally:
                os.close(cached)
            if answer is not None and answer.get("ok"):
                module.worker = self._client.generation
                return True
        new = self._cache.begin(module.key)
        built = False
        try:
            answer = self._client.ask(request, (source,) if new is None else (source, new), OPEN_TIMEOUT_S)
            built = answer is not None and bool(answer.get("built"))
        finally:
            if new is not None:
                os.close(new)
                self._cache.commit(module.key, keep=built)
        module.worker = self._client.generation
        return answer is not None and bool(answer.get("ok"))

    def _device(self, tgid: int) -> Device:
        for mapping in maps.read(tgid).code_files():
            fd = maps.open_mapped(tgid, mapping)
            if fd is None:
                continue
            try:
                header = elf.read(fd)
                found = device.find(fd, mapping.path, header.build_id) if header else None
            except OSError:
                found = None
            finally:
                os.close(fd)
            if found is not None:
                return found
        return Device()
