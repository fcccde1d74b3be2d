"""A shard's way into a worker's memory: request, grant, key, plaintext. Nothing of it touches a disk.

Spec: docs/spec/training-data.md, Release and Opening.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from sealwright.crypto.canonical import canonical
from sealwright.crypto.hpke import HpkePrivateKey, open_from
from sealwright.crypto.statement import ed25519
from sealwright.crypto.streaming import wipe
from sealwright.errors import VerificationError
from sealwright.protocol.lease import BrokerKeys
from sealwright.protocol.plan import Plan
from sealwright.protocol.training_data import (
    DataGrant,
    DataPolicy,
    DataRelease,
    DataRequest,
    Shard,
    check_grant,
    release_info,
)
from sealwright.sealing import Manifest, open_memfd
from sealwright.training.data.tables import Table, open_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A shard's key for one epoch, and the broker's word for it. Wipe `dek` when the shard is open."""

    request: DataRequest
    grant: DataGrant
    grant_envelope: bytes  # DSSE: goes beside the checkpoint
    dek: bytearray = field(repr=False)


def data_request(
    policy: DataPolicy,
    kid: str,
    plan: Plan,
    *,
    keyset_digest: bytes,
    epoch: int,
    rows: int | None = None,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> DataRequest:
    """Return what a worker asks for: one shard, for one epoch of `plan`. Sign it with the keyset's `receipt_key`.

    Args:
        epoch: from 1, above every one that was granted for this run and shard.
        rows: that will be read; none: all of the shard.
    """
    shard = policy.shard(kid)
    return DataRequest(
        nonce=random(32),
        keyset_digest=keyset_digest,
        policy=policy.digest(),
        kid=kid,
        manifest_digest=shard.manifest_digest,
        run=plan.digest(),
        code=plan.code,
        epoch=epoch,
        rows=shard.rows if rows is None else rows,
        purpose=plan.purpose,
    )


def open_release(raw: bytes, request: DataRequest, *, broker: BrokerKeys, tee: HpkePrivateKey) -> Released:
    """Return the key in a broker's answer, proved to be its grant of exactly this request.

    Args:
        broker: already verified, see `verify_broker_keys`.
        tee: the private half of the keyset's `tee_pubkey`.

    Raises:
        MessageFormatError, VerificationError: stages `grant` and `open`.
    """
    release = DataRelease.parse(raw)
    envelope = canonical(release.grant)
    grant = DataGrant.verify(envelope, [ed25519(broker.release_key)], stage="grant")
    check_grant(grant, request)
    dek = bytearray(open_from(tee, release.enc, release_info(grant), b"", release.ciphertext))
    return Released(request=request, grant=grant, grant_envelope=envelope, dek=dek)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenShard:
    """A shard in sealed memory, and how many of its rows were granted."""

    shard: Shard
    fd: int
    table: Table
    rows: int

    def close(self) -> None:
        """Give the memory back. Views of it end here."""
        self.table.close()
        os.close(self.fd)


def open_shard(artefact: Path | int, manifest: bytes, shard: Shard, released: Released) -> OpenShard:
    """Return a shard in a sealed memfd, proved to be the one its owner sealed and granted. Wipes the key.

    Args:
        artefact: the ciphertext: a path, or an open descriptor, which stays open.
        manifest: its envelope (DSSE); unverified: its digest has to be the one in the owner's signed policy.

    Raises:
        VerificationError: `shard-swapped`, `rows-differ`, and the stages of docs/spec/sealed-artefact.md.
        ArtefactFormatError: not of its kind.
    """
    try:
        parsed = Manifest.unverified_parse(manifest)
        for wanted in (shard.manifest_digest, released.grant.manifest_digest):
            if not hmac.compare_digest(parsed.manifest_digest, wanted):
                raise VerificationError(
                    f"the manifest given for {shard.name} is not the one in the owner's policy",
                    code="shard-swapped",
                    stage="admitted",
                )
        fd = open_memfd(artefact, parsed, cast(bytes, released.dek))
    finally:
        wipe(memoryview(released.dek))
    try:
        table = open_table(fd, shard.kind)
        if table.rows != shard.rows:
            table.close()
            raise VerificationError(
                f"{shard.name} has {table.rows} rows, its owner's policy says {shard.rows}",
                code="rows-differ",
                stage="rows",
            )
    except BaseException:
        os.close(fd)
        raise
    return OpenShard(shard=shard, fd=fd, table=table, rows=released.grant.rows)


@contextmanager
def opened(artefact: Path | int, manifest: bytes, shard: Shard, released: Released) -> Iterator[OpenShard]:
    """Open a shard as `open_shard` does, and close it at the end."""
    one = open_shard(artefact, manifest, shard, released)
    try:
        yield one
    finally:
        one.close()
