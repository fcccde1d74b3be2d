"""ECDSA over P-384 with SHA-384 as devices write it: r and s side by side, big-endian, 48 bytes each."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from sealwright.errors import VerificationError

SIGNATURE_SIZE = 96  # bytes


def p384_key(certificate: x509.Certificate, *, stage: str) -> ec.EllipticCurvePublicKey:
    """Return the P-384 key of a certificate.

    Raises:
        VerificationError: `bad-certificate`.
    """
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise VerificationError("a certificate has no P-384 key", code="bad-certificate", stage=stage)
    return key


def verify_p384(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> None:
    """Prove that `key` signed `signed`.

    Args:
        signature: 96 bytes.

    Raises:
        InvalidSignature: it did not, or the signature has another length.
    """
    half = SIGNATURE_SIZE // 2
    if len(signature) != SIGNATURE_SIZE:
        raise InvalidSignature
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA384()))
