# SPDX-License-Identifier: Apache-2.0
"""What PipeWire's own profiler says, as its pw-top would count it (ERR), with the time of each point.

Speaks as much of the native protocol as it takes to bind the Profiler object. Uses nothing of tracer/.

A cycle in which a node has not finished when the next one starts is in two points, one for the graph that
was not complete and one for the driver's own turn after that, both with the next cycle's time. pw-top counts
both in 0.3; since 1.2 it shows a count that the server and the client's missed wakeups both add to.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_INT, _LONG, _STRING, _STRUCT, _OBJECT = 4, 5, 8, 14, 15
_NUMBERS = {1: "i", 3: "I", _INT: "i", _LONG: "q", 6: "f", 7: "d", 18: "q"}
_CORE, _CLIENT, _REGISTRY, _PROFILER = 0, 1, 2, 3
_HELLO, _UPDATE_PROPERTIES, _GET_REGISTRY, _BIND, _GLOBAL = 1, 2, 5, 1, 0
_INTERFACE = "PipeWire:Interface:Profiler"
#: Keys of a profiler object's properties, and the status of a node that has finished its cycle.
_CLOCK, _FOLLOWER = 0x10002, 0x20001
_FINISHED = 3


@dataclass(frozen=True)
class Point:
    """One node in one point of the profiler; times in CLOCK_MONOTONIC ns.

    Attributes:
        start_ns: when the cycle should have started. finished: whether the node had finished the one before.
        finish_ns: when the node last finished one.
    """

    start_ns: int
    node: str
    finished: bool
    finish_ns: int


def _pod(value: int | str | list[Any]) -> bytes:
    """An Int, a String or a Struct of such."""
    if isinstance(value, int):
        kind, body = _INT, struct.pack("<i", value)
    elif isinstance(value, str):
        kind, body = _STRING, value.encode() + b"\0"
    else:
        kind, body = _STRUCT, b"".join(_pod(item) for item in value)
    return struct.pack("<II", len(body), kind) + body + bytes(-len(body) % 8)


def _pods(data: bytes) -> Iterator[Any]:
    """Values of PODs one after the other; objects as lists of (key, value), what we do not need as None."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from("<II", data, at)
        body = data[at + 8 : at + 8 + size]
        at += 8 + size + -size % 8
        if kind in _NUMBERS:
            yield struct.unpack_from(f"<{_NUMBERS[kind]}", body)[0]
        elif kind == _STRING:
            yield body.split(b"\0")[0].decode()
        elif kind == _STRUCT:
            yield list(_pods(body))
        elif kind == _OBJECT:
            yield list(_properties(body[8:]))
        else:
            yield None


def _properties(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at + 16 <= len(data):
        key, _, size = struct.unpack_from("<III", data, at)
        yield key, next(_pods(data[at + 8 : at + 16 + size]))
        at += 16 + size + -size % 8


class Profiler:
    """Collects points in a thread of its own while it is entered as a context manager."""

    def __init__(self, path: Path) -> None:
        self.points: list[Point] = []
        self._bound = threading.Event()
        self._seq = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._send(_CORE, _HELLO, [3])
        self._send(_CLIENT, _UPDATE_PROPERTIES, [[1, "application.name", "witness"]])
        self._send(_CORE, _GET_REGISTRY, [3, _REGISTRY])
        self._thread.start()
        assert self._bound.wait(10), "the server has no profiler"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def missed(self, node: str) -> list[int]:
        """Deadlines (ns) of the cycles that a node had not finished by then, in order."""
        return sorted({p.start_ns for p in self.points if p.node == node and not p.finished})

    def _send(self, target: int, opcode: int, arguments: list[Any]) -> None:
        body = _pod(arguments)
        self._socket.sendall(struct.pack("<IIII", target, opcode << 24 | len(body), self._seq, 0) + body)
        self._seq += 1

    def _listen(self) -> None:
        data = b""
        while chunk := self._socket.recv(1 << 16):
            data += chunk
            while len(data) >= 16:
                target, word = struct.unpack_from("<II", data)
                end = 16 + (word & 0xFFFFFF)
                if len(data) < end:
                    break
                self._event(target, word >> 24, data[16:end])
                data = data[end:]

    def _event(self, target: int, opcode: int, body: bytes) -> None:
        if target == _REGISTRY and opcode == _GLOBAL:
            number, _, kind, version, *_ = next(_pods(body))
            if kind == _INTERFACE:
                self._send(_REGISTRY, _BIND, [number, kind, version, _PROFILER])
                self._bound.set()
        elif target == _PROFILER:
            for properties in next(_pods(body))[0]:
                self._point(properties)

    def _point(self, properties: list[tuple[int, Any]]) -> None:
        clock = next(value for key, value in properties if key == _CLOCK)
        for key, value in properties:
            if key == _FOLLOWER:
                self.points.append(Point(clock[3], value[1], value[6] == _FINISHED, value[5]))
