"""Fixtures for every test."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
OPENMP = Path(sys.prefix, "lib", "libgomp.so.1")

# scripts/setup.py puts it there on machines without one; the loader does not look there by itself.
if OPENMP.is_file():
    ctypes.CDLL(str(OPENMP))

# A busy machine is no failure: examples are bounded in number, not in time.
settings.register_profile("sealwright", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sealwright")


@pytest.fixture
def shared_vectors() -> Callable[[str], Path]:
    """Return a function from a name below the folder of other projects' vectors to its path.

    They are not part of this repository; a test that needs them is skipped by name without them.
    """
    folder = Path(os.environ.get("SEALWRIGHT_VECTORS", ROOT.parent / "shared" / "vectors"))

    def path(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"vectors not here: {name} (set SEALWRIGHT_VECTORS to their folder)")
        return folder / name

    return path
