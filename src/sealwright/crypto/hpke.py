"""HPKE base mode (RFC 9180): contexts with seal, open and export, over pyca/cryptography primitives.

KEMs: DHKEM(X25519, HKDF-SHA256) and X-Wing (draft-connolly-cfrg-xwing-kem: ML-KEM-768 with X25519).
A failed open leaves the context as it was, so a forged message cannot put the two sides out of step.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from sealwright.errors import MessageFormatError, VerificationError

NONCE_LENGTH = 12  # bytes; Nn of every AEAD here
TAG_LENGTH = 16  # bytes
SEED_LENGTH = 32  # bytes
# Far below RFC 9180's 2^96 - 1, and within AES-GCM's margins for 16 KiB messages.
MAX_MESSAGES = 1 << 32

_MLKEM_PUBLIC, _MLKEM_ENC = 1184, 1088  # bytes
_XWING_LABEL = b"\\.//^\\"


class Kem(IntEnum):
    """KEM identifiers (IANA HPKE registry)."""

    X25519 = 0x0020
    XWING = 0x647A

    @property
    def public_length(self) -> int:
        """Npk, bytes."""
        return 32 if self is Kem.X25519 else _MLKEM_PUBLIC + 32

    @property
    def enc_length(self) -> int:
        """Nenc, bytes."""
        return 32 if self is Kem.X25519 else _MLKEM_ENC + 32


class Kdf(IntEnum):
    """KDF identifiers (RFC 9180, section 7.2)."""

    HKDF_SHA256 = 0x0001


class Aead(IntEnum):
    """AEAD identifiers (RFC 9180, section 7.3)."""

    AES_128_GCM = 0x0001
    AES_256_GCM = 0x0002
    CHACHA20_POLY1305 = 0x0003

    @property
    def key_length(self) -> int:
        """Nk, bytes."""
        return 16 if self is Aead.AES_128_GCM else 32

    def cipher(self, key: bytes) -> AESGCM | ChaCha20Poly1305:
        """Return the pyca cipher under `key` (Nk bytes)."""
        return ChaCha20Poly1305(key) if self is Aead.CHACHA20_POLY1305 else AESGCM(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class HpkePublicKey:
    """A recipient's public key. X-Wing is the ML-KEM-768 key followed by the X25519 key."""

    kem: Kem
    raw: bytes

    def __post_init__(self) -> None:
        """Raises `MessageFormatError` on a wrong length or an ML-KEM key that is not reduced."""
        if len(self.raw) != self.kem.public_length:
            raise MessageFormatError(
                f"an HPKE public key of {len(self.raw)} bytes, wanted {self.kem.public_length}",
                code="hpke-key-format",
            )
        if self.kem is Kem.XWING:
            try:
                MLKEM768PublicKey.from_public_bytes(self.raw[:_MLKEM_PUBLIC])
            except ValueError:
                raise MessageFormatError("not an ML-KEM-768 public key", code="hpke-key-format") from None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HpkePrivateKey:
    """A recipient's private key. Its 32-byte seed is not kept, only the parsed keys."""

    kem: Kem
    public: HpkePublicKey
    _x25519: X25519PrivateKey = field(repr=False)
    _mlkem: MLKEM768PrivateKey | None = field(repr=False, default=None)

    @classmethod
    def generate(cls, kem: Kem) -> Self:
        """Return a fresh key from the system's random source."""
        return cls.from_seed(kem, secrets.token_bytes(SEED_LENGTH))

    @classmethod
    def from_seed(cls, kem: Kem, seed: bytes) -> Self:
        """Return the key of a 32-byte seed: the X25519 scalar, or the X-Wing decapsulation key.

        Raises:
            MessageFormatError: the seed has another length.
        """
        if len(seed) != SEED_LENGTH:
            raise MessageFormatError(
                f"an HPKE seed has {SEED_LENGTH} bytes, not {len(seed)}", code="hpke-key-format"
            )
        if kem is Kem.X25519:
            x25519 = X25519PrivateKey.from_private_bytes(seed)
            raw = x25519.public_key().public_bytes_raw()
            return cls(kem=kem, public=HpkePublicKey(kem=kem, raw=raw), _x25519=x25519)
        expanded = hashlib.shake_256(seed).digest(96)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
        raw = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        return cls(kem=kem, public=HpkePublicKey(kem=kem, raw=raw), _x25519=x25519, _mlkem=mlkem)

    def decapsulate(self, enc: bytes) -> bytes:
        """Return the 32-byte shared secret of `enc`.

        Raises:
            MessageFormatError: wrong length.
            VerificationError: an X25519 point of small order.
        """
        if len(enc) != self.kem.enc_length:
            raise MessageFormatError(
                f"an encapsulated key of {len(enc)} bytes, wanted {self.kem.enc_length}", code="hpke-enc"
            )
        if self._mlkem is None:
            return _dh_secret(_exchange(self._x25519, enc), enc, self.public.raw)
        point = enc[_MLKEM_ENC:]
        secret = self._mlkem.decapsulate(enc[:_MLKEM_ENC])
        return _xwing_secret(secret, _exchange(self._x25519, point), point, self.public.raw)


def _exchange(private: X25519PrivateKey, point: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:  # pyca refuses the all-zero result, RFC 9180 section 7.1.4
        raise VerificationError(
            "an X25519 point of small order: the shared secret would be zero",
            code="hpke-weak-point",
            stage="kem",
        ) from None


def _encapsulate(public: HpkePublicKey, ephemeral: X25519PrivateKey) -> tuple[bytes, bytes]:
    """Return (shared secret, enc)."""
    point = ephemeral.public_key().public_bytes_raw()
    if public.kem is Kem.X25519:
        return _dh_secret(_exchange(ephemeral, public.raw), point, public.raw), point
    secret, ciphertext = MLKEM768PublicKey.from_public_bytes(public.raw[:_MLKEM_PUBLIC]).encapsulate()
    shared = _exchange(ephemeral, public.raw[_MLKEM_PUBLIC:])
    return _xwing_secret(secret, shared, point, public.raw), ciphertext + point


def _xwing_secret(mlkem: bytes, x25519: bytes, point: bytes, public: bytes) -> bytes:
    # The combiner of draft-connolly-cfrg-xwing-kem, section 5.3.
    return hashlib.sha3_256(mlkem + x25519 + point + public[_MLKEM_PUBLIC:] + _XWING_LABEL).digest()


def _dh_secret(shared: bytes, enc: bytes, public: bytes) -> bytes:
    # ExtractAndExpand, RFC 9180 section 4.1.
    suite = b"KEM" + struct.pack(">H", Kem.X25519)
    return _expand(suite, _extract(suite, b"", b"eae_prk", shared), b"shared_secret", enc + public, 32)


def _extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    """LabeledExtract, RFC 9180 section 4."""
    return HKDF.extract(hashes.SHA256(), salt, b"HPKE-v1" + suite + label + ikm)


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand, RFC 9180 section 4."""
    labeled = struct.pack(">H", length) + b"HPKE-v1" + suite + label + info
    return HKDFExpand(hashes.SHA256(), length, labeled).derive(prk)


class _Context:
    """The key schedule of base mode (RFC 9180 section 5.1) and the message counter."""

    __slots__ = ("_base_nonce", "_cipher", "_exporter_secret", "_sequence", "_suite", "aead")

    def __init__(self, kem: Kem, aead: Aead, shared_secret: bytes, info: bytes) -> None:
        suite = b"HPKE" + struct.pack(">HHH", kem, Kdf.HKDF_SHA256, aead)
        schedule = (
            b"\x00" + _extract(suite, b"", b"psk_id_hash", b"") + _extract(suite, b"", b"info_hash", info)
        )
        secret = _extract(suite, shared_secret, b"secret", b"")
        self.aead = aead
        self._suite = suite
        self._cipher = aead.cipher(_expand(suite, secret, b"key", schedule, aead.key_length))
        nonce = _expand(suite, secret, b"base_nonce", schedule, NONCE_LENGTH)
        self._base_nonce = int.from_bytes(nonce, "big")
        self._exporter_secret = _expand(suite, secret, b"exp", schedule, 32)
        self._sequence = 0

    def export(self, context: bytes, length: int) -> bytes:
        """Return `length` secret bytes bound to this context (RFC 9180, section 5.3)."""
        return _expand(self._suite, self._exporter_secret, b"sec", context, length)

    def _nonce(self) -> bytes:
        if self._sequence >= MAX_MESSAGES:
            raise VerificationError("this HPKE context is used up", code="hpke-message-limit", stage="seal")
        return (self._base_nonce ^ self._sequence).to_bytes(NONCE_LENGTH, "big")


class SenderContext(_Context):
    """Seals messages in order. Made by `setup_sender`."""

    __slots__ = ()

    def seal(self, plaintext: bytes, aad: bytes = b"") -> bytes:
        """Return the next message sealed, 16 bytes longer than `plaintext`.

        Raises:
            VerificationError: the context is used up (`hpke-message-limit`).
        """
        sealed = self._cipher.encrypt(self._nonce(), plaintext, aad)
        self._sequence += 1
        return sealed


class RecipientContext(_Context):
    """Opens messages in order. Made by `setup_recipient`."""

    __slots__ = ()

    def open(self, ciphertext: bytes, aad: bytes = b"") -> bytes:
        """Return the plaintext of the next message, proved to come from the sender of `enc`.

        Raises:
            VerificationError: altered, out of order, or another `aad` (`hpke-open-failed`).
        """
        try:
            plaintext = self._cipher.decrypt(self._nonce(), ciphertext, aad)
        except InvalidTag:
            raise VerificationError(
                "an HPKE message does not open", code="hpke-open-failed", stage="open"
            ) from None
        self._sequence += 1
        return plaintext


class EphemeralSource(Protocol):
    """Where a sender's X25519 key comes from; only tests of published vectors pass another one."""

    def __call__(self) -> X25519PrivateKey: ...


def setup_sender(
    public: HpkePublicKey,
    info: bytes,
    *,
    aead: Aead = Aead.AES_256_GCM,
    testing_ephemeral: EphemeralSource = X25519PrivateKey.generate,
) -> tuple[bytes, SenderContext]:
    """Return (enc, context) for messages that only the holder of `public`'s private key can open.

    Args:
        testing_ephemeral: fixes the X25519 half, for published vectors only; ML-KEM stays random.

    Raises:
        VerificationError: the public key is an X25519 point of small order.
    """
    secret, enc = _encapsulate(public, testing_ephemeral())
    return enc, SenderContext(public.kem, aead, secret, info)


def setup_recipient(
    private: HpkePrivateKey, enc: bytes, info: bytes, *, aead: Aead = Aead.AES_256_GCM
) -> RecipientContext:
    """Return the context that opens what the sender of `enc` seals.

    Raises:
        MessageFormatError: `enc` has a wrong length.
        VerificationError: `enc` holds an X25519 point of small order.
    """
    return RecipientContext(private.kem, aead, private.decapsulate(enc), info)


def seal_to(
    public: HpkePublicKey, info: bytes, aad: bytes, plaintext: bytes, *, aead: Aead = Aead.AES_256_GCM
) -> tuple[bytes, bytes]:
    """Return (enc, ciphertext) of one message."""
    enc, context = setup_sender(public, info, aead=aead)
    return enc, context.seal(plaintext, aad)


def open_from(
    private: HpkePrivateKey,
    enc: bytes,
    info: bytes,
    aad: bytes,
    ciphertext: bytes,
    *,
    aead: Aead = Aead.AES_256_GCM,
) -> bytes:
    """Return the plaintext of one message made by `seal_to` with the same `info` and `aad`.

    Raises:
        MessageFormatError: `enc` has a wrong length.
        VerificationError: it does not open.
    """
    return setup_recipient(private, enc, info, aead=aead).open(ciphertext, aad)
