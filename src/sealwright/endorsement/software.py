"""Endorsements of the software platform: the certificate of a quoting key, its root, and the root's CRL.

Parsing only, no I/O and no clock; docs/spec/software-platform.md, "Keys".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from sealwright.errors import EvidenceFormatError

QUOTING_EKU = x509.ObjectIdentifier("2.25.256073064108804086105218062831434169922.1.1")
_MAX_DER = 8 * 1024  # bytes of a certificate or CRL
_NOT_DER = (
    ValueError,
    UnsupportedAlgorithm,
    CryptographyDeprecationWarning,  # where warnings are errors
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftwareEndorsement:
    """A quoting certificate, the root it claims and that root's CRL. Nothing is verified yet."""

    unverified_quoting: x509.Certificate
    unverified_root: x509.Certificate
    unverified_crl: x509.CertificateRevocationList

    @classmethod
    def parse(cls, chain: Sequence[bytes], crl: bytes) -> Self:
        """Parse DER as the envelope carries it.

        Args:
            chain: the quoting certificate and the root, in this order.
            crl: the root's certificate revocation list.

        Raises:
            EvidenceFormatError: not exactly two certificates and a CRL, or not DER.
        """
        if len(chain) != 2:
            raise EvidenceFormatError(f"a chain of {len(chain)} certificates, not 2", code="malformed-chain")
        quoting, root = (_certificate(raw) for raw in chain)
        return cls(unverified_quoting=quoting, unverified_root=root, unverified_crl=_crl(crl))

    def root_fingerprint(self) -> bytes:
        """Return SHA-256 of the root certificate (32 bytes), what a policy names."""
        return hashlib.sha256(self.unverified_root.public_bytes(Encoding.DER)).digest()


def _certificate(raw: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(_bounded(raw))
        # pyca parses these when they are asked for: what is broken is malformed, not "not genuine".
        _ = (list(certificate.extensions), certificate.subject, certificate.issuer)
        positive = certificate.serial_number > 0
    except _NOT_DER as exc:
        raise EvidenceFormatError("not a DER certificate", code="malformed-chain") from exc
    if not (positive and _exact(raw, certificate)):
        raise EvidenceFormatError("not a DER certificate", code="malformed-chain")
    return certificate


def _crl(raw: bytes) -> x509.CertificateRevocationList:
    try:
        crl = x509.load_der_x509_crl(_bounded(raw))
        _ = (list(crl.extensions), list(crl), crl.issuer, crl.last_update_utc, crl.next_update_utc)
    except _NOT_DER as exc:
        raise EvidenceFormatError("not a DER CRL", code="malformed-crl") from exc
    if not _exact(raw, crl):
        raise EvidenceFormatError("not a DER CRL", code="malformed-crl")
    return crl


def _exact(raw: bytes, parsed: x509.Certificate | x509.CertificateRevocationList) -> bool:
    """Return whether `raw` is what the parser read, with no bits unused in its signature."""
    return parsed.public_bytes(Encoding.DER) == raw and raw.endswith(b"\0" + parsed.signature)


def _bounded(raw: bytes) -> bytes:
    if len(raw) > _MAX_DER:
        raise EvidenceFormatError(f"DER of {len(raw)} bytes is over {_MAX_DER}", code="too-large")
    return raw
