"""When a session asks for a new verification, and which renewed leases it takes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.client.support import Clock, fake_enclave

from sealwright.appraisal.policy import TrustFile
from sealwright.client.session import LEASE_MARGIN, Session
from sealwright.client.verifier import VerifiedEnclave
from sealwright.crypto.encoding import b64url
from sealwright.errors import CollateralError, VerificationError
from sealwright.testing.enclave import FakeEnclave


class World:
    def __init__(self) -> None:
        self.clock = Clock()
        self.enclave: FakeEnclave = fake_enclave(self.clock)
        self.trust: TrustFile = self.enclave.trust_file()
        self.session = Session()

    def verify(self) -> VerifiedEnclave:
        ask = self.session.attest(self.trust)
        bundle = self.enclave.bundle(ask).encode()
        return self.session.verified(bundle, ask, self.trust, at=self.clock.at)

    def held(self) -> VerifiedEnclave | None:
        return self.session.held(self.trust, at=self.clock.at)


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_held_before_a_verification(world: World) -> None:
    assert world.held() is None
    assert world.verify() is world.held()


def test_each_request_for_evidence_has_a_nonce_of_its_own(world: World) -> None:
    nonces = {world.session.attest(world.trust).nonce for _ in range(5)}
    assert len(nonces) == 5
    assert all(len(nonce) == 32 for nonce in nonces)


def test_a_bundle_for_another_nonce_is_refused_and_nothing_is_held(world: World) -> None:
    world.verify()
    old = world.enclave.bundle(world.session.attest(world.trust)).encode()
    with pytest.raises(VerificationError):
        world.session.verified(old, world.session.attest(world.trust), world.trust, at=world.clock.at)
    assert world.held() is None
    assert "report-data-mismatch" in world.session.why


def test_the_lease_ends_on_our_own_clock_with_a_margin(world: World) -> None:
    world.verify()
    world.clock.at = world.enclave.lease.not_after - LEASE_MARGIN - timedelta(seconds=1)
    assert world.held() is not None
    world.clock.move(seconds=1)
    assert world.held() is None
    assert world.session.why == "the lease has ended"


def test_evidence_ages_however_often_the_lease_is_renewed(world: World) -> None:
    world.trust = world.enclave.trust_file(oldest_evidence_s=60)
    world.verify()
    world.clock.at += timedelta(seconds=59)
    assert world.held() is not None
    world.clock.at += timedelta(seconds=1)
    assert world.held() is None
    assert "aged" in world.session.why


def test_a_clock_turned_back_before_the_lease_holds_nothing(world: World) -> None:
    world.verify()
    world.trust = world.enclave.trust_file()
    world.clock.move(minutes=-4)
    assert world.held() is not None
    world.clock.move(minutes=-2)
    with pytest.raises(CollateralError):  # the trust file is dated in the future, too
        world.held()


@pytest.mark.parametrize("part", ["keyset", "broker_keys"])
def test_keyset_and_broker_keys_end_too(world: World, part: str) -> None:
    end = world.clock.at + timedelta(minutes=5)
    if part == "keyset":
        world.enclave.keyset = world.enclave.keyset.model_copy(update={"not_after": end})
        world.enclave.renew()
    else:
        world.enclave.broker.keys = world.enclave.broker.keys.model_copy(update={"not_after": end})
    world.verify()
    world.clock.at = end - timedelta(seconds=1)
    assert world.held() is not None
    world.clock.at = end
    assert world.held() is None
    assert "ended" in world.session.why


def test_another_trust_file_asks_for_a_new_verification(world: World) -> None:
    world.verify()
    world.trust = world.enclave.trust_file(longest_lease_s=3000)
    assert world.held() is None
    assert world.session.why == "the trust file has changed"


def test_an_expired_trust_file_holds_nothing(world: World) -> None:
    world.verify()
    world.clock.move(hours=23)
    with pytest.raises(CollateralError) as caught:
        world.held()
    assert caught.value.code == "policy-expired"


def test_a_renewed_lease_is_taken(world: World) -> None:
    found = world.verify()
    world.clock.move(minutes=6)
    world.enclave.renew()
    assert world.session.take_lease(b64url(world.enclave.lease_envelope), found, at=world.clock.at)
    world.clock.move(minutes=6)
    held = world.held()
    assert held is not None
    assert held.lease == world.enclave.lease
    assert held.bundle == found.bundle


def test_the_same_or_an_older_lease_changes_nothing(world: World) -> None:
    old = world.enclave.lease_envelope
    world.clock.move(minutes=1)
    world.enclave.renew()
    found = world.verify()
    for envelope in (old, world.enclave.lease_envelope):
        assert not world.session.take_lease(b64url(envelope), found, at=world.clock.at)
        assert world.held() is found


@pytest.mark.parametrize("header", ["", "!", "e30", "A" * 40_000])
def test_a_lease_that_is_none_asks_for_a_new_verification(world: World, header: str) -> None:
    found = world.verify()
    assert not world.session.take_lease(header, found, at=world.clock.at)
    assert world.held() is None


def test_a_longer_lease_by_another_key_is_not_taken(world: World) -> None:
    found = world.verify()
    world.clock.move(minutes=1)
    world.enclave.renew()
    forged = world.enclave.lease.sign(Ed25519PrivateKey.generate())
    assert not world.session.take_lease(b64url(forged), found, at=world.clock.at)
    assert world.held() is None
    assert "untrusted-signer" in world.session.why


def test_a_lease_of_an_older_keyset_is_ignored(world: World) -> None:
    old = world.verify()
    world.enclave.boot()
    new = world.verify()
    assert not world.session.take_lease(b64url(world.enclave.lease_envelope), old, at=world.clock.at)
    assert world.held() is new
