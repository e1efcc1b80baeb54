# SPDX-License-Identifier: Apache-2.0
"""docs/summary.md names every field of the summary, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from views_data import many_streams, missing

from tracer.model import summary, summaryrows

DOC = Path(__file__).parents[2] / "docs" / "summary.md"
TABLE = re.compile(r"^## (.*?)$(.*?)(?=^## |\Z)", re.M | re.S)
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", re.M)

#: Every row type of the summary, by the heading it is documented under.
TYPES = {
    name: kind
    for module in (summary, summaryrows)
    for name, kind in vars(module).items()
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module.__name__
}


def sections() -> dict[str, list[tuple[str, str, str]]]:
    """Type name (in backticks in a heading) -> its rows (name, unit, meaning)."""
    found = {}
    for title, body in TABLE.findall(DOC.read_text(encoding="utf-8")):
        if name := re.search(r"`(\w+)`", title):
            found[name[1]] = ROW.findall(body)
    return found


def test_every_type_has_a_section_and_every_section_a_type() -> None:
    assert set(sections()) == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_every_field_is_documented_in_order_with_unit_and_meaning(name: str) -> None:
    rows = sections()[name]
    assert [field for field, _, _ in rows] == [field.name for field in dataclasses.fields(TYPES[name])]
    for field, unit, meaning in rows:
        assert unit.strip(), field
        assert len(meaning.strip()) > 3, field
        if field.endswith("_ns") or field.startswith("wait_ns"):
            assert "ns" in unit, field


def test_causes_and_remedies_are_listed() -> None:
    text = DOC.read_text(encoding="utf-8")
    for word in (*summary.CAUSES, *summary.REMEDIES):
        assert f"`{word}`" in text, word


def test_the_schema_number_is_told() -> None:
    assert f"schema {summary.SCHEMA}" in DOC.read_text(encoding="utf-8")


@pytest.mark.parametrize("made", [missing(), many_streams()], ids=["missing", "many streams"])
def test_the_dict_of_a_summary_has_every_field_of_all_its_rows(made: summary.Summary) -> None:
    assert made.to_dict() == dataclasses.asdict(made)
