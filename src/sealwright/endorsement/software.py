"""Endorsements of the software platform: the certificate of a quoting key, its root, and the root's CRL.

Parsing only, no I/O and no clock; docs/spec/software-platform.md, "Keys".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cryptography import x509

from sealwright.endorsement.x509 import fingerprint, load_certificate, load_crl
from sealwright.errors import EvidenceFormatError

QUOTING_EKU = x509.ObjectIdentifier("2.25.256073064108804086105218062831434169922.1.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftwareEndorsement:
    """A quoting certificate, the root it claims and that root's CRL. Nothing is verified yet."""

    unverified_quoting: x509.Certificate
    unverified_root: x509.Certificate
    unverified_crl: x509.CertificateRevocationList

    @classmethod
    def parse(cls, endorsements: Sequence[bytes]) -> Self:
        """Parse DER as the envelope carries it.

        Args:
            endorsements: the quoting certificate, the root and the root's CRL, in this order.

        Raises:
            EvidenceFormatError: not exactly two certificates and a CRL, or not DER.
        """
        if len(endorsements) != 3:
            raise EvidenceFormatError(
                f"{len(endorsements)} endorsements, not two certificates and a CRL", code="malformed-chain"
            )
        quoting, root, crl = endorsements
        return cls(
            unverified_quoting=load_certificate(quoting),
            unverified_root=load_certificate(root),
            unverified_crl=load_crl(crl),
        )

    def root_fingerprint(self) -> bytes:
        """Return SHA-256 of the root certificate (32 bytes), what a policy names."""
        return fingerprint(self.unverified_root)
