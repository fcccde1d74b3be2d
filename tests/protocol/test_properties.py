"""Any flipped bit of a signed statement is refused; parsers raise only FormatError; encode(parse(x)) == x."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.protocol import support as s

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Document
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.statement import Statement, ed25519
from sealwright.errors import FormatError, SealwrightError, VerificationError
from sealwright.protocol.attestation import AttestationBundle, AttestationRequest
from sealwright.protocol.commitment import LogEntry, Openings, verify_openings
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList
from sealwright.protocol.kbs import AttestRequest, AuthRequest, decode_nonce, parse_message
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.lease import verify_lease
from sealwright.protocol.receipt import Receipt, ReceiptStatement, verify_receipt
from sealwright.protocol.release import verify_release

SIGNED: list[tuple[Statement, int]] = [
    (s.broker_keys(), s.ROOT),
    (s.lease(), s.RELEASE),
    (s.callers(), s.RELEASE),
    (s.release(), s.RELEASE),
    (ReceiptStatement.of(s.predicate()), s.RECEIPT),
]
DOCUMENTS: list[Document] = [
    s.config(),
    s.keyset(),
    s.tenant_list(),
    AttestationRequest(nonce=s.NONCE, tenant=s.TENANT),
    LogEntry(type="receipt", commitment=b"\1" * 32),
    Openings(record_id=b"\2" * 16, fields=dict(s.commitment().openings)),
    *[statement for statement, _ in SIGNED],
]


def _flip(raw: bytes, bit: int) -> bytes:
    out = bytearray(raw)
    out[bit // 8 % len(raw)] ^= 1 << bit % 8
    return bytes(out)


@pytest.mark.parametrize(("statement", "seed"), SIGNED, ids=lambda value: type(value).__name__)
@given(bit=st.integers(0, 1 << 16))
def test_a_flipped_bit_of_a_payload_is_refused(statement: Statement, seed: int, bit: int) -> None:
    envelope = json.loads(statement.sign(s.key(seed)))
    envelope["payload"] = base64.b64encode(_flip(statement.encode(), bit)).decode()
    with pytest.raises(VerificationError) as caught:
        type(statement).verify(canonical(envelope), [s.key(seed).public_key()], stage="signature")
    assert caught.value.code == "bad-signature"


@pytest.mark.parametrize(("statement", "seed"), SIGNED, ids=lambda value: type(value).__name__)
@given(bit=st.integers(0, 1 << 17))
def test_a_flipped_bit_of_an_envelope_is_refused(statement: Statement, seed: int, bit: int) -> None:
    raw = statement.sign(s.key(seed))
    with pytest.raises(SealwrightError) as caught:
        type(statement).verify(_flip(raw, bit), [s.key(seed).public_key()], stage="signature")
    assert isinstance(caught.value, FormatError | VerificationError)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
@given(bit=st.integers(0, 1 << 17))
def test_a_changed_document_is_refused_or_another_document(document: Document, bit: int) -> None:
    raw = _flip(document.encode(), bit)
    try:
        parsed = type(document).parse(raw)
    except FormatError:
        return
    assert parsed.encode() == raw
    assert parsed.digest() != document.digest()


PARSERS: list[Callable[[bytes], object]] = [
    *(type(document).parse for document in DOCUMENTS),
    AttestationBundle.parse,
    Receipt.parse,
    Envelope.parse,
    lambda raw: parse_message(AuthRequest, raw, limit=8192),
    lambda raw: parse_message(AttestRequest, raw, limit=8192),
    lambda raw: decode_nonce(raw.decode("latin-1")),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("number", range(len(PARSERS)))
@given(raw=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_parser_raises_only_format_errors(number: int, raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        PARSERS[number](raw)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
@given(data=st.data(), value=JSON)
def test_a_member_of_another_kind_is_a_format_error(
    document: Document, data: st.DataObject, value: object
) -> None:
    doc = document.to_json()
    name = data.draw(st.sampled_from(sorted(doc)))
    raw = json.dumps({**doc, name: value}).encode()
    with contextlib.suppress(FormatError):
        type(document).parse(raw)


def test_bounds_are_checked_before_parsing() -> None:
    for raw, code in ((b" " * (1 << 20) + b"{}", "too-large"), (b"[" * 40 + b"]" * 40, "too-deep")):
        with pytest.raises(FormatError) as caught:
            EnclaveConfig.parse(raw)
        assert caught.value.code == code


@given(st.integers(0, 3), st.integers(0, 3))
def test_an_opening_opens_its_own_field_only(first: int, second: int) -> None:
    made = s.commitment()
    names = sorted(made.openings)
    moved = {names[first]: made.openings[names[second]]}
    if first == second:
        verify_openings(made.record_id, made.leaves, moved)
        return
    with pytest.raises(VerificationError) as caught:
        verify_openings(made.record_id, made.leaves, moved)
    assert caught.value.code == "field-mismatch"


@given(bit=st.integers(0, 1 << 15), part=st.sampled_from(["salt", "value"]))
def test_a_flipped_bit_of_an_opening_is_refused(bit: int, part: str) -> None:
    receipt = s.receipt()
    opening = receipt.fields["kid"]
    changed = opening.model_copy(update={part: _flip(getattr(opening, part), bit)})
    edited = receipt.model_copy(update={"fields": {**receipt.fields, "kid": changed}})
    with pytest.raises(VerificationError) as caught:
        verify_receipt(edited, s.keyset(), config_digest=s.config().digest())
    assert caught.value.stage == "fields"


def test_a_signed_but_malformed_statement_is_a_format_error() -> None:
    raw = Envelope.sign(type(s.lease()).PAYLOAD_TYPE, b'{"format":"sealwright-lease/v1"}', s.key(s.RELEASE))
    with pytest.raises(FormatError):
        verify_lease(
            raw.encode(),
            s.broker_keys(),
            tenant=s.TENANT,
            keyset_digest=s.keyset().digest(),
            config_digest=s.config().digest(),
            at=s.T0,
        )


def test_the_release_key_must_be_a_point_or_nothing_verifies() -> None:
    broker = s.broker_keys(release_key=b"\xff" * 32)
    with pytest.raises(VerificationError):
        verify_release(
            s.release().sign(s.key(s.RELEASE)),
            broker,
            nonce=s.NONCE,
            tee_pubkey=s.keyset().tee_pubkey.digest(),
            kid="smol",
            manifest_digest=b"\x11" * 32,
            lease=s.lease(),
        )
    assert ed25519(s.public(s.RELEASE))


def test_tenant_lists_and_keysets_have_one_digest_each() -> None:
    assert TenantList.parse(s.tenant_list().encode()).commitment() == s.tenant_list().commitment()
    assert Keyset.parse(s.keyset().encode()).digest() == s.keyset().digest()
