"""A software platform without a machine: a quoting root of its own that signs whatever a test asks for."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.attester.quoter.authority import Authority, envelope, new_authority, sign_quote
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.software import Claims, QuoteBody

BEST_CLAIMS = {
    "user": "own",
    "sealed_root": "tmpfs",
    "dumpable": "never",
    "core": "off",
    "filesystem": "landlock",
    "seccomp": "enforced",
    "network": "namespace",
    "swap": "none",
}


class FakePlatformWarning(UserWarning):
    """A fake was constructed: what it signs proves nothing."""


class SoftwareTestPlatform:
    """A quoting root and one quoting key, made at `now`. Nothing is measured: never trust its root."""

    def __init__(self, now: datetime) -> None:
        warnings.warn("SoftwareTestPlatform signs anything", FakePlatformWarning, stacklevel=2)
        self.authority: Authority = new_authority(now)
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.certificate = self.authority.certify(self.key.public_key(), now)
        self.crl = self.authority.crl(now)

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate (32 bytes)."""
        return hashlib.sha256(self.authority.root.public_bytes(Encoding.DER)).digest()

    def quote(
        self,
        report_data: bytes,
        registers: tuple[bytes, bytes],
        claims: Mapping[str, str] | None = None,
    ) -> EvidenceEnvelope:
        """Return an envelope over `report_data` (64 bytes) and two 32-byte registers.

        Args:
            claims: those that differ from the best ones.
        """
        body = QuoteBody(
            quoter="0.0.0-testing",
            boot_id="00000000-0000-4000-8000-000000000000",
            start_time=1,
            registers=registers,
            report_data=report_data,
            claims=Claims.model_validate(BEST_CLAIMS | dict(claims or {})),
            stated=(),
        )
        return envelope(sign_quote(self.key, body), self.certificate, self.authority.root, self.crl)

    def revoke(self, now: datetime) -> None:
        """Put the quoting key on the CRL that later quotes carry."""
        revoked = (self.certificate.serial_number,)
        self.crl = Authority(key=self.authority.key, root=self.authority.root, revoked=revoked).crl(now)
