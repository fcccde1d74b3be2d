"""The wall clock of the host decides nothing inside an enclave: a lease ends by CLOCK_BOOTTIME."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.story.support import TESTED

import sealwright
from sealwright.enclave.clock import EnclaveClock, boottime
from sealwright.enclave.lease import TenantLease
from sealwright.errors import RevokedError

PACKAGE = Path(sealwright.__file__).parent
# `created` of a keyset: a clock set back only makes it end sooner, one set forward makes it invalid at once.
# Attested TLS: the clock of those who have no lease; whoever has one passes its own.
ALLOWED = {("inference/main.py", "datetime.now"), ("transport/ratls/contexts.py", "datetime.now")}
WALL = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.time_ns"}
WALL |= {"time.gmtime", "time.localtime", "time.strftime", "time.ctime", "formatdate", "utils.formatdate"}


def test_a_lease_ends_whatever_the_wall_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    issued = datetime.now(UTC)
    started, moved = boottime(), [0.0]
    clock = EnclaveClock(lambda: started + moved[0])
    lease = TenantLease("hospital", random=lambda: 0.5)
    until = issued + timedelta(seconds=30)
    terms: Any = SimpleNamespace(not_before=issued, not_after=until, grace_s=None)
    lease.granted(SimpleNamespace(lease=terms, sent=started))  # type: ignore[arg-type]
    clock.anchor(issued, sent=started)
    # The host turns its clock back, by a year and then to the epoch, while time goes on.
    for wall in (issued.timestamp() - 365 * 86400, 0.0):
        monkeypatch.setattr(time, "time", lambda wall=wall: wall)
        moved[0] += 14
        assert lease.check(clock.now())
    moved[0] += 3
    with pytest.raises(RevokedError) as caught:
        lease.check(clock.now())
    refusal, _ = TESTED["the host's clock turned back under a lease"]
    assert (caught.value.code, caught.value.exit_code) == (refusal.code, refusal.exit_code)


def test_boottime_is_not_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    before = boottime()
    assert before == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)
    assert abs(before - datetime.now(UTC).timestamp()) > 10**6


def test_what_runs_in_an_enclave_reads_no_wall_clock() -> None:
    folders = ("enclave", "inference", "transport")
    paths = [path for folder in folders for path in (PACKAGE / folder).rglob("*.py")]
    found = {(str(path.relative_to(PACKAGE)), name) for path in paths for name in _clocks(path.read_text())}
    assert found == ALLOWED
    assert set(_clocks("import time\ntime.time()\ndatetime.datetime.now(UTC)")) == {
        "time.time",
        "datetime.now",
    }


def _clocks(source: str) -> Iterator[str]:
    """Yield each way to read the wall clock that a module uses, called or handed on."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and f"{_last(node.value)}.{node.attr}" in WALL:
            yield f"{_last(node.value)}.{node.attr}"
        elif isinstance(node, ast.Name) and node.id in WALL:
            yield node.id
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names if f"time.{alias.name}" in WALL)


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
