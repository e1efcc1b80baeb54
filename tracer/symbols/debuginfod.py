# SPDX-License-Identifier: Apache-2.0
"""Debug files from debuginfod servers, where the user has set DEBUGINFOD_URLS and only there.

Owns the client: what is asked, how long a server may take, which answers are taken, and what of them is kept
(unnamed files, as long as the session). A server that fails once is not asked again: a library each would
otherwise cost its full time. Runs on the thread of names, so nobody else waits for it.

Protocol: debuginfod(8), GET /buildid/BUILDID/debuginfo.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import IO

from tracer.symbols import elf

VARIABLE = "DEBUGINFOD_URLS"
#: Seconds for one answer in all, and the largest answer taken.
TIMEOUT_S = 5.0
MAX_DOWNLOAD_BYTES = 512 << 20
#: Files kept open; a further one closes that which came first.
MAX_KEPT = 16


class Debuginfod:
    """A client of the servers that the user has named, in their order.

    Args:
        fetch: reads a URL into a file; raises OSError or ValueError. For tests.
    """

    def __init__(self, fetch: Callable[[str, IO[bytes]], None] | None = None) -> None:
        self._fetch = fetch or _fetch
        self._kept: dict[str, int | None] = {}
        self._given_up: set[str] = set()

    def find(self, build_id: str) -> int | None:
        """A descriptor (the caller's) of the debug file of a build id, None where no server has it."""
        if not build_id or not os.environ.get(VARIABLE):
            return None
        if build_id not in self._kept:
            self._keep(build_id, self._ask(build_id))
        kept = self._kept[build_id]
        return os.dup(kept) if kept is not None else None

    def close(self) -> None:
        """Let go of all files."""
        for fd in self._kept.values():
            if fd is not None:
                os.close(fd)
        self._kept.clear()

    def _keep(self, build_id: str, fd: int | None) -> None:
        files = [key for key, kept in self._kept.items() if kept is not None]
        if fd is not None and len(files) >= MAX_KEPT:
            oldest = self._kept.pop(files[0])
            assert oldest is not None
            os.close(oldest)
        self._kept[build_id] = fd

    def _ask(self, build_id: str) -> int | None:
        for server in os.environ.get(VARIABLE, "").split():
            if not server.startswith(("http://", "https://")) or server in self._given_up:
                continue
            with tempfile.TemporaryFile(prefix="xdtrace-") as file:
                try:
                    self._fetch(f"{server.rstrip('/')}/buildid/{build_id}/debuginfo", file)
                    found = elf.read(file.fileno())
                except NotThere:
                    continue
                except (OSError, ValueError):
                    self._given_up.add(server)
                    continue
                if found is not None and found.build_id == build_id:
                    return os.dup(file.fileno())
        return None


class NotThere(OSError):
    """The server answered that it has no such file."""


def _fetch(url: str, file: IO[bytes]) -> None:
    # late: with what they bring, a tenth of a live session's imports
    import http.client
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + TIMEOUT_S
    total = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            while piece := answer.read1(1 << 16):
                total += len(piece)
                if total > MAX_DOWNLOAD_BYTES or time.monotonic() > deadline:
                    raise TimeoutError(url)
                file.write(piece)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (404, 410):
                raise NotThere(url) from error
            raise OSError(url) from error
    except http.client.HTTPException as error:
        raise OSError(url) from error
    file.flush()
