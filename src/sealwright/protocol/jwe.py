"""JWE as guests of Confidential Containers open it: ECDH-ES+A256KW over P-256, A256GCM (RFC 7516, RFC 7518).

Only encryption, to a key that evidence has vouched for. Spec: docs/spec/kbs-guest.md, Answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
    generate_private_key,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from pydantic import Field

from sealwright.crypto.document import Bytes32, Record
from sealwright.crypto.encoding import b64url
from sealwright.errors import VerificationError

ALGORITHM = "ECDH-ES+A256KW"
ENCRYPTION = "A256GCM"
KEY_BYTES = 32
IV_BYTES = 12
TAG_BYTES = 16


class EcPubkey(Record):
    """A guest's `tee-pubkey`: a P-256 key as a JWK."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    alg: Literal["ECDH-ES+A256KW"]
    x: Bytes32
    y: Bytes32

    def public_key(self) -> EllipticCurvePublicKey:
        """Return the key. Raises VerificationError: `tee-pubkey-mismatch`: no point of the curve."""
        numbers = EllipticCurvePublicNumbers(
            int.from_bytes(self.x, "big"), int.from_bytes(self.y, "big"), SECP256R1()
        )
        try:
            return numbers.public_key()
        except ValueError:
            raise VerificationError(
                "tee-pubkey is no point of P-256", code="tee-pubkey-mismatch", stage="keyset"
            ) from None


class Jwe(Record):
    """A JWE in flattened JSON; no member `aad`, which the guest components would authenticate."""

    protected: str
    encrypted_key: Annotated[str, Field(min_length=1)]
    iv: str
    ciphertext: str
    tag: str


def encrypt_to(recipient: EcPubkey, plaintext: bytes, random: Callable[[int], bytes]) -> Jwe:
    """Return `plaintext` encrypted to `recipient` under a fresh key.

    Args:
        random: of the content key and IV; the ephemeral key is the library's.

    Raises:
        VerificationError: `tee-pubkey-mismatch`.
    """
    public = recipient.public_key()
    ephemeral = generate_private_key(SECP256R1())
    header = protected_header(ephemeral.public_key())
    wrapping = bytearray(concat_kdf(ephemeral.exchange(ECDH(), public)))
    content_key = bytearray(random(KEY_BYTES))
    try:
        iv = random(IV_BYTES)
        sealed = AESGCM(content_key).encrypt(iv, plaintext, header.encode())
        encrypted_key = aes_key_wrap(bytes(wrapping), bytes(content_key))
    finally:
        wrapping[:] = bytes(len(wrapping))
        content_key[:] = bytes(len(content_key))
    return Jwe(
        protected=header,
        encrypted_key=b64url(encrypted_key),
        iv=b64url(iv),
        ciphertext=b64url(sealed[:-TAG_BYTES]),
        tag=b64url(sealed[-TAG_BYTES:]),
    )


def protected_header(ephemeral: EllipticCurvePublicKey) -> str:
    """Return the protected header, base64url. Its order is part of the protocol: guests write it again to check it."""
    numbers = ephemeral.public_numbers()
    x, y = (b64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    header = {"alg": ALGORITHM, "enc": ENCRYPTION, "epk": {"crv": "P-256", "kty": "EC", "x": x, "y": y}}
    return b64url(json.dumps(header, separators=(",", ":")).encode())


def concat_kdf(secret: bytes) -> bytes:
    """Return the 32-byte key-encryption key of RFC 7518 section 4.6.2, PartyUInfo and PartyVInfo empty."""
    info = b"".join(
        (len(ALGORITHM).to_bytes(4, "big"), ALGORITHM.encode(), bytes(4), bytes(4), (256).to_bytes(4, "big"))
    )
    return ConcatKDFHash(algorithm=SHA256(), length=KEY_BYTES, otherinfo=info).derive(secret)
