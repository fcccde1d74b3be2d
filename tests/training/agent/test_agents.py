"""Runs in one process: exact sums, dropouts, and each refusal of the agents."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from tests.training.agent.support import LIFE, make_stage

from sealwright.errors import SealwrightError, UnavailableError
from sealwright.training.agent.wire import AgentRefusal, Call, answered, unwrapped


@pytest.mark.parametrize("mode", ["masked", "tee", "tee+masked"])
def test_rounds_add_up(mode: str) -> None:
    stage = make_stage([1.0, 2.0, -0.5], weights=[1, 2, 1], mode=mode)
    assert stage.driver.enrol() == {}
    first = stage.driver.round()
    mean = (1.0 + 2 * 2.0 - 0.5) / 4
    assert np.allclose(stage.results[0].weights, mean, atol=1e-6)
    assert (first.number, first.listed, first.contributors, dict(first.dropped)) == (1, 3, 3, {})
    assert first.metrics["loss"] == pytest.approx((1 + 2 * 2 + 0.5) / 4, abs=1e-6)
    assert first.norm == pytest.approx(mean * np.sqrt(5), abs=1e-5)
    stage.driver.round()
    assert np.allclose(stage.results[1].weights, mean * 1.5, atol=1e-6)
    for trainer in stage.trainers.values():
        assert np.array_equal(trainer.seen[1], stage.results[0].weights)
    assert [event for event, _ in stage.told] == ["enrolled", "round", "finished", "round", "finished"]


def test_two_messages_a_round() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 1.5, 2.5])
    stage.driver.enrol()
    stage.transport.carried.clear()
    stage.driver.round()
    assert [name for node, name in stage.transport.carried if node == "node-0"] == ["train", "unmask"]


@pytest.mark.parametrize("lost", ["train", "unmask"])
def test_a_worker_that_drops_out_is_left_out_and_comes_back(lost: str) -> None:
    stage = make_stage([1.0, 2.0, 3.0, 3.5, -2.5, 0.5], min_survivors=3)
    stage.driver.enrol()
    away = {"node-1"}
    stage.transport.after = lambda node, call, answer: None if node in away and call.name == lost else answer
    done = stage.driver.round()
    assert dict(done.dropped) == {"node-1": "no-answer"}
    alive = [1.0, 3.0, 3.5, -2.5, 0.5] if lost == "train" else [1.0, 2.0, 3.0, 3.5, -2.5, 0.5]
    assert done.contributors == len(alive)
    assert np.allclose(stage.results[0].weights, sum(alive) / len(alive), atol=1e-6)
    away.clear()
    done = stage.driver.round()
    assert (done.contributors, dict(done.dropped)) == (6, {})


def test_a_worker_that_restarts_has_to_enrol_again() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 3.5, 0.5])
    stage.driver.enrol()
    stage.driver.round()
    agent = stage.transport.agents["node-2"]
    agent._worker, agent._peers, agent._aggregator = None, {}, None  # what a restart forgets
    done = stage.driver.round()
    assert dict(done.dropped) == {"node-2": "not-enrolled"}
    assert stage.driver.enrol() == {}
    assert stage.driver.round().contributors == 5


def test_whom_the_broker_refuses_is_not_in_it() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 3.9])
    stage.register.unattested[stage.key_of("node-3")] = "measurement-mismatch"
    assert stage.driver.enrol() == {"node-3": "measurement-mismatch"}
    assert stage.driver.round().contributors == 3
    assert stage.trainers["node-3"].seen == []


def test_whom_the_aggregator_refuses_is_not_in_it() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 3.9])
    stage.register.banned[stage.key_of("node-3")] = "tcb-outdated"
    assert stage.driver.enrol() == {"node-3": "tcb-outdated"}
    assert stage.driver.round().contributors == 3


def test_whom_most_peers_refuse_is_not_in_it() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 3.5, 0.5])
    bad = stage.key_of("node-3")
    for node in ("node-0", "node-1"):
        stage.register.bans_of[stage.key_of(node)] = {bad: "debug-enabled"}
    assert stage.driver.enrol() == {"node-3": "debug-enabled"}
    assert stage.driver.round().contributors == 4


def test_one_that_refuses_a_peer_alone_stays_away() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 3.5, 2.5])
    stage.register.bans_of[stage.key_of("node-0")] = {stage.key_of("node-3"): "debug-enabled"}
    refused = stage.driver.enrol()
    assert set(refused) == {"node-0"}
    assert refused["node-0"].endswith("debug-enabled")
    assert stage.driver.round().contributors == 4


def test_a_worker_takes_no_round_from_an_aggregator_it_refuses() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 3.5, 0.5])
    own = stage.aggregator._agency.keys.sign.public_key().public_bytes_raw()
    stage.register.bans_of[stage.key_of("node-0")] = {own: "measurement-mismatch"}
    assert stage.driver.enrol() == {"node-0": "refuses the aggregator: measurement-mismatch"}
    for agent in stage.keys:
        stage.register.bans_of[stage.key_of(agent)] = {own: "measurement-mismatch"}
    with pytest.raises(UnavailableError) as caught:
        stage.driver.enrol()
    assert caught.value.code == "too-few-workers"


def test_evidence_that_counts_no_more_ends_rounds_on_both_sides() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 1.5, 2.5])
    stage.driver.enrol()
    stage.register.now += LIFE
    with pytest.raises(AgentRefusal) as caught:
        stage.driver.round()
    assert (caught.value.code, caught.value.stage) == ("peer-expired", "roster")
    # The workers refuse by their own clocks, whatever the aggregator does.
    stage.register.now -= timedelta(minutes=1)
    aggregator = stage.aggregator._agency
    late = stage.register.now + timedelta(minutes=1)
    for agent in stage.transport.agents.values():
        agent._agency = type(aggregator)(
            **{
                name: getattr(agent._agency, name)
                for name in ("spec", "keys", "attest", "judge", "metrics", "random", "threads")
            },
            clock=lambda: late,
        )
    with pytest.raises(AgentRefusal) as caught:
        stage.driver.round()
    assert caught.value.code == "survivors-too-few"
    assert all(trainer.seen == [] for trainer in stage.trainers.values())
    stage.register.now = late
    assert stage.driver.enrol() == {}
    assert stage.driver.round().contributors == 5


def test_altered_weights_are_refused() -> None:
    for at in (1, 2):
        stage = make_stage([1.0, 2.0, 3.0, 1.5, 2.5])
        stage.driver.enrol()
        kept: list[bytes] = []

        def before(node: str, call: Call, at: int = at, kept: list[bytes] = kept) -> Call:
            if call.name != "train" or node != "node-1":
                return call
            raw = bytearray(call.parts[at])
            raw[len(raw) // 2] ^= 1
            kept.append(bytes(raw))
            return Call(call.name, call.said, [*call.parts[:at], raw, *call.parts[at + 1 :]])

        stage.transport.before = before
        done = stage.driver.round()
        assert kept
        # A flip in the envelope is malformed or unsigned, one in the ciphertext another digest.
        assert done.dropped["node-1"].startswith(("model-", "bad-", "malformed-", "not-", "untrusted-"))
        assert stage.trainers["node-1"].seen == []


def test_weights_of_another_round_are_refused() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 1.5, 2.5])
    stage.driver.enrol()
    kept: dict[str, Call] = {}

    def before(node: str, call: Call) -> Call:
        if call.name != "train":
            return call
        first = kept.setdefault(node, call)
        return Call(call.name, call.said, [call.parts[0], *first.parts[1:]]) if node == "node-1" else call

    stage.transport.before = before
    stage.driver.round()
    assert dict(stage.driver.round().dropped) == {"node-1": "model-other-round"}


def test_an_altered_update_drops_its_worker() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 1.5, 2.5])
    stage.driver.enrol()

    def after(node: str, call: Call, answer: Call) -> Call:
        if call.name != "train" or node != "node-1":
            return answer
        raw = bytearray(answer.parts[1])
        raw[3] ^= 1
        return Call(answer.name, answer.said, [answer.parts[0], raw])

    stage.transport.after = after
    assert dict(stage.driver.round().dropped) == {"node-1": "update-altered"}


def test_an_update_out_of_range_is_refused_where_it_is_made() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 5000.0, 2.0])
    stage.driver.enrol()
    done = stage.driver.round()
    assert dict(done.dropped) == {"node-3": "update-out-of-range"}
    assert np.allclose(stage.results[0].weights, 2.0, atol=1e-6)


def test_nobody_between_sees_weights_or_updates() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 1.5, 2.5])
    stage.driver.enrol()
    seen: list[bytes] = []

    def after(node: str, call: Call, answer: Call) -> Call:
        seen.extend(bytes(part) for part in (*call.parts, *answer.parts))
        return answer

    stage.transport.after = after
    stage.driver.round()
    stage.driver.round()
    needles = [
        np.full(2, 2.0, dtype="<f4").tobytes(),  # the weights after a round
        np.full(2, 1.0, dtype="<f4").tobytes(),
        np.full(2, stage.spec.scale, dtype="<u4").tobytes(),  # an update
    ]
    assert len(seen) > 10
    assert not [needle for needle in needles for raw in seen if needle in raw]


def test_a_survivor_set_by_anyone_else_gets_no_sum() -> None:
    stage = make_stage([1.0, 2.0, 3.0, 1.5, 2.5])
    stage.driver.enrol()
    aggregator = stage.aggregator
    with pytest.raises(AgentRefusal) as caught:
        unwrapped(answered(aggregator, Call("finish")))
    assert caught.value.code == "no-round"
    signed: list[bytes] = []
    countersign = stage.driver._countersign
    original = countersign.sign
    countersign.sign = lambda raw: signed.append(original(raw)) or signed[-1]  # type: ignore[method-assign, func-returns-value]
    stage.driver.round()
    countersign.sign = lambda _: signed[0]  # type: ignore[method-assign]
    with pytest.raises(AgentRefusal) as caught:
        stage.driver.round()
    assert (caught.value.code, caught.value.stage) == ("survivors-other-roster", "survivors")


@pytest.mark.parametrize(
    "call",
    [
        Call("nothing"),
        Call("enrol"),
        Call("enrol", {"first_round": -1}),
        Call("enrol", {"first_round": True}),
        Call("train", {}, [b""]),
        Call("pair", {"from": ["00"]}, []),
        Call("pair", {}, []),
        Call("unmask", {"places": [1]}, [b""]),
        Call("unmask", {"places": ["1"]}, [b"", b""]),
    ],
)
def test_a_malformed_call_is_refused(call: Call) -> None:
    stage = make_stage([1.0, 2.0])
    stage.driver.enrol()
    answer = answered(stage.transport.agents["node-0"], call)
    with pytest.raises(AgentRefusal) as caught:
        unwrapped(answer)
    assert caught.value.code == "malformed-call"


@pytest.mark.parametrize(
    "call",
    [
        Call("nothing"),
        Call("begin"),
        Call("begin", {"workers": [1], "round": 1}),
        Call("begin", {"workers": ["00"], "round": 1}),
        Call("open", {}, []),
        Call("hello", {}, [b""]),
    ],
)
def test_a_malformed_call_to_the_aggregator_is_refused(call: Call) -> None:
    stage = make_stage([1.0, 2.0])
    stage.driver.enrol()
    with pytest.raises(SealwrightError):
        stage.aggregator.handle(call)
