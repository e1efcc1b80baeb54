# SPDX-License-Identifier: Apache-2.0
"""``python -m bench NAME [--quick] [--json]``: owns the choice of the benchmark alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

NAMES = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if "def main(" in path.read_text(encoding="utf-8")
)
NAMES = [name for name in NAMES if not name.startswith("_")]


def run() -> int:
    """Run the benchmark named on the command line; its exit code."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(f"usage: python -m bench {{{','.join(NAMES)}}} [--quick] [--json]", file=sys.stderr)
        return 2
    name = sys.argv.pop(1)
    importlib.import_module(f"bench.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(run())
