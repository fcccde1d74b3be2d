"""The how-to of attested TLS is run, block by block, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sealwright.testing.software import FakePlatformWarning

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "attested-tls.md"


def test_the_how_to_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    with pytest.warns(FakePlatformWarning):
        exec(compile(blocks[0], str(PAGE), "exec"), names)
    for block in blocks[1:]:
        exec(compile(block, str(PAGE), "exec"), names)
    names["listener"].close()
    assert capsys.readouterr().out.splitlines() == ["0.0.0-testing", "hello world"]
