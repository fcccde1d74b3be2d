"""Verification of software quotes: vectors first, then properties."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwright.crypto.encoding import b64url_decode, rfc3339_decode
from sealwright.endorsement.software import QUOTING_EKU, SoftwareEndorsement
from sealwright.errors import (
    CollateralError,
    EvidenceFormatError,
    RevokedError,
    SealwrightError,
    VerificationError,
)
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.software import Claims, SoftwareQuote
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform
from sealwright.verify.software import VerifiedSoftware, verify_software

NOW = datetime(2026, 2, 3, 12, tzinfo=UTC)
REPORT = bytes(range(64))
REGISTERS = (b"\x01" * 32, b"\x02" * 32)
CASES = json.loads((Path(__file__).parents[1] / "vectors/software.json").read_text())["cases"]


@pytest.fixture(scope="module")
def platform() -> SoftwareTestPlatform:
    with pytest.warns(FakePlatformWarning):
        return SoftwareTestPlatform(NOW)


def check(raw: bytes, *, report_data: bytes = REPORT, at: datetime = NOW) -> VerifiedSoftware:
    envelope = EvidenceEnvelope.parse(raw)
    endorsement = SoftwareEndorsement.parse(envelope.endorsements)
    quote = SoftwareQuote.parse(envelope.evidence)
    return verify_software(quote, endorsement, expected_report_data=report_data, at=at)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_vector(case: dict[str, Any]) -> None:
    raw = b64url_decode(case["envelope"])
    report_data, at = b64url_decode(case["report_data"]), rfc3339_decode(case["at"])
    if case["expect"] == "ok":
        verified = check(raw, report_data=report_data, at=at)
        assert verified.root.hex() == case["root_fingerprint"]
        return
    with pytest.raises(SealwrightError) as caught:
        check(raw, report_data=report_data, at=at)
    assert f"{caught.value.stage}/{caught.value.code}" == case["expect"]


def test_the_result_says_what_was_proved(platform: SoftwareTestPlatform) -> None:
    verified = check(platform.quote(REPORT, REGISTERS, {"user": "shared"}).encode())
    assert tuple(verified.registers.values()) == REGISTERS
    assert verified.report_data == REPORT
    assert verified.claims.user == "shared"
    assert verified.root == platform.root_fingerprint


def test_only_the_verifier_makes_a_result() -> None:
    with pytest.raises(TypeError, match=r"sealwright\.verify alone"):
        VerifiedSoftware(
            platform="software", report_data=REPORT, registers={}, facts={}, conditions=(), proofs=(), root=b"",
            vendor_root=False, claims=None, stated=(), _made_by=object(),  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.mark.parametrize("other", [REPORT[:-1], REPORT + b"\0", b"", bytes(64)])
def test_report_data_is_compared_whole(platform: SoftwareTestPlatform, other: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        check(platform.quote(REPORT, REGISTERS).encode(), report_data=other)
    assert caught.value.code == "report-data-mismatch"


def test_a_revoked_quoting_key_is_refused(platform: SoftwareTestPlatform) -> None:
    with pytest.warns(FakePlatformWarning):
        mine = SoftwareTestPlatform(NOW)
    check(mine.quote(REPORT, REGISTERS).encode())
    mine.revoke(NOW)
    with pytest.raises(RevokedError):
        check(mine.quote(REPORT, REGISTERS).encode())


def test_a_stale_crl_is_refused(platform: SoftwareTestPlatform) -> None:
    old = platform.authority.crl(NOW - timedelta(days=8))
    with pytest.raises(CollateralError) as caught:
        verify(platform, crl=old)
    assert caught.value.code == "crl-stale"


def test_a_crl_from_the_future_is_refused(platform: SoftwareTestPlatform) -> None:
    with pytest.raises(CollateralError):
        verify(platform, crl=platform.authority.crl(NOW + timedelta(hours=1)))


def test_the_crl_of_another_root_is_refused(platform: SoftwareTestPlatform) -> None:
    with pytest.warns(FakePlatformWarning):
        other = SoftwareTestPlatform(NOW)
    with pytest.raises(VerificationError) as caught:
        verify(platform, crl=other.crl)
    assert caught.value.code == "bad-crl"


def test_a_quoting_key_of_another_root_is_refused(platform: SoftwareTestPlatform) -> None:
    with pytest.warns(FakePlatformWarning):
        other = SoftwareTestPlatform(NOW)
    with pytest.raises(VerificationError) as caught:
        verify(platform, root=other.authority.root, crl=other.crl)
    assert (caught.value.stage, caught.value.code) == ("chain", "bad-certificate")


@pytest.mark.parametrize("at", [NOW - timedelta(days=1), NOW + timedelta(days=1)])
def test_an_expired_certificate_is_refused(platform: SoftwareTestPlatform, at: datetime) -> None:
    with pytest.raises(VerificationError) as caught:
        check(platform.quote(REPORT, REGISTERS).encode(), at=at)
    assert caught.value.code == "certificate-expired"


@pytest.mark.parametrize("flaw", ["no-eku", "other-eku", "ca", "p256", "root-as-leaf", "unknown-critical"])
def test_a_certificate_for_something_else_is_refused(platform: SoftwareTestPlatform, flaw: str) -> None:
    with pytest.raises(VerificationError) as caught:
        verify(platform, quoting=flawed(platform, flaw))
    assert (caught.value.stage, caught.value.code) == ("chain", "bad-certificate")


def flawed(platform: SoftwareTestPlatform, flaw: str) -> x509.Certificate:
    good = platform.certificate
    if flaw == "root-as-leaf":
        return platform.authority.root
    key = ec.generate_private_key(ec.SECP256R1()) if flaw == "p256" else platform.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(good.subject)
        .issuer_name(good.issuer)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(good.not_valid_before_utc)
        .not_valid_after(good.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=flaw == "ca", path_length=None), critical=True)
        .add_extension(good.extensions.get_extension_for_class(x509.KeyUsage).value, critical=True)
    )
    if flaw != "no-eku":
        oid = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2") if flaw == "other-eku" else QUOTING_EKU
        builder = builder.add_extension(x509.ExtendedKeyUsage([oid]), critical=True)
    if flaw == "unknown-critical":
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    return builder.sign(platform.authority.key, SHA384())


def verify(
    platform: SoftwareTestPlatform,
    *,
    quoting: x509.Certificate | None = None,
    root: x509.Certificate | None = None,
    crl: x509.CertificateRevocationList | None = None,
) -> VerifiedSoftware:
    parts = (
        quoting or platform.certificate,
        root or platform.authority.root,
        platform.crl if crl is None else crl,
    )
    endorsement = SoftwareEndorsement.parse([part.public_bytes(Encoding.DER) for part in parts])
    quote = SoftwareQuote.parse(platform.quote(REPORT, REGISTERS).evidence)
    return verify_software(quote, endorsement, expected_report_data=REPORT, at=NOW)


def test_a_quote_signed_by_another_key_is_refused(platform: SoftwareTestPlatform) -> None:
    with pytest.warns(FakePlatformWarning):
        other = SoftwareTestPlatform(NOW)
    mine, theirs = platform.quote(REPORT, REGISTERS), other.quote(REPORT, REGISTERS)
    mixed = EvidenceEnvelope(type="software", evidence=theirs.evidence, endorsements=mine.endorsements)
    with pytest.raises(VerificationError) as caught:
        check(mixed.encode())
    assert (caught.value.stage, caught.value.code) == ("signature", "bad-signature")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_of_the_evidence_is_refused(
    platform: SoftwareTestPlatform, data: st.DataObject
) -> None:
    good = platform.quote(REPORT, REGISTERS)
    raw = bytearray(good.evidence)
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    altered = EvidenceEnvelope(type="software", evidence=bytes(raw), endorsements=good.endorsements)
    with pytest.raises((EvidenceFormatError, VerificationError)):
        check(altered.encode())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_of_an_endorsement_is_refused(
    platform: SoftwareTestPlatform, data: st.DataObject
) -> None:
    good = platform.quote(REPORT, REGISTERS)
    parts = list(good.endorsements)
    which = data.draw(st.integers(0, 2))
    raw = bytearray(parts[which])
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    parts[which] = bytes(raw)
    with pytest.raises((EvidenceFormatError, VerificationError, CollateralError)):
        check_parts(good.evidence, parts)


def check_parts(evidence: bytes, parts: list[bytes]) -> None:
    endorsement = SoftwareEndorsement.parse(parts)
    verify_software(SoftwareQuote.parse(evidence), endorsement, expected_report_data=REPORT, at=NOW)


@given(raw=st.binary(max_size=300))
def test_the_parsers_raise_only_their_own_error(raw: bytes) -> None:
    for parse in (
        SoftwareQuote.parse,
        EvidenceEnvelope.parse,
        lambda der: SoftwareEndorsement.parse([der, der, der]),
    ):
        with pytest.raises(EvidenceFormatError):
            parse(raw)


def test_encode_of_parse_is_the_same_bytes(platform: SoftwareTestPlatform) -> None:
    raw = platform.quote(REPORT, REGISTERS).encode()
    envelope = EvidenceEnvelope.parse(raw)
    assert envelope.encode() == raw
    assert SoftwareQuote.parse(envelope.evidence).encode() == envelope.evidence


def test_an_unknown_type_of_evidence_is_refused(platform: SoftwareTestPlatform) -> None:
    raw = platform.quote(REPORT, REGISTERS).encode().replace(b'"type":"software"', b'"type":"toaster"')
    with pytest.raises(EvidenceFormatError):
        EvidenceEnvelope.parse(raw)


def test_claims_have_no_other_values() -> None:
    assert set(Claims.model_fields) == {
        "user", "sealed_root", "dumpable", "core", "filesystem", "seccomp", "network", "swap",
    }  # fmt: skip
    with pytest.raises(ValueError, match="user"):
        Claims.model_validate(dict.fromkeys(Claims.model_fields, "best"))
