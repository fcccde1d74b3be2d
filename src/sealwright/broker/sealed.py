"""What only the broker may read in a database that others run: openings and sessions, encrypted one by one.

Spec: docs/spec/broker-state.md, Several replicas.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealwright.crypto.encoding import joined
from sealwright.errors import VerificationError

SALT_BYTES = 32
_NONCE = bytes(12)  # each key encrypts once


class Sealer:
    """Encrypts and opens values of one broker, each for its place."""

    def __init__(self, log_key: Ed25519PrivateKey, random: Callable[[int], bytes]) -> None:
        """Derive from the log's key, which every replica has and which lives as long as the log."""
        self._root = _hkdf(log_key.private_bytes_raw(), salt=None, info=joined("sealwright/store-key/v1"))
        self._random = random

    def seal(self, place: str, name: bytes, plain: bytes) -> bytes:
        """Return salt and AES-256-GCM ciphertext, for `name` in `place` only."""
        salt = self._random(SALT_BYTES)
        return salt + AESGCM(self._key(place, name, salt)).encrypt(_NONCE, plain, None)

    def open(self, place: str, name: bytes, sealed: bytes) -> bytes:
        """Return what was sealed for `name` in `place`. Raises VerificationError: `sealed-value-foreign`."""
        salt, ciphertext = sealed[:SALT_BYTES], sealed[SALT_BYTES:]
        try:
            return AESGCM(self._key(place, name, salt)).decrypt(_NONCE, ciphertext, None)
        except (InvalidTag, ValueError):
            raise VerificationError(
                f"a value in {place} was not sealed by this broker for its place",
                code="sealed-value-foreign",
                stage="store",
            ) from None

    def _key(self, place: str, name: bytes, salt: bytes) -> bytes:
        return _hkdf(self._root, salt=salt, info=joined("sealwright/sealed-value/v1", place, name))


def _hkdf(key: bytes, *, salt: bytes | None, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)
