"""Making a checkpoint, inside: weights sealed out of memory, signed by keys that never leave, the statement last.

Spec: docs/spec/checkpoint.md, Making one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

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
from sealwright.sealing import Sealing
from sealwright.sealing.model_signing import sign_model
from sealwright.sealing.seal import seal_bytes
from sealwright.training.checkpoint.environment import Environment
from sealwright.training.checkpoint.folder import (
    MANIFEST,
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
class Made:
    """A checkpoint in memory: nothing of it is secret, so it may leave the TEE as it is."""

    version: int
    statement: CheckpointStatement
    envelope: bytes  # DSSE
    files: Mapping[str, bytes]  # of the version's folder, by name
    sidecars: Mapping[bytes, bytes]  # plan and environment, by digest

    def write(self, folder: CheckpointFolder) -> Written:
        """Write it as the next version in `folder`. Raises UnavailableError: `version-exists`, `output-failed`."""
        for digest, raw in self.sidecars.items():
            folder.put_sidecar(digest, raw)
        with folder.adding(self.version) as staged:
            for name, raw in self.files.items():
                put_file(staged / name, raw)
        return Written(statement=self.statement, envelope=self.envelope)


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
        ArtefactFormatError: `malformed-safetensors`. UnavailableError: `version-exists`, `output-failed`.
    """
    return make_checkpoint(tensors, draft, keys=keys, dek=dek, kid=kid).write(folder)


def make_checkpoint(tensors: Tensors, draft: Draft, *, keys: CheckpointKeys, dek: bytes, kid: str) -> Made:
    """Return sealed and signed weights, made in memory: what an agent without a disk hands out.

    Raises:
        ArtefactFormatError: `malformed-safetensors`.
    """
    raw = encode_safetensors(tensors)
    weights = hashlib.sha256(raw).digest()
    version = 1 if draft.parent is None else draft.parent.predicate.version + 1
    sealing = Sealing(
        dek=dek, kid=kid, signer=keys.receipt, version=version, artefact_id=draft.lineage, sha256=True
    )
    sealed = seal_bytes(MODEL_FILE, raw, sealing)
    artefact = Artefact(kid=kid, manifest_digest=sealed.manifest.manifest_digest)
    statement = _statement(draft, version, weights, artefact, keys)
    envelope = statement.sign(keys.receipt)
    return Made(
        version=version,
        statement=statement,
        envelope=envelope,
        files={
            MODEL_SIGNATURE: sign_model(f"{draft.plan.run}-{version}", {MODEL_FILE: weights}, keys.model),
            SEALED: sealed.ciphertext,
            MANIFEST: sealed.envelope,
            STATEMENT: envelope,
        },
        sidecars={
            draft.plan.digest(): draft.plan.encode(),
            draft.environment.digest(): draft.environment.encode(),
        },
    )


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
