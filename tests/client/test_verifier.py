"""`verify_attestation`: each step of docs/spec/keyset.md refuses what it is there for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey
from tests.client.support import Clock, fake_enclave

from sealwright.client.verifier import VerifiedEnclave, renewed, verify_attestation
from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.errors import (
    AppraisalError,
    CollateralError,
    FormatError,
    RevokedError,
    SealwrightError,
    VerificationError,
)
from sealwright.protocol.attestation import MAX_BUNDLE, AttestationBundle, AttestationRequest
from sealwright.protocol.enclave_config import BrokerAddress
from sealwright.protocol.lease import LeasedKey
from sealwright.protocol.report_data import Purpose
from sealwright.testing.broker import hpke_key
from sealwright.testing.enclave import MANIFEST, FakeEnclave

NONCE = b"n" * 32
Members = dict[str, Any]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def enclave(clock: Clock) -> FakeEnclave:
    return fake_enclave(clock)


def bundle(enclave: FakeEnclave, **changes: Any) -> bytes:
    made = enclave.bundle(AttestationRequest(nonce=NONCE, tenant=enclave.tenant))
    return AttestationBundle.from_json({**made.to_json(), **changes}).encode()


def verify(enclave: FakeEnclave, raw: bytes | None = None, **trust: Any) -> VerifiedEnclave:
    return verify_attestation(
        raw or bundle(enclave), nonce=NONCE, trust=enclave.trust_file(**trust), at=enclave.now()
    )


def refused(stage: str, code: str, act: Callable[[], object]) -> SealwrightError:
    with pytest.raises(SealwrightError) as caught:
        act()
    assert (caught.value.stage, caught.value.code) == (stage, code)
    return caught.value


def test_an_honest_enclave_is_verified(enclave: FakeEnclave) -> None:
    found = verify(enclave)
    assert found.keyset == enclave.keyset
    assert found.lease == enclave.lease
    assert found.confidential is False
    assert found.appraisal.platform == "software"
    assert found.hpke_key.public_key == enclave.hpke.public.raw


def test_a_verified_enclave_is_made_by_the_verifier_alone(enclave: FakeEnclave) -> None:
    found = verify(enclave)
    with pytest.raises(TypeError):
        replace(found, _made_by=object())


def test_1_parse(enclave: FakeEnclave) -> None:
    raw = bundle(enclave)
    assert isinstance(refused("parse", "malformed-json", lambda: verify(enclave, raw[:-1])), FormatError)
    refused("parse", "too-large", lambda: verify(enclave, raw + b" " * MAX_BUNDLE))
    refused("parse", "malformed-document", lambda: verify(enclave, bundle(enclave, evidence={})))
    refused("parse", "malformed-document", lambda: verify(enclave, bundle(enclave, config=b"{}")))
    refused("parse", "malformed-envelope", lambda: verify(enclave, bundle(enclave, lease={})))


def test_2_suite(enclave: FakeEnclave) -> None:
    refused("suite", "suite-not-accepted", lambda: verify(enclave, suites=["classical"]))
    classical = hpke_key(Kem.X25519, HpkePrivateKey.generate(Kem.X25519).public.raw)
    enclave.keyset = enclave.keyset.model_copy(update={"hpke": [classical]})
    refused("suite", "keyset-without-suite-key", lambda: verify(enclave))
    enclave.keyset = enclave.keyset.model_copy(update={"suite": "classical"})
    refused("suite", "suite-mismatch", lambda: verify(enclave, suites=["default", "classical"]))


def test_3_a_stale_nonce(enclave: FakeEnclave) -> None:
    other = enclave.bundle(AttestationRequest(nonce=b"o" * 32, tenant=enclave.tenant)).encode()
    refused("report-data", "report-data-mismatch", lambda: verify(enclave, other))


def test_3_a_quote_for_another_purpose(enclave: FakeEnclave) -> None:
    evidence = enclave.quote(NONCE, purpose=Purpose.LEASE).to_json()
    refused(
        "report-data", "report-data-mismatch", lambda: verify(enclave, bundle(enclave, evidence=evidence))
    )


def test_3_a_keyset_or_config_swapped_under_the_quote(enclave: FakeEnclave) -> None:
    evidence = enclave.quote(NONCE).to_json()
    keyset = enclave.keyset
    enclave.boot()
    refused(
        "report-data", "report-data-mismatch", lambda: verify(enclave, bundle(enclave, evidence=evidence))
    )
    enclave.keyset = keyset
    enclave.config = enclave.config.model_copy(update={"egress": ["evil.example:443"]})
    refused(
        "report-data", "report-data-mismatch", lambda: verify(enclave, bundle(enclave, evidence=evidence))
    )


def test_3_a_config_other_than_the_measured_one(enclave: FakeEnclave) -> None:
    quote = enclave.platform.quote
    enclave.platform.quote = lambda bound, registers: quote(bound, (registers[0], b"\0" * 32))  # type: ignore[method-assign,assignment]
    refused("evidence", "config-digest-mismatch", lambda: verify(enclave))


def test_3_a_revoked_quoting_key(enclave: FakeEnclave) -> None:
    enclave.platform.revoke(enclave.now())
    assert isinstance(refused("crl", "quoting-key-revoked", lambda: verify(enclave)), RevokedError)


def test_4_every_failure_is_listed(enclave: FakeEnclave) -> None:
    software = {"vector": {"hardware": 97, "runtime-opaque": 96}, "roots": ["00" * 32], "code": ["00" * 32]}
    error = refused(
        "appraisal",
        "quoting-root-not-allowed",
        lambda: verify(
            enclave,
            platforms={"software": software},
            config={"digests": ["00" * 32]},
            longest_lease_s=10,
            manifests=["00" * 32],
        ),
    )
    assert isinstance(error, AppraisalError)
    assert [failure.code for failure in error.failures] == [
        "quoting-root-not-allowed",
        "code-not-allowed",
        "config-not-allowed",
        "lease-too-long",
        "manifest-not-allowed",
    ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"policy_signers": [b"s" * 32]}, "policy-signer-not-allowed"),
        ({"egress": ["evil.example:443"]}, "egress-host-not-allowed"),
    ],
)
def test_4_a_config_that_names_more_than_the_rules(enclave: FakeEnclave, changes: Members, code: str) -> None:
    enclave.config = enclave.config.model_copy(update=changes)
    enclave.renew()
    refused("appraisal", code, lambda: verify(enclave))


def test_4_another_broker_beside_the_trusted_one(enclave: FakeEnclave) -> None:
    trust = enclave.trust_file()
    rogue = BrokerAddress(url="https://evil.test", root=b"r" * 32)
    enclave.config = enclave.config.model_copy(update={"brokers": [*enclave.config.brokers, rogue]})
    enclave.renew()
    refused(
        "appraisal",
        "broker-not-allowed",
        lambda: verify_attestation(bundle(enclave), nonce=NONCE, trust=trust, at=enclave.now()),
    )


def test_4_hardware_is_required_by_default(enclave: FakeEnclave) -> None:
    refused(
        "appraisal", "hardware-required", lambda: verify(enclave, profile="production", require_hardware=True)
    )


def test_5_a_keyset_past_its_end(enclave: FakeEnclave, clock: Clock) -> None:
    trust = enclave.trust_file(expires=clock.at + timedelta(hours=24))
    clock.move(hours=23, minutes=50)
    enclave.keyset = enclave.keyset.model_copy(update={"not_after": clock.at - timedelta(seconds=1)})
    enclave.renew()
    error = refused(
        "keyset",
        "keyset-ended",
        lambda: verify_attestation(bundle(enclave), nonce=NONCE, trust=trust, at=clock.at),
    )
    assert isinstance(error, RevokedError)


def test_6_broker_keys_under_another_root(enclave: FakeEnclave) -> None:
    forged = json.loads(enclave.broker.keys.sign(Ed25519PrivateKey.generate()))
    refused("broker", "untrusted-signer", lambda: verify(enclave, bundle(enclave, broker_keys=forged)))


def test_6_a_root_that_only_the_trust_file_names(enclave: FakeEnclave) -> None:
    other = fake_enclave(enclave.now)  # type: ignore[arg-type]
    forged = json.loads(other.broker.keys_envelope())
    both = [enclave.broker.root_key, other.broker.root_key]
    refused(
        "broker",
        "untrusted-signer",
        lambda: verify(enclave, bundle(enclave, broker_keys=forged), brokers=both),
    )


def test_6_broker_keys_past_their_end(enclave: FakeEnclave, clock: Clock) -> None:
    enclave.broker.keys = enclave.broker.keys.model_copy(update={"not_after": clock.at})
    refused("broker", "broker-keys-ended", lambda: verify(enclave))


def test_7_a_lease_past_its_end_on_our_own_clock(enclave: FakeEnclave, clock: Clock) -> None:
    raw, trust = bundle(enclave), enclave.trust_file()
    clock.move(seconds=599)
    verify_attestation(raw, nonce=NONCE, trust=trust, at=clock.at)
    clock.move(seconds=1)
    error = refused(
        "lease", "lease-ended", lambda: verify_attestation(raw, nonce=NONCE, trust=trust, at=clock.at)
    )
    assert error.exit_code == 13


def test_7_a_lease_of_another_tenant(enclave: FakeEnclave) -> None:
    refused("lease", "lease-mismatch", lambda: verify(enclave, tenant="other"))


def test_7_a_lease_signed_by_another_key(enclave: FakeEnclave) -> None:
    forged = json.loads(enclave.lease.sign(Ed25519PrivateKey.generate()))
    refused("lease", "untrusted-signer", lambda: verify(enclave, bundle(enclave, lease=forged)))


def test_7_a_lease_over_another_keyset(enclave: FakeEnclave) -> None:
    lease = json.loads(enclave.lease_envelope)
    enclave.boot()
    refused("lease", "lease-mismatch", lambda: verify(enclave, bundle(enclave, lease=lease)))


def test_7_a_lease_that_is_too_long(enclave: FakeEnclave) -> None:
    refused("lease", "lease-too-long", lambda: verify(enclave, longest_lease_s=599))
    verify(enclave, longest_lease_s=600)


def test_7_every_manifest_of_the_lease_is_pinned(enclave: FakeEnclave) -> None:
    verify(enclave, manifests=[MANIFEST])
    more = [*enclave.lease.kids, LeasedKey(kid="more", manifest_digest=b"m" * 32)]
    enclave.lease = enclave.lease.model_copy(update={"kids": more})
    enclave.lease_envelope = enclave.lease.sign(enclave.broker.release)
    refused("lease", "manifest-not-allowed", lambda: verify(enclave, manifests=[MANIFEST]))


def test_7_a_result_that_the_lease_does_not_rest_on(enclave: FakeEnclave) -> None:
    ear = enclave.ear
    enclave.renew()
    refused("lease", "ear-mismatch", lambda: verify(enclave, bundle(enclave, ear=ear)))
    enclave.broker.ear = ECKey.generate_key("P-256")
    enclave.renew()
    refused("ear", "ear-signature", lambda: verify(enclave))


def test_7_a_result_over_another_keyset(enclave: FakeEnclave) -> None:
    result = enclave.broker.result
    enclave.broker.result = lambda **said: result(**{**said, "keyset_digest": bytes(32)})  # type: ignore[method-assign]
    enclave.renew()
    refused("lease", "ear-mismatch", lambda: verify(enclave))


def test_a_trust_file_decides_nothing_outside_its_dates(enclave: FakeEnclave, clock: Clock) -> None:
    trust = enclave.trust_file()
    clock.move(hours=23)
    enclave.renew()
    error = refused(
        "policy",
        "policy-expired",
        lambda: verify_attestation(bundle(enclave), nonce=NONCE, trust=trust, at=clock.at),
    )
    assert isinstance(error, CollateralError)


def test_the_gravest_of_several_refusals_is_raised(enclave: FakeEnclave, clock: Clock) -> None:
    trust = enclave.trust_file(longest_lease_s=10, config={"digests": ["00" * 32]})
    raw = bundle(enclave)
    clock.move(minutes=11)

    def act() -> object:
        return verify_attestation(raw, nonce=NONCE, trust=trust, at=clock.at)

    assert isinstance(refused("lease", "lease-ended", act), RevokedError)
    forged = json.loads(enclave.lease.sign(Ed25519PrivateKey.generate()))
    raw = bundle(enclave, lease=forged)
    assert isinstance(refused("lease", "untrusted-signer", act), VerificationError)


def test_a_renewed_lease_is_checked_like_the_first(enclave: FakeEnclave, clock: Clock) -> None:
    trust, found = enclave.trust_file(), verify(enclave)
    clock.move(minutes=9)
    enclave.renew()
    later = renewed(found, enclave.lease_envelope, trust=trust, at=clock.at)
    assert later.lease == enclave.lease
    assert later.lease_envelope == enclave.lease_envelope
    strict = enclave.trust_file(longest_lease_s=599)
    refused(
        "lease", "lease-too-long", lambda: renewed(found, enclave.lease_envelope, trust=strict, at=clock.at)
    )
    forged = enclave.lease.sign(Ed25519PrivateKey.generate())
    refused("lease", "untrusted-signer", lambda: renewed(found, forged, trust=trust, at=clock.at))
    clock.move(hours=24)
    refused(
        "policy", "policy-expired", lambda: renewed(found, enclave.lease_envelope, trust=trust, at=clock.at)
    )


WORLD = fake_enclave()
WHOLE = bundle(WORLD)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 8 * len(WHOLE) - 1))
def test_no_flipped_bit_of_a_bundle_is_accepted(bit: int) -> None:
    changed = bytearray(WHOLE)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealwrightError) as caught:
        verify(WORLD, bytes(changed))
    # A changed name in the result's header can only be refused, never crash.
    assert caught.value.exit_code in {65, 10, 12, 13, 11}
