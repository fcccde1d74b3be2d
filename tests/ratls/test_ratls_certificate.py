"""Attested certificates: made and checked, of other projects, and everything that must be refused."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import warnings
from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha384, sha512
from itertools import count
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tests.ratls.support import CODE, CONFIG, KEY, NONCE, NOW, appraise, attest, attest_other_code
from tests.vector_files import vector

from sealwright.crypto.cbor import Tagged, decode, encode
from sealwright.crypto.encoding import b64url
from sealwright.endorsement.x509 import pem_blocks
from sealwright.errors import AppraisalError, EvidenceFormatError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.testing.ratls import (
    SGX,
    TDX,
    certificate,
    fake_quote,
    gramine_certificate,
    quoted_report_data,
)
from sealwright.testing.software import FakePlatformWarning
from sealwright.transport import ratls
from sealwright.transport.ratls import (
    WITHOUT_NONCE,
    AttestedCertificate,
    check_certificate,
    make_certificate,
    open_issuer,
)
from sealwright.transport.ratls.certificate import EVIDENCE_OID, LIFE
from sealwright.transport.ratls.evidence import (
    MAX_CLAIMS,
    MAX_EXTENSION,
    MEDIA_TYPE,
    Claims,
    decode_extension,
    encode_extension,
)
from sealwright.transport.ratls.mbedtls import _elements, _sequence, without_null_parameters

OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check(der: bytes, *, nonce: Any = NONCE, at: datetime = NOW) -> Any:
    return check_certificate(der, nonce=nonce, at=at, appraise=appraise)


def made(**options: Any) -> bytes:
    return make_certificate(KEY, options.pop("attest", attest), **{"nonce": NONCE, "now": NOW, **options})


def refused(der: bytes, stage: str, code: str, **options: Any) -> None:
    with pytest.raises((VerificationError, EvidenceFormatError, AppraisalError)) as caught:
        check(der, **options)
    assert (caught.value.stage, caught.value.code) == (stage, code)


def never(envelope: EvidenceEnvelope, report_data: bytes) -> None:
    raise AssertionError("evidence was appraised that should have been refused before")


# --- our own ---


def test_a_certificate_is_checked() -> None:
    assert check(made()).registers == (CODE, CONFIG)
    assert check(made(for_python_server=True)).registers == (CODE, CONFIG)


def test_appraise_gets_evidence_and_report_data() -> None:
    der = made()
    envelope, report_data = check_certificate(der, nonce=NONCE, at=NOW, appraise=lambda *both: both)
    assert envelope.type == "software"
    assert len(report_data) == 64
    assert report_data[32:] == bytes(32)
    claims = Claims.make(SPKI, NONCE)
    assert report_data[:32] == sha256(claims.buffer).digest()
    assert decode(claims.buffer) == {"nonce": NONCE, "pubkey-hash": encode([1, sha256(SPKI).digest()])}


def test_the_extension_is_not_critical() -> None:
    made_one = x509.load_der_x509_certificate(made())
    assert not made_one.extensions.get_extension_for_oid(EVIDENCE_OID).critical


def test_exports() -> None:
    assert all(hasattr(ratls, name) for name in ratls.__all__)


def test_without_a_nonce() -> None:
    der = made(nonce=WITHOUT_NONCE)
    assert check(der, nonce=WITHOUT_NONCE)
    assert AttestedCertificate.parse(der, at=NOW).nonce is None
    refused(der, "nonce", "nonce-mismatch")
    assert check(made(), nonce=WITHOUT_NONCE)


@pytest.mark.parametrize("nonce", [NONCE[:-1], NONCE + b"\0", bytes(32), NONCE[::-1]])
def test_another_nonce_is_refused(nonce: bytes) -> None:
    refused(made(), "nonce", "nonce-mismatch", nonce=nonce)


@pytest.mark.parametrize("nonce", [b"", b"1234567", bytes(513), None, "text", 0])
def test_a_nonce_that_is_none_never_means_any(nonce: object) -> None:
    with pytest.raises(ValueError, match="8 to 512"):
        check(made(), nonce=nonce)


def test_dates() -> None:
    start = NOW - timedelta(minutes=5)
    assert AttestedCertificate.parse(made(), at=start)
    assert AttestedCertificate.parse(made(), at=start + LIFE)
    for at in (start - timedelta(seconds=1), start + LIFE + timedelta(seconds=1)):
        refused(made(), "certificate", "certificate-expired", at=at)


def test_what_the_appraisal_refuses_is_refused() -> None:
    refused(made(attest=attest_other_code), "appraisal", "code-not-allowed")


def test_evidence_that_does_not_fit_is_our_bug() -> None:
    large = EvidenceEnvelope(type="snp", evidence=bytes(MAX_EXTENSION), endorsements=())
    with pytest.raises(ValueError, match="does not fit"):
        made(attest=lambda _: large)


# --- swapped parts ---


def extension(der: bytes) -> bytes:
    loaded = x509.load_der_x509_certificate(der)
    return loaded.extensions.get_extension_for_oid(EVIDENCE_OID).value.value


def test_evidence_for_another_key_is_refused() -> None:
    stolen = certificate(OTHER_KEY, NOW, [(EVIDENCE_OID, extension(made()))])
    refused(stolen, "key", "key-not-attested")


def test_a_quote_under_other_claims_is_refused() -> None:
    envelope, _ = decode_extension(extension(made()))
    spki = OTHER_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    forged = encode_extension(envelope, Claims.make(spki, NONCE))
    refused(certificate(OTHER_KEY, NOW, [(EVIDENCE_OID, forged)]), "report-data", "report-data-mismatch")


def test_a_quote_under_another_nonce_is_refused() -> None:
    envelope, _ = decode_extension(extension(made(nonce=bytes(32))))
    forged = encode_extension(envelope, Claims.make(SPKI, NONCE))
    refused(certificate(KEY, NOW, [(EVIDENCE_OID, forged)]), "report-data", "report-data-mismatch")


def test_claims_are_covered_to_the_last_byte() -> None:
    # A claim that is passed over is still under the digest.
    envelope, claims = decode_extension(extension(made()))
    more = encode({**decode(claims.buffer), "more": b"x"})
    forged = encode([MEDIA_TYPE, encode([envelope.encode(), more]), 4])
    refused(certificate(KEY, NOW, [(EVIDENCE_OID, forged)]), "report-data", "report-data-mismatch")


def test_no_flipped_byte_of_the_extension_is_accepted() -> None:
    raw = extension(made())
    good_type = raw.index(MEDIA_TYPE.encode())
    assert good_type < 10
    for index in range(len(raw)):
        flipped = bytearray(raw)
        flipped[index] ^= 1 << index % 8
        forged = certificate(KEY, NOW, [(EVIDENCE_OID, bytes(flipped))])
        with pytest.raises((VerificationError, EvidenceFormatError, AppraisalError)):
            check(forged)


def with_nulls(der: bytes) -> bytes:
    """Return a certificate as older Mbed TLS would have written it."""
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    tbs, _, signature = _elements(_elements(der)[0][4:])
    tbs = _sequence(tbs[4:].replace(algorithm, NULLED, 1))
    return _sequence(tbs, NULLED, signature)


NULLED = bytes.fromhex("300c06082a8648ce3d0403020500")


def test_an_algorithm_with_null_is_read_as_one_without() -> None:
    der = made()
    assert without_null_parameters(with_nulls(der)) == der
    assert check(with_nulls(der))


def test_what_has_no_such_null_stays_as_it_is() -> None:
    der = made()
    assert without_null_parameters(der) == der
    only_outside = _sequence(_elements(_elements(der)[0][4:])[0], NULLED, b"\3\2\0\1")
    assert without_null_parameters(only_outside) == only_outside


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 400))
def test_looking_for_nulls_never_fails(raw: bytes, start: int, end: int) -> None:
    der = with_nulls(made_once())
    for broken in (raw, der[:start] + raw + der[end:], der[:start] + raw):
        assert isinstance(without_null_parameters(broken), bytes)


@functools.cache
def made_once() -> bytes:
    return made()


# --- missing, oversize, critical ---


def test_a_certificate_without_evidence_is_refused() -> None:
    refused(certificate(KEY, NOW, []), "parse", "evidence-missing")
    legacy = x509.ObjectIdentifier("1.2.840.113741.1337.6")
    refused(certificate(KEY, NOW, [(legacy, b"quote")]), "parse", "evidence-missing")


@pytest.mark.parametrize("size", [MAX_EXTENSION + 1, MAX_EXTENSION + 8192])
def test_an_oversize_extension_is_refused_unread(size: int) -> None:
    der = certificate(KEY, NOW, [(EVIDENCE_OID, b"\x81" * size)])
    refused(der, "parse", "too-large")


def test_an_oversize_certificate_is_refused_unread() -> None:
    refused(certificate(KEY, NOW, [(EVIDENCE_OID, bytes(1 << 20))]), "parse", "too-large")


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x9f" * MAX_EXTENSION,
        b"\x81" * MAX_EXTENSION,
        b"[" * MAX_EXTENSION,
        b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xd9\xea\x60" * 1000,
        b"\x1f\x8b\x08" + bytes(100),  # gzip is not looked into
    ],
    ids=["indefinite", "arrays", "JSON", "length", "tags", "gzip"],
)
def test_a_bomb_is_refused(bomb: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        decode_extension(bomb)


def test_an_unknown_critical_extension_is_refused() -> None:
    der = certificate(
        KEY,
        NOW,
        [(EVIDENCE_OID, extension(made())), (x509.ObjectIdentifier("1.2.3.4"), b"\5\0")],
        critical=True,
    )
    refused(der, "certificate", "bad-certificate")


def test_evidence_may_be_critical() -> None:
    assert check(certificate(KEY, NOW, [(EVIDENCE_OID, extension(made()))], critical=True))


def test_not_a_certificate() -> None:
    for der in (b"", b"\x30\x00", made()[:-1], made() + b"\0"):
        refused(der, "parse", "malformed-chain")


# --- the extension ---


def pair(*items: object) -> bytes:
    return encode(list(items))


ENVELOPE = attest(bytes(64)).encode()
BUFFER = Claims.make(SPKI, NONCE).buffer


def test_a_record_in_json_is_read() -> None:
    value = b64url(pair(ENVELOPE, BUFFER))
    for record in ([MEDIA_TYPE, value], [MEDIA_TYPE, value, 4]):
        envelope, claims = decode_extension(json.dumps(record).encode())
        assert (envelope.encode(), claims.buffer) == (ENVELOPE, BUFFER)


def test_a_record_without_indicator_is_read() -> None:
    envelope, _ = decode_extension(pair(MEDIA_TYPE, pair(ENVELOPE, BUFFER)))
    assert envelope.encode() == ENVELOPE


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "malformed-cbor"),
        (b"\xf6", "malformed-claims"),
        (pair(MEDIA_TYPE), "malformed-claims"),
        (pair(MEDIA_TYPE, pair(ENVELOPE, BUFFER), 8), "malformed-claims"),  # an attestation result
        (pair(MEDIA_TYPE, pair(ENVELOPE, BUFFER), 5), "malformed-claims"),
        (pair(MEDIA_TYPE, pair(ENVELOPE, BUFFER), 4, 4), "malformed-claims"),
        (pair("application/eat+cwt", pair(ENVELOPE, BUFFER), 4), "unsupported-evidence"),
        (pair(60, pair(ENVELOPE, BUFFER), 4), "unsupported-evidence"),
        (pair(MEDIA_TYPE, "text", 4), "unsupported-evidence"),
        (pair(MEDIA_TYPE, pair(ENVELOPE), 4), "malformed-claims"),
        (pair(MEDIA_TYPE, pair(ENVELOPE, "text"), 4), "malformed-claims"),
        (pair(MEDIA_TYPE, pair(b"", BUFFER), 4), "malformed-json"),
        (pair(MEDIA_TYPE, pair(ENVELOPE, b""), 4), "malformed-cbor"),
        (pair(MEDIA_TYPE, pair(ENVELOPE, BUFFER) + b"\0", 4), "malformed-cbor"),
        (encode({"a": 1}), "malformed-claims"),
        (encode(Tagged(60000, [bytes(100), BUFFER])), "unsupported-evidence"),
        (encode(Tagged(60000, [b"\3\0", BUFFER])), "unsupported-evidence"),
        (encode(Tagged(60000, [b"\4\0\2\0\1" + bytes(100), BUFFER])), "unsupported-evidence"),
        (encode(Tagged(60000, [b"\3\0" + bytes(100)])), "malformed-claims"),
        (encode(Tagged(60000, b"")), "malformed-claims"),
        (encode(Tagged(60001, [bytes(100), BUFFER])), "malformed-cbor"),  # a report, of no use elsewhere
        (encode(Tagged(60002, [bytes(100), BUFFER])), "malformed-cbor"),
        (b'["' + MEDIA_TYPE.encode() + b'"]', "malformed-claims"),
        (b'["' + MEDIA_TYPE.encode() + b'",1]', "malformed-claims"),
        (b'["' + MEDIA_TYPE.encode() + b'","AA=="]', "malformed-base64"),
        (b'["application/eat+jwt","AA"]', "unsupported-evidence"),
        (b"[1", "malformed-json"),
    ],
    ids=count(),
)
def test_malformed_extension(raw: bytes, code: str) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        decode_extension(raw)
    assert caught.value.code == code


HASH = encode([1, bytes(32)])


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({}, "malformed-claims"),
        ({"nonce": NONCE}, "malformed-claims"),
        ({"pubkey-hash": "text"}, "malformed-claims"),
        ({"pubkey-hash": HASH, "nonce": b""}, "malformed-claims"),
        ({"pubkey-hash": HASH, "nonce": bytes(513)}, "malformed-claims"),
        ({"pubkey-hash": HASH, "nonce": None}, "malformed-claims"),
        ({"pubkey-hash": HASH, 1: b""}, "malformed-claims"),
        ({"pubkey-hash": HASH, "more": 1}, "malformed-claims"),
        ({"pubkey-hash": b""}, "malformed-cbor"),
        ({"pubkey-hash": encode([1])}, "malformed-claims"),
        ({"pubkey-hash": encode({1: bytes(32)})}, "malformed-claims"),
        ({"pubkey-hash": encode([2, bytes(16)])}, "malformed-claims"),  # SHA-256 cut to 128 bits
        ({"pubkey-hash": encode([0, bytes(32)])}, "malformed-claims"),
        ({"pubkey-hash": encode([True, bytes(32)])}, "malformed-claims"),
        ({"pubkey-hash": encode(["sha-256", bytes(32)])}, "malformed-claims"),
        ({"pubkey-hash": encode([1, bytes(31)])}, "malformed-claims"),
        ({"pubkey-hash": encode([7, bytes(32)])}, "malformed-claims"),
        ({"pubkey-hash": encode([1, "text"])}, "malformed-claims"),
        ([], "malformed-claims"),
        ({"pubkey-hash": HASH, "more": bytes(MAX_CLAIMS)}, "too-large"),
    ],
)
def test_malformed_claims(claims: Any, code: str) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        Claims.parse(encode(claims))
    assert caught.value.code == code


@pytest.mark.parametrize(("algorithm", "digest"), [(1, sha256), (7, sha384), (8, sha512)])
def test_every_hash_of_the_profile(algorithm: int, digest: Any) -> None:
    claims = Claims.parse(encode({"pubkey-hash": encode([algorithm, digest(SPKI).digest()])}))
    claims.check_key(SPKI)
    with pytest.raises(VerificationError) as caught:
        claims.check_key(SPKI + b"\0")
    assert caught.value.code == "key-not-attested"


@given(st.binary(max_size=120))
def test_the_decoder_raises_only_its_own_error(raw: bytes) -> None:
    for start in (b"", b"[", b"\xd9\xea\x60\x82"):
        with contextlib.suppress(EvidenceFormatError):
            decode_extension(start + raw)


@given(st.binary(max_size=80))
def test_claims_raise_only_their_own_error(raw: bytes) -> None:
    with contextlib.suppress(EvidenceFormatError):
        assert Claims.parse(raw).buffer == raw


# --- other projects ---


def gramine(**options: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return gramine_certificate(KEY, NOW, **options)


@pytest.mark.parametrize(
    ("version", "tee_type", "name"), [(3, SGX, "sgx"), (4, SGX, "sgx"), (4, TDX, "tdx"), (5, TDX, "tdx")]
)
def test_a_certificate_as_gramine_makes_it(version: int, tee_type: int, name: str) -> None:
    def matches(envelope: EvidenceEnvelope, report_data: bytes) -> str:
        assert quoted_report_data(envelope.evidence) == report_data
        assert envelope.endorsements == ()
        return envelope.type

    der = gramine(version=version, tee_type=tee_type)
    assert check_certificate(der, nonce=WITHOUT_NONCE, at=NOW, appraise=matches) == name
    der = gramine(version=version, tee_type=tee_type, claims={"nonce": NONCE, "key_0": b"value_0\0"})
    assert check_certificate(der, nonce=NONCE, at=NOW, appraise=matches) == name


def test_gramines_claims_about_another_key_are_refused() -> None:
    der = gramine(claims={"pubkey-hash": encode([1, bytes(32)])})
    with pytest.raises(VerificationError) as caught:
        check_certificate(der, nonce=WITHOUT_NONCE, at=NOW, appraise=never)
    assert caught.value.code == "key-not-attested"


@pytest.mark.parametrize("kind", ["sgx", "tdx"])
def test_a_bare_quote_travels_under_intels_tag(kind: Any) -> None:
    def quote(report_data: bytes) -> EvidenceEnvelope:
        with pytest.warns(FakePlatformWarning):
            raw = fake_quote(report_data, version=4, tee_type=TDX if kind == "tdx" else SGX)
        return EvidenceEnvelope(type=kind, evidence=raw, endorsements=())

    der = made(attest=quote)
    assert extension(der).startswith(b"\xd9\xea\x60\x82")
    envelope, report_data = check_certificate(der, nonce=NONCE, at=NOW, appraise=lambda *both: both)
    assert envelope == quote(report_data)


def test_nothing_that_came_with_a_quote_is_lost() -> None:
    def quote(report_data: bytes) -> EvidenceEnvelope:
        with pytest.warns(FakePlatformWarning):
            raw = fake_quote(report_data, version=4, tee_type=TDX)
        return EvidenceEnvelope(type="tdx", evidence=raw, event_log=b"log", endorsements=())

    envelope, _ = check_certificate(made(attest=quote), nonce=NONCE, at=NOW, appraise=lambda *both: both)
    assert envelope.event_log == b"log"


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("gramine-cert.pem", datetime(2024, 1, 1, tzinfo=UTC)),
        ("intel-sgxsdk-cert.pem", datetime(2024, 1, 1, tzinfo=UTC)),
        ("rats-tls-cert.pem", datetime(2023, 2, 22, 17, tzinfo=UTC)),
    ],
)
def test_a_certificate_of_the_profiles_interoperability_tests(name: str, at: datetime) -> None:
    def matches(envelope: EvidenceEnvelope, report_data: bytes) -> str:
        assert quoted_report_data(envelope.evidence) == report_data
        return envelope.type

    ((_, der),) = pem_blocks(vector(f"ratls/ccc/{name}"))
    assert check_certificate(der, nonce=WITHOUT_NONCE, at=at, appraise=matches) == "sgx"
    with pytest.raises(VerificationError) as caught:
        check_certificate(der, nonce=NONCE, at=at, appraise=never)
    assert caught.value.code == "nonce-mismatch"


def test_the_open_issuer_is_the_same_everywhere() -> None:
    public = open_issuer().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert base64.b64encode(sha256(public).digest())[:8] == b"QNclq2LU"
