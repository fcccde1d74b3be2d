"""`sealwright demo` as an ordinary user: the same story, said to be weaker, and the attacks refused alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.software.support import ordinary_interpreter, ordinary_user

import sealwright
from sealwright.cli._attacks import ATTACKS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("xllamacpp")


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that an ordinary user can work in: not below pytest's own, which is closed to others."""
    with tempfile.TemporaryDirectory(prefix="sealwright-demo-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def _path(home: Path) -> str:
    """The packages of this environment, copied if others cannot read them where they are."""
    source = Path(sealwright.__file__).parent.parent
    places = [path for path in sys.path if Path(path).name == "site-packages"]
    wanted = [str(source), *places]
    probe = [*ordinary_user(), "test", "-r"]
    for at, path in enumerate(wanted):
        if subprocess.run([*probe, f"{path}/{next(iter(os.listdir(path)))}"], check=False).returncode:
            copy = home / f"packages{at}"
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
            wanted[at] = str(copy)
    return os.pathsep.join(wanted)


def test_an_ordinary_user_runs_the_demo(home: Path) -> None:
    python = ordinary_interpreter()
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": _path(home), "LANG": "C.UTF-8"}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [
        *ordinary_user(),
        python,
        "-m",
        "sealwright.cli",
        "demo",
        "--json",
        "--dir",
        str(home / "demo"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=home, env=env, check=False, timeout=550
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["confidential"] is False
    assert said["claims"]["user"] == "shared"
    assert len(said["answer"]) > 20
    refused = [(item["attack"], item["by"], item["code"], item["exit"]) for item in said["attacks"]]
    assert refused == [(attack.title, *attack.documented) for attack in ATTACKS]
    assert {"broker", "seal", "policy", "enclave", "client", "chat", "receipt", "log", "secrecy"} == {
        step["step"] for step in said["steps"]
    }
