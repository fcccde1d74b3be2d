"""The key of a checkpoint's OpenSSF model signature, as its statement names it. Spec: docs/spec/checkpoint.md."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from sealwright.errors import ArtefactFormatError
from sealwright.sealing.model_signing import STAGE


def model_key(spki: bytes) -> EllipticCurvePublicKey:
    """Return the P-256 key of a SubjectPublicKeyInfo. Raises ArtefactFormatError: `malformed-model-signature`."""
    try:
        key = load_der_public_key(spki)
    except ValueError:
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ArtefactFormatError(
            "the statement names no P-256 key for the model's signature",
            code="malformed-model-signature",
            stage=STAGE,
        )
    return key


def spki_of(key: EllipticCurvePublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo (DER) of a key."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
