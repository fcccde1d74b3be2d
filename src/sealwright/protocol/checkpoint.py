"""What a TEE signs about a checkpoint: an in-toto statement. Spec: docs/spec/checkpoint.md."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.document import Bytes, Count, Digest, Id16, Name, Record, Time
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.statement import Statement
from sealwright.protocol.commitment import LogEntry
from sealwright.protocol.plan import DecimalText
from sealwright.protocol.receipt import Sha256, Subject
from sealwright.protocol.training_data import Version

PREDICATE_TYPE = "urn:sealwright:checkpoint:v1"
MODEL_FILE = "model.safetensors"
MAX_STATEMENT = 4 << 20  # bytes
MAX_WORKERS = 4096


class Attested(Record):
    """Who: evidence and the broker's result about it, both kept beside the statement."""

    evidence: Digest  # of the `WorkerEvidence` document
    result: Digest  # SHA-256 of the EAR's compact JWT


class WorkerEntry(Attested):
    """A worker whose update is in the checkpoint."""

    worker: Digest  # SHA-256 of the `receipt_key` of its keyset
    grants: Annotated[list[Digest], Field(max_length=4096)]  # data grants since the parent


class DataUse(Record):
    """An owner's policy that data was used under since the parent, and what was done to it before training."""

    policy: Digest
    stages: Annotated[list[Digest], Field(max_length=64)]  # of pre-processing, each one's statement


class Aggregation(Record):
    """How updates became one. The digests are those of secure aggregation's statements."""

    mode: Literal["none", "masked", "tee", "tee+masked"]
    contributors: Annotated[int, Field(ge=1, le=MAX_WORKERS)]
    opening: Digest | None = None
    survivors: Digest | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        masked = self.mode in ("masked", "tee+masked")
        if masked != (self.opening is not None) or masked != (self.survivors is not None):
            raise ValueError("opening and survivors belong to masked modes, both")
        return self


class Privacy(Record):
    """The budget of differential privacy that is spent with this checkpoint, in all."""

    mechanism: Name
    accountant: Name
    epsilon: DecimalText
    delta: DecimalText
    clip: DecimalText
    noise_multiplier: DecimalText


class LogPosition(Record):
    """Where the log stood when the statement was signed: its own entry comes later."""

    origin: Annotated[str, Field(min_length=1, max_length=256)]
    size: Count


class Artefact(Record):
    """The sealed weights."""

    kid: Name
    manifest_digest: Digest


class CheckpointPredicate(Record):
    """What a checkpoint says of itself. Digests without another word are SHA-256 of a document beside it."""

    lineage: Id16
    version: Version
    parent: Digest | None = None  # digest of the statement of the version before; none: the first
    base: Digest | None = None  # SHA-256 of the weights that the lineage began with
    created: Time
    run: Name
    plan: Digest
    run_spec: Digest  # `Plan.attested_as`
    code: Digest
    epoch: Count
    artefact: Artefact
    model_key: Bytes  # SubjectPublicKeyInfo (P-256) of the OpenSSF model signature
    signer: Attested
    broker_keys: Digest
    data: Annotated[list[DataUse], Field(max_length=256)]
    workers: Annotated[list[WorkerEntry], Field(min_length=1, max_length=MAX_WORKERS)]
    aggregation: Aggregation
    privacy: Privacy | None = None
    metrics: Annotated[dict[Name, DecimalText], Field(max_length=64)]  # on hold-out data
    environment: Digest
    log: LogPosition

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.version == 1) != (self.parent is None):
            raise ValueError("the first version alone has no parent")
        workers = [entry.worker for entry in self.workers]
        if workers != sorted(set(workers)):
            raise ValueError("workers are in order, each once")
        policies = [use.policy for use in self.data]
        if policies != sorted(set(policies)):
            raise ValueError("data policies are in order, each once")
        return self


class CheckpointStatement(Statement):
    """The statement: its subject is the plaintext weights. `digest()` names the checkpoint."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.in-toto+json"

    statement_type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = (
        "https://in-toto.io/Statement/v1"
    )
    subject: Annotated[list[Subject], Field(min_length=1, max_length=1)]
    predicateType: Literal["urn:sealwright:checkpoint:v1"] = "urn:sealwright:checkpoint:v1"
    predicate: CheckpointPredicate

    @classmethod
    def of(cls, predicate: CheckpointPredicate, *, weights: bytes) -> CheckpointStatement:
        """Return the statement about weights of this SHA-256 (32 bytes)."""
        return cls(subject=[Subject(name=MODEL_FILE, digest=Sha256(sha256=weights))], predicate=predicate)

    @model_validator(mode="after")
    def _subject(self) -> Self:
        if self.subject[0].name != MODEL_FILE:
            raise ValueError(f"the subject is {MODEL_FILE}")
        return self

    @classmethod
    def claimed(cls, envelope: bytes) -> CheckpointStatement:
        """Return the statement without any proof, to learn whose evidence to look for. Raises MessageFormatError."""
        opened = Envelope.parse(envelope, limit=2 * MAX_STATEMENT)
        return cls.parse(opened.unverified_payload, limit=MAX_STATEMENT)

    @property
    def weights(self) -> bytes:
        """SHA-256 of the weights (32 bytes)."""
        return self.subject[0].digest.sha256

    def log_entry(self) -> bytes:
        """Return the entry that the log holds for this checkpoint."""
        return LogEntry(type="checkpoint", commitment=self.digest()).encode()
