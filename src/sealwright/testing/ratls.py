"""Certificates of attested TLS as other projects make them, and ones that are wrong in some way."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from sealwright.crypto.cbor import CborValue, Tagged, encode
from sealwright.testing.software import FakePlatformWarning
from sealwright.transport.ratls.certificate import EVIDENCE_OID
from sealwright.transport.ratls.evidence import INTEL_QUOTE

# Gramine takes the bytes of its legacy OID for DER; read back, 1.2.840.113741.1337.6 looks like this.
GRAMINE_LEGACY_OID = x509.ObjectIdentifier("0.6.9.42.840.113741.1337.6")
SGX, TDX = 0, 0x81  # tee_type
_REPORT_DATA = {SGX: 48 + 320, TDX: 48 + 520}  # where it stands in a quote


def fake_quote(report_data: bytes, *, version: int = 3, tee_type: int = SGX) -> bytes:
    """Return bytes in the layout of an Intel quote up to its signature, which no key has made."""
    warnings.warn("fake_quote proves nothing", FakePlatformWarning, stacklevel=2)
    head = version.to_bytes(2, "little") + (2).to_bytes(2, "little") + tee_type.to_bytes(4, "little")
    return head.ljust(_REPORT_DATA[tee_type], b"\0") + report_data.ljust(64, b"\0") + bytes(100)


def quoted_report_data(quote: bytes) -> bytes:
    """Return the 64 bytes of report data in a quote."""
    tee_type = int.from_bytes(quote[4:8], "little") if quote[0] != 3 else SGX
    return quote[_REPORT_DATA[tee_type] :][:64]


def gramine_certificate(
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    version: int = 3,
    tee_type: int = SGX,
    claims: dict[str, bytes] | None = None,
) -> bytes:
    """Return a certificate (DER) as Gramine 1.8 makes it: the quote under Intel's tag, and once more in a legacy extension.

    Args:
        claims: more of them, or others than the right ones.
    """
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    entry: CborValue = [1, sha256(spki).digest()]
    buffer = encode({"pubkey-hash": encode(entry), **(claims or {})})
    quote = fake_quote(sha256(buffer).digest(), version=version, tee_type=tee_type)
    evidence = encode(Tagged(INTEL_QUOTE, [quote, buffer]))
    return certificate(key, now, [(GRAMINE_LEGACY_OID, quote), (EVIDENCE_OID, evidence)])


def certificate(
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    extensions: Sequence[tuple[x509.ObjectIdentifier, bytes]],
    *,
    critical: bool = False,
    life: timedelta = timedelta(days=1),
) -> bytes:
    """Return a self-signed certificate (DER) with any extensions."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "RATLS"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "GramineDevelopers"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
    )
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=critical)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)
