"""The drill itself: that it finds what is to be found, and its faults on real processes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.broker.support import World

from sealwright.cli import main
from sealwright.errors import UnavailableError
from sealwright.ops.drill import cases, tampers
from sealwright.ops.drill.check import _beyond, _Spent, check
from sealwright.ops.drill.fleet import until
from sealwright.ops.drill.load import TENANT, Outcome
from sealwright.ops.drill.run import drills

GRANTED = Outcome(kind="write", name="anna", at=1.0, seconds=0.1, status=200, code="")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "broker")


def found(world: World, *outcomes: Outcome) -> tuple[str, ...]:
    with world.open() as running:
        if "anna" not in running.admin.callers(TENANT):
            running.admin.add_caller(TENANT, "anna")
        return check(running, outcomes).findings


def test_what_is_right_is_found_right(world: World) -> None:
    refused = replace(GRANTED, status=503, code="store-unavailable")
    gone = replace(GRANTED, status=0, code="connection")
    assert found(world, GRANTED, refused, gone) == ()


@pytest.mark.parametrize(
    ("outcome", "finding"),
    [
        (replace(GRANTED, name="otto"), "lost: otto"),
        (replace(GRANTED, kind="release", name="00" * 32), "unlogged release"),
        (replace(GRANTED, status=500, code="internal-error"), "unclear"),
        (replace(GRANTED, status=0, code="hanging"), "unclear"),
        (replace(GRANTED, status=502, code="none"), "unclear"),
        (replace(GRANTED, at=2.0), "twice: anna"),
    ],
)
def test_what_is_wrong_is_found(outcome: Outcome, finding: str, world: World) -> None:
    assert any(one.startswith(finding) for one in found(world, GRANTED, outcome))


def test_a_change_that_is_not_in_the_log_is_found(world: World) -> None:
    with world.open() as running:
        running.admin.add_caller("other", "eve")
        running.core.state.ledger.decisions_backwards = lambda: iter(())  # type: ignore[method-assign]
        running.admin.callers = lambda _: ["eve"]  # type: ignore[method-assign]
        assert check(running, []).findings == ("not in the log: eve is there",)


def test_waiting_has_an_end() -> None:
    with pytest.raises(UnavailableError) as caught:
        until(lambda: False, "nothing", limit_s=0.1)
    assert caught.value.code == "drill-failed"


@pytest.mark.parametrize("case", tampers.TAMPERS, ids=[case[0] for case in tampers.TAMPERS])
def test_a_tampered_broker_is_refused(case: tuple[str, object, str], tmp_path: Path) -> None:
    assert tampers.run_tamper(tmp_path, *case).findings == ()  # type: ignore[arg-type]


def test_a_tamper_that_is_not_refused_is_found(tmp_path: Path) -> None:
    result = tampers.run_tamper(tmp_path, "nothing", lambda _: None, "row-tampered")
    assert result.findings == ("refused with nothing, not row-tampered",)


@pytest.mark.parametrize("case", tampers.CLOCKS, ids=[case[0] for case in tampers.CLOCKS])
def test_a_wrong_clock_is_refused(case: tuple[str, float, float, str], tmp_path: Path) -> None:
    assert tampers.run_clock(tmp_path, *case).findings == ()


def test_a_clock_behind_is_refused(tmp_path: Path) -> None:
    assert tampers.run_clock_behind(tmp_path).findings == ()


def test_the_command_prints_a_table_and_fails_where_something_was_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["drill", "--short", "--only", "one old row", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["held"] is True
    assert [one["code"] for one in said["drills"]] == ["row-tampered"]
    bad = (("one old row", lambda _: None, "row-tampered"),)
    monkeypatch.setattr(tampers, "TAMPERS", bad)
    assert main(["drill", "--short", "--only", "one old row"]) == 69
    printed = capsys.readouterr()
    assert "NO" in printed.out
    assert "refused with nothing" in printed.out
    assert main(["drill", "--only", "no such drill"]) == 2


def test_each_drill_has_a_name_of_its_own() -> None:
    names = [name for name, _ in drills(short=True)]
    assert len(names) == len(set(names)) == 21


@pytest.mark.slow  # 10 to 20 s each: real processes, a real PostgreSQL
@pytest.mark.parametrize("fault", [cases.killed, cases.cut_off], ids=lambda fault: fault.__name__)
def test_a_fault_on_real_replicas_holds(fault: cases.Fault, server: object) -> None:
    started = time.monotonic()
    result = cases.run("", fault, load_s=1.0)
    assert result.findings == ()
    assert result.granted > 0
    assert result.recovery_s is not None
    assert 0 <= result.recovery_s <= time.monotonic() - started


@pytest.mark.parametrize(
    ("spent", "finding"),
    [
        (_Spent(answered=13, logged=13, rows=13), "beyond a budget"),
        (_Spent(answered=2, logged=1, rows=1), "unlogged release under a budget"),
        (_Spent(answered=1, logged=2, rows=1), "a budget that is not what the log says"),
    ],
)
def test_a_release_beyond_a_budget_is_found(spent: _Spent, finding: str) -> None:
    assert any(one.startswith(finding) for one in _beyond(spent))
    assert _beyond(_Spent(answered=3, logged=4, rows=4)) == []
