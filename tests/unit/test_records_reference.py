# SPDX-License-Identifier: Apache-2.0
"""docs/records.md names every kind, flag and field, in order, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tracer import schema

_TEXT = (Path(__file__).parents[2] / "docs" / "records.md").read_text(encoding="utf-8")
_HEAD = list(schema.RECORD.names or ())[:-1]


def _tables() -> dict[str, list[list[str]]]:
    """First word of a heading -> the rows of the table below it (header rows left out)."""
    tables: dict[str, list[list[str]]] = {}
    for part in re.split(r"^## ", _TEXT, flags=re.MULTILINE)[1:]:
        rows = [
            [cell.strip(" `") for cell in row.strip("|").split("|")]
            for row in re.findall(r"^\|.*\|$", part, re.M)
        ]
        tables[re.split(r"\W", part, maxsplit=1)[0]] = rows[2:]
    return tables


def _family_name(kind: schema.Kind) -> str:
    return next(
        name for name, value in vars(schema).items() if name.isupper() and value is schema.FAMILY[kind]
    )


def test_every_kind_is_described_with_number_and_family() -> None:
    wanted = [[kind.name, str(kind.value), _family_name(kind)] for kind in schema.Kind]
    assert [row[:3] for row in _tables()["Kinds"]] == wanted


def test_every_flag_is_described_with_its_bit() -> None:
    assert [row[:2] for row in _tables()["Flags"]] == [[flag.name, str(flag.value)] for flag in schema.Flag]


def test_every_head_field_is_described() -> None:
    assert [row[0] for row in _tables()["Head"]] == _HEAD


@pytest.mark.parametrize("kind", schema.Kind)
def test_every_field_is_described_with_its_unit(kind: schema.Kind) -> None:
    names = list(schema.FAMILY[kind].names or ())
    rows = _tables()[_family_name(kind)]
    assert [row[0] for row in rows] == names[len(_HEAD) :]
    for name, unit, meaning in rows:
        assert meaning
        assert (unit == "ns") == name.endswith("_ns"), name


def test_ops_of_life_and_loss_are_described() -> None:
    (row,) = [row for row in _tables()["Head"] if row[0] == "op"]
    for ops in (schema.Life, schema.LossClass):
        assert ", ".join(f"{op.value} {op.name.lower()}" for op in ops) in row[2]
