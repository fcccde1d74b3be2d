"""PostgreSQL in the place of a folder: the same rows, log, openings and sessions; in a hostile operator's hands."""

from __future__ import annotations

from pathlib import Path

from sealwright.broker.service import init_broker, open_broker
from sealwright.broker.storage import claimed
from sealwright.ops.drill.postgres import Server


def test_smoke(server: Server, database: Path, tmp_path: Path) -> None:
    root, holder = tmp_path / "broker", tmp_path / "held"
    with claimed(database) as shared:
        init_broker(root, holder=holder, shared=shared)
    with claimed(database) as shared, open_broker(root, holder=holder, shared=shared) as running:
        running.admin.add_caller("acme", "anna")
        assert running.admin.callers("acme") == ["anna"]
    assert server.sql("select count(*) from openings") == "2"
