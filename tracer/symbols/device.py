# SPDX-License-Identifier: Apache-2.0
"""Which cross-domain device a program carries: crate and version, from the source paths it kept.

Owns the patterns of those paths: panic messages leave them in .rodata of a
stripped binary, DWARF has them too. Reads a bounded part of a file; knows nothing of
processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

#: At most this much of a file is searched, bytes, and this many places are looked at.
MAX_SEARCH_BYTES = 1 << 30
MAX_PLACES = 20_000
#: A path longer than this before its marker is not recognised.
_BEFORE = 200
_PIECE_BYTES = 4 << 20
_CRATE_MARKER = b"/src/cross_domain"
_VENDORED_MARKER = b"src/rutabaga_gfx/src"
_OWN_MARKER = b"tests/minivmm"
_OWN_NAME = "minivmm"
_OVERLAP = max(len(_CRATE_MARKER), len(_VENDORED_MARKER), len(_OWN_MARKER))
_VERSION = rb"(\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.]+)*)"
# A known name first: literals lie in .rodata without a separator, so any letter may precede it.
_KNOWN = re.compile(rb"(krun[-_]rutabaga[-_]gfx|rutabaga[-_]gfx)-" + _VERSION + rb"$")
_ANY = re.compile(rb"/([A-Za-z][0-9A-Za-z_-]*?)-" + _VERSION + rb"$")
_SONAME_VERSION = re.compile(r"\.so\.(\d+(?:\.\d+)+)$")


@dataclass(frozen=True, slots=True)
class Device:
    """The cross-domain device in a program.

    Attributes:
        crate: e.g. ``rutabaga_gfx``, ``krun-rutabaga-gfx``, ``minivmm``; "" where none was found.
        version: e.g. ``0.1.80``; "" where the paths do not tell.
        build_id: of the file that has it, hex.
        evidence: what it was read from, in words.
    """

    crate: str = ""
    version: str = ""
    build_id: str = ""
    evidence: str = ""


def find(fd: int, path: str, build_id: str) -> Device | None:
    """Look for a cross-domain device in the file behind ``fd``; None if there is none.

    Args:
        path: the file's name as mapped: the version of a library that was built in its own
            source tree is that of its file name.

    Raises:
        OSError: the file cannot be read.
    """
    vendored = own = False
    places = 0
    for data, start in _pieces(fd):
        at = data.find(_CRATE_MARKER, start)
        while at >= 0 and places < MAX_PLACES:
            before = data[max(0, at - _BEFORE) : at]
            match = _KNOWN.search(before) or _ANY.search(before)
            if match:
                crate, version = match[1].decode("ascii"), match[2].decode("ascii")
                evidence = f"source path {crate}-{version}{_CRATE_MARKER.decode()}"
                return Device(crate, version, build_id, evidence)
            places += 1
            at = data.find(_CRATE_MARKER, at + 1)
        vendored = vendored or _VENDORED_MARKER in data
        own = own or _OWN_MARKER in data
    if vendored:
        soname = _SONAME_VERSION.search(path)
        evidence = f"source path {_VENDORED_MARKER.decode()}"
        if soname:
            evidence += f", file name {os.path.basename(path)}"
        return Device("krun-rutabaga-gfx", soname[1] if soname else "", build_id, evidence)
    if own:
        return Device("minivmm", "", build_id, f"source path {_OWN_MARKER.decode()}")
    if os.path.basename(path) == _OWN_NAME:  # a stripped one keeps paths below its own folder only
        return Device("minivmm", "", build_id, f"file name {_OWN_NAME}")
    return None


def _pieces(fd: int) -> Iterator[tuple[bytes, int]]:
    """The file in pieces that overlap, and where the new bytes of each begin.

    Read, not mapped: a file that shrinks under a mapping kills its reader.
    """
    offset, kept = 0, b""
    while offset < MAX_SEARCH_BYTES:
        new = os.pread(fd, _PIECE_BYTES, offset)
        if not new:
            return
        data = kept + new
        yield data, max(0, len(kept) - _OVERLAP)
        kept = data[-(_BEFORE + _OVERLAP) :]
        offset += len(new)
