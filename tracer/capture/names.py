# SPDX-License-Identifier: Apache-2.0
"""Names for addresses, looked up beside the session so that it never waits for them.

Owns one background thread and its queue. Never touches BPF. What a lookup
raises ends in a call site without frames: a name is a convenience, its absence
must not stop a recording.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracer.schema import CallSite, LockSymbol
from tracer.symbols import Symbolizer

# Addresses of a process that makes up a new one per wait must not fill memory.
_MAX_SITES = 100_000


@dataclass(frozen=True, slots=True)
class Program:
    """What the binary of a target says of itself."""

    tgid: int
    build_id: str
    crate: str
    version: str


@dataclass(frozen=True, slots=True)
class Learnt:
    """What was found since the last look."""

    sites: tuple[CallSite, ...] = ()
    lock_symbols: tuple[LockSymbol, ...] = ()
    programs: tuple[Program, ...] = ()


class Names:
    """The background symbolizer. Start it after BPF() was made, which changes directory for a moment."""

    def __init__(self, debug_dirs: Sequence[str] = ()) -> None:
        self._symbols = Symbolizer([Path(directory) for directory in debug_dirs])
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._asked: set[tuple[int, int]] = set()
        self._sites: list[CallSite] = []
        self._locks: list[LockSymbol] = []
        self._programs: list[Program] = []
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, name="xdtrace names", daemon=True)
        self._thread.start()

    def ask_program(self, tgid: int) -> None:
        """Look up build id, device and lock symbols of a target; again after exec."""

        def job() -> None:
            self._symbols.forget(tgid)
            build_id = self._symbols.build_id(tgid)
            with self._lock:
                self._programs.append(Program(tgid, build_id, "", ""))
            device = self._symbols.device(tgid)
            if device.crate:
                with self._lock:
                    self._programs.append(Program(tgid, build_id, device.crate, device.version))
            locks = self._symbols.lock_symbols(tgid)  # last: it may have to ask a server for the debug info
            with self._lock:
                self._locks.extend(locks)

        self._asked = {key for key in self._asked if key[0] != tgid}
        self._put(job)

    def ask_site(self, tgid: int, address: int) -> None:
        """Look up one return address, once."""
        key = (tgid, address)
        if key in self._asked or len(self._asked) >= _MAX_SITES:
            return
        self._asked.add(key)

        def job() -> None:
            site = self._symbols.resolve(tgid, address)
            with self._lock:
                self._sites.append(site)

        self._put(job)

    def take(self) -> Learnt:
        """What was found since the last call."""
        with self._lock:
            learnt = Learnt(tuple(self._sites), tuple(self._locks), tuple(self._programs))
            self._sites, self._locks, self._programs = [], [], []
        return learnt

    def settle(self, timeout_s: float) -> None:
        """Wait until nothing is asked any more, at most ``timeout_s``."""
        done = threading.Event()
        self._put(done.set)
        done.wait(timeout_s)

    def close(self) -> None:
        """Stop. A lookup under way ends by itself, in a child process with limits."""
        self._jobs.put(None)
        self._thread.join(0.05)

    def _put(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # see the module's docstring
                continue
        self._symbols.close()
