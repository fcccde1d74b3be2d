from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.broker.support import Enclave, Kbs, World
from tests.broker.witness_support import sites as sites

from sealwright.broker.service import Running


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "broker")


@pytest.fixture
def running(world: World) -> Iterator[Running]:
    with world.open() as running:
        yield running


@pytest.fixture
def dek(world: World, running: Running) -> bytes:
    return world.add_key(running)


@pytest.fixture
def enclave(world: World, running: Running, dek: bytes) -> Enclave:
    return Enclave.make(world, running)


@pytest.fixture
def kbs(running: Running) -> Kbs:
    return Kbs(running)
