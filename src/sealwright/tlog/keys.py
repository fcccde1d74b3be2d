"""Keys of signed notes: verifier keys as text (`vkey`), and the two kinds of signer.

c2sp.org/signed-note (Ed25519, 0x01) and c2sp.org/tlog-cosignature (Ed25519 cosignature/v1, 0x04).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealwright.errors import LogFormatError, VerificationError
from sealwright.tlog.text import MAX_NUMBER, b64, b64_decode, check_key_name

ED25519 = 0x01
COSIGNATURE_V1 = 0x04
_SIGNATURE_SIZE = 64


def key_hash(name: str, kind: int, public: bytes) -> bytes:
    """Return the key ID (4 bytes) of a key: SHA-256(name || 0x0A || type || public key)[:4]."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


def cosigned_message(text: bytes, time_s: int) -> bytes:
    """Return what a cosignature/v1 signs: two header lines, then the whole checkpoint body."""
    return b"cosignature/v1\ntime %d\n%s" % (time_s, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteSignature:
    """One signature line of a note: unverified."""

    name: str
    key_id: bytes  # 4 bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierKey:
    """A public key under its name. `kind` is ED25519 or COSIGNATURE_V1."""

    name: str
    kind: int
    public: bytes  # 32 bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `<name>+<key ID hex>+<base64(type || public key)>`.

        Raises:
            LogFormatError: not a vkey, a key ID that is not this key's, or another signature type.
        """
        parts = text.split("+", 2)  # base64 may contain a +
        if len(parts) != 3:
            raise LogFormatError("a verifier key is <name>+<hex>+<base64>", code="malformed-key")
        material = b64_decode(parts[2])
        if material[:1] not in (bytes([ED25519]), bytes([COSIGNATURE_V1])):
            raise LogFormatError("a verifier key of an unknown signature type", code="unsupported-key-type")
        if len(material) != 33:
            raise LogFormatError("an Ed25519 verifier key has 32 bytes", code="malformed-key")
        key = cls(name=check_key_name(parts[0]), kind=material[0], public=material[1:])
        if key.encode() != text:
            raise LogFormatError("the key ID is not that of the key", code="malformed-key")
        return key

    @property
    def key_id(self) -> bytes:
        """The 4 bytes that name this key in a signature line."""
        return key_hash(self.name, self.kind, self.public)

    def encode(self) -> str:
        """Return the vkey text."""
        return f"{self.name}+{self.key_id.hex()}+{b64(bytes([self.kind]) + self.public)}"

    def verify(self, text: bytes, signature: bytes) -> int | None:
        """Prove that this key signed `text`; return the time (s since 1970) of a cosignature, else None.

        Raises:
            VerificationError: `bad-signature`.
        """
        time_s = None
        message = text
        if self.kind == COSIGNATURE_V1:
            if len(signature) != 8 + _SIGNATURE_SIZE:
                raise self._bad()
            (time_s,) = struct.unpack(">Q", signature[:8])
            if time_s > MAX_NUMBER:
                raise self._bad()
            message, signature = cosigned_message(text, time_s), signature[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            raise self._bad() from None
        return time_s

    def _bad(self) -> VerificationError:
        text = f"the signature by {self.name} does not hold"
        return VerificationError(text, code="bad-signature", stage="note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A log's Ed25519 key under its name, which is the log's origin."""

    name: str
    key: Ed25519PrivateKey

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `PRIVATE+KEY+<name>+<key ID hex>+<base64(0x01 || seed)>`, the form Go's `note` package writes.

        Raises:
            LogFormatError: not such a key. The text is never quoted.
        """
        parts = text.split("+", 4)
        if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"]:
            raise LogFormatError("not a note signer key", code="malformed-key")
        material = b64_decode(parts[4], length=33)
        if material[0] != ED25519:
            raise LogFormatError("a signer key of an unknown signature type", code="unsupported-key-type")
        signer = cls(name=check_key_name(parts[2]), key=Ed25519PrivateKey.from_private_bytes(material[1:]))
        if signer.vkey.key_id.hex() != parts[3]:
            raise LogFormatError("the key ID is not that of the key", code="malformed-key")
        return signer

    def encode(self) -> str:
        """Return the private key as text, the form that `parse` reads."""
        material = b64(bytes([ED25519]) + self.key.private_bytes_raw())
        return f"PRIVATE+KEY+{self.name}+{self.vkey.key_id.hex()}+{material}"

    @property
    def vkey(self) -> VerifierKey:
        """The public half."""
        return VerifierKey(name=self.name, kind=ED25519, public=self.key.public_key().public_bytes_raw())

    def sign(self, text: bytes) -> NoteSignature:
        """Sign the text of a note."""
        return NoteSignature(name=self.name, key_id=self.vkey.key_id, signature=self.key.sign(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigner:
    """A witness's Ed25519 key under its name. One key a witness: the message does not commit to the name."""

    name: str
    key: Ed25519PrivateKey

    @property
    def vkey(self) -> VerifierKey:
        """The public half."""
        public = self.key.public_key().public_bytes_raw()
        return VerifierKey(name=self.name, kind=COSIGNATURE_V1, public=public)

    def sign(self, text: bytes, *, time_s: int) -> NoteSignature:
        """Cosign the body of a checkpoint. `time_s`: seconds since 1970."""
        signature = struct.pack(">Q", time_s) + self.key.sign(cosigned_message(text, time_s))
        return NoteSignature(name=self.name, key_id=self.vkey.key_id, signature=signature)
