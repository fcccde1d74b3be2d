"""Documents that are signed: one DSSE payload type each. Spec: docs/spec/encodings.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealwright.crypto.canonical import MAX_JSON
from sealwright.crypto.document import Document
from sealwright.crypto.dsse import Envelope


class Statement(Document):
    """A document with a payload type, signed with Ed25519 in a DSSE envelope."""

    PAYLOAD_TYPE: ClassVar[str]

    def sign(self, *keys: Ed25519PrivateKey) -> bytes:
        """Return the DSSE envelope (canonical JSON bytes) of this statement."""
        return Envelope.sign(self.PAYLOAD_TYPE, self.encode(), *keys).encode()

    @classmethod
    def verify(
        cls, envelope: bytes, keys: Iterable[Ed25519PublicKey], *, stage: str, limit: int = MAX_JSON
    ) -> Self:
        """Return the statement in `envelope`, proved to be signed by one of `keys`.

        Args:
            limit: largest statement accepted, bytes; the envelope may be twice that.

        Raises:
            MessageFormatError: not an envelope, or not this statement.
            VerificationError: another type, or no good signature by `keys`.
        """
        opened = Envelope.parse(envelope, limit=2 * limit)
        return cls.parse(opened.verify(cls.PAYLOAD_TYPE, keys, stage=stage), limit=limit)

    @classmethod
    def unverified(cls, envelope: bytes) -> Self:
        """Return the statement without any proof: to show it, or to learn which key to look for."""
        return cls.parse(Envelope.parse(envelope).unverified_payload)


def ed25519(raw: bytes) -> Ed25519PublicKey:
    """Return the public key of 32 raw bytes."""
    return Ed25519PublicKey.from_public_bytes(raw)
