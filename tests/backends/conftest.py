from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.backends.stands import KINDS, TRANSIT, Bao, Stand, bao_server, transit


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    """One OpenBao server for all tests: it takes some seconds to start."""
    with bao_server(tmp_path_factory.mktemp("bao")) as bao:
        yield bao


@pytest.fixture(
    params=[*KINDS, pytest.param(TRANSIT, marks=pytest.mark.slow)],  # slow: starts OpenBao, about 4 s
)
def stand(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stand]:
    with ExitStack() as stack:
        if request.param == TRANSIT:
            yield transit(tmp_path / "stand", request.getfixturevalue("bao"))
        else:
            yield KINDS[request.param](tmp_path / "stand", stack)
