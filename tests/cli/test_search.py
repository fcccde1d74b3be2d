"""The search for secrets reads every file that anyone may read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sealwright.cli._search import files


@pytest.mark.skipif(sys.platform == "win32", reason="issue 2: the demo runs on Linux")
def test_only_files_that_nobody_may_read_are_passed_by(tmp_path: Path) -> None:
    for name, mode in (("loader", 0o111), ("own", 0o400), ("public", 0o444), ("named", 0o644)):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(mode)
    assert list(files(tmp_path, but=[tmp_path / "named"])) == [("own", b"own"), ("public", b"public")]
