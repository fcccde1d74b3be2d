"""Receipt files verified offline: each step of docs/spec/receipt.md refuses what it is there for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.audit.support import Audited

from sealwright.audit.receipts import VerifiedReceipt, verify_receipt_file
from sealwright.client.receipts import ReceiptFile
from sealwright.errors import CollateralError, FormatError, RevokedError, SealwrightError
from sealwright.testing.broker import FakeLog
from sealwright.tlog.keys import Cosigner
from sealwright.tlog.policy import LogPolicy


@pytest.fixture
def audited() -> Audited:
    return Audited()


def verify(audited: Audited, file: ReceiptFile) -> VerifiedReceipt:
    return verify_receipt_file(file, trust=audited.trust, log_policy=audited.policy)


def refused(stage: str, code: str, act: Callable[[], object]) -> SealwrightError:
    with pytest.raises(SealwrightError) as caught:
        act()
    assert (caught.value.stage, caught.value.code) == (stage, code)
    return caught.value


def test_a_receipt_holds_long_after_everything_has_ended(audited: Audited) -> None:
    file = audited.file()
    audited.clock.move(days=4000)
    found = verify(audited, ReceiptFile.parse(file.encode()))
    assert found.values["model"] == "echo"
    assert found.logged is not None
    assert found.logged.index == 0
    assert found.statement.predicate.confidential is False


def test_a_file_is_what_it_encodes(audited: Audited) -> None:
    for file in (audited.file(), audited.file(proof=False), audited.file(lease=audited.renewed())):
        assert ReceiptFile.parse(file.encode()) == file
    assert json.loads(audited.file(proof=False).encode())["proof"] is None


def test_1_parse(audited: Audited) -> None:
    raw = audited.file().encode()
    for broken in (raw[:-3], b"{}", b"[]", raw.replace(b"receipt/v1", b"receipt/v2")):
        with pytest.raises(FormatError):
            ReceiptFile.parse(broken)


def test_2_an_answer_after_the_lease(audited: Audited) -> None:
    audited.clock.move(minutes=10)
    error = refused("lease", "lease-ended", lambda: verify(audited, audited.file()))
    assert isinstance(error, RevokedError)


def test_2_an_answer_under_a_renewed_lease(audited: Audited) -> None:
    audited.clock.move(minutes=9)
    lease = audited.renewed()
    audited.clock.move(minutes=5)
    file = audited.file(lease=lease)
    assert verify(audited, file).enclave.lease == audited.enclave.lease
    refused("lease", "lease-ended", lambda: verify(audited, file.model_copy(update={"lease": None})))
    forged = json.loads(audited.enclave.lease.sign(Ed25519PrivateKey.generate()))
    refused("lease", "untrusted-signer", lambda: verify(audited, file.model_copy(update={"lease": forged})))


def test_2_a_trust_file_of_other_times_or_other_code(audited: Audited) -> None:
    file = audited.file()
    late = audited.enclave.trust_file(
        created=audited.clock.at + timedelta(hours=1), expires=audited.clock.at + timedelta(hours=2)
    )
    refused(
        "policy", "policy-not-yet", lambda: verify_receipt_file(file, trust=late, log_policy=audited.policy)
    )
    other = audited.enclave.trust_file(config={"digests": ["00" * 32]})
    refused(
        "appraisal",
        "config-not-allowed",
        lambda: verify_receipt_file(file, trust=other, log_policy=audited.policy),
    )


def test_2_a_nonce_of_another_attestation(audited: Audited) -> None:
    file = audited.file(nonce=b"o" * 32)
    refused("report-data", "report-data-mismatch", lambda: verify(audited, file))


def test_3_a_forged_receipt(audited: Audited) -> None:
    audited.enclave.receipt_key = Ed25519PrivateKey.generate()
    refused("signature", "untrusted-signer", lambda: verify(audited, audited.file()))


def test_3_a_receipt_of_another_boot(audited: Audited) -> None:
    key = audited.enclave.receipt_key
    audited.enclave.boot()
    audited.enclave.receipt_key = key  # even with the old key
    refused("signature", "receipt-mismatch", lambda: verify(audited, audited.file()))


def test_5_an_opening_moved_to_another_field(audited: Audited) -> None:
    file = audited.file()
    fields = dict(file.receipt.fields)
    fields["request"], fields["response"] = fields["response"], fields["request"]
    moved = file.receipt.model_copy(update={"fields": fields})
    refused("fields", "field-mismatch", lambda: verify(audited, file.model_copy(update={"receipt": moved})))


def test_6_without_a_proof(audited: Audited) -> None:
    file = audited.file(proof=False)
    error = refused("log", "proof-missing", lambda: verify(audited, file))
    assert isinstance(error, CollateralError)
    assert verify_receipt_file(file, trust=audited.trust, log_policy=None).logged is None


def test_6_the_proof_of_another_entry(audited: Audited) -> None:
    first, second = audited.file(), audited.file()
    swapped = first.with_proof(second.proof or "")
    with pytest.raises(SealwrightError) as caught:
        verify(audited, swapped)
    assert caught.value.code == "bad-inclusion-proof"


def test_6_a_log_that_the_trust_file_does_not_name(audited: Audited) -> None:
    file = audited.file(proof=False)
    for origin, code in (("log.test/two", "unknown-log"), ("log.test/one", "untrusted-signer")):
        log = FakeLog(origin)
        log.append(file.entry())
        refused(
            "log-signature", code, lambda log=log: verify(audited, file.with_proof(log.prove(0).decode()))
        )  # type: ignore[misc]


def test_6_a_quorum_that_is_not_met(audited: Audited) -> None:
    log_key = audited.enclave.config.log.keys[0]
    witness = Cosigner(name="w.test", key=Ed25519PrivateKey.generate()).vkey.encode()
    policy = LogPolicy.parse(f"log {log_key}\nwitness w {witness}\nquorum w\n".encode())
    file = audited.file()
    refused(
        "quorum",
        "quorum-not-met",
        lambda: verify_receipt_file(file, trust=audited.trust, log_policy=policy),
    )


WORLD = Audited()
WHOLE = WORLD.file().encode()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 8 * len(WHOLE) - 1))
def test_no_flipped_bit_gives_another_verdict(bit: int) -> None:
    changed = bytearray(WHOLE)
    changed[bit // 8] ^= 1 << bit % 8
    found = None
    with contextlib.suppress(SealwrightError):
        found = verify(WORLD, ReceiptFile.parse(bytes(changed)))
    # A change may fall on white space or an unauthenticated hint; what is proved stays the same.
    if found is not None:
        assert found.values == RIGHT.values
        assert found.statement == RIGHT.statement


RIGHT = verify(WORLD, ReceiptFile.parse(WHOLE))
