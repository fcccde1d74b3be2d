"""Vectors of checkpoints: made once, each with the stage and code that refuses it. See make_vectors.py."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from sealwright.crypto.encoding import rfc3339_decode
from sealwright.errors import SealwrightError
from sealwright.training.checkpoint import TrainingTrust, verify_chain

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "checkpoint.json").read_text())


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["id"])
def test_vector(case: dict[str, Any], tmp_path: Path) -> None:
    for name, raw in (VECTORS["files"] | case["edits"]).items():
        if raw is not None:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(raw))
    trust = TrainingTrust.from_json(case.get("trust", VECTORS["trust"]))
    at = rfc3339_decode(VECTORS["at"])
    if case["expect"] == "ok":
        assert verify_chain(tmp_path, trust, at=at).newest.version == 2
        return
    with pytest.raises(SealwrightError) as caught:
        verify_chain(tmp_path, trust, at=at)
    assert {"stage": caught.value.stage, "code": caught.value.code} == case["expect"]


def test_the_cases_are_refused_in_many_stages() -> None:
    stages = {case["expect"]["stage"] for case in VECTORS["cases"] if case["expect"] != "ok"}
    assert len(stages) >= 10
    assert [case["id"] for case in VECTORS["cases"] if case["expect"] == "ok"] == ["honest"]
