"""The search for secrets reads every file, but for those it is told to pass by."""

from __future__ import annotations

from pathlib import Path

from sealwright.cli._search import files


def test_every_file_is_read_but_those_named_and_what_lies_below_them(tmp_path: Path) -> None:
    for name in ("a/root/b/code", "a/rooted", "a/scratch", "named", "z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = files(tmp_path, but=[tmp_path / "named", tmp_path / "a" / "root"])
    assert list(found) == [(name, name.encode()) for name in ("a/rooted", "a/scratch", "z")]
