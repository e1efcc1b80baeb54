# SPDX-License-Identifier: Apache-2.0
"""Conditions run round after round in pieces: each piece goes on where the file of saved runs ends.

Owns the order of runs (random, the same for the same conditions and rounds), what is left to run and when a
piece ends. Knows nothing of what runs are compared for.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.runs import Condition, Run


def add_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """--quick, --json, --rounds, --seconds, and those that cut a long measurement into pieces."""
    parser.add_argument("--quick", action="store_true", help="a short form: an illustration")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--rounds", type=int, default=0, help=f"runs of each condition ({rounds})")
    parser.add_argument("--seconds", type=float, default=6.0, help="per run")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="append each run, a JSON line each; what is in it is not run again",
    )
    parser.add_argument(
        "--budget", type=float, metavar="S", help="start no further run after so many seconds"
    )
    parser.add_argument("--load", type=Path, metavar="FILE", help="no runs: the tables of what was saved")


def absolute(chosen: argparse.Namespace, *names: str) -> None:
    """Make paths among the options absolute: bcc changes the working directory."""
    for name in names:
        path = getattr(chosen, name)
        setattr(chosen, name, path.absolute() if path else None)


def saved(path: Path | None) -> list[Run]:
    """The runs kept in a file; none where there is no such file."""
    if path is None or not path.exists():
        return []
    return [Run.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def order(conditions: Sequence[Condition], rounds: int) -> list[tuple[Condition, int]]:
    """(condition, round from 1): each condition once a round, in random order within it."""
    chance = random.Random(1)
    return [
        (condition, number)
        for number in range(1, rounds + 1)
        for condition in chance.sample(conditions, len(conditions))
    ]


def measure(
    conditions: Sequence[Condition],
    rounds: int,
    chosen: argparse.Namespace,
    one: Callable[[Condition, int], Run],
) -> list[Run]:
    """All runs of the conditions: those saved, and those that this piece adds.

    Args:
        chosen: the options of ``add_options``; one: runs a condition with a round's number as its seed.
    """
    wanted = {str(condition) for condition in conditions}
    runs = [run for run in saved(chosen.save) if run.condition in wanted and run.seed <= rounds]
    done = {(run.condition, run.seed) for run in runs}
    end = time.monotonic() + chosen.budget if chosen.budget else float("inf")
    left = [item for item in order(conditions, rounds) if (str(item[0]), item[1]) not in done]
    for at, (condition, number) in enumerate(left):
        if time.monotonic() >= end:
            print(f"{len(left) - at} runs are left: the same command goes on", file=sys.stderr, flush=True)
            break
        try:
            run = one(condition, number)
        except RuntimeError as error:  # shown, and no reason to lose the other runs
            print(f"left out: {error}", file=sys.stderr, flush=True)
            continue
        runs.append(run)
        if chosen.save:
            with chosen.save.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(run)) + "\n")
        line = f"round {number}: {condition}: {run.truth.misses} of {run.truth.cycles} missed"
        print(f"{line}, xdtrace {run.seen.misses}", file=sys.stderr, flush=True)
    return runs
