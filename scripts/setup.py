"""Make a virtual environment with exactly what the lock files name. Standard library only.

    python3 scripts/setup.py .venv test model    requirements/{build,test,model}.txt, then the project

A second run that finds nothing changed only compares digests. Everything is a wheel with a pinned
hash: nothing is compiled, and no index can slip in another file. What a bare Debian lacks (pip, OpenMP)
comes from its own archive through apt, which checks it, into the environment: for root and for anyone else
alike, and nothing outside the environment changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 14)
ENGINE = "xllamacpp"  # its wheel alone counts on a library that a machine may lack
OPENMP = "libgomp.so.1"


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
    if not _usable(venv):
        _create(venv)
    installer = pip(venv, python)
    for name in (["build"] if project else []) + names:
        print(f"setup: {venv.name}: requirements/{name}.txt", file=sys.stderr, flush=True)
        wheels = ["--require-hashes", "--no-deps", "--only-binary", ":all:"]
        _run([*installer, "install", *wheels, "-r", str(_lock(name))])
    if any(ENGINE in _lock(name).read_text() for name in names):
        _provide_openmp(venv)
    if project:
        _run([*installer, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
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
    for path in [ROOT / "pyproject.toml", *map(_lock, names)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _lock(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.txt"


def _usable(venv: Path) -> bool:
    """Whether `venv` is whole, and of the Python version that runs this."""
    folder = "Lib" if os.name == "nt" else f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    return interpreter(venv).exists() and (venv / folder).is_dir() and (_own_pip(venv) or _has("pip"))


def _create(venv: Path) -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        wanted = f"Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        raise SetupError(f"{wanted} is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11 …")
    shutil.rmtree(venv, ignore_errors=True)
    without = [] if _has("ensurepip") else ["--without-pip"]
    _run([sys.executable, "-m", "venv", *without, str(venv)])
    if without and not _has("pip"):
        _provide_pip(interpreter(venv))


def _provide_pip(python: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheel = _debian("python3-pip-whl", "pip-*.whl", Path(folder), mend="python3-venv")
        options = ["-qq", "--no-input", "--disable-pip-version-check", "--no-index", "--no-deps"]
        _run([str(python), f"{wheel}/pip", "install", *options, str(wheel)])


def _provide_openmp(venv: Path) -> None:
    """Make sure of the OpenMP library: this machine's, or else one in `venv`/lib, where the quoter looks."""
    probe = [sys.executable, "-c", f"import ctypes; ctypes.CDLL({OPENMP!r})"]
    found = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    if found or not sys.platform.startswith("linux"):
        return
    with tempfile.TemporaryDirectory() as folder:
        library = _debian("libgomp1", OPENMP, Path(folder), mend="libgomp1")
        shutil.copyfile(library, venv / "lib" / OPENMP)


def _debian(package: str, name: str, folder: Path, *, mend: str) -> Path:
    """Return the file `name` (a pattern) of a Debian package, unpacked below `folder`, an empty one."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise SetupError(f"install what Debian calls {mend} with this machine's package manager")
    print(f"setup: fetching Debian's {package}", file=sys.stderr, flush=True)
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    apt = ["apt-get", "-qq", "-o", f"Dir::State={folder}/state", "-o", f"Dir::Cache={folder}/cache"]
    apt += ["-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "APT::Sandbox::User=root"]
    # The outcome is judged by the file: a hook of this machine may fail after a good update.
    for action in (["update"], ["download", package]):
        subprocess.run([*apt, *action], cwd=folder, check=False, stdout=sys.stderr)
    for deb in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(folder / "root")], check=True)
    found = sorted(folder.glob(f"root/**/{name}"))
    if not found:
        raise SetupError(f"apt could not bring {package} (see above); as root: apt-get install -y {mend}")
    return found[0]


def _own_pip(venv: Path) -> bool:
    return any(venv.glob("lib/python*/site-packages/pip")) or (venv / "Lib/site-packages/pip").exists()


def pip(venv: Path, python: Path) -> list[str]:
    """Return the command, up to its options, of a pip that installs into `venv`, whose interpreter is `python`."""
    quiet = ["-qq", "--no-input", "--disable-pip-version-check"]
    if _own_pip(venv):
        return [str(python), "-m", "pip", *quiet]
    return [sys.executable, "-m", "pip", "--python", str(python), *quiet]


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
