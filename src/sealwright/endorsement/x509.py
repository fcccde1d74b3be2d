"""Certificates and CRLs as they are served: strict DER or PEM in, pyca objects out. No I/O and no clock.

pyca reads much of a certificate only when it is asked for; all of it is read here, so that what is broken is
malformed at once and never raises later.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import warnings
from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.errors import EvidenceFormatError

MAX_CERTIFICATE = 16 * 1024  # bytes of DER
MAX_CRL = 1024 * 1024
MAX_PEM_BLOCKS = 64

_PEM = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,32})-----[ \t]*\r?\n([A-Za-z0-9+/=\s]{1,2000000}?)-----END \1-----"
)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_NOT_DER = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_warnings = threading.Lock()  # `catch_warnings` changes what all threads share
_T = TypeVar("_T", x509.Certificate, x509.CertificateRevocationList)


def load_certificate(
    der: bytes, *, serial_zero: bool = False, limit: int = MAX_CERTIFICATE
) -> x509.Certificate:
    """Return the certificate in `der`, with its names and extensions read.

    Args:
        serial_zero: accept the serial number 0, which AMD gives to every VCEK and VLEK. pyca warns of it.
        limit: largest size accepted, bytes.

    Raises:
        EvidenceFormatError: `malformed-chain`, `too-large`.
    """
    certificate = _load(der, _read_certificate, limit, "certificate", "malformed-chain")
    serial = serial_number(certificate)
    if serial < 0 or (serial == 0 and not serial_zero):
        raise EvidenceFormatError("a certificate without a positive serial number", code="malformed-chain")
    return certificate


def serial_number(certificate: x509.Certificate) -> int:
    """Return the serial number. pyca warns each time somebody reads one that is 0."""
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return certificate.serial_number


def load_crl(der: bytes) -> x509.CertificateRevocationList:
    """Return the CRL in `der`, with its entries and extensions read.

    Raises:
        EvidenceFormatError: `malformed-crl`, `too-large`.
    """
    return _load(der, _read_crl, MAX_CRL, "CRL", "malformed-crl")


def pem_blocks(text: bytes) -> list[tuple[str, bytes]]:
    """Return (label, DER) of each PEM block in `text`, in order; text around the blocks is passed over.

    Raises:
        EvidenceFormatError: `malformed-pem`: no block, too many, one that is cut off or not base64.
    """
    found = []
    for match in _PEM.finditer(text):
        try:
            der = base64.b64decode(b"".join(match[2].split()), validate=True)
        except (binascii.Error, ValueError):
            raise EvidenceFormatError("a PEM block is not base64", code="malformed-pem") from None
        found.append((match[1].decode("ascii"), der))
    if not found or len(found) > MAX_PEM_BLOCKS or text.count(b"-----BEGIN ") != len(found):
        raise EvidenceFormatError(
            f"PEM with {len(found)} whole blocks (1 to {MAX_PEM_BLOCKS} are wanted)", code="malformed-pem"
        )
    return found


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return SHA-256 of the certificate's DER (32 bytes): how roots are named in policies."""
    return sha256(certificate.public_bytes(Encoding.DER)).digest()


def _read_certificate(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    _ = (list(certificate.extensions), certificate.subject, certificate.issuer)
    _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    return certificate


def _read_crl(der: bytes) -> x509.CertificateRevocationList:
    # pyca reads a CRL's issuer again, and warns of it again, whenever it is asked for: refused here, it never is later.
    warnings.simplefilter("error", UserWarning)
    crl = x509.load_der_x509_crl(der)
    _ = (list(crl.extensions), list(crl), crl.issuer, crl.last_update_utc, crl.next_update_utc)
    return crl


def _load(der: bytes, read: Callable[[bytes], _T], limit: int, what: str, code: str) -> _T:
    if len(der) > limit:
        raise EvidenceFormatError(f"a {what} of {len(der)} bytes is over {limit}", code="too-large")
    try:
        with _warnings, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of serial 0 (AMD) and of names over 64 characters (Google)
            loaded = read(der)
    except (*_NOT_DER, UserWarning) as exc:
        raise EvidenceFormatError(f"not a DER {what}", code=code) from exc
    # What the parser read is all there is, and no bits are left unused in the signature.
    if loaded.public_bytes(Encoding.DER) != der or not der.endswith(b"\0" + loaded.signature):
        raise EvidenceFormatError(f"not a DER {what}", code=code)
    return loaded


def key_usage(**usage: bool) -> x509.KeyUsage:
    """Return a key usage of nothing but `usage`, by pyca's names: for those who issue certificates."""
    return x509.KeyUsage(**dict.fromkeys(_USAGES, False) | usage)
