"""Make a virtual environment with exactly what the lock files name. Standard library only.

    python3 scripts/setup.py .venv test model    requirements/{build,test,model}.txt, then the project

A second run that finds nothing changed only compares digests. Everything is a wheel with a pinned
hash: nothing is compiled, and no index can slip in another file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 14)
MEND = "apt-get install -y python3-venv"


def main() -> int:
    """Run as the module's docstring says."""
    folder, *names = sys.argv[1:]
    try:
        install(ROOT / folder, names)
    except SetupError as exc:
        print(f"setup: {exc}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as exc:
        print(f"setup: `{' '.join(map(str, exc.cmd))}` failed; its reason stands above", file=sys.stderr)
        return 1
    return 0


class SetupError(Exception):
    """What is missing, and the one command that mends it."""


def install(venv: Path, names: list[str], *, project: bool = True) -> Path:
    """Bring `venv` to the lock files `names` (and the project, editable); return its interpreter.

    Raises:
        SetupError: this machine lacks something that only its owner can install.
    """
    python = interpreter(venv)
    stamp = venv / f".installed-{'-'.join(names)}"
    key = _key([*names, "build"])
    if python.exists() and stamp.exists() and stamp.read_text() == key:
        return python
    started = time.monotonic()
    if not python.exists():
        _create(venv)
    pip = _pip(venv, python)
    for name in (["build"] if project else []) + names:
        print(f"setup: {venv.name}: requirements/{name}.txt", file=sys.stderr, flush=True)
        wheels = ["--require-hashes", "--no-deps", "--only-binary", ":all:"]
        _run([*pip, "install", *wheels, "-r", str(ROOT / "requirements" / f"{name}.txt")])
    if project:
        _run([*pip, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    stamp.write_text(key)
    print(
        f"setup: {venv.name} is ready after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
    )
    return python


def interpreter(venv: Path) -> Path:
    """Return where the interpreter of `venv` is, or would be."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _key(names: list[str]) -> str:
    digest = hashlib.sha256(f"{ROOT}\n{sys.version}\n".encode())
    for path in [ROOT / "pyproject.toml", *(ROOT / "requirements" / f"{name}.txt" for name in names)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _create(venv: Path) -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        wanted = f"Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        raise SetupError(f"{wanted} is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11 …")
    shutil.rmtree(venv, ignore_errors=True)
    if not _has("ensurepip") and not _has("pip"):
        _install_venv_package()
        # The module is there now, but this process has looked already.
        _run([sys.executable, "-m", "venv", str(venv)])
        return
    without = [] if _has("ensurepip") else ["--without-pip"]
    _run([sys.executable, "-m", "venv", *without, str(venv)])


def _install_venv_package() -> None:
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not root or not shutil.which("apt-get"):
        raise SetupError(f"this Python can make no virtual environment; as root: {MEND}")
    print(f"setup: this Python can make no virtual environment, so: {MEND}", file=sys.stderr, flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update -qq", MEND):
        subprocess.run(command.split(), check=True, env=environment, stdout=subprocess.DEVNULL)


def _pip(venv: Path, python: Path) -> list[str]:
    quiet = ["-qq", "--no-input", "--disable-pip-version-check"]
    if list(venv.glob("lib/python*/site-packages/pip")) or (venv / "Lib/site-packages/pip").exists():
        return [str(python), "-m", "pip", *quiet]
    return [sys.executable, "-m", "pip", "--python", str(python), *quiet]


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
