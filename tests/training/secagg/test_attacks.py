"""What a hostile coordinator, hostile workers and unlucky numbers can try."""

from __future__ import annotations

import os
from decimal import localcontext
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.training.secagg.support import Run, expected, introduce, make_worker, run_spec, updates
from tests.training.secagg.test_refusals import ZERO, masked, refused

from sealwright.crypto.dsse import Envelope
from sealwright.training.secagg.coordinator import Coordinator
from sealwright.training.secagg.countersigner import Countersigner
from sealwright.training.secagg.fixed import decode_sum, encode_update
from sealwright.training.secagg.graph import Graph
from sealwright.training.secagg.messages import (
    MAX_HEAD,
    MAX_OPENING,
    Masked,
    Member,
    Opening,
    PairSeed,
    PairShare,
    Roster,
    SelfShare,
    Split,
    Unmask,
    body_digest,
    encode_masked,
    sealed_bytes,
    unmask_limit,
)
from sealwright.training.secagg.shamir import PRIME, SHARE_BYTES, correct, split
from sealwright.training.secagg.spec import MAX_SUM, RunSpec

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def encoded(update: np.ndarray[Any, Any], weight: int, spec: RunSpec) -> np.ndarray[Any, np.dtype[np.uint32]]:
    out = np.zeros(spec.elements + 1, dtype=np.uint32)
    encode_update(update, weight, spec, out)
    return out


# Numbers


@settings(max_examples=300, deadline=None)
@given(
    max_roster=st.integers(2, 4096),
    max_weight=st.integers(1, 1 << 20),
    whole=st.integers(0, 10**12 - 1) | st.integers(0, 9),
    part=st.integers(0, 10**11 - 1),
)
def test_nothing_wraps_at_the_extremes(max_roster: int, max_weight: int, whole: int, part: int) -> None:
    try:
        spec = run_spec(
            max_roster,
            KEY,
            degree=2,
            threshold=2,
            max_weight=max_weight,
            clip=f"{whole}.{part:011d}",
            elements=4,
        )
    except ValidationError:
        assume(False)
    clip = float(spec.clip_value)
    largest = encoded(np.array([clip, -clip, np.nextafter(clip, 0), 0.0]), max_weight, spec)
    each = largest.view(np.int32).astype(object)
    assert each[1] == -each[0]
    assert all(abs(one) * max_roster <= MAX_SUM for one in each)
    with np.errstate(over="ignore"):
        total = largest * np.uint32(max_roster)  # mod 2^32, as a round adds
    said = decode_sum(total, spec, max_roster)
    assert list(said.total) == [int(one) * max_roster for one in each[:-1]]
    assert said.weight == max_roster * max_weight


def test_rounding_at_the_clip_does_not_wrap() -> None:
    """1.5 with one step to the unit would round to 2, and 2 · 1024 · 2^20 is over 2^31 - 1."""
    changes: dict[str, Any] = {"max_weight": 1 << 20, "degree": 2, "threshold": 2}
    with pytest.raises(ValidationError, match="run-spec-too-coarse"):
        run_spec(1024, KEY, clip="1.5", **changes)
    assert run_spec(1024, KEY, clip="1", **changes).scale == 1


def test_the_scale_is_the_same_in_every_process() -> None:
    spec = run_spec(50, KEY, clip="0.3333333")
    wanted = spec.steps * 10_000_000 // 3_333_333
    with localcontext() as context:
        context.prec = 2  # of decimal arithmetic: a process may have set it
        assert spec.scale == RunSpec.parse(spec.encode()).scale == wanted


@pytest.mark.parametrize(
    "update",
    [
        np.ma.masked_array(np.full(64, 1e9), mask=True),  # a check of it would see no number
        np.zeros(64, dtype=complex),
        np.array([0.0] * 63 + [None]),
        np.array(["0"] * 64),
        np.zeros(64, dtype=bool),
        np.full(64, 2**63, dtype=np.uint64),
        np.array([np.float64(4)] * 63 + [np.nextafter(4.0, 5)]),
        np.full(64, -np.inf, dtype=np.float16),
    ],
)
def test_what_only_looks_like_an_update_is_refused(update: Any) -> None:
    with refused("update-out-of-range", "encode"):
        encoded(update, 1, run_spec(4, KEY))


def test_an_update_is_left_as_it_was() -> None:
    update = np.linspace(-4, 4, 64)
    before = update.copy()
    encoded(update, 8, run_spec(4, KEY))
    np.testing.assert_array_equal(update, before)


def test_nonsense_of_a_worker_is_seen_where_it_cannot_be_a_sum() -> None:
    run = Run.make(8)
    roster = run.roster()
    coordinator = run.coordinator(roster)
    for worker in run.workers:
        message = worker.mask(run.opened(roster), ZERO, 1)
        if worker is run.workers[3]:
            message = spoiled(message, run.spec, worker._keys.sign)
        coordinator.receive(message)
    signed = run.countersigner.sign(coordinator.survivors())
    for place in coordinator.received:
        coordinator.open(run.by_place(roster, place).unmask(signed, coordinator.shares_for(place)))
    with refused("sum-implausible", "sum"):
        coordinator.sum()


def spoiled(message: bytearray, spec: RunSpec, key: Ed25519PrivateKey) -> bytearray:
    """Return a masked update with one residue at the far end, signed anew."""
    parts = Split.parse(message, spec, 7)
    body = bytearray(parts.body)
    body[5 * 4 + 3] ^= 0x80
    head = Masked.parse(Envelope.parse(parts.envelope).unverified_payload)
    digest = body_digest(body)
    encode_masked(body, head.model_copy(update={"body": digest}), key)
    return body


# The countersigner: one roster and one survivor set a round, and no choice of graphs


def test_a_round_has_one_roster() -> None:
    run = Run.make(4)
    first = run.roster()
    opening = run.countersigner.open(first)
    assert run.countersigner.open(first) == opening
    restarted = Countersigner(run.spec, run.countersigner._key, run.remembered, random=os.urandom)
    assert restarted.open(first) == opening
    run.number = 0
    other = run.roster(run.workers[:3])
    for number in (0, 1, 3, 2**53 - 1):  # the past, the same round, a jump to try many graphs, the end of all
        with refused("round-signed", "roster"):
            restarted.open(other.model_copy(update={"round": number}))
    assert restarted.next_round == 2
    assert restarted.open(other.model_copy(update={"round": 2})) != opening
    with refused("round-signed", "roster"):
        restarted.open(first)
    with refused("other-run", "roster"):
        restarted.open(other.model_copy(update={"run_spec": bytes(32), "round": 3}))


def test_a_survivor_set_is_of_the_roster_that_is_open() -> None:
    run = Run.make(4)
    _, coordinator = masked(run)
    survivors = coordinator.survivors()
    sign = run.countersigner.sign
    with refused("survivors-other-roster", "survivors"):
        sign(survivors.model_copy(update={"roster": bytes(32)}))
    with refused("survivors-unknown", "survivors"):
        sign(survivors.model_copy(update={"alive": [1, 2, 3, 5]}))
    with refused("survivors-too-few", "survivors"):
        sign(survivors.model_copy(update={"alive": [1, 2]}))
    run.opened(run.roster())  # the next round: the one before can no longer be had
    with refused("survivors-other-roster", "survivors"):
        sign(survivors)
    fresh = Run.make(4)
    with refused("survivors-other-roster", "survivors"):
        fresh.countersigner.sign(survivors.model_copy(update={"run_spec": fresh.spec.digest()}))


def test_a_worker_masks_for_no_roster_that_is_not_countersigned() -> None:
    run = Run.make(4)
    roster = run.roster()
    forged = Opening(roster=roster, beacon=bytes(32)).sign(Ed25519PrivateKey.generate())
    with refused("roster-unsigned", "roster"):
        run.workers[0].mask(forged, ZERO, 1)
    # A statement of the countersigner's of another kind is no opening.
    envelope = Envelope.sign(
        "application/x", Opening(roster=roster, beacon=bytes(32)).encode(), run.countersigner._key
    )
    with refused("roster-unsigned", "roster"):
        run.workers[0].mask(envelope.encode(), ZERO, 1)
    assert run.workers[0].mask(run.opened(roster), ZERO, 1)


def test_the_graph_depends_on_what_nobody_knew_when_the_roster_was_fixed() -> None:
    spec = run_spec(40, KEY, degree=8, threshold=6)
    members = [Member(worker=bytes([at]) * 32, enrolment=bytes(32), nonce=bytes(32)) for at in range(40)]
    roster = Roster(run_spec=spec.digest(), round=1, members=members)
    one, two = (Graph(Opening(roster=roster, beacon=bytes([at]) * 32), spec) for at in (1, 2))
    assert any(one.of(place) != two.of(place) for place in range(1, 41))
    for place in range(1, 41):
        assert len(one.of(place)) == 8
        assert place not in one.of(place)
        assert all(place in one.of(other) for other in one.of(place))


# Workers below the threshold


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_wrong_shares_up_to_half_of_what_is_too_many_are_corrected(data: st.DataObject) -> None:
    points = sorted(data.draw(st.sets(st.integers(1, 4096), min_size=2, max_size=24)))
    threshold = data.draw(st.integers(1, len(points)))
    secret = data.draw(st.binary(min_size=32, max_size=32))
    shares = dict(zip(points, split(secret, threshold, points, os.urandom), strict=True))
    most = (len(points) - threshold) // 2
    liars = data.draw(st.sets(st.sampled_from(points), max_size=most))
    for liar in liars:
        wrong = (int.from_bytes(shares[liar], "big") + data.draw(st.integers(1, PRIME - 1))) % PRIME
        shares[liar] = wrong.to_bytes(SHARE_BYTES, "big")
    assert correct(shares, threshold) == (secret, liars)


def test_more_wrong_shares_than_can_be_corrected_give_no_right_secret() -> None:
    points = tuple(range(1, 8))
    shares = dict(zip(points, split(bytes(32), 3, points, os.urandom), strict=True))
    for point in (1, 2, 3):
        shares[point] = os.urandom(32).rjust(SHARE_BYTES, b"\0")
    found = correct(shares, 3)
    assert found is None or found[0] != bytes(32)
    assert correct({1: b"short", 2: bytes(SHARE_BYTES)}, 2) is None


def test_liars_anywhere_among_many_are_named_and_the_sum_is_exact() -> None:
    """A search through subsets in order would never leave out the first one."""
    run = Run.make(20)
    sent, roster = updates(run), run.roster()
    coordinator = run.coordinator(roster)
    for worker, update in zip(run.workers, sent, strict=True):
        coordinator.receive(worker.mask(run.opened(roster), update, 1))
    signed = run.countersigner.sign(coordinator.survivors())
    liars = {1, 2, 20}
    for place in coordinator.received:
        worker = run.by_place(roster, place)
        envelope = worker.unmask(signed, coordinator.shares_for(place))
        if place in liars:
            said = Unmask.unverified(envelope)
            wrong = [share.model_copy(update={"share": bytes(33)}) for share in said.self_shares]
            envelope = said.model_copy(update={"self_shares": wrong}).sign(worker._keys.sign)
        coordinator.open(envelope)
    np.testing.assert_array_equal(coordinator.sum().total, expected(sent, [1] * 20, range(20), run.spec))
    assert set(coordinator.suspects) == liars


def test_a_survivor_that_opens_another_seed_is_named_and_its_neighbours_help() -> None:
    run = Run.make(7)
    sent, roster = updates(run), run.roster()
    coordinator = run.coordinator(roster)
    for place in range(1, 7):
        coordinator.receive(run.by_place(roster, place).mask(run.opened(roster), sent[place - 1], 1))
    signed = run.countersigner.sign(coordinator.survivors())
    for place in coordinator.received:
        worker = run.by_place(roster, place)
        envelope = worker.unmask(signed, coordinator.shares_for(place))
        if place == 2:
            said = Unmask.unverified(envelope)
            wrong = [PairSeed(dropped=7, seed=bytes(32))]
            envelope = said.model_copy(update={"pair_seeds": wrong}).sign(worker._keys.sign)
        coordinator.open(envelope)
    total = coordinator.sum()
    np.testing.assert_array_equal(total.total, expected(sent, [1] * 7, range(6), run.spec))
    assert set(coordinator.suspects) == {2}
    assert coordinator.sum() is total


def test_a_peer_that_enrols_again_does_not_end_a_round_under_way() -> None:
    run = Run.make(4)
    roster, coordinator = masked(run)
    signed = run.countersigner.sign(coordinator.survivors())
    rebooted = make_worker(run.spec, sign=run.by_place(roster, 4)._keys.sign)
    for place in (1, 2, 3):
        run.by_place(roster, place).admit(rebooted.signed_enrolment())
    for place in (1, 2, 3):
        coordinator.open(run.by_place(roster, place).unmask(signed, coordinator.shares_for(place)))
    assert coordinator.sum().weight == 4
    assert not coordinator.suspects


def test_a_replayed_enrolment_changes_no_secret() -> None:
    run = Run.make(3)
    low, high = run.workers[0], run.workers[1]
    before = low._pairs[high.enrolment.worker]
    assert low.admit(high.signed_enrolment()) == low.admit(high.signed_enrolment())
    assert high.admit(low.signed_enrolment()) is None
    assert low._pairs[high.enrolment.worker] == before
    assert run.round(updates(run)).weight == 3


def test_nothing_of_a_round_is_kept_after_it() -> None:
    run = Run.make(3)
    roster, coordinator = masked(run)
    signed = run.countersigner.sign(coordinator.survivors())
    for place in coordinator.received:
        worker = run.by_place(roster, place)
        worker.unmask(signed, coordinator.shares_for(place))
        assert worker._round is None
    introduce(run.workers)
    greeted = run.workers[0]
    run.greet(greeted)
    assert greeted._round is None


# Sizes


@pytest.mark.parametrize("degree", [2, 63, 300])
def test_the_largest_messages_fit_their_limits_and_no_more(degree: int) -> None:
    spec = run_spec(degree + 1, KEY, degree=degree, threshold=max(degree // 2 + 1, 2))
    places = range(4096 - degree, 4096)
    head = Masked(
        run_spec=bytes(32),
        round=2**53 - 1,
        roster=bytes(32),
        worker=bytes(32),
        self_commitment=bytes(32),
        body=bytes(32),
    )
    assert len(head.encode()) <= MAX_HEAD
    share, half = bytes(SHARE_BYTES), degree // 2
    unmask = Unmask(
        survivors=bytes(32),
        worker=bytes(32),
        self_shares=[SelfShare(of=place, share=share) for place in places],
        pair_seeds=[PairSeed(dropped=place, seed=share[:32]) for place in places],
        pair_shares=[PairShare(of=of, dropped=4095, share=share) for of in places for _ in range(half)],
        unopened=list(places),
        next_nonce=bytes(32),
    )
    assert len(unmask.encode()) <= unmask_limit(spec)
    message = bytearray(4 * (spec.elements + 1) + degree * (32 + sealed_bytes(degree)))
    encode_masked(message, head, KEY)
    assert Split.parse(message, spec, degree).shares == bytes(degree * sealed_bytes(degree))
    for wrong in (degree - 1, degree + 1):
        with refused("masked-malformed", "parse"):
            Split.parse(message, spec, wrong)
    assert len(unmask.sign(KEY)) <= 2 * unmask_limit(spec)


def test_a_roster_of_the_largest_size_is_read() -> None:
    spec = run_spec(4096, KEY, degree=1024, threshold=700, max_weight=1)
    members = [Member(worker=at.to_bytes(32), enrolment=bytes(32), nonce=bytes(32)) for at in range(4096)]
    opening = Opening(
        roster=Roster(run_spec=spec.digest(), round=2**53 - 1, members=members), beacon=bytes(32)
    )
    assert len(opening.encode()) < MAX_OPENING
    assert Opening.opened(opening.sign(KEY), spec) == opening


def test_what_is_too_long_is_refused_before_it_is_parsed() -> None:
    run = Run.make(4)
    roster = run.roster()
    coordinator = run.coordinator(roster)
    body, head = bytes(4 * 65 + 3 * (32 + sealed_bytes(3))), b"{" * (2 * MAX_HEAD + 1)
    with refused("masked-malformed", "parse"):
        coordinator.receive(body + head + len(head).to_bytes(4, "big"))
    with refused("too-large", "parse"):
        coordinator.open(b"{" * (2 * unmask_limit(run.spec) + 1))
    with refused("too-large", "parse"):
        run.workers[0].mask(b"{" * (2 * MAX_OPENING + 1), ZERO, 1)


def test_a_coordinator_knows_all_that_it_lists() -> None:
    run = Run.make(4)
    with refused("peer-unverified", "roster"):
        Coordinator(run.spec, run.opened(run.roster()), [run.workers[0].enrolment])
