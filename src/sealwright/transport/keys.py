"""OHTTP key configurations and `application/ohttp-keys` (RFC 9458, section 3)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from sealwright.crypto.hpke import Aead, HpkePrivateKey, HpkePublicKey, Kdf, Kem
from sealwright.errors import MessageFormatError

KEYS_TYPE = b"application/ohttp-keys"
HEADER = struct.Struct(">BHHH")  # key id, KEM, KDF, AEAD: the start of a request


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyConfig:
    """One key that requests are sealed to, with the (KDF, AEAD) pairs it may be used with."""

    key_id: int  # 0 to 255
    public: HpkePublicKey
    algorithms: tuple[tuple[int, int], ...] = ((Kdf.HKDF_SHA256, Aead.AES_256_GCM),)

    @property
    def aead(self) -> Aead:
        """The first AEAD that we speak.

        Raises:
            MessageFormatError: there is none.
        """
        for kdf, aead in self.algorithms:
            if kdf == Kdf.HKDF_SHA256 and aead in list(Aead):
                return Aead(aead)
        raise MessageFormatError("a key configuration without algorithms we speak", code="ohttp-key-config")

    def header(self) -> bytes:
        """Return the seven bytes that name key and algorithms in a request."""
        return HEADER.pack(self.key_id, self.public.kem, Kdf.HKDF_SHA256, self.aead)

    def encode(self) -> bytes:
        """Return the configuration as RFC 9458 writes it, without a length."""
        pairs = b"".join(struct.pack(">HH", *pair) for pair in self.algorithms)
        start = struct.pack(">BH", self.key_id, self.public.kem) + self.public.raw
        return start + struct.pack(">H", len(pairs)) + pairs

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse one configuration.

        Raises:
            MessageFormatError: not a configuration, or its KEM is unknown (`ohttp-unknown-kem`).
        """
        if len(raw) < 3:
            raise MessageFormatError("a key configuration cut short", code="ohttp-key-config")
        key_id, kem_id = struct.unpack_from(">BH", raw)
        if kem_id not in list(Kem):
            raise MessageFormatError(f"KEM {kem_id:#06x} is not known", code="ohttp-unknown-kem")
        kem = Kem(kem_id)
        at = 3 + kem.public_length
        pairs = raw[at + 2 :]
        if len(raw) < at + 6 or len(pairs) % 4 or raw[at : at + 2] != struct.pack(">H", len(pairs)):
            raise MessageFormatError("a key configuration of a wrong length", code="ohttp-key-config")
        public = HpkePublicKey(kem=kem, raw=raw[3:at])
        return cls(key_id=key_id, public=public, algorithms=tuple(struct.iter_unpack(">HH", pairs)))


def encode_key_list(configs: Iterable[KeyConfig]) -> bytes:
    """Return an `application/ohttp-keys` document."""
    return b"".join(struct.pack(">H", len(raw)) + raw for raw in (config.encode() for config in configs))


def parse_key_list(raw: bytes) -> tuple[KeyConfig, ...]:
    """Return the configurations we know of an `application/ohttp-keys` document; unknown KEMs are skipped.

    Raises:
        MessageFormatError: anything else is wrong with it.
    """
    found: list[KeyConfig] = []
    at = 0
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2], "big")
        if at + 2 > len(raw) or end > len(raw):
            raise MessageFormatError("a key list cut short", code="ohttp-key-config")
        try:
            found.append(KeyConfig.parse(raw[at + 2 : end]))
        except MessageFormatError as exc:
            if exc.code != "ohttp-unknown-kem":
                raise
        at = end
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayKey:
    """A private key of the gateway, and the configuration that clients have of it."""

    config: KeyConfig
    private: HpkePrivateKey
