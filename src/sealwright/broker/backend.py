"""Where keys are wrapped: behind a Protocol, so that an HSM or KMS can take the embedded one's place.

Spec: docs/spec/broker-state.md, Wrapped keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealwright.crypto.canonical import canonical
from sealwright.errors import VerificationError

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class WrapContext:
    """What a wrapped key belongs to; it opens nowhere else."""

    kid: str
    tenant: str
    policy_digest: bytes  # 32 bytes
    epoch: int

    def aad(self) -> bytes:
        """Return the associated data of the wrap."""
        return canonical(
            {
                "epoch": self.epoch,
                "kid": self.kid,
                "policy_digest": self.policy_digest.hex(),
                "tenant": self.tenant,
            }
        )


class KeyBackend(Protocol):
    """Makes, wraps and unwraps keys. The caller wipes what `generate` and `unwrap` return."""

    def generate(self) -> bytearray:
        """Return a new key, 32 random bytes."""
        ...

    def wrap(self, key: bytearray, context: WrapContext) -> bytes:
        """Return `key` wrapped for `context`."""
        ...

    def unwrap(self, wrapped: bytes, context: WrapContext) -> bytearray:
        """Return the key (32 bytes). Raises VerificationError: `key-unwrap-failed`."""
        ...


class EmbeddedBackend:
    """AES-256-GCM under a key-encryption key that lies in a file of the broker's own."""

    def __init__(self, kek: bytes, random: Callable[[int], bytes]) -> None:
        """Args: kek: 32 bytes."""
        self._aead = AESGCM(kek)
        self._random = random

    def generate(self) -> bytearray:
        """Return 32 random bytes."""
        return bytearray(self._random(KEY_BYTES))

    def wrap(self, key: bytearray, context: WrapContext) -> bytes:
        """Return nonce and ciphertext."""
        nonce = self._random(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, key, context.aad())

    def unwrap(self, wrapped: bytes, context: WrapContext) -> bytearray:
        """Return the key, proved to be wrapped for exactly this context.

        Raises:
            VerificationError: `key-unwrap-failed`.
        """
        key = bytearray(KEY_BYTES)
        if len(wrapped) == NONCE_BYTES + KEY_BYTES + TAG_BYTES:
            try:
                self._aead.decrypt_into(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], context.aad(), key)
            except InvalidTag:
                key[:] = bytes(KEY_BYTES)
            else:
                return key
        raise VerificationError(
            "the wrapped key does not open as the key of this kid, tenant, policy and epoch",
            code="key-unwrap-failed",
            stage="unwrap",
        )
