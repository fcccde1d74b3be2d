"""The Rego engine in a process of its own. Why: docs/adr/0008-rego-as-an-extra.md."""

from __future__ import annotations

import os
import subprocess
import sys

TIMEOUT_S = 10
MAX_ANSWER = 64 * 1024  # bytes


def evaluate_apart(job: bytes) -> bytes:
    """Return what `sealwright.appraisal.rego_engine.evaluate` does, by a child that has limits and no environment.

    Raises:
        subprocess.SubprocessError, OSError, ValueError: it failed, died, ran out of time or memory, or says too much.
    """
    child = subprocess.run(
        [sys.executable, "-P", "-s", "-m", "sealwright.appraisal.rego_engine"],
        input=job,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        cwd=os.path.abspath(os.sep),
        timeout=TIMEOUT_S,
        check=True,
    )
    if len(child.stdout) > MAX_ANSWER:
        raise ValueError("the engine's answer is too long")
    return child.stdout


def _environment() -> dict[str, str]:
    """Return where to find this package, and on Windows what a program cannot start without."""
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return paths | {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
