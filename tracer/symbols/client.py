# SPDX-License-Identifier: Apache-2.0
"""The parent's end of worker.py: starts it, asks it, and gives up on what kills it.

Owns the child process and its time limits. Never parses what the child is
there to parse, and never raises for what the child does: a request that fails,
dies or takes too long has no answer.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Time for one request, seconds: building a symcache, or a look-up.
OPEN_TIMEOUT_S = 30.0
LOOKUP_TIMEOUT_S = 5.0
#: Answers larger than this are not read.
MAX_ANSWER_BYTES = 64 << 20
#: After so many dead workers no further one is started.
MAX_STARTS = 16

_WORKER = Path(__file__).resolve().parent / "worker.py"


class Client:
    """A worker process, started at the first request. Not thread-safe: symbols.Symbolizer locks."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.starts = 0

    @property
    def generation(self) -> int:
        """Tells one worker from the next; 0 while there is none."""
        return self.starts if self._socket is not None else 0

    def ask(
        self, request: dict[str, Any], fds: Sequence[int] = (), timeout_s: float = LOOKUP_TIMEOUT_S
    ) -> dict[str, Any] | None:
        """Send one request with descriptors; the answer, or None if there is none in time.

        After None the worker is gone, with all it had opened.
        """
        connection = self._connect()
        if connection is None:
            return None
        body = json.dumps(request).encode()
        try:
            connection.settimeout(timeout_s)
            socket.send_fds(connection, [struct.pack("<I", len(body))], list(fds))
            connection.sendall(body)
            (size,) = struct.unpack("<I", self._receive(connection, 4))
            if size > MAX_ANSWER_BYTES:
                raise ValueError(size)
            answer = json.loads(self._receive(connection, size))
        except (OSError, ValueError):
            self.close()
            return None
        return answer if isinstance(answer, dict) else None

    def close(self) -> None:
        """End the worker, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _connect(self) -> socket.socket | None:
        if self._socket is not None:
            return self._socket
        if self.starts >= MAX_STARTS:
            return None
        self.starts += 1
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(_WORKER), str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C at the live screen is not for it
                )
            except OSError:
                ours.close()
                return None
        self._socket = ours
        return ours

    @staticmethod
    def _receive(connection: socket.socket, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = connection.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise ConnectionError("the worker is gone")
            data += piece
        return bytes(data)
