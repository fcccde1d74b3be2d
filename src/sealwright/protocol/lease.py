"""Broker keys, leases and callers: what a broker signs besides releases. Spec: docs/spec/key-release.md."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sealwright.crypto.document import Bytes32, Count, Digest, Id16, Name, Record, Time
from sealwright.crypto.encoding import digest
from sealwright.crypto.statement import Statement, ed25519
from sealwright.errors import RevokedError, VerificationError
from sealwright.protocol.keyset import HpkeKey

SKEW = timedelta(minutes=5)


class EarKey(Record):
    """ES256 public key of the broker's results, as a JWK."""

    kty: Literal["EC"] = "EC"
    crv: Literal["P-256"] = "P-256"
    x: Bytes32
    y: Bytes32


class BrokerKeys(Statement):
    """The broker's working keys, signed by its root."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.broker-keys.v1+json"

    format: Literal["sealwright-broker-keys/v1"] = "sealwright-broker-keys/v1"
    release_key: Bytes32
    ear_key: EarKey
    journal_key: HpkeKey
    log_key: Annotated[str, Field(max_length=512)]  # vkey
    not_before: Time
    not_after: Time


class LeasedKey(Record):
    """A key of the lease's tenant, with the one manifest it may open."""

    kid: Name
    manifest_digest: Digest


class Lease(Statement):
    """Until when an enclave may serve one tenant, signed by the broker's release key."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.lease.v1+json"

    format: Literal["sealwright-lease/v1"] = "sealwright-lease/v1"
    lease_id: Id16
    tenant: Name
    keyset_digest: Digest
    config_digest: Digest
    ear_digest: Digest
    kids: Annotated[list[LeasedKey], Field(min_length=1, max_length=64)]
    not_before: Time
    not_after: Time  # with the grace
    state_epoch: Count
    grace_s: Count | None = None  # of its end, for when no broker answers; absent: none

    def check_time(self, at: datetime, *, skew: timedelta = SKEW) -> None:
        """Prove that the lease is valid at `at`; `skew` is forgiven at its start, never at its end.

        Raises:
            VerificationError: `lease-not-yet`. RevokedError: `lease-ended`.
        """
        if at < self.not_before - skew:
            raise VerificationError("the lease begins in the future", code="lease-not-yet", stage="lease")
        if at >= self.not_after:
            raise RevokedError("the lease has ended", code="lease-ended", stage="lease")


class Caller(Record):
    """Someone who may ask an enclave for answers."""

    caller: Name
    credential_digest: Digest


class Callers(Statement):
    """Who may call under a lease, signed by the broker's release key."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.callers.v1+json"

    format: Literal["sealwright-callers/v1"] = "sealwright-callers/v1"
    tenant: Name
    lease_id: Id16
    callers: Annotated[list[Caller], Field(max_length=4096)]


def credential_digest(credential: str) -> bytes:
    """Return what stands for a credential in `Callers` (32 bytes)."""
    return digest("sealwright/credential/v1", credential)


def verify_broker_keys(envelope: bytes, roots: Iterable[bytes], *, at: datetime) -> BrokerKeys:
    """Return broker keys proved to be signed by one of `roots` (raw Ed25519) and in their dates at `at`.

    Raises:
        MessageFormatError, VerificationError, RevokedError: stage `broker`.
    """
    keys = BrokerKeys.verify(envelope, [ed25519(root) for root in roots], stage="broker")
    if at < keys.not_before - SKEW:
        raise VerificationError(
            "the broker's keys begin in the future", code="broker-keys-not-yet", stage="broker"
        )
    if at >= keys.not_after:
        raise RevokedError("the broker's keys have ended", code="broker-keys-ended", stage="broker")
    return keys


def verify_lease(
    envelope: bytes,
    broker: BrokerKeys,
    *,
    tenant: str,
    keyset_digest: bytes,
    config_digest: bytes,
    at: datetime,
) -> Lease:
    """Return a lease proved to be the broker's, for this tenant, keyset and config, and valid at `at`.

    Raises:
        MessageFormatError, VerificationError, RevokedError: stage `lease`.
    """
    lease = Lease.verify(envelope, [ed25519(broker.release_key)], stage="lease")
    if lease.tenant != tenant:
        raise VerificationError("the lease is another tenant's", code="lease-mismatch", stage="lease")
    if not hmac.compare_digest(lease.keyset_digest, keyset_digest):
        raise VerificationError("the lease is for another keyset", code="lease-mismatch", stage="lease")
    if not hmac.compare_digest(lease.config_digest, config_digest):
        raise VerificationError("the lease is for another config", code="lease-mismatch", stage="lease")
    lease.check_time(at)
    return lease
