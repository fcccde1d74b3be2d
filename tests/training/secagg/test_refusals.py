"""Each refusal of the protocol, by stage and code; and that nothing was given away on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError
from tests.training.secagg.support import (
    Run,
    introduce,
    make_worker,
    run_spec,
    updates,
)

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.dsse import Envelope
from sealwright.errors import SealwrightError
from sealwright.training.secagg.coordinator import Coordinator, verify_hello
from sealwright.training.secagg.countersigner import Countersigner
from sealwright.training.secagg.enrol import Enrolment
from sealwright.training.secagg.messages import Masked, Opening, Roster, Split, Unmask
from sealwright.training.secagg.worker import Worker

ZERO = np.zeros(64)


@contextmanager
def refused(code: str, stage: str) -> Iterator[None]:
    with pytest.raises(SealwrightError) as caught:
        yield
    assert (caught.value.code, caught.value.stage) == (code, stage)


@pytest.fixture
def run() -> Run:
    return Run.make(4)


def changed(run: Run, roster: Roster, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return an opening of a roster with changes, signed as if the countersigner had gone wrong."""
    said = Opening(roster=roster, beacon=bytes(32)).to_json()
    change(said["roster"])
    return Envelope.sign(Opening.PAYLOAD_TYPE, canonical(said), run.countersigner._key).encode()


def masked(run: Run) -> tuple[Roster, Coordinator]:
    """Let all workers mask, and the coordinator receive."""
    roster = run.roster()
    coordinator = run.coordinator(roster)
    for worker in run.workers:
        coordinator.receive(worker.mask(run.opened(roster), ZERO, 1))
    return roster, coordinator


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda said: said.update(run_spec="00" * 32), "other-run"),
        (lambda said: said["members"].pop(0), "roster-not-listed"),
        (lambda said: said["members"][0].update(enrolment="00" * 32), "roster-not-listed"),
        (lambda said: said["members"][0].update(nonce="A" * 43), "roster-nonce"),
        (lambda said: said["members"][1].update(enrolment="00" * 32), "peer-unverified"),
        (lambda said: said["members"][3].update(worker="ff" * 32), "peer-unverified"),
        (lambda said: said.update(round=0), "round-repeated"),
    ],
)
def test_a_roster_is_refused(run: Run, change: Callable[[dict[str, Any]], object], code: str) -> None:
    roster = run.roster()
    with refused(code, "roster"):
        run.workers[0].mask(changed(run, roster, change), ZERO, 1)
    # Nothing was spent: the round can still be had as it is.
    assert run.workers[0].mask(run.opened(roster), ZERO, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["members"].reverse(),
        lambda said: said["members"].append(said["members"][-1]),
        lambda said: said.update(extra=1),
        lambda said: said.update(members=[]),
    ],
)
def test_a_malformed_roster_is_refused(run: Run, change: Callable[[dict[str, Any]], object]) -> None:
    with refused("malformed-document", "parse"):
        run.workers[0].mask(changed(run, run.roster(), change), ZERO, 1)


def test_a_roster_of_another_size_is_refused() -> None:
    run = Run.make(4, min_roster=4, min_survivors=3)
    with refused("roster-size", "roster"):
        run.workers[0].mask(run.forced(run.roster(run.workers[:3])), ZERO, 1)


def test_a_round_is_masked_once(run: Run) -> None:
    roster = run.roster()
    worker = run.workers[0]
    worker.mask(run.opened(roster), ZERO, 1)
    with refused("round-repeated", "roster"):
        worker.mask(run.opened(roster), ZERO, 1)
    # A second roster of the same round, with other members: the split view.
    run.number -= 1
    with refused("round-repeated", "roster"):
        worker.mask(run.forced(run.roster(run.workers[:3])), ZERO, 1)


def test_a_restarted_worker_takes_part_in_no_earlier_round(run: Run) -> None:
    old = run.workers[0]
    fresh = make_worker(run.spec, sign=old._keys.sign, first_round=5)
    run.workers[0] = fresh
    introduce(run.workers)
    run.nonces[fresh.enrolment.worker] = fresh.enrolment.nonce
    run.number = 3
    with refused("round-repeated", "roster"):
        fresh.mask(run.forced(run.roster()), ZERO, 1)
    run.number = 4
    assert fresh.mask(run.forced(run.roster()), ZERO, 1)


def test_a_peer_without_a_pairing_is_no_neighbour(run: Run) -> None:
    stranger = make_worker(run.spec)
    for worker in run.workers:
        worker.admit(stranger.signed_enrolment())
        stranger.admit(worker.signed_enrolment())
    run.nonces[stranger.enrolment.worker] = stranger.enrolment.nonce
    roster = run.roster([run.workers[0], stranger])
    waiting = max(run.workers[0], stranger, key=lambda worker: worker.enrolment.worker)
    with refused("peer-unpaired", "roster"):
        waiting.mask(run.opened(roster), ZERO, 1)


@pytest.mark.parametrize(
    ("update", "weight", "code"),
    [
        (np.full(64, 4.0001), 1, "update-out-of-range"),
        (np.full(64, -5.0), 1, "update-out-of-range"),
        (np.full(64, np.nan), 1, "update-out-of-range"),
        (np.full(64, np.inf), 1, "update-out-of-range"),
        (ZERO, 0, "update-out-of-range"),
        (ZERO, 9, "update-out-of-range"),
        (ZERO, True, "update-out-of-range"),
        (np.zeros(63), 1, "update-length"),
        (np.zeros((8, 8)), 1, "update-length"),
    ],
)
def test_an_update_is_refused_before_the_round_is_spent(
    run: Run, update: Any, weight: int, code: str
) -> None:
    roster = run.roster()
    with refused(code, "encode"):
        run.workers[0].mask(run.opened(roster), update, weight)
    assert run.workers[0].mask(run.opened(roster), np.full(64, 4.0), 8)


def test_a_survivor_set_is_countersigned_once_a_round(run: Run) -> None:
    _, coordinator = masked(run)
    survivors = coordinator.survivors()
    first = run.countersigner.sign(survivors)
    assert run.countersigner.sign(survivors) == first
    fewer = survivors.model_copy(update={"alive": [1, 2, 3]})
    with refused("round-signed", "survivors"):
        run.countersigner.sign(fewer)
    # After a restart too: what it remembers outlives it.
    again = Countersigner(run.spec, run.countersigner._key, run.remembered, random=os.urandom)
    assert again.sign(survivors) == first
    with refused("round-signed", "survivors"):
        again.sign(fewer)
    with refused("survivors-other-roster", "survivors"):
        again.sign(survivors.model_copy(update={"round": 0}))
    with refused("other-run", "survivors"):
        again.sign(survivors.model_copy(update={"run_spec": bytes(32), "round": 9}))
    with pytest.raises(ValueError, match="another countersigner"):
        Countersigner(run.spec, Ed25519PrivateKey.generate(), run.remembered, random=os.urandom)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"run_spec": bytes(32)}, "survivors-other-roster"),
        ({"round": 2}, "survivors-other-roster"),
        ({"roster": bytes(32)}, "survivors-other-roster"),
        ({"alive": [1, 2, 3, 5]}, "survivors-unknown"),
        ({"alive": [2, 3, 4]}, "survivors-unknown"),  # without the worker that is asked
        ({"alive": [1, 2]}, "survivors-too-few"),  # under the threshold of its neighbours
        ({"alive": [1]}, "survivors-too-few"),
    ],
)
def test_a_worker_opens_for_no_other_survivor_set(run: Run, change: dict[str, Any], code: str) -> None:
    roster, coordinator = masked(run)
    survivors = coordinator.survivors()
    worker = run.by_place(roster, 1)
    key = run.countersigner._key
    with refused(code, "survivors"):
        worker.unmask(survivors.model_copy(update=change).sign(key), coordinator.shares_for(1))
    # It has opened nothing: the right set still opens.
    assert worker.unmask(survivors.sign(key), coordinator.shares_for(1))


def test_a_set_that_is_not_countersigned_opens_nothing(run: Run) -> None:
    roster, coordinator = masked(run)
    survivors = coordinator.survivors()
    worker = run.by_place(roster, 1)
    with refused("survivors-unsigned", "survivors"):
        worker.unmask(survivors.sign(Ed25519PrivateKey.generate()), coordinator.shares_for(1))
    good = survivors.sign(run.countersigner._key)
    said = parse_json(good)
    assert isinstance(said, dict)
    signature = said["signatures"][0]["sig"]
    said["signatures"][0]["sig"] = ("B" if signature[0] != "B" else "C") + signature[1:]
    with refused("survivors-unsigned", "survivors"):
        worker.unmask(canonical(said), coordinator.shares_for(1))


def test_a_worker_opens_once(run: Run) -> None:
    roster, coordinator = masked(run)
    signed = run.countersigner.sign(coordinator.survivors())
    worker = run.by_place(roster, 1)
    worker.unmask(signed, coordinator.shares_for(1))
    with refused("unmask-repeated", "unmask"):
        worker.unmask(signed, coordinator.shares_for(1))
    fresh = run.by_place(roster, 2)
    fresh.hello()  # it gave the round up
    with refused("unmask-repeated", "unmask"):
        fresh.unmask(signed, coordinator.shares_for(2))


def test_alive_and_dropped_do_not_overlap(run: Run) -> None:
    """Of one worker never both: shares of its self seed, and seeds of its pairs."""
    roster = run.roster()
    coordinator = run.coordinator(roster)
    for place in (1, 2, 3):
        coordinator.receive(run.by_place(roster, place).mask(run.opened(roster), ZERO, 1))
    signed = run.countersigner.sign(coordinator.survivors())
    for place in (1, 2, 3):
        said = Unmask.unverified(run.by_place(roster, place).unmask(signed, coordinator.shares_for(place)))
        alive = {share.of for share in said.self_shares}
        assert alive == {1, 2, 3} - {place}
        assert {seed.dropped for seed in said.pair_seeds} == {4}
        assert {(share.of, share.dropped) for share in said.pair_shares} == {(of, 4) for of in alive}


def test_shares_of_another_are_named_and_left_out(run: Run) -> None:
    roster, coordinator = masked(run)
    signed = run.countersigner.sign(coordinator.survivors())
    shares = coordinator.shares_for(1)
    shares[2], shares[3] = shares[3], os.urandom(len(shares[3]))
    said = Unmask.unverified(run.by_place(roster, 1).unmask(signed, shares))
    assert said.unopened == [2, 3]
    assert [share.of for share in said.self_shares] == [4]


def _flip(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def test_a_masked_update_is_refused(run: Run) -> None:
    roster = run.roster()
    coordinator = run.coordinator(roster)
    message = run.by_place(roster, 1).mask(run.opened(roster), ZERO, 1)
    for bad in (b"", message[:3], message[1:], message + b"\0", message[:-4] + b"\xff" * 4):
        with refused("masked-malformed", "parse"):
            coordinator.receive(bad)
    with refused("masked-malformed", "masked"):
        coordinator.receive(_flip(message, 0))
    parts = Split.parse(message, run.spec, 3)
    forged = Envelope.sign(
        Masked.PAYLOAD_TYPE, Envelope.parse(parts.envelope).unverified_payload, Ed25519PrivateKey.generate()
    ).encode()
    with refused("untrusted-signer", "masked"):
        coordinator.receive(bytes(parts.body) + forged + len(forged).to_bytes(4, "big"))
    coordinator.receive(message)
    with refused("masked-repeated", "masked"):
        coordinator.receive(message)
    stranger = Run.make(4)
    with refused("masked-unlisted", "masked"):
        coordinator.receive(stranger.workers[0].mask(stranger.opened(stranger.roster()), ZERO, 1))


def test_a_late_update_is_in_no_sum(run: Run) -> None:
    roster = run.roster()
    coordinator = run.coordinator(roster)
    late = run.by_place(roster, 4).mask(run.opened(roster), ZERO, 1)
    for place in (1, 2, 3):
        coordinator.receive(run.by_place(roster, place).mask(run.opened(roster), ZERO, 1))
    coordinator.survivors()
    with refused("survivors-fixed", "masked"):
        coordinator.receive(late)


def test_a_pair_with_two_seeds_ends_the_round_and_is_named(run: Run) -> None:
    roster = run.roster()
    coordinator = run.coordinator(roster)
    for place in (1, 2, 3):
        coordinator.receive(run.by_place(roster, place).mask(run.opened(roster), ZERO, 1))
    liar = run.by_place(roster, 4)
    pairs = liar._pairs
    victim = roster.members[0].worker
    other = Run.make(2)
    pairs[victim] = next(iter(other.workers[0]._pairs.values()))
    coordinator.receive(liar.mask(run.opened(roster), ZERO, 1))
    with refused("seed-mismatch", "survivors"):
        coordinator.survivors()
    assert set(coordinator.suspects) == {1, 4}


def test_wrong_shares_are_found_out_and_the_sum_is_right_without_them() -> None:
    run = Run.make(7)
    sent = updates(run)
    roster = run.roster()
    coordinator = run.coordinator(roster)
    for worker, update in zip(run.workers, sent, strict=True):
        coordinator.receive(worker.mask(run.opened(roster), update, 1))
    signed = run.countersigner.sign(coordinator.survivors())
    for place in coordinator.received:
        worker = run.by_place(roster, place)
        envelope = worker.unmask(signed, coordinator.shares_for(place))
        if place == 1:
            said = Unmask.unverified(envelope)
            wrong = [share.model_copy(update={"share": bytes(33)}) for share in said.self_shares]
            envelope = said.model_copy(update={"self_shares": wrong}).sign(worker._keys.sign)
        coordinator.open(envelope)
    assert coordinator.sum().weight == 7


def test_unmasks_are_refused(run: Run) -> None:
    roster, coordinator = masked(run)
    worker = run.by_place(roster, 1)
    signed = run.countersigner.sign(coordinator.survivors())
    answer = worker.unmask(signed, coordinator.shares_for(1))
    said = Unmask.unverified(answer)
    with refused("survivors-other-roster", "unmask"):
        coordinator.open(said.model_copy(update={"survivors": bytes(32)}).sign(worker._keys.sign))
    with refused("untrusted-signer", "unmask"):
        coordinator.open(said.sign(Ed25519PrivateKey.generate()))
    with refused("masked-unlisted", "unmask"):
        coordinator.open(said.model_copy(update={"worker": bytes(32)}).sign(worker._keys.sign))
    coordinator.open(answer)
    with refused("unmask-repeated", "unmask"):
        coordinator.open(answer)


@pytest.fixture
def two() -> tuple[Worker, Worker]:
    spec = run_spec(2, Ed25519PrivateKey.generate())
    low, high = sorted((make_worker(spec), make_worker(spec)), key=lambda one: one.enrolment.worker)
    return low, high


def test_enrolments_and_pairings_are_refused(two: tuple[Worker, Worker]) -> None:
    low, high = two
    with refused("peer-self", "enrolment"):
        low.admit(low.signed_enrolment())
    other = make_worker(run_spec(3, Ed25519PrivateKey.generate()))
    with refused("other-run", "enrolment"):
        low.admit(other.signed_enrolment())
    forged = high.enrolment.sign(Ed25519PrivateKey.generate())
    with refused("untrusted-signer", "enrolment"):
        low.admit(forged)
    with refused("peer-unverified", "pairing"):
        high.pair(low.enrolment.worker, b"{}")
    pairing = low.admit(high.signed_enrolment())
    assert pairing is not None
    assert high.admit(low.signed_enrolment()) is None
    with refused("other-pair", "pairing"):
        low.pair(high.enrolment.worker, pairing)
    # A pairing for another boot of the same worker.
    again = make_worker(low._spec, sign=high._keys.sign)
    again.admit(low.signed_enrolment())
    with refused("other-pair", "pairing"):
        again.pair(low.enrolment.worker, pairing)
    high.pair(low.enrolment.worker, pairing)
    small = high.enrolment.model_copy(update={"x25519": bytes(32)}).sign(high._keys.sign)
    with refused("peer-key", "pairing"):
        low.admit(small)


def test_a_hello_is_the_workers_own(two: tuple[Worker, Worker]) -> None:
    low, high = two
    said = low.hello()
    assert verify_hello(said, low.enrolment).nonce == low._nonce
    with refused("untrusted-signer", "hello"):
        verify_hello(said, high.enrolment)
    other = make_worker(low._spec, sign=low._keys.sign)
    with refused("other-run", "hello"):
        verify_hello(said, other.enrolment)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 31},
        {"threshold": 63},
        {"min_survivors": 2, "min_roster": 4},
        {"min_roster": 3, "max_roster": 2},
        {"clip": "0"},
        {"clip": "-1"},
        {"clip": "1e3"},
        {"clip": "999999999999", "max_weight": 1 << 20},
        {"max_roster": 100},  # an odd degree and a roster that is not complete
        {"mode": "plain"},
    ],
)
def test_a_run_specification_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, ValueError)):
        run_spec(4, Ed25519PrivateKey.generate(), **change)


def test_every_byte_of_an_enrolment_matters(two: tuple[Worker, Worker]) -> None:
    low, high = two
    raw = high.signed_enrolment()
    for at in range(0, len(raw), 7):
        with pytest.raises(SealwrightError):
            Enrolment.opened(_flip(raw, at), run_spec=low._spec.digest())
