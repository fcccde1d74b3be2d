from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwright.broker.database import read_url
from sealwright.ops.drill.postgres import Server, find_binaries


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A private PostgreSQL, for all tests of this folder."""
    pytest.importorskip("psycopg", reason="psycopg is not here: pip install 'sealwright[postgres]'")
    pytest.importorskip("alembic", reason="alembic is not here: pip install 'sealwright[postgres]'")
    if find_binaries() is None:
        pytest.skip("PostgreSQL is not here: apt-get install postgresql")
    with Server.start() as running:
        yield running


@pytest.fixture
def database(server: Server, tmp_path: Path) -> Path:
    """The file with the address of an empty database that has its tables."""
    from sealwright.broker.migrations import migrate

    for statement in ("DROP DATABASE IF EXISTS broker WITH (FORCE)", "CREATE DATABASE broker"):
        server.sql(statement, database="postgres")
    file = tmp_path / "database"
    file.write_text(server.url())
    file.chmod(0o600)
    migrate(read_url(file))
    return file
