"""Servers and transports of these tests answer with real bytes: without them a whole module is skipped, by name."""

from __future__ import annotations

import pytest
from tests.vector_files import vector

SERVING = {"test_collateral_client", "test_collateral_cli", "test_collateral_service"}


@pytest.fixture(autouse=True)
def _vectors(request: pytest.FixtureRequest) -> None:
    if request.module.__name__.rpartition(".")[2] in SERVING:
        vector("sev-snp/openpcc/sev_certificates.txt")
