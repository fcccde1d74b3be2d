"""The keys of one boot: the public keyset, and the private halves that never leave. Spec: docs/spec/keyset.md."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.crypto.suites import CLASSICAL, DEFAULT
from sealwright.protocol.keyset import MAX_LIFE, HpkeKey, Keyset, TeePubkey
from sealwright.transport.keys import GatewayKey, KeyConfig
from sealwright.transport.replay import EncCache
from sealwright.transport.server import ServingKeyset

KEY_ID = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveKeys:
    """One keyset with its private keys. To rotate, another is made and attested beside it."""

    keyset: Keyset
    digest: bytes  # keyset_digest, 32 bytes
    receipt: Ed25519PrivateKey = field(repr=False)
    requests: HpkePrivateKey = field(repr=False)
    releases: HpkePrivateKey = field(repr=False)

    @classmethod
    def generate(
        cls,
        suite: Literal["default", "classical"],
        *,
        created: datetime,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> Self:
        """Make fresh keys.

        Args:
            created: the host's time, believed only once a lease agrees with it.
        """
        algorithms = CLASSICAL if suite == "classical" else DEFAULT
        receipt = Ed25519PrivateKey.generate()
        requests = HpkePrivateKey.generate(algorithms.kem)
        releases = HpkePrivateKey.generate(Kem.XWING)
        hpke = HpkeKey(
            key_id=KEY_ID,
            kem=algorithms.kem,
            kdf=algorithms.kdf,
            aead=algorithms.aead,
            public_key=requests.public.raw,
        )
        keyset = Keyset(
            suite=suite,
            boot_id=random(16),
            created=created,
            not_after=created + MAX_LIFE,
            receipt_key=receipt.public_key().public_bytes_raw(),
            hpke=[hpke],
            tee_pubkey=TeePubkey(pub=releases.public.raw),
            tls_spki=[],
        )
        return cls(
            keyset=keyset, digest=keyset.digest(), receipt=receipt, requests=requests, releases=releases
        )

    def serving(self) -> ServingKeyset:
        """Return what the gateway opens requests with, with a replay cache of its own."""
        config = KeyConfig(key_id=KEY_ID, public=self.requests.public)
        return ServingKeyset(
            keyset_digest=self.digest,
            keys={KEY_ID: GatewayKey(config=config, private=self.requests)},
            receipt_key=self.receipt,
            cache=EncCache(self.digest),
        )
