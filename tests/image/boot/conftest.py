"""One stage for all boots, and one good boot that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.image.boot.support import BOOT_S, Stage, quietly, stage

from sealwright.image.qemu import Booted
from sealwright.testing.qemu import TestMachine

LONG = "SEALWRIGHT_LONG"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the boots that take minutes each, unless they are asked for."""
    if os.environ.get(LONG):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason=f"{LONG} is not set: make test-image-long"))


@dataclass(frozen=True, kw_only=True)
class Good:
    """A guest that serves."""

    guest: Booted
    machine: TestMachine
    seconds: float


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage")) as one:
        yield one


@pytest.fixture(scope="session")
def good(made: Stage) -> Iterator[Good]:
    machine = made.machine("good")
    with quietly(machine.booted) as guest:
        seconds = guest.wait_for("sealwright-enclave: serving ", BOOT_S)
        yield Good(guest=guest, machine=machine, seconds=seconds)
