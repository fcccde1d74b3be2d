from __future__ import annotations

from pathlib import Path

import pytest
from tests.tlog.support import vectors_root


@pytest.fixture
def tessera() -> Path:
    return _vectors("tessera-posix-log")


@pytest.fixture
def sunlight() -> Path:
    return _vectors("sunlight-witness") / "cmd/skylight/testdata"


def _vectors(name: str) -> Path:
    path = vectors_root() / name
    if not path.is_dir():
        pytest.skip(f"vectors tlog/{name} are not here (SEALWRIGHT_VECTORS)")
    return path
