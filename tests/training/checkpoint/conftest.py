"""One honest run that tests copy and bend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.training.checkpoint.chains import Run, run


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run with two checkpoints. Copy its folder before bending it."""
    with run(tmp_path_factory.mktemp("honest")) as made:
        yield made
