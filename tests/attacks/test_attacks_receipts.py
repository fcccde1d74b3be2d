"""Receipts, results and leases moved to where they do not belong."""

from __future__ import annotations

import json
import os
import secrets
from datetime import UTC, datetime, timedelta

import pytest
from joserfc.jwk import ECKey

from sealwright.appraisal.ear import verify_ear
from sealwright.audit.receipts import verify_receipt_file
from sealwright.client.receipts import ReceiptFile
from sealwright.client.session import Session
from sealwright.client.verifier import verify_attestation
from sealwright.crypto.encoding import b64url
from sealwright.errors import FormatError, VerificationError
from sealwright.protocol.attestation import AttestationRequest
from sealwright.testing.enclave import FakeEnclave

pytestmark = pytest.mark.filterwarnings("ignore::sealwright.testing.software.FakePlatformWarning")

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


def test_another_tenants_receipt_of_the_same_keyset_is_refused() -> None:
    # Its field `tenant` is left unopened; lease and attestation are the auditor's own tenant's.
    enclave = FakeEnclave(now=lambda: NOW)
    request = AttestationRequest(nonce=secrets.token_bytes(32), tenant="test")
    bundle, trust = enclave.bundle(request), enclave.trust_file()
    own = enclave.receipt({"model": "m"}, record_id=os.urandom(16))
    enclave.tenant = "other"
    enclave.renew()
    foreign = enclave.receipt({"model": "m", "tenant": "other"}, record_id=os.urandom(16))
    foreign = foreign.model_copy(update={"fields": {"model": foreign.fields["model"]}})

    def check(receipt: object) -> None:
        file = ReceiptFile.model_validate({"receipt": receipt, "attestation": bundle, "nonce": request.nonce})
        verify_receipt_file(file, trust=trust, log_policy=None)

    check(own)
    with pytest.raises(VerificationError) as caught:
        check(foreign)
    assert (caught.value.code, caught.value.stage) == ("receipt-mismatch", "signature")


def test_an_answer_is_held_against_the_lease_of_its_own_head() -> None:
    # A renewed lease that ends no later is not taken, and still is the one that the receipt names.
    enclave = FakeEnclave(now=lambda: NOW)
    trust, session = enclave.trust_file(), Session()
    request = session.attest(trust)
    held = session.verified(enclave.bundle(request).encode(), request, trust, at=NOW)
    enclave.renew()
    header = b64url(enclave.lease_envelope)
    assert not session.take_lease(header, held, at=NOW)
    assert session.under(header, held, at=NOW).lease == enclave.lease
    assert session.holding == held
    forged = enclave.lease.sign(enclave.broker.root)
    assert session.under(b64url(forged), held, at=NOW) == held


HEADERS = [
    {"alg": "ES256", "crit": 1},
    {"alg": "ES256", "crit": [[]]},
    {"alg": ["ES256"]},
    {"alg": None},
    {"alg": "none"},
    {"alg": "HS256"},
    {"alg": "ES256", "b64": False, "crit": ["b64"]},
    [],
    1,
    None,
    "ES256",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_hostile_result_is_refused_with_our_own_error(header: object) -> None:
    enclave = FakeEnclave(now=lambda: NOW)
    key = ECKey.import_key(enclave.broker.keys.ear_key.to_json())
    _, payload, signature = enclave.ear.split(".")
    token = ".".join((b64url(json.dumps(header).encode()), payload, signature))
    with pytest.raises((VerificationError, FormatError)):
        verify_ear(token, key, at=NOW)


@pytest.mark.parametrize("skew", [timedelta(minutes=11), timedelta(days=400)])
def test_a_bundle_is_worth_nothing_after_its_lease(skew: timedelta) -> None:
    enclave = FakeEnclave(now=lambda: NOW)
    request = AttestationRequest(nonce=secrets.token_bytes(32), tenant="test")
    bundle, trust = enclave.bundle(request).encode(), enclave.trust_file()
    verify_attestation(bundle, nonce=request.nonce, trust=trust, at=NOW)
    with pytest.raises(Exception) as caught:
        verify_attestation(bundle, nonce=request.nonce, trust=trust, at=NOW + skew)
    assert type(caught.value).__module__ == "sealwright.errors"
