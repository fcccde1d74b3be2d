"""The owner's attestation CA: certificates of attestation keys that were activated, and the CRL over them.

Whoever verifies quotes names its root. Spec: docs/spec/tpm.md, "Enrolment".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from sealwright.endorsement.tpm import AK_EKU
from sealwright.endorsement.x509 import fingerprint, key_usage
from sealwright.protocol.tpm_enrol import ActivatedAk

ROOT_LIFE = timedelta(days=3650)
AK_LIFE = timedelta(days=30)
CRL_LIFE = timedelta(days=7)
MAX_NAME = 64  # characters, as X.520 has it
_SKEW = timedelta(minutes=5)  # a verifier's clock may be this far behind


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationCa:
    """A root with its private key, P-256 or P-384."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    root: x509.Certificate

    def certify(self, enrolled: ActivatedAk, *, machine: str, at: datetime) -> x509.Certificate:
        """Return a certificate for an attestation key: 30 days, and no longer than its TPM's certificate.

        Args:
            machine: what the owner calls it, 1 to 64 characters.
        """
        if not 0 < len(machine) <= MAX_NAME:
            raise ValueError(f"a machine's name has 1 to {MAX_NAME} characters")
        subject = x509.Name(
            [
                x509.NameAttribute(x509.NameOID.COMMON_NAME, machine),
                # Which TPM it is: SHA-256 of its EK certificate.
                x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, fingerprint(enrolled.ek.certificate).hex()),
            ]
        )
        return (
            _builder(subject, self.root.subject, at)
            .public_key(enrolled.ak.key())
            .not_valid_after(min(at - _SKEW + AK_LIFE, enrolled.ek.until, self.root.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([AK_EKU]), critical=True)
            .add_extension(_authority(self.root), critical=False)
            .sign(self.key, _hash(self.key))
        )

    def crl(self, revoked: Iterable[int], *, at: datetime) -> x509.CertificateRevocationList:
        """Return the CRL over `revoked` (serial numbers), current for seven days."""
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.root.subject, last_update=at - _SKEW, next_update=at - _SKEW + CRL_LIFE
        )
        for serial in sorted(set(revoked)):
            entry = x509.RevokedCertificateBuilder(serial, at - _SKEW).build()
            builder = builder.add_revoked_certificate(entry)
        return (
            builder.add_extension(x509.CRLNumber(int(at.timestamp())), critical=False)
            .add_extension(_authority(self.root), critical=False)
            .sign(self.key, _hash(self.key))
        )


def new_attestation_ca(
    name: str, *, at: datetime, key: ec.EllipticCurvePrivateKey | None = None
) -> AttestationCa:
    """Return a fresh root, valid for ten years.

    Args:
        name: 1 to 64 characters.
        key: P-256 or P-384; None: a new P-384 key.
    """
    key = key or ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    root = (
        _builder(subject, subject, at)
        .public_key(key.public_key())
        .not_valid_after(at - _SKEW + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _hash(key))
    )
    return AttestationCa(key=key, root=root)


def _builder(subject: x509.Name, issuer: x509.Name, at: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _SKEW)
    )


def _authority(root: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _hash(key: ec.EllipticCurvePrivateKey) -> SHA256 | SHA384:
    match key.curve:
        case ec.SECP256R1():
            return SHA256()
        case ec.SECP384R1():
            return SHA384()
    raise ValueError("an attestation CA's key is on P-256 or P-384")
