"""Making a checkpoint, inside: weights sealed out of memory, signed by keys that never leave, the statement last.

Spec: docs/spec/checkpoint.md, Making one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.protocol.checkpoint import (
    MODEL_FILE,
    Aggregation,
    Artefact,
    Attested,
    CheckpointPredicate,
    CheckpointStatement,
    DataUse,
    LogPosition,
    Privacy,
    WorkerEntry,
)
from sealwright.protocol.plan import Plan
from sealwright.sealing import seal_file
from sealwright.sealing.memory import MemfdSink
from sealwright.sealing.model_signing import sign_model
from sealwright.training.checkpoint.environment import Environment
from sealwright.training.checkpoint.folder import (
    MODEL_SIGNATURE,
    SEALED,
    STATEMENT,
    CheckpointFolder,
    put_file,
)
from sealwright.training.checkpoint.model_key import spki_of
from sealwright.training.safetensors import Tensors, encode_safetensors


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointKeys:
    """What signs: the keyset's `receipt_key`, which evidence vouches for, and a P-256 key that the statement names."""

    receipt: Ed25519PrivateKey = field(repr=False)
    model: ec.EllipticCurvePrivateKey = field(
        repr=False, default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Everything that a statement says beside the weights."""

    lineage: bytes  # 16 bytes
    parent: CheckpointStatement | None  # None: the first version
    plan: Plan
    epoch: int
    created: datetime
    signer: Attested
    broker_keys: bytes  # digest of the document
    data: tuple[DataUse, ...]
    workers: tuple[WorkerEntry, ...]
    aggregation: Aggregation
    metrics: Mapping[str, str]  # `decimal_text`
    environment: Environment
    log: LogPosition
    privacy: Privacy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A checkpoint as it stands in its folder. Its proof of logging comes next: `CheckpointFolder.put_proof`."""

    statement: CheckpointStatement
    envelope: bytes  # DSSE


def write_checkpoint(
    folder: CheckpointFolder, tensors: Tensors, draft: Draft, *, keys: CheckpointKeys, dek: bytes, kid: str
) -> Written:
    """Seal and sign weights as the next version in `folder`. The plaintext is in memory alone.

    Sidecars (evidence, results, grants, policies, stages, broker keys) are put there by the caller; plan and
    environment are put here.

    Args:
        dek: 32 bytes, held by the broker under `kid`.

    Raises:
        ArtefactFormatError: `malformed-safetensors`. UnavailableError: `version-exists`, `output-failed`, `no-memfd`.
    """
    raw = encode_safetensors(tensors)
    weights = hashlib.sha256(raw).digest()
    version = 1 if draft.parent is None else draft.parent.predicate.version + 1
    folder.put_sidecar(draft.plan.digest(), draft.plan.encode())
    folder.put_sidecar(draft.environment.digest(), draft.environment.encode())
    with folder.adding(version) as staged:
        signature = sign_model(f"{draft.plan.run}-{version}", {MODEL_FILE: weights}, keys.model)
        put_file(staged / MODEL_SIGNATURE, signature)
        manifest = _seal(raw, staged, dek=dek, kid=kid, keys=keys, draft=draft, version=version)
        statement = _statement(draft, version, weights, Artefact(kid=kid, manifest_digest=manifest), keys)
        envelope = statement.sign(keys.receipt)
        put_file(staged / STATEMENT, envelope)
    return Written(statement=statement, envelope=envelope)


def _seal(
    raw: bytes, staged: Path, *, dek: bytes, kid: str, keys: CheckpointKeys, draft: Draft, version: int
) -> bytes:
    """Return the manifest's digest. The sealer takes a path: it gets one that leads into memory."""
    memory = MemfdSink()
    link = staged / MODEL_FILE
    try:
        memory.start(len(raw))
        memory.write(0, memoryview(raw))
        memory.commit()
        link.symlink_to(f"/proc/self/fd/{memory.fd}")
        manifest = seal_file(
            link,
            staged / SEALED,
            dek=dek,
            kid=kid,
            signer=keys.receipt,
            version=version,
            artefact_id=draft.lineage,
            sha256=True,
        )
    finally:
        link.unlink(missing_ok=True)
        memory.abort()
    return manifest.manifest_digest


def _statement(
    draft: Draft, version: int, weights: bytes, artefact: Artefact, keys: CheckpointKeys
) -> CheckpointStatement:
    predicate = CheckpointPredicate(
        lineage=draft.lineage,
        version=version,
        parent=None if draft.parent is None else draft.parent.digest(),
        base=draft.plan.base,
        created=draft.created,
        run=draft.plan.run,
        plan=draft.plan.digest(),
        run_spec=draft.plan.attested_as,
        code=draft.plan.code,
        epoch=draft.epoch,
        artefact=artefact,
        model_key=spki_of(keys.model.public_key()),
        signer=draft.signer,
        broker_keys=draft.broker_keys,
        data=sorted(draft.data, key=lambda use: use.policy),
        workers=sorted(draft.workers, key=lambda entry: entry.worker),
        aggregation=draft.aggregation,
        privacy=draft.privacy,
        metrics=dict(draft.metrics),
        environment=draft.environment.digest(),
        log=draft.log,
    )
    return CheckpointStatement.of(predicate, weights=weights)
