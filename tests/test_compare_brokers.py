"""Each of our cells in the comparison names a test that exists, and each of the others' a source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explanation" / "compare-brokers.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| what ")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_our_cell_is_a_test_that_exists(row: list[str]) -> None:
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[1])
    assert named is not None, row[1]
    assert re.search(rf"^(async )?def {named[2]}\(", (ROOT / named[1]).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_is_said_of_others_has_a_source(row: list[str]) -> None:
    assert len(row) == 8
    for cell in row[2:]:
        if cell not in ("not found", "its own", "a service of the cloud"):
            assert re.search(r"\[[A-Z]\d\]", cell), cell
    for mark in re.findall(r"\[([A-Z]\d)\]", " ".join(row)):
        assert re.search(rf"^\[{mark}\]: https://", PAGE, re.MULTILINE)


def test_there_are_rows() -> None:
    assert len(ROWS) >= 16
