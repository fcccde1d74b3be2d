"""A software TPM, made once a session and copied for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tpm.support import running

from sealwright.testing.tpm import SwTpm, manufacture


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a TPM that was never started."""
    if not SwTpm.installed():
        pytest.skip("swtpm is not installed: apt-get install swtpm swtpm-tools")
    folder = tmp_path_factory.mktemp("swtpm")
    manufacture(folder)
    return folder


@pytest.fixture
def swtpm(made: Path) -> Iterator[SwTpm]:
    """Return a running TPM of its own."""
    with running(made) as tpm:
        yield tpm
