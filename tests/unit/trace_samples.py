# SPDX-License-Identifier: Apache-2.0
"""Batches that say which one they are, and traces made of them (imports no test library: children use it)."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from tracer import schema
from tracer.trace import TraceWriter


def assert_equal(got: schema.Batch, wanted: schema.Batch) -> None:
    """Every field, records included, is the same."""
    for field in fields(schema.Batch):
        ours, theirs = getattr(got, field.name), getattr(wanted, field.name)
        if field.name == "records":
            assert ours.dtype == schema.RECORD
            assert ours.tobytes() == theirs.tobytes()
        else:
            assert ours == theirs, field.name


def some_batch(number: int = 0, count: int = 100) -> schema.Batch:
    """A batch that says which one it is, in all its parts."""
    records = np.zeros(count, schema.RECORD)
    records["kind"] = schema.Kind.WRITE
    records["tid"] = number
    records["enter_ns"] = number * 1000 + np.arange(count)
    return schema.Batch(
        records,
        watermark_ns=number * 1000,
        targets=(schema.Target(number, "vmm", "muvm", notes=("a", "b")),) if number % 2 == 0 else (),
        threads=(schema.Thread(number, 1, "gpu worker", "FIFO", 10, "0-1", 7),) if number % 3 == 0 else (),
        sites=(schema.CallSite(number, 4, frames=(schema.Frame("f", "g.rs", 3),)),)
        if number % 5 == 0
        else (),
        losses=schema.Losses(number, 0, 1),
        self_use=schema.SelfUse(1.5, number, 3),
        host={"kernel": "6.18", "cpus": 2} if number == 0 else {},
    )


def record(path: Path, count: int = 5) -> list[schema.Batch]:
    """A closed trace of *count* batches at *path*."""
    batches = [some_batch(number) for number in range(count)]
    with TraceWriter(path) as writer:
        for batch in batches:
            writer.append(batch)
    return batches
