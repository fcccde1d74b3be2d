"""Receipts, results and leases moved to where they do not belong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from joserfc.jwk import ECKey

from sealwright.appraisal.ear import verify_ear
from sealwright.audit.receipts import verify_receipt_file
from sealwright.client.receipts import ReceiptFile, check_enclave
from sealwright.client.session import Session
from sealwright.client.verifier import verify_attestation
from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.enclave.receipts import Journal, ReceiptIssuer
from sealwright.errors import FormatError, RevokedError, VerificationError
from sealwright.inference.service import ChatService
from sealwright.protocol.attestation import AttestationRequest
from sealwright.protocol.receipt import Receipt
from sealwright.testing.enclave import FakeEnclave
from sealwright.transport.server import Caller

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


class _Engine:
    """Makes the clock run while it answers."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock = clock

    async def chat(self, body: bytes) -> AsyncIterator[bytes]:
        yield json.dumps({"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}).encode()
        self.clock.at += timedelta(hours=1)
        yield json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]}).encode()


async def test_a_stream_that_ends_after_its_lease_has_a_receipt_that_verifies() -> None:
    clock = SimpleNamespace(at=NOW, now=lambda: clock.at)
    enclave = FakeEnclave(now=lambda: NOW)
    request = AttestationRequest(nonce=secrets.token_bytes(32), tenant="test")
    bundle, trust = enclave.bundle(request), enclave.trust_file()
    keys: Any = SimpleNamespace(digest=enclave.keyset.digest(), receipt=enclave.receipt_key)
    journal = Journal(4)
    issuer = ReceiptIssuer(keys, config_digest=enclave.config.digest(), platform="software", journal=journal)
    limits = SimpleNamespace(response_tokens=8, request_bytes=1 << 16)
    asked: list[datetime] = []

    def grant(tenant: str, at: datetime) -> Any:
        asked.append(at)
        return SimpleNamespace(lease=enclave.lease, lease_envelope=enclave.lease_envelope)

    config = SimpleNamespace(limits=limits)
    held: Any = SimpleNamespace(
        issuer=issuer, config=config, clock=clock, grant=grant, answering=contextlib.nullcontext
    )
    entry = SimpleNamespace(kid="k", manifest_digest=bytes(32), model="m", checkpoint=None)
    model: Any = SimpleNamespace(entry=entry, engine=_Engine(clock))
    service = ChatService(held, {("test", "m"): model}, note=lambda *_, **__: None)
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    incoming: list[Any] = [{"type": "http.request", "body": json.dumps(body).encode()}]
    said: list[Any] = []

    async def receive() -> Any:
        return incoming.pop() if incoming else await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        said.append(message)

    sealed = SimpleNamespace(caller=Caller(tenant="test"), transport="t")
    await service({"path": "/v1/chat/completions", "method": "POST", "sealwright": sealed}, receive, send)
    receipt = Receipt.parse(b64url_decode(dict(said[-1]["headers"])[b"sealwright-receipt"].decode()))
    assert clock.at >= enclave.lease.not_after
    file = ReceiptFile.model_validate({"receipt": receipt, "attestation": bundle, "nonce": request.nonce})
    checked = verify_receipt_file(file, trust=trust, log_policy=None)
    assert [checked.statement.predicate.issued] == asked == [NOW]


def test_an_answer_that_began_after_its_lease_is_refused_by_the_caller_too() -> None:
    at = [NOW]
    enclave = FakeEnclave(now=lambda: at[0])
    request = AttestationRequest(nonce=secrets.token_bytes(32), tenant="test")
    bundle, trust = enclave.bundle(request), enclave.trust_file()
    verified = verify_attestation(bundle.encode(), nonce=request.nonce, trust=trust, at=NOW)
    at[0] = enclave.lease.not_after
    late = enclave.receipt({"model": "m"}, record_id=os.urandom(16))
    with pytest.raises(RevokedError) as caught:
        check_enclave(late.unverified_statement(), verified)
    assert caught.value.code == "lease-ended"
