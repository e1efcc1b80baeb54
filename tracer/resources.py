# SPDX-License-Identifier: Apache-2.0
"""Where the files that are no Python lie: probes/ and profiles/.

Owns only the two paths, which differ between a checkout (beside the package)
and an installed wheel (inside it). Never reads what lies there.
"""

from __future__ import annotations

from pathlib import Path

from tracer.errors import HostError

_PACKAGE = Path(__file__).resolve().parent


def probes_dir() -> Path:
    """The absolute folder of the BPF C sources.

    Raises:
        HostError: this installation lacks it.
    """
    return _find("probes", "event.h")


def profiles_dir() -> Path:
    """The absolute folder of the VMM profiles (TOML).

    Raises:
        HostError: this installation lacks it.
    """
    return _find("profiles", "")


def _find(name: str, witness: str) -> Path:
    """The wheel's copy if there is one, else the checkout's folder, told by a file in it."""
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if (folder / witness).exists():
            return folder
    raise HostError(f"this installation has no {name}/ folder", "install xdtrace again: ./dev install")
