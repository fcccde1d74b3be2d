"""Certificates and OCSP answers of the fake NVIDIA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sealwright.endorsement.x509 import key_usage

FAR = timedelta(days=20 * 365)


@dataclass(slots=True)
class Entity:
    """A key with its certificate and the chain above it."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    issuer: Entity | None = None
    _responder: Entity | None = field(default=None, repr=False)

    @property
    def chain(self) -> list[x509.Certificate]:
        """Its certificate and those above, root last."""
        above = self.issuer.chain if self.issuer else []
        return [self.certificate, *above]

    def entities(self) -> list[Entity]:
        """It and those above, root last."""
        return [self, *(self.issuer.entities() if self.issuer else [])]

    def responder(self, now: datetime) -> Entity:
        """Return the OCSP responder that this CA made."""
        if self._responder is None:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
            self._responder = issue(
                f"OCSP of {self.name}"[:60], self, now, ca=False, extensions=[(purpose, True)]
            )
        return self._responder


def issue(
    name: str,
    issuer: Entity | None,
    now: datetime,
    *,
    ca: bool = True,
    serial: int | None = None,
    life: timedelta = FAR,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    curve: ec.EllipticCurve | None = None,
    usage: x509.KeyUsage | None = None,
) -> Entity:
    """Return a new key with a certificate by `issuer`, or by itself if there is none.

    Args:
        extensions: further ones, each with whether it is critical.
    """
    key = ec.generate_private_key(curve or ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + life)
        .add_extension(
            usage or key_usage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return Entity(name, key, builder.sign(signer, SHA384()), issuer)


def der(certificates: Sequence[x509.Certificate]) -> list[bytes]:
    """Return certificates as DER."""
    return [one.public_bytes(Encoding.DER) for one in certificates]


def answer(
    entity: Entity,
    now: datetime,
    *,
    life: timedelta | None = timedelta(days=1),
    revoked: x509.ReasonFlags | None = None,
    unknown: bool = False,
    responder: Entity | None = None,
    nonce: bytes | None = None,
) -> bytes:
    """Return the OCSP answer about `entity` by its issuer's responder.

    Args:
        life: until the next update; None: no next update.
        revoked: the reason, if it is revoked.
        responder: another one than the issuer's.
    """
    if entity.issuer is None:
        raise ValueError("nobody answers about a root")
    by = responder or entity.issuer.responder(now)
    status = ocsp.OCSPCertStatus.GOOD
    if unknown:
        status = ocsp.OCSPCertStatus.UNKNOWN
    if revoked is not None:
        status = ocsp.OCSPCertStatus.REVOKED
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=entity.certificate,
            issuer=entity.issuer.certificate,
            algorithm=SHA384(),
            cert_status=status,
            this_update=now,
            next_update=now + life if life is not None else None,
            revocation_time=now if revoked is not None else None,
            revocation_reason=revoked,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, by.certificate)
    )
    if by is not entity.issuer:
        builder = builder.certificates([by.certificate])
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.sign(by.key, SHA384()).public_bytes(Encoding.DER)
