# SPDX-License-Identifier: Apache-2.0
"""The real device's program for ``demo --real``: found, or built where it is missing or old.

Owns where it lies and when it is built. It speaks the mini-VMM's line protocol, so minivmm.py runs it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tracer.errors import HostError

VARIANTS = ("locked", "dup", "refcount")
SOURCES = Path(__file__).resolve().parents[2] / "tests" / "realdevice"
_BUILT = Path(__file__).resolve().parents[2] / ".dev" / "realdevice"
_NO_CARGO = (4, 5)  # build.sh's exit codes: missing, too old


def binary(variant: str, *, stripped: bool) -> Path:
    """The program around a variant's crate, built by tests/realdevice/build.sh where need be.

    Args:
        variant: one of VARIANTS; stripped: the fat-LTO build without symbols, else release with line tables.

    Raises:
        HostError: no sources (an installed xdtrace), no cargo 1.81, or it does not build.
    """
    script = SOURCES / "build.sh"
    if not script.is_file():
        raise HostError(
            "the real device comes with the sources, which are not here",
            "run `./dev demo --real ...` in a checkout, or `xdtrace attach PID` on a VMM of your own",
        )
    profile = "stripped" if stripped else "release"
    program = _BUILT / variant / profile / f"rd-{variant}"
    sources = (*SOURCES.glob("*/Cargo.toml"), *SOURCES.rglob("*.rs"))
    if program.is_file() and program.stat().st_mtime >= max(path.stat().st_mtime for path in sources):
        return program
    print(f"building the real device, {variant} (once, a few minutes) ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        ["bash", str(script), "--target-dir", str(_BUILT), "--profile", profile, variant],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in _NO_CARGO:
        what = done.stderr.strip().removeprefix("build.sh: ")
        raise HostError(
            f"the real device cannot be built: {what}",
            "install a newer Rust, or run the demo without --real: its mini-VMM needs Rust 1.63",
        )
    if done.returncode or not program.is_file():
        sys.stderr.write(done.stderr)
        raise HostError(
            "the real device does not build",
            f"see the words above; try {script} --profile {profile} {variant}",
        )
    return program
