from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from tests.client.support import Served, fake_enclave

from sealwright.testing.enclave import FakeEnclave
from sealwright.testing.gateway import FakeServer


def _now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def live() -> FakeEnclave:
    """A fake enclave on the real clock."""
    return fake_enclave(_now)


@pytest.fixture
def live_server(live: FakeEnclave) -> FakeServer:
    return FakeServer(live)


@pytest.fixture
def live_url(live_server: FakeServer) -> Iterator[str]:
    with Served(live_server.app) as served:
        yield served.url
