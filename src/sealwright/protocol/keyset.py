"""An enclave's public keys of one boot. Spec: docs/spec/keyset.md."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.canonical import canonical_digest
from sealwright.crypto.document import Bytes, Bytes32, Digest, Document, Id16, Record, Time
from sealwright.errors import RevokedError, VerificationError

MAX_LIFE = timedelta(hours=24)


class HpkeKey(Record):
    """A key that requests are sealed to; numbers of RFC 9180's registries."""

    key_id: Annotated[int, Field(ge=0, le=255)]
    kem: Annotated[int, Field(ge=0, le=0xFFFF)]
    kdf: Annotated[int, Field(ge=0, le=0xFFFF)]
    aead: Annotated[int, Field(ge=0, le=0xFFFF)]
    public_key: Bytes


class TeePubkey(Record):
    """The JWK that KBS `runtime-data` carries and key releases are sealed to."""

    kty: Literal["AKP"] = "AKP"
    alg: Literal["ML-KEM-768+X25519"] = "ML-KEM-768+X25519"
    pub: Bytes

    def digest(self) -> bytes:
        """Return SHA-256 of the canonical JWK (32 bytes)."""
        return canonical_digest(self.to_json())


class Keyset(Document):
    """Public keys of one boot; `digest()` is `keyset_digest`."""

    version: Literal["sealwright-keyset/v1"] = "sealwright-keyset/v1"
    suite: Literal["default", "classical"]
    boot_id: Id16
    created: Time
    not_after: Time
    receipt_key: Bytes32
    hpke: Annotated[list[HpkeKey], Field(min_length=1, max_length=8)]
    tee_pubkey: TeePubkey
    tls_spki: Annotated[list[Digest], Field(max_length=8)]

    @model_validator(mode="after")
    def _life(self) -> Self:
        if not timedelta(0) < self.not_after - self.created <= MAX_LIFE:
            raise ValueError("a keyset lives at most 24 hours")
        if len({key.key_id for key in self.hpke}) != len(self.hpke):
            raise ValueError("a key_id stands twice")
        return self

    def check_time(self, at: datetime, *, skew: timedelta = timedelta(minutes=5)) -> None:
        """Prove that the keyset is in its dates at `at`, give or take `skew` at its start.

        Raises:
            VerificationError: made in the future. RevokedError: past its end.
        """
        if at < self.created - skew:
            raise VerificationError(
                "the keyset was made in the future", code="keyset-not-yet", stage="keyset"
            )
        if at > self.not_after:
            raise RevokedError(
                "the keyset is past its end; ask for a new one", code="keyset-ended", stage="keyset"
            )
