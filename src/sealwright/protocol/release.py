"""Key release: a key sealed to one attested keyset, in a signed statement. Spec: docs/spec/key-release.md."""

from __future__ import annotations

import hmac
from typing import ClassVar, Literal

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Bytes, Bytes32, Count, Digest, Id16, Name
from sealwright.crypto.encoding import joined
from sealwright.crypto.statement import Statement, ed25519
from sealwright.errors import VerificationError
from sealwright.protocol.lease import BrokerKeys, Lease
from sealwright.protocol.use import Use


class Release(Statement):
    """One key for one kid, sealed to `tee_pubkey`, under one lease."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.release.v1+json"

    format: Literal["sealwright-release/v1"] = "sealwright-release/v1"
    nonce: Bytes32
    tee_pubkey: Digest
    tenant: Name
    kid: Name
    epoch: Count
    manifest_digest: Digest
    lease_id: Id16
    lease_digest: Digest
    policy_digest: Digest
    use: Use | None = None  # as the asker named it
    suite: Literal["default"]
    enc: Bytes
    ciphertext: Bytes

    def hpke_info(self) -> bytes:
        """Return the HPKE info: everything in the statement but the ciphertext is bound to the key."""
        bound = {name: value for name, value in self.to_json().items() if name not in ("enc", "ciphertext")}
        return joined("sealwright/release/v1", canonical(bound))


def verify_release(
    envelope: bytes,
    broker: BrokerKeys,
    *,
    nonce: bytes,
    tee_pubkey: bytes,
    kid: str,
    manifest_digest: bytes,
    lease: Lease,
    use: Use | None = None,
) -> Release:
    """Return a release proved to be the broker's answer to this nonce, for this key, manifest and lease.

    Args:
        nonce: the session's, 32 bytes.
        tee_pubkey: digest of our own JWK, 32 bytes.
        manifest_digest: of our own tenant list, 32 bytes.
        lease: the verified lease of the same session.
        use: what we said that the key is for.

    Raises:
        MessageFormatError, VerificationError: stages `signature`, `binding`.
    """
    release = Release.verify(envelope, [ed25519(broker.release_key)], stage="signature")
    wanted = {
        "nonce": (release.nonce, nonce),
        "tee_pubkey": (release.tee_pubkey, tee_pubkey),
        "tenant": (release.tenant.encode(), lease.tenant.encode()),
        "kid": (release.kid.encode(), kid.encode()),
        "manifest_digest": (release.manifest_digest, manifest_digest),
        "lease": (release.lease_digest, lease.digest()),
        "lease_id": (release.lease_id, lease.lease_id),
        "use": (_encoded(release.use), _encoded(use)),
    }
    for name, (got, want) in wanted.items():
        if not hmac.compare_digest(got, want):
            raise VerificationError(
                f"the release answers another {name}", code="release-mismatch", stage="binding"
            )
    return release


def _encoded(use: Use | None) -> bytes:
    return b"" if use is None else use.encode()
