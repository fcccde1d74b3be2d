"""The keys of the software platform: a root per machine, its CRL, and a certificate for each quoting key.

Spec: docs/spec/software-platform.md, "Keys" and "Quote".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sealwright.endorsement.software import QUOTING_EKU
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.software import LABEL, SIGNATURE_SIZE, QuoteBody, SoftwareQuote

ROOT_LIFE = timedelta(days=3650)
CRL_LIFE = timedelta(days=7)
QUOTING_LIFE = timedelta(hours=24)
_SKEW = timedelta(minutes=5)  # a verifier's clock may be this far behind

_SIGNING = {"digital_signature": True, "key_cert_sign": False, "crl_sign": False}
_CERTIFYING = {"digital_signature": False, "key_cert_sign": True, "crl_sign": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A quoting root with its private key."""

    key: ec.EllipticCurvePrivateKey
    root: x509.Certificate
    revoked: tuple[int, ...] = ()  # serial numbers of quoting certificates

    def certify(self, quoting: ec.EllipticCurvePublicKey, now: datetime) -> x509.Certificate:
        """Return a certificate for a quoting key: 24 hours, from five minutes ago."""
        return (
            _builder("Sealwright software quoting key", self.root.subject, quoting)
            .not_valid_before(now - _SKEW)
            .not_valid_after(now - _SKEW + QUOTING_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(_SIGNING), critical=True)
            .add_extension(x509.ExtendedKeyUsage([QUOTING_EKU]), critical=True)
            .sign(self.key, SHA384())
        )

    def crl(self, now: datetime) -> x509.CertificateRevocationList:
        """Return the root's CRL, current for seven days from five minutes ago."""
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.root.subject, last_update=now - _SKEW, next_update=now - _SKEW + CRL_LIFE
        )
        for serial in self.revoked:
            entry = x509.RevokedCertificateBuilder(serial, now - _SKEW).build()
            builder = builder.add_revoked_certificate(entry)
        number = x509.CRLNumber(int(now.timestamp()))
        return builder.add_extension(number, critical=False).sign(self.key, SHA384())


def new_authority(now: datetime, *, revoked: Iterable[int] = ()) -> Authority:
    """Return a fresh root, valid for ten years from five minutes ago."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(f"Sealwright software quoting root {x509.random_serial_number() & 0xFFFFFFFF:08x}")
    root = (
        _builder(name, name, key.public_key())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now - _SKEW + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(_CERTIFYING), critical=True)
        .sign(key, SHA384())
    )
    return Authority(key=key, root=root, revoked=tuple(revoked))


def sign_quote(key: ec.EllipticCurvePrivateKey, body: QuoteBody) -> SoftwareQuote:
    """Return `body` signed by a quoting key."""
    signed = LABEL + body.encode()
    half = SIGNATURE_SIZE // 2
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(SHA384())))
    signature = r.to_bytes(half, "big") + s.to_bytes(half, "big")
    return SoftwareQuote(unverified_body=body, signed=signed, signature=signature)


def envelope(
    quote: SoftwareQuote,
    quoting: x509.Certificate,
    root: x509.Certificate,
    crl: x509.CertificateRevocationList,
) -> EvidenceEnvelope:
    """Return a quote with its endorsements, as it travels."""
    der = Encoding.DER
    return EvidenceEnvelope(
        type="software",
        evidence=quote.encode(),
        endorsements=(quoting.public_bytes(der), root.public_bytes(der), crl.public_bytes(der)),
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: str | x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject) if isinstance(subject, str) else subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
    )


def _usage(usage: dict[str, bool]) -> x509.KeyUsage:
    return x509.KeyUsage(
        **usage,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
