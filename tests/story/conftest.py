"""A running installation, with recording relays before broker and enclave: started once for a worker."""

from __future__ import annotations

import contextlib
import importlib.util
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]

from sealwright.cli._attack import Target
from sealwright.cli._stand import LEASE_S, Stand, model_path
from sealwright.cli.demo import Story, Teller
from sealwright.errors import UnavailableError


@contextlib.contextmanager
def _running(folder: Path, *, lease_s: int = LEASE_S) -> Iterator[Target]:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the engine is not installed: xllamacpp")
    try:
        model_path()
    except UnavailableError as exc:
        pytest.skip(str(exc))
    stand = Stand(folder, lease_s=lease_s)
    # Cores are allowed here, as far as the machine allows them: what keeps them off is Sealwright's own doing.
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        target = Story(stand, Teller(quiet=True)).build()
        yield target
        target.relay.close()
    finally:
        stand.stop()
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.fixture(scope="module")  # some attacks end it
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The installation that is attacked and talked to."""
    with _running(tmp_path_factory.mktemp("stand")) as target:
        yield target


@pytest.fixture(scope="module")
def short_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """An installation whose leases last 30 seconds."""
    with _running(tmp_path_factory.mktemp("short"), lease_s=30) as target:
        yield target
