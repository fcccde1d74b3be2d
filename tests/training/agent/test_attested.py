"""Agents that attest to a real broker, judge each other, and train on shards that it releases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.training.agent.world import OWNERS, World

from sealwright.errors import UnavailableError, VerificationError
from sealwright.training.agent.introduction import Introduction
from sealwright.training.agent.main import build
from sealwright.training.agent.wire import AgentRefusal, Call, answered
from sealwright.training.countersign import FarCountersign
from sealwright.training.routes import Runs


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with world.open():
        yield world


def test_a_run_learns(world: World) -> None:
    driver = world.driver(world.agents())
    assert driver.enrol() == {}
    rounds = [driver.round() for _ in range(4)]
    assert [one.contributors for one in rounds] == [len(OWNERS)] * 4
    assert rounds[-1].metrics["accuracy"] > 0.9
    assert rounds[-1].metrics["loss"] < rounds[0].metrics["loss"] / 2


def test_the_countersigner_goes_on_after_a_restart(world: World) -> None:
    driver = world.driver(world.agents())
    driver.enrol()
    driver.round()
    driver._countersign = world.driver({})._countersign  # new objects over the same rows
    assert driver._countersign.next_round() == 2
    assert driver.round().number == 2
    actions = [one["action"] for one in world.running.admin.decisions(100)]
    assert actions.count("countersign") == 4
    assert actions.count("data-release") == 2 * len(OWNERS)
    assert actions.count("enrol") == len(OWNERS) + 1


def test_changed_code_gets_no_result_of_the_broker(world: World) -> None:
    agents = world.agents()
    agents["west"] = build(world.workload("worker", ["west"], code=bytes(32)))
    driver = world.driver(agents)
    assert driver.enrol() == {"west": "code-not-allowed"}
    done = driver.round()
    assert (done.listed, done.contributors) == (4, 4)


def test_another_config_is_refused_by_all_peers(world: World) -> None:
    """The broker's policies admit it; who trains with it compares what was measured with its own."""
    other = world.config("worker").model_copy(update={"metrics": ["loss", "accuracy"]})
    agents = world.agents()
    agents["west"] = build(world.workload("worker", ["west"], config=other.encode()))
    driver = world.driver(agents)
    assert driver.enrol() == {"west": "peer-other-run"}
    assert driver.round().contributors == 4


def test_a_worker_is_no_aggregator(world: World) -> None:

    agents = world.agents()
    answer = answered(agents["west"], Call("enrol", {"first_round": 1}))
    shown = Introduction.parse(bytes(answer.part()), limit=1 << 24)
    false = shown.model_copy(update={"role": "aggregator", "enrolment": b""})
    own = build(world.workload("aggregator"))

    class Lying:
        def handle(self, call: Call) -> Call:
            answer = own.handle(call)
            return Call("ok", {}, [false.encode()]) if call.name == "introduce" else answer

    driver = world.driver(agents, Lying())
    with pytest.raises(UnavailableError) as caught:
        driver.enrol()
    assert caught.value.code == "too-few-workers"
    assert set(driver.refused.values()) == {"refuses the aggregator: peer-role"}


def test_a_result_of_another_worker_is_refused(world: World) -> None:

    agents = world.agents()
    other = Introduction.parse(
        bytes(answered(agents["east"], Call("enrol", {"first_round": 1})).part()), limit=1 << 24
    )
    inner = agents["west"]

    class Swapped:
        def handle(self, call: Call) -> Call:
            answer = inner.handle(call)
            if call.name != "enrol":
                return answer
            said = Introduction.parse(bytes(answer.part()), limit=1 << 24)
            return Call("ok", answer.said, [said.model_copy(update={"result": other.result}).encode()])

    agents["west"] = Swapped()
    driver = world.driver(agents)
    assert driver.enrol() == {"west": "ear-mismatch"}


def test_what_was_said_of_old_evidence_counts_no_more(world: World) -> None:

    agents = world.agents()
    driver = world.driver(agents)
    driver.enrol()
    for agent in agents.values():
        clock = agent._agency.clock.__self__
        clock.anchor(clock.now() + timedelta(hours=1, minutes=1), clock.elapsed())
    with pytest.raises(AgentRefusal) as caught:
        driver.round()
    assert caught.value.code == "survivors-too-few"


def test_a_budget_ends_a_run(tmp_path: Path) -> None:

    world = World(tmp_path, epochs=2)
    with world.open():
        driver = world.driver(world.agents())
        driver.enrol()
        driver.round()
        driver.round()
        with pytest.raises(AgentRefusal) as caught:
            driver.round()
        assert caught.value.code == "survivors-too-few"
        refused = [one for one in world.running.admin.decisions(100) if one["verdict"] == "refuse"]
        assert {one["code"] for one in refused} == {"epochs-over-budget"}


def test_a_worker_that_restarts_comes_back(world: World) -> None:
    agents = world.agents()
    driver = world.driver(agents)
    driver.enrol()
    driver.round()
    agents["east"] = build(world.workload("worker", ["east"]))
    assert dict(driver.round().dropped) == {"east": "not-enrolled"}
    assert driver.enrol() == {}
    assert driver.round().contributors == len(OWNERS)


def test_a_swapped_shard_drops_its_worker(world: World) -> None:
    agents = world.agents()

    fd = os.open(world.folder / "east.npz.sealed", os.O_RDONLY)
    agents["west"] = build(world.workload("worker", ["west"], extra_fds={"west": fd}))
    driver = world.driver(agents)
    driver.enrol()
    done = driver.round()
    assert set(done.dropped) == {"west"}
    assert done.contributors == 4


def test_an_unregistered_run_is_not_countersigned(world: World) -> None:

    runs = Runs(world.running.core)
    with pytest.raises(AgentRefusal) as caught:
        FarCountersign(bytes(32), runs.call).next_round()
    assert caught.value.code == "other-run"
    other = world.spec.model_copy(update={"countersigner": bytes(32)})
    with pytest.raises(VerificationError) as wrong:
        runs.register(other.encode())
    assert wrong.value.code == "other-run"
    assert runs.register(world.spec.encode()) == world.spec.digest()
