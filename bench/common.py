# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: options, rows with medians and ranges, the load program, the drained session.

Owns how results look. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tracer.model.analysis import Analysis
    from tracer.model.streams import Cycle

ROOT = Path(__file__).resolve().parents[1]


def options(about: str, pieces: bool = False) -> argparse.Namespace:
    """--quick, --json and --rounds (0: the benchmark's own number); for pieces() --save and --budget too."""
    parser = argparse.ArgumentParser(description=about)
    if pieces:
        parser.add_argument(
            "--save", type=Path, metavar="FILE", help="append each step; what is in it is not measured again"
        )
        parser.add_argument(
            "--budget", type=float, metavar="S", help="start no further step after so many seconds"
        )
    parser.add_argument("--quick", action="store_true", help="a short form: an illustration")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--rounds", type=int, default=0)
    return parser.parse_args()


def host(command: str) -> dict[str, object]:
    """Where and when figures were made, and by which command (without its options)."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": " ".join([command, *sys.argv[1:]]),
    }


class Results:
    """Samples by (row, column), printed as median [least–greatest]."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.notes: list[str] = []

    def add(self, row: str, **values: float) -> None:
        """One round's values of a row, columns by keyword (their names end in the unit)."""
        for column, value in values.items():
            self.samples[row][column].append(value)

    def note(self, text: str) -> None:
        """A sentence below the table, once."""
        if text not in self.notes:
            self.notes.append(text)

    def say(self, as_json: bool) -> None:
        """Print the table, or one JSON line."""
        where = host(f"./dev bench {self.name}")
        if as_json:
            rows = {row: dict(columns) for row, columns in self.samples.items()}
            print(json.dumps({"bench": self.name, "host": where, "samples": rows, "notes": self.notes}))
            return
        columns = list(dict.fromkeys(name for row in self.samples.values() for name in row))
        table = [["", *columns]]
        for row, samples in self.samples.items():
            table.append([row, *(_cell(samples.get(name, [])) for name in columns)])
        widths = [max(len(line[at]) for line in table) for at in range(len(table[0]))]
        for line in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        for text in (*self.notes, "median [least–greatest]; " + str(where)):
            print(text)


def _cell(samples: list[float]) -> str:
    if not samples:
        return "–"
    middle, least, most = (
        f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        for value in (statistics.median(samples), min(samples), max(samples))
    )
    return f"{middle} [{least}–{most}]" if len(samples) > 1 else middle


def pieces(
    results: Results, steps: Sequence[tuple[str, Callable[[Results], None]]], chosen: argparse.Namespace
) -> None:
    """Measure the steps that the file of saved ones lacks, in order, as far as the budget goes.

    Args:
        steps: by name, each adding its samples; chosen: of options(pieces=True).
    """
    saved = {}
    if chosen.save and chosen.save.exists():
        lines = chosen.save.read_text(encoding="utf-8").splitlines()
        saved = {step["step"]: step for step in map(json.loads, lines)}
    end = time.monotonic() + (chosen.budget or float("inf"))
    left = [name for name, _ in steps if name not in saved]
    for name, measure in steps:
        if name not in saved:
            if time.monotonic() > end:
                continue
            part = Results(results.name)
            measure(part)
            saved[name] = {"step": name, "samples": part.samples, "notes": part.notes}
            left.remove(name)
            if chosen.save:
                with chosen.save.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(saved[name]) + "\n")
        for row, columns in saved[name]["samples"].items():
            for at in range(max(map(len, columns.values()))):
                results.add(row, **{column: values[at] for column, values in columns.items()})
        for text in saved[name]["notes"]:
            results.note(text)
    if left:
        results.note(f"{len(left)} of {len(steps)} steps are left: run it again with the same --save")


class Judging:
    """The CPU that an analysis spends on episodes, paths, leaves and replays; made before it is fed."""

    def __init__(self, analysis: Analysis) -> None:
        self.cpu_s = 0.0
        take = analysis.verdicts.take

        def timed(cycles: list[Cycle]) -> None:
            start = time.process_time()
            take(cycles)
            self.cpu_s += time.process_time() - start

        setattr(analysis.verdicts, "take", timed)  # noqa: B010 (a method is replaced, to time it)


def record(out: Path, *more: str, churn: int = 200) -> Path:
    """Ten seconds of the mini-VMM under churn, recorded as a user would; ``more``: options of demo."""
    command = ("demo", "--churn", str(churn), "--duration", "10", "-o", str(out), "--json", *more)
    code = "import sys; from tracer.cli.main import main; sys.argv[0] = 'xdtrace'; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return out


class Load:
    """bench/load.c as a child that is ready and waits to be told to go."""

    def __init__(self, *arguments: str) -> None:
        program = Path(tempfile.gettempdir()) / f"xdtrace-bench-{os.getpid()}" / "load"
        if not program.exists():
            program.parent.mkdir(mode=0o700)
            source = Path(__file__).with_name("load.c")
            subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
        self._child = subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._child.stdout is not None
        _ready, tgid, address = self._child.stdout.readline().split()
        self.tgid, self.words = int(tgid), int(address, 16)
        self.count = self.ns = 0
        self._done = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(10)

    def _wait(self) -> None:
        assert self._child.stdout is not None
        self.count, self.ns = (int(word) for word in self._child.stdout.readline().split())

    def go(self) -> None:
        """Let it run."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._done.start()

    @property
    def running(self) -> bool:
        """Whether it has not yet said what it did."""
        return self._done.is_alive()

    def join(self) -> float:
        """Wait for its end; ns per syscall (CPU time for cost and bystander)."""
        self._done.join()
        return self.ns / max(1, self.count)


def clean() -> None:
    """Remove what Load built."""
    shutil.rmtree(Path(tempfile.gettempdir()) / f"xdtrace-bench-{os.getpid()}", ignore_errors=True)
