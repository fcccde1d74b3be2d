"""A broker without policies: keys made on the spot, and a lease, result and log proof for whoever asks."""

from __future__ import annotations

import secrets
import warnings
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.jwk import ECKey

from sealwright.appraisal.binding import ConfigBinding
from sealwright.appraisal.ear import issue_ear
from sealwright.appraisal.platform import Appraisal
from sealwright.crypto.encoding import b64url_decode
from sealwright.crypto.hpke import Aead, HpkePrivateKey, Kdf, Kem
from sealwright.protocol.keyset import HpkeKey
from sealwright.protocol.lease import BrokerKeys, EarKey, Lease, LeasedKey
from sealwright.testing.software import FakePlatformWarning
from sealwright.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealwright.tlog.keys import Signer
from sealwright.tlog.merkle import inclusion_proof, leaf_hash, tree_root
from sealwright.tlog.proof import LogProof


class FakeLog:
    """A log in memory."""

    def __init__(self, origin: str) -> None:
        self.signer = Signer(name=origin, key=Ed25519PrivateKey.generate())
        self._leaves: list[bytes] = []

    def append(self, entry: bytes) -> int:
        """Log `entry` and return its index."""
        self._leaves.append(leaf_hash(entry))
        return len(self._leaves) - 1

    def prove(self, index: int) -> bytes:
        """Return the `.tlog-proof` of an entry under a checkpoint of now."""
        leaves = list(self._leaves)
        head = Checkpoint(origin=self.signer.name, size=len(leaves), root=tree_root(leaves))
        hashes = inclusion_proof(
            lambda height, at: tree_root(leaves[at << height : (at + 1) << height]), index, len(leaves)
        )
        note = sign_checkpoint(head, self.signer)
        return LogProof(index=index, hashes=hashes, unverified_checkpoint=note).encode()


class FakeBroker:
    """Signs leases and results for anyone: never trust its root."""

    def __init__(self, now: datetime) -> None:
        """Make keys that are in force from `now` for 30 days."""
        warnings.warn("FakeBroker appraises nothing", FakePlatformWarning, stacklevel=2)
        self.root = Ed25519PrivateKey.generate()
        self.release = Ed25519PrivateKey.generate()
        self.ear = ECKey.generate_key("P-256")
        self.log = FakeLog("log.test/one")
        jwk = self.ear.as_dict(private=False)
        journal = HpkePrivateKey.generate(Kem.XWING).public
        self.keys = BrokerKeys(
            release_key=self.release.public_key().public_bytes_raw(),
            ear_key=EarKey(x=b64url_decode(str(jwk["x"])), y=b64url_decode(str(jwk["y"]))),
            journal_key=hpke_key(journal.kem, journal.raw),
            log_key=self.log.signer.vkey.encode(),
            not_before=now,
            not_after=now + timedelta(days=30),
        )

    @property
    def root_key(self) -> bytes:
        """The raw public root."""
        return self.root.public_key().public_bytes_raw()

    def keys_envelope(self) -> bytes:
        """Return the signed broker keys (DSSE)."""
        return self.keys.sign(self.root)

    def result(
        self, *, config_digest: bytes, keyset_digest: bytes, evidence_digest: bytes, at: datetime
    ) -> str:
        """Return an EAR that allows whatever it is told."""
        appraisal = Appraisal(
            platform="software",
            confidential=False,
            vector={"hardware": 97, "runtime-opaque": 96},
            config=ConfigBinding(register="config", held=config_digest),
            code=bytes(32),
            claims={},
            failures=(),
        )
        return issue_ear(
            appraisal,
            self.ear,
            nonce=secrets.token_bytes(32),
            config_digest=config_digest,
            keyset_digest=keyset_digest,
            evidence_digest=evidence_digest,
            policies=[],
            at=at,
            build="testing",
        )

    def lease(
        self,
        *,
        tenant: str,
        keyset_digest: bytes,
        config_digest: bytes,
        ear_digest: bytes,
        manifest_digest: bytes,
        at: datetime,
        life: timedelta,
    ) -> Lease:
        """Return a lease over one kid, from `at`; sign it with `release`."""
        return Lease(
            lease_id=secrets.token_bytes(16),
            tenant=tenant,
            keyset_digest=keyset_digest,
            config_digest=config_digest,
            ear_digest=ear_digest,
            kids=[LeasedKey(kid="echo", manifest_digest=manifest_digest)],
            not_before=at,
            not_after=at + life,
            state_epoch=1,
        )


def hpke_key(kem: Kem, raw: bytes, *, key_id: int = 1) -> HpkeKey:
    """Return a keyset's entry for an HPKE public key."""
    return HpkeKey(key_id=key_id, kem=kem, kdf=Kdf.HKDF_SHA256, aead=Aead.AES_256_GCM, public_key=raw)
