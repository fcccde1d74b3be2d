"""An Intel of tests: root, PCK CAs, PCK certificates with SGX extensions, signed TCB info and identities, CRLs.

It signs whatever a test asks for, so its root must never be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sealwright.endorsement.intel_pck import SGX_EXTENSION
from sealwright.endorsement.x509 import fingerprint, key_usage

CaName = Literal["Platform", "Processor"]
_BEFORE, _AFTER = timedelta(days=30), timedelta(days=365)


def sign_raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Return r and s (64 bytes, big-endian) of ECDSA with SHA-256."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def pem(*certificates: x509.Certificate) -> bytes:
    """Return certificates as Intel writes them: PEM, one after the other."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


class IntelTestPki:
    """Root, CA, TCB signing key and their CRLs. Change `revoked` before asking for `crls`."""

    def __init__(self, now: datetime, *, ca: CaName = "Platform") -> None:
        self.now = now
        self.root_key, self.ca_key, self.signing_key = (_key() for _ in range(3))
        root = _name("Intel SGX Root CA")
        self.root = self._issue(root, self.root_key, root, self.root_key, path=1)
        self.ca = self._issue(_name(f"Intel SGX PCK {ca} CA"), self.ca_key, root, self.root_key, path=0)
        self.signing = self._issue(_name("Intel SGX TCB Signing"), self.signing_key, root, self.root_key)
        self.revoked: list[x509.Certificate] = []

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate (32 bytes), what a policy names under `roots`."""
        return fingerprint(self.root)

    def pck(self, key: ec.EllipticCurvePrivateKey, extension: bytes) -> x509.Certificate:
        """Return a PCK certificate for `key` with an SGX extension, DER."""
        return self._issue(
            _name("Intel SGX PCK Certificate"), key, self.ca.subject, self.ca_key, extension=extension
        )

    def crls(self, *, now: datetime | None = None) -> tuple[bytes, bytes]:
        """Return the CRLs of root and CA, DER, as issued at `now`, for 30 days."""
        return (
            self._crl(self.root, self.root_key, now or self.now),
            self._crl(self.ca, self.ca_key, now or self.now),
        )

    def sign_json(self, member: str, value: Mapping[str, Any]) -> bytes:
        """Return collateral as Intel serves it: the value, and a signature over its very bytes."""
        body = json.dumps(value, separators=(",", ":")).encode()
        signature = sign_raw(self.signing_key, body).hex().encode()
        return b'{"' + member.encode() + b'":' + body + b',"signature":"' + signature + b'"}'

    def _issue(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        issuer: x509.Name,
        issuer_key: ec.EllipticCurvePrivateKey,
        *,
        path: int | None = None,
        extension: bytes | None = None,
    ) -> x509.Certificate:
        authority = path is not None
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - _BEFORE)
            .not_valid_after(self.now + _AFTER)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=path), critical=True)
            .add_extension(
                key_usage(
                    digital_signature=not authority,
                    content_commitment=not authority,
                    key_cert_sign=authority,
                    crl_sign=authority,
                ),
                critical=True,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if extension is not None:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(SGX_EXTENSION, extension), critical=False
            )
        return builder.sign(issuer_key, SHA256())

    def _crl(self, issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey, now: datetime) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(now - timedelta(days=1))
            .next_update(now + timedelta(days=29))
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
        )
        for one in self.revoked:
            if one.issuer == issuer.subject:
                entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number)
                builder = builder.add_revoked_certificate(entry.revocation_date(now).build())
        return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def sgx_extension(
    *,
    ppid: bytes,
    tcb: bytes,
    pce_svn: int,
    pce_id: bytes,
    fmspc: bytes,
    platform_instance_id: bytes | None,
) -> bytes:
    """Return the SGX extension of a PCK certificate, DER.

    Args:
        tcb: 16 component SVNs.
    """
    components = [_pair((2, number), _integer(0x02, svn)) for number, svn in enumerate([*tcb, pce_svn], 1)]
    components.append(_pair((2, 18), _tlv(0x04, tcb)))
    members = [
        _pair((1,), _tlv(0x04, ppid)),
        _pair((2,), _sequence(components)),
        _pair((3,), _tlv(0x04, pce_id)),
        _pair((4,), _tlv(0x04, fmspc)),
        _pair((5,), _integer(0x0A, 0 if platform_instance_id is None else 1)),
    ]
    if platform_instance_id is not None:
        flags = [_pair((7, number), _tlv(0x01, b"\xff")) for number in (1, 2, 3)]
        members += [_pair((6,), _tlv(0x04, platform_instance_id)), _pair((7,), _sequence(flags))]
    return _sequence(members)


def _pair(arcs: tuple[int, ...], value: bytes) -> bytes:
    prefix = bytes.fromhex("2a864886f84d010d01")  # 1.2.840.113741.1.13.1
    return _sequence([_tlv(0x06, prefix + bytes(arcs)), value])


def _sequence(members: Sequence[bytes]) -> bytes:
    return _tlv(0x30, b"".join(members))


def _integer(tag: int, value: int) -> bytes:
    return _tlv(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    said = size.to_bytes((size.bit_length() + 7) // 8 or 1, "big")
    length = said if size < 0x80 else bytes([0x80 | len(said)]) + said
    return bytes([tag]) + length + content


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    values = {
        NameOID.COMMON_NAME: common_name,
        NameOID.ORGANIZATION_NAME: "Intel Corporation",
        NameOID.LOCALITY_NAME: "Santa Clara",
        NameOID.STATE_OR_PROVINCE_NAME: "CA",
        NameOID.COUNTRY_NAME: "US",
    }
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in values.items()])
