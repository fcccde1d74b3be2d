"""Every file of the collection of real evidence, through the product, with the verdict that is published."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import verdicts
from tests.manifest.support import CASES, found, sorted_as, verify
from tests.vector_files import folder

_ROOT = Path(__file__).resolve().parents[2]
_HOW = {"label", "is", "why", "type", "at", "endorsements", "outage", "event_log", "with", "instead_of"}
_SORTED = {"holds", "pinned"}


def test_every_row_of_the_manifest_has_its_case() -> None:
    path = folder() / "MANIFEST.tsv"
    if not path.is_file():
        pytest.skip("vectors not here: MANIFEST.tsv (set SEALWRIGHT_VECTORS to their folder)")
    with path.open(newline="") as file:
        rows = {row["file"]: row["expected"] for row in csv.DictReader(file, delimiter="\t")}
    assert rows == {name: case["label"] for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case["is"] in ("collateral", "root"):
        expected = _only(case, _SORTED) or {"holds": case["codes"][0]}
        assert _only(sorted_as(name), expected.keys()) == expected
        alone = {"verdict": "malformed", "exit": 65, "codes": ["unknown-format"], "stage": "parse"}
        assert found(*verify(name, {}, tmp_path)) == alone
    if "with" in case:
        how = CASES[case["with"]]
        instead = [name if one == case["instead_of"] else one for one in how["endorsements"]]
        assert name in instead
        assert found(*verify(case["with"], {**how, "endorsements": instead}, tmp_path)) == _verdict(case)
    elif case["is"] in ("evidence", "event log"):
        assert found(*verify(name, case, tmp_path)) == _verdict(case)
    elif case["is"] == "data":
        assert found(*verify(name, {}, tmp_path)) == {"stage": "parse", **_verdict(case)}
        assert sorted_as(name)["holds"] == case.get("holds", "unknown-endorsement")


def _verdict(case: Any) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key not in _HOW | _SORTED}


def _only(values: Any, keys: Any) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


@pytest.mark.parametrize("name", CASES)
def test_a_verdict_that_is_not_the_one_labelled_is_explained(name: str) -> None:
    case = CASES[name]
    assert verdicts.agrees(case) or case.get("why")
    if case["is"] == "data":
        assert case["why"]


def test_the_page_shows_the_cases() -> None:
    command = [sys.executable, str(_ROOT / "scripts" / "verdicts.py"), "--check"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_page_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["verdicts.py", "--check"])
    assert verdicts.main() == 1
    verdicts.PAGE.write_text(verdicts.page(CASES).replace("| refused |", "| genuine |", 1))
    assert verdicts.main() == 1
