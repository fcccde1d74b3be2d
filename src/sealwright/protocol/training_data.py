"""What data owners, workers and the broker sign about training data. Spec: docs/spec/training-data.md."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.document import Bytes, Bytes32, Digest, Document, Name, Record, Time
from sealwright.crypto.encoding import joined
from sealwright.crypto.statement import Statement
from sealwright.errors import AppraisalError, AppraisalFailure, CollateralError, VerificationError

TRAINING_PATH = "/sealwright/v1/training"
MAX_SHARDS = 1024
MAX_EPOCHS = 1 << 20
SKEW = timedelta(minutes=5)
Kind = Literal["npz", "parquet", "safetensors", "text"]
PurposeText = Annotated[str, Field(min_length=1, max_length=256)]
Version = Annotated[int, Field(ge=1, lt=1 << 31)]
Positive = Annotated[int, Field(ge=1, lt=1 << 53)]
Epoch = Annotated[int, Field(ge=1, le=MAX_EPOCHS)]


class Budget(Record):
    """How much of *each* shard one run may read in all."""

    epochs: Epoch  # how many epochs
    rows: Positive  # rows, counted again in each epoch


class Shard(Record):
    """One sealed shard, as its owner sealed it."""

    name: Name
    kid: Name  # one key, one shard
    manifest_digest: Digest
    kind: Kind
    rows: Positive


class DataPolicy(Statement):
    """What an owner allows to be done with a data set. `digest()` is what requests, grants and checkpoints name."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.data-policy.v1+json"

    format: Literal["sealwright-data-policy/v1"] = "sealwright-data-policy/v1"
    dataset: Name
    tenant: Name
    version: Version
    created: Time
    expires: Time
    shards: Annotated[list[Shard], Field(min_length=1, max_length=MAX_SHARDS)]
    measurements: Annotated[list[Digest], Field(min_length=1, max_length=16)]  # as `Appraisal.code`
    configs: Annotated[list[Digest], Field(min_length=1, max_length=64)]  # config digests
    code: Annotated[list[Digest], Field(min_length=1, max_length=16)]  # of training code
    run: Digest  # of the training plan
    purpose: PurposeText
    budget: Budget
    egress: Literal["none"] = "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.expires <= self.created:
            raise ValueError("it expires before it is created")
        for what in ("name", "kid", "manifest_digest"):
            if len({getattr(shard, what) for shard in self.shards}) != len(self.shards):
                raise ValueError(f"two shards have one {what}")
        return self

    def check_time(self, at: datetime) -> None:
        """Prove that it is in force at `at` (aware). Raises CollateralError: `policy-not-yet`, `policy-expired`."""
        if at < self.created - SKEW:
            raise CollateralError(
                f"the policy of {self.dataset} is dated in the future",
                code="policy-not-yet",
                stage="data-policy",
            )
        if at >= self.expires:
            raise CollateralError(
                f"the policy of {self.dataset} has expired", code="policy-expired", stage="data-policy"
            )

    def shard(self, kid: str) -> Shard:
        """Return the shard of a key. Raises VerificationError: `shard-unknown`."""
        for shard in self.shards:
            if shard.kid == kid:
                return shard
        raise VerificationError(
            f"the policy of {self.dataset} has no shard under key {kid}",
            code="shard-unknown",
            stage="data-policy",
        )


class DataRequest(Statement):
    """A worker asks for one shard's key for one epoch; signed by `receipt_key` of its keyset."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.data-request.v1+json"

    format: Literal["sealwright-data-request/v1"] = "sealwright-data-request/v1"
    nonce: Bytes32  # the worker's own
    keyset_digest: Digest
    policy: Digest  # of the data policy
    kid: Name
    manifest_digest: Digest
    run: Digest  # of the training plan
    code: Digest  # of the training code
    epoch: Epoch
    rows: Positive  # that it will read
    purpose: PurposeText


class DataGrant(Statement):
    """The broker's word that a request was within its policy and budget; signed by its release key, logged."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.data-grant.v1+json"

    format: Literal["sealwright-data-grant/v1"] = "sealwright-data-grant/v1"
    request: Digest
    policy: Digest
    key_policy: Digest  # that the worker was appraised under
    tenant: Name
    kid: Name
    manifest_digest: Digest
    keyset_digest: Digest
    config_digest: Digest
    measurement: Digest  # `Appraisal.code`
    run: Digest
    code: Digest
    purpose: PurposeText
    epoch: Epoch
    rows: Positive
    spent: Budget  # of this shard in this run, this grant included
    granted: Time


class DataRelease(Document):
    """A grant with the shard's key, sealed to the worker's `tee_pubkey`. The grant can be shown; this is not kept."""

    format: Literal["sealwright-data-release/v1"] = "sealwright-data-release/v1"
    grant: dict[str, Any]  # DSSE
    enc: Bytes
    ciphertext: Bytes


def release_info(grant: DataGrant) -> bytes:
    """Return the HPKE info: the key is bound to every word of the grant."""
    return joined("sealwright/data-release/v1", grant.encode())


def check_grant(grant: DataGrant, request: DataRequest) -> None:
    """Prove that a grant (already verified) answers this request.

    Raises:
        VerificationError: `grant-mismatch`, stage `grant`.
    """
    same = hmac.compare_digest(grant.request, request.digest())
    names = ("policy", "kid", "manifest_digest", "keyset_digest", "run", "code", "purpose", "epoch", "rows")
    if not same or any(getattr(grant, name) != getattr(request, name) for name in names):
        raise VerificationError(
            "the broker's grant answers another request", code="grant-mismatch", stage="grant"
        )


def check_allowed(
    policy: DataPolicy, request: DataRequest | DataGrant, *, measurement: bytes, config: bytes
) -> Shard:
    """Return the shard, with the request proved to be within what its owner allows, budgets apart.

    Args:
        measurement: `Appraisal.code` of the worker's evidence. config: its config digest.

    Raises:
        AppraisalError: stage `data-policy`, with everything that the policy does not allow.
        VerificationError: `shard-unknown`.
    """
    shard = policy.shard(request.kid)
    checks: tuple[tuple[bool, str, str], ...] = (
        (request.policy == policy.digest(), "data-policy-mismatch", "another policy is named"),
        (
            request.manifest_digest == shard.manifest_digest,
            "shard-swapped",
            f"{shard.name} is another manifest in the policy",
        ),
        (request.run == policy.run, "run-not-allowed", "the policy is for another run"),
        (
            request.code in policy.code,
            "training-code-not-allowed",
            "the policy does not list this training code",
        ),
        (
            request.purpose == policy.purpose,
            "data-purpose-not-allowed",
            f"it allows {policy.purpose!r} alone",
        ),
        (
            measurement in policy.measurements,
            "data-measurement-not-allowed",
            f"the policy does not list what the worker measured to, {measurement.hex()[:16]}…",
        ),
        (
            config in policy.configs,
            "data-config-not-allowed",
            f"the policy does not list the worker's config {config.hex()[:16]}…",
        ),
        (
            request.rows <= shard.rows,
            "rows-over-shard",
            f"{shard.name} has {shard.rows} rows, {request.rows} are asked for",
        ),
    )
    require(checks, "data-policy")
    return shard


def require(checks: Sequence[tuple[bool, str, str]], stage: str) -> None:
    """Raise AppraisalError with every check (holds, code, text) that does not hold."""
    failures = [AppraisalFailure(text, code=code) for holds, code, text in checks if not holds]
    if failures:
        raise AppraisalError(failures, stage=stage)


def spend(budget: Budget, spent: tuple[int, int], rows: int) -> Budget:
    """Return what is spent with one more epoch of `rows` rows.

    Args:
        spent: epochs and rows until now.

    Raises:
        AppraisalError: `epochs-over-budget`, `rows-over-budget`, stage `budget`.
    """
    epochs, total = spent[0] + 1, spent[1] + rows
    if epochs > budget.epochs:
        raise not_allowed(f"the owner allows {budget.epochs} epochs", "epochs-over-budget", "budget")
    if total > budget.rows:
        raise not_allowed(
            f"the owner allows {budget.rows} rows in all, and {spent[1]} are spent",
            "rows-over-budget",
            "budget",
        )
    return Budget(epochs=epochs, rows=total)


def refused(text: str, code: str, stage: str) -> VerificationError:
    """Return an error of this protocol."""
    return VerificationError(text, code=code, stage=stage)


def not_allowed(text: str, code: str, stage: str) -> AppraisalError:
    """Return the error of something genuine that an owner does not allow."""
    return AppraisalError([AppraisalFailure(text, code=code)], stage=stage)
