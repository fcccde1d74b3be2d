"""Time turned back, set ahead, stopped, or contradicted from outside: refused at stage `clock`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.broker.support import NOW, Clock, Kbs, World
from tests.broker.witness_support import keyed

from sealwright.broker.clock import Elapsed, SteadyClock
from sealwright.errors import UnavailableError


class Machine:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.wall, self.boot = Clock(), 1000.0

    def run(self, seconds: float) -> None:
        self.wall.forward(seconds=seconds)
        self.boot += seconds

    def clock(self, *sources: Elapsed) -> SteadyClock:
        return SteadyClock(sources, wall=self.wall, seconds=lambda: self.boot)


def code(clock: SteadyClock) -> str:
    with pytest.raises(UnavailableError) as caught:
        clock()
    assert caught.value.stage == "clock"
    return caught.value.code


def test_a_clock_that_runs_is_believed() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.run(86400)
    assert clock() == NOW + timedelta(days=1)


@pytest.mark.parametrize("seconds", [-11, -3600, 11, 86400])
def test_a_clock_that_is_set_is_refused(seconds: float) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.run(60)
    machine.wall.forward(seconds=seconds)
    assert code(clock) == "clock-disagrees"


def test_a_clock_that_stands_still_is_refused() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.boot += 11
    assert code(clock) == "clock-disagrees"


@pytest.mark.parametrize("seconds", [-9, 9])
def test_a_small_step_is_not(seconds: float) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall.forward(seconds=seconds)
    assert clock() == machine.wall.now


def test_an_outside_source_contradicts_a_clock_that_was_wrong_from_the_start() -> None:
    machine = Machine()
    outside = Elapsed("elsewhere", lambda: machine.boot)
    clock = machine.clock(outside)
    clock()
    outside.hear(NOW + timedelta(days=400))
    assert code(clock) == "clock-disagrees"
    outside.hear(NOW)
    clock()
    machine.boot += 60  # both stand still here; what was heard once goes on
    assert code(clock) == "clock-disagrees"


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_nothing_is_answered_under_a_witness_whose_time_is_another(
    seconds: float,
    world: World,
    sites: Any,
) -> None:
    """As after a snapshot was resumed: both clocks of the machine stand where they stood."""
    machine = Machine()
    (site,) = sites(1)
    texts = keyed(world, [site])
    object.__setattr__(site.witness, "time_s", lambda: int(machine.wall.now.timestamp() + seconds))
    with pytest.raises(UnavailableError) as caught, world.open(witnesses=texts, clock=None):
        pass
    assert (caught.value.code, caught.value.stage) == ("clock-disagrees", "clock")


async def test_a_clock_that_stops_while_serving_refuses_everything_and_says_so(tmp_path: Path) -> None:
    world, machine = World(tmp_path / "broker"), Machine()
    with world.open(clock=machine.clock()) as running:
        world.add_key(running)
        kbs = Kbs(running)
        machine.boot += 3600
        for path in ("/healthz", "/readyz"):
            answer = await kbs.http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "clock-disagrees")
        answer = await kbs.http.post("/kbs/v0/auth", json={"version": "0.4.0", "tee": "software"})
        assert answer.status_code == 503
        with pytest.raises(UnavailableError) as caught:
            running.admin.add_caller("acme", "anna")
        assert caught.value.code == "clock-disagrees"
        machine.wall.forward(seconds=3600)
        (refusal, *_) = running.admin.decisions(1)
        assert (refusal["code"], refusal["verdict"]) == ("clock-disagrees", "refuse")


async def test_a_clock_behind_the_last_decision_is_refused_after_a_restart(world: World) -> None:
    with world.open() as running:
        world.add_key(running)
    world.clock.forward(seconds=-1)
    with world.open() as running:
        answer = await Kbs(running).http.get("/healthz")
        assert (answer.status_code, answer.json()["code"]) == (503, "clock-back")
