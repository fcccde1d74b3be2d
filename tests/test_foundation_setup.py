"""What a fresh machine gets: the setup script, and that each import of the package is declared by its extra."""

from __future__ import annotations

import ast
import os
import stat
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from scripts import setup

from sealwright.attester.quoter.elf import system_directories

SOURCE = setup.ROOT / "src" / "sealwright"
EXTRA = {
    "broker": "broker",
    "enclave": "enclave",
    "inference": "enclave",
    "attester": "enclave",
    "training": "training",
}
# Asked of a machine that may lack it, inside a function, and told how to mend it where it does.
OPTIONAL = {
    "training": {"flwr", "pyarrow", "torch"},
    "cli": {"openai"},
    "sealing": {"fsspec", "obstore"},
    "broker": {"alembic", "boto3", "botocore", "pkcs11"},
}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="issue 2: enclaves are Linux only")


def declared(*extras: str) -> set[str]:
    """Return the import names that the package's dependencies and these extras bring."""
    project = tomllib.loads((setup.ROOT / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] + [
        text for extra in extras for text in project["optional-dependencies"][extra]
    ]
    names = {canonicalize_name(Requirement(text).name) for text in texts}
    modules = metadata.packages_distributions()
    return {module for module, brought in modules.items() if names & {canonicalize_name(b) for b in brought}}


@linux
@pytest.mark.parametrize("part", sorted(path.stem for path in SOURCE.iterdir() if path.name != "__pycache__"))
def test_each_import_is_declared(part: str) -> None:
    files = [SOURCE / f"{part}.py"] if (SOURCE / f"{part}.py").exists() else (SOURCE / part).rglob("*.py")
    allowed = declared(*([EXTRA[part]] if part in EXTRA else [])) | OPTIONAL.get(part, set())
    allowed |= {"sealwright", *sys.stdlib_module_names}
    assert {name: str(file) for file in files for name in imports(file) if name not in allowed} == {}


def imports(file: Path) -> set[str]:
    """Return the top-level names of all absolute imports of a source file."""
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names}


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


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that stand for all of the machine's: an apt-get that brings nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("apt-get", "dpkg-deb"):
        (folder / name).write_text(f"#!/bin/sh\nexec >>{tmp_path}/calls\necho {name} $*\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@linux
def test_the_setup_names_the_command_that_mends_what_apt_cannot(
    apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_has", lambda module: False)
    with pytest.raises(setup.SetupError, match="as root: apt-get install -y python3-venv"):
        setup.install(tmp_path / "venv", ["base"])
    monkeypatch.setattr(setup, "OPENMP", "libnone.so.1")
    with pytest.raises(setup.SetupError, match="as root: apt-get install -y libgomp1"):
        setup._provide_openmp(tmp_path / "venv")
    calls = (tmp_path / "calls").read_text()
    assert "download python3-pip-whl" in calls
    assert "download libgomp1" in calls
    assert " install" not in calls  # nothing outside the environment changes
    (apt / "apt-get").unlink()
    with pytest.raises(setup.SetupError, match="install what Debian calls libgomp1"):
        setup._provide_openmp(tmp_path / "venv")


@linux
def test_a_missing_openmp_library_comes_from_debian_into_the_environment(
    apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (apt / "apt-get").write_text('#!/bin/sh\ncase "$*" in *download*) : >x.deb;; esac\n')
    unpack = "/bin/mkdir -p $3; cd $3; echo bytes >real; /bin/ln -s real libnone.so.1"
    (apt / "dpkg-deb").write_text(f"#!/bin/sh\n{unpack}\n")
    monkeypatch.setattr(setup, "OPENMP", "libnone.so.1")
    (tmp_path / "venv" / "lib").mkdir(parents=True)
    setup._provide_openmp(tmp_path / "venv")
    library = tmp_path / "venv" / "lib" / "libnone.so.1"
    assert (library.read_text(), library.is_symlink()) == ("bytes\n", False)


@linux
def test_a_machine_that_has_the_library_is_left_alone(
    apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "OPENMP", "libc.so.6")
    setup._provide_openmp(tmp_path / "venv")
    assert not (tmp_path / "calls").exists()


def test_an_environment_of_another_python_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_has", lambda module: True)
    python = setup.interpreter(tmp_path)
    python.parent.mkdir()
    python.touch()
    assert not setup._usable(tmp_path)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / ("Lib" if os.name == "nt" else f"lib/{version}")).mkdir(parents=True)
    assert setup._usable(tmp_path)


@linux
def test_libraries_of_the_environment_come_before_those_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", ["/srv/src", "/usr/lib/python3.11"])
    machine = list(system_directories())
    monkeypatch.setattr(sys, "path", ["/srv/src", "/srv/venv/lib/python3.11/site-packages"])
    assert list(system_directories()) == ["/srv/venv/lib", *machine]
