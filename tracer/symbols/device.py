# SPDX-License-Identifier: Apache-2.0
"""Which cross-domain device a program carries: crate and version, from the source paths it kept.

Owns the patterns of those paths: panic messages leave them in .rodata of a
stripped binary, DWARF has them too. Reads bytes of a file through a bounded
mapping; knows nothing of processes.
"""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass

#: At most this much of a file is searched, bytes, and this many places are looked at.
MAX_SEARCH_BYTES = 1 << 30
MAX_PLACES = 20_000
#: A path longer than this before its marker is not recognised.
_BEFORE = 200
_MARKERS = (b"/src/cross_domain", b"src/rutabaga_gfx/src", b"tests/minivmm/")
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
        OSError, ValueError: the file cannot be mapped.
    """
    size = min(os.fstat(fd).st_size, MAX_SEARCH_BYTES)
    if size == 0:
        return None
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
        marker, vendored, own = _MARKERS
        at = data.find(marker)
        places = 0
        while at >= 0 and places < MAX_PLACES:
            before = data[max(0, at - _BEFORE) : at]
            match = _KNOWN.search(before) or _ANY.search(before)
            if match:
                crate, version = match[1].decode("ascii"), match[2].decode("ascii")
                return Device(crate, version, build_id, f"source path {crate}-{version}{marker.decode()}")
            places += 1
            at = data.find(marker, at + 1)
        if data.find(vendored) >= 0:
            soname = _SONAME_VERSION.search(path)
            evidence = f"source path {vendored.decode()}"
            if soname:
                evidence += f", file name {os.path.basename(path)}"
            return Device("krun-rutabaga-gfx", soname[1] if soname else "", build_id, evidence)
        if data.find(own) >= 0:
            return Device("minivmm", "", build_id, f"source path {own.decode()}")
    return None
