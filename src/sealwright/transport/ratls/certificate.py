"""Attested certificates: made for a key, parsed, and checked. Spec: docs/spec/attested-tls.md."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cache
from hashlib import sha256
from typing import Final, Self, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from sealwright.endorsement.x509 import key_usage, load_certificate
from sealwright.errors import EvidenceFormatError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.transport.ratls.evidence import (
    MAX_EXTENSION,
    MAX_NONCE,
    Claims,
    decode_extension,
    encode_extension,
)
from sealwright.transport.ratls.mbedtls import without_null_parameters

EVIDENCE_OID = x509.ObjectIdentifier("2.23.133.5.4.9")  # tcg-dice-conceptual-message-wrapper
MAX_CERTIFICATE = MAX_EXTENSION + 16 * 1024  # bytes: Gramine puts its quote in twice
LIFE = timedelta(hours=24)
LEAST_NONCE = 8  # bytes

_SKEW = timedelta(minutes=5)  # a peer's clock may be this far behind
_KNOWN_CRITICAL = frozenset(
    {
        EVIDENCE_OID,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)

Attest = Callable[[bytes], EvidenceEnvelope]  # 64 bytes of report data to evidence over them
T = TypeVar("T")


class WithoutNonce(Enum):
    """The choice to do without a nonce: who has key and evidence may present them for as long as they are valid."""

    WITHOUT_NONCE = "without-nonce"


WITHOUT_NONCE: Final = WithoutNonce.WITHOUT_NONCE
Nonce = bytes | WithoutNonce


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedCertificate:
    """A certificate whose evidence was made for its key, if it is genuine at all: nothing of it was verified."""

    unverified_evidence: EvidenceEnvelope
    nonce: bytes | None
    report_data: bytes  # 64 bytes, what the evidence has to hold
    spki: bytes  # DER

    @classmethod
    def parse(cls, der: bytes, *, at: datetime) -> Self:
        """Parse a peer's certificate, valid at `at`, and hold its key against its claims.

        The signature of the certificate is not looked at: the handshake proves that the peer has the key, and the
        evidence that the key is its own.

        Raises:
            EvidenceFormatError: `malformed-chain`, `too-large`, `evidence-missing`, or what `decode_extension` refuses.
            VerificationError: `certificate-expired`, `bad-certificate`, `key-not-attested`.
        """
        if len(der) > MAX_CERTIFICATE:
            raise EvidenceFormatError(
                f"a certificate of {len(der)} bytes is over {MAX_CERTIFICATE}", code="too-large"
            )
        certificate = load_certificate(without_null_parameters(der), limit=MAX_CERTIFICATE)
        _check_dates(certificate, at)
        if any(one.critical and one.oid not in _KNOWN_CRITICAL for one in certificate.extensions):
            raise VerificationError(
                "the certificate has a critical extension that is not known",
                code="bad-certificate",
                stage="certificate",
            )
        envelope, claims = decode_extension(_extension(certificate))
        spki = _spki(certificate)
        claims.check_key(spki)
        return cls(
            unverified_evidence=envelope, nonce=claims.nonce, report_data=claims.report_data, spki=spki
        )

    def check_nonce(self, nonce: Nonce) -> None:
        """Prove that the certificate was made for `nonce`. Raises VerificationError `nonce-mismatch`."""
        if nonce is WITHOUT_NONCE:
            return
        if not isinstance(nonce, bytes) or not LEAST_NONCE <= len(nonce) <= MAX_NONCE:
            raise ValueError(f"a nonce has {LEAST_NONCE} to {MAX_NONCE} bytes")
        if self.nonce is None or not hmac.compare_digest(self.nonce, nonce):
            raise VerificationError(
                "the certificate was not made for this nonce", code="nonce-mismatch", stage="nonce"
            )


def check_certificate(
    der: bytes, *, nonce: Nonce, at: datetime, appraise: Callable[[EvidenceEnvelope, bytes], T]
) -> T:
    """Return what `appraise` makes of the evidence for a certificate's key.

    Args:
        der: the certificate of a peer that has proved to hold its key, in a TLS handshake.
        nonce: the bytes, 8 to 512, that the caller asked the peer to put in; or WITHOUT_NONCE.
        at: aware time.
        appraise: gets evidence and the 64 bytes of report data that it has to hold; verifies it and decides, or raises.

    Raises:
        EvidenceFormatError, VerificationError: as `AttestedCertificate.parse` and `check_nonce`.
    """
    certificate = AttestedCertificate.parse(der, at=at)
    certificate.check_nonce(nonce)
    return appraise(certificate.unverified_evidence, certificate.report_data)


def make_certificate(
    key: ec.EllipticCurvePrivateKey,
    attest: Attest,
    *,
    nonce: Nonce,
    now: datetime,
    for_python_server: bool = False,
) -> bytes:
    """Return a certificate (DER) for `key` with evidence for it, valid for 24 hours from five minutes ago.

    Args:
        attest: makes evidence over 64 bytes of report data.
        nonce: what the peer asked for; or WITHOUT_NONCE.
        for_python_server: signed by `open_issuer` rather than by itself; such servers take no other from a client.

    Raises:
        ValueError: the evidence does not fit.
    """
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    claims = Claims.make(spki, nonce if isinstance(nonce, bytes) else None)
    evidence = encode_extension(attest(claims.report_data), claims)
    subject = _name("Sealwright attested TLS")
    issuer = open_issuer() if for_python_server else None
    signer = _open_key() if issuer else key
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now - _SKEW + LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(x509.UnrecognizedExtension(EVIDENCE_OID, evidence), critical=False)
        .sign(signer, SHA256())
    )
    return certificate.public_bytes(Encoding.DER)


@cache
def open_issuer() -> x509.Certificate:
    """Return the issuer that everyone can be, since its private key is public: it vouches for nobody.

    Python's ssl lets a server ask for a client's certificate only if OpenSSL finds an issuer for it. This is one; what
    counts is the evidence, checked after the handshake.
    """
    key = _open_key()
    name = _name("Sealwright open issuer, vouches for nobody")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, SHA256())
    )


def _open_key() -> ec.EllipticCurvePrivateKey:
    secret = int.from_bytes(
        sha256(b"sealwright/open-issuer/v1").digest(), "big"
    )  # no secret: that is the point
    return ec.derive_private_key(secret, ec.SECP256R1())


def _check_dates(certificate: x509.Certificate, at: datetime) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise VerificationError(
            "the peer's certificate is not valid at this time",
            code="certificate-expired",
            stage="certificate",
        )


def _extension(certificate: x509.Certificate) -> bytes:
    try:
        value = certificate.extensions.get_extension_for_oid(EVIDENCE_OID).value
    except x509.ExtensionNotFound:
        value = None
    if not isinstance(value, x509.UnrecognizedExtension):
        raise EvidenceFormatError("the certificate carries no evidence", code="evidence-missing")
    return value.value


def _spki(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise VerificationError(
            "the certificate has a key of a kind that is not known",
            code="bad-certificate",
            stage="certificate",
        ) from None


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
