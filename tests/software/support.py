"""Helpers of the software platform's tests: a distribution of probes, and ordinary users to run them as."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
PROBE = (HERE / "probe.py").read_text()
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


def install(folder: Path, modules: dict[str, str], *, name: str = "probe", requires: str = "") -> Path:
    """Lay a distribution into `folder` as an installer would."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    header = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    (info / "METADATA").write_text(header + (f"Requires-Dist: {requires}\n" if requires else ""))
    record = [f"{info.name}/METADATA,,", f"{info.name}/RECORD,,"]
    for module, source in modules.items():
        (folder / module).write_text(source)
        record.append(f"{module},,")
    (info / "RECORD").write_text("\n".join(record) + "\n")
    return folder


def ordinary_interpreter() -> str:
    """Return an interpreter of this version that an ordinary user can run, or skip."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for path in (str(Path(sys._base_executable).resolve()), f"/usr/bin/python{version}"):  # type: ignore[attr-defined]
        command = [
            *ordinary_user(),
            path,
            "-I",
            "-c",
            "import ssl, ctypes, sys; open(sys.executable); print(sys.version_info[:2])",
        ]
        found = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        if found.returncode == 0 and found.stdout.strip() == str(sys.version_info[:2]):
            return path
    pytest.skip(f"no Python {version} that an ordinary user can run (apt-get install python3)")


def ordinary_user() -> list[str]:
    """Return the command prefix that runs as an ordinary user, none if we are one."""
    return NOBODY if os.geteuid() == 0 else []


@functools.cache
def open_to_others(folder: str) -> str:
    """Return `folder`, or a copy if an ordinary user cannot enter it: a checkout may lie in a closed home."""
    if subprocess.run([*ordinary_user(), "test", "-x", folder], check=False).returncode == 0:
        return folder
    top = Path(tempfile.mkdtemp(prefix="sealwright-test-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    top.chmod(0o755)
    copy = Path(top, *Path(folder).parts[-3:])  # lib/python3.X/site-packages: beside its libraries
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for library in Path(folder).parents[1].glob("*.so.*"):
        shutil.copy(library, copy.parents[1])
    return str(copy)


def run_as_ordinary_user(script: str, *arguments: str) -> Any:
    """Run a script of this folder as an ordinary user, in a folder of its own; returns the JSON it prints last."""
    interpreter = ordinary_interpreter()
    own = (path for path in sys.path if path and not path.startswith(sys.base_prefix))
    paths = [open_to_others(path) for path in (str(HERE), *own) if Path(path) != CHECKOUT]
    code = "import sys, runpy; n = int(sys.argv[1]); sys.path[:0] = sys.argv[2:2 + n]; "
    code += "sys.argv[:] = sys.argv[2 + n:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    with tempfile.TemporaryDirectory(prefix="sealwright-test-") as folder:
        Path(folder).chmod(0o777)  # not below pytest's own folder, which pytest closes to others
        command = [*ordinary_user(), interpreter, "-I", "-B", "-c", code, str(len(paths)), *paths]
        command += [f"{paths[0]}/{script}", folder, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
