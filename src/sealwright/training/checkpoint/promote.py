"""The gate before `promoted`: hold-out metrics reach what the plan asks, and enough people have signed that.

Spec: docs/spec/checkpoint.md, Promotion.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from sealwright.crypto.canonical import MAX_JSON
from sealwright.crypto.document import Digest, Id16, Name, Time
from sealwright.crypto.dsse import Envelope, key_id
from sealwright.crypto.statement import Statement, ed25519
from sealwright.errors import AppraisalError, AppraisalFailure, VerificationError
from sealwright.protocol.lease import SKEW
from sealwright.protocol.plan import Plan, Threshold
from sealwright.protocol.training_data import Version
from sealwright.training.checkpoint.chain import VerifiedCheckpoint
from sealwright.training.checkpoint.trust import TrainingTrust


class Promotion(Statement):
    """People's word that one checkpoint may be used."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.promotion.v1+json"

    format: Literal["sealwright-promotion/v1"] = "sealwright-promotion/v1"
    lineage: Id16
    version: Version
    checkpoint: Digest  # of the statement
    run: Name
    gate: Annotated[list[Threshold], Field(min_length=1, max_length=16)]
    approved: Time


def check_gate(plan: Plan, metrics: dict[str, str]) -> None:
    """Prove that a checkpoint's own hold-out metrics reach every threshold of its plan.

    Raises:
        AppraisalError: stage `gate`: `gate-empty`, `metric-missing`, `gate-not-met`; every failure is listed.
    """
    failures = []
    if not plan.gate:
        failures.append(AppraisalFailure("the plan has no gate: nothing can be promoted", code="gate-empty"))
    for threshold in plan.gate:
        found = metrics.get(threshold.metric)
        if found is None:
            text = f"the checkpoint does not say its {threshold.metric}"
            failures.append(AppraisalFailure(text, code="metric-missing"))
        elif not _within(Decimal(found), threshold):
            text = f"{threshold.metric} is {found}, the plan asks for {_wanted(threshold)}"
            failures.append(AppraisalFailure(text, code="gate-not-met"))
    if failures:
        raise AppraisalError(failures, stage="gate")


def promotion(checkpoint: VerifiedCheckpoint, *, at: datetime) -> Promotion:
    """Return what approvers sign: only for a checkpoint whose chain was verified and whose gate is met.

    Raises:
        AppraisalError: see `check_gate`.
    """
    said = checkpoint.statement.predicate
    check_gate(checkpoint.plan, said.metrics)
    return Promotion(
        lineage=said.lineage,
        version=said.version,
        checkpoint=checkpoint.statement.digest(),
        run=said.run,
        gate=checkpoint.plan.gate,
        approved=at,
    )


def approve(envelope: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return a promotion (DSSE) with one more signature. ValueError: this key has signed it."""
    before = Envelope.parse(envelope)
    if key_id(key.public_key()) in [name for name, _ in before.signatures]:
        raise ValueError("this key has signed it")
    one = Envelope.sign(Promotion.PAYLOAD_TYPE, before.unverified_payload, key)
    return Envelope(
        payload_type=before.payload_type,
        unverified_payload=before.unverified_payload,
        signatures=(*before.signatures, *one.signatures),
    ).encode()


def verify_promotion(
    envelope: bytes, checkpoint: VerifiedCheckpoint, trust: TrainingTrust, *, at: datetime
) -> Promotion:
    """Return a promotion proved to be of this checkpoint, by enough approvers, with the gate met.

    Raises:
        FormatError, VerificationError, AppraisalError: stages `promotion`, `gate`.
    """
    keys = [ed25519(key) for key in trust.approvers]
    opened = Envelope.parse(envelope)
    payload = opened.verify(Promotion.PAYLOAD_TYPE, keys, threshold=trust.approvals, stage="promotion")
    said = Promotion.parse(payload, limit=MAX_JSON)
    about = checkpoint.statement
    wanted = (about.predicate.lineage, checkpoint.version, about.digest(), about.predicate.run)
    if (said.lineage, said.version, said.checkpoint, said.run) != wanted or said.gate != checkpoint.plan.gate:
        raise VerificationError(
            "the promotion is of another checkpoint or gate", code="checkpoint-promotion", stage="promotion"
        )
    if not about.predicate.created - SKEW <= said.approved <= at + SKEW:
        raise VerificationError(
            "it was approved before it was made, or in the future",
            code="checkpoint-promotion",
            stage="promotion",
        )
    check_gate(checkpoint.plan, about.predicate.metrics)
    return said


def _within(value: Decimal, threshold: Threshold) -> bool:
    low, high = threshold.at_least, threshold.at_most
    return (low is None or value >= Decimal(low)) and (high is None or value <= Decimal(high))


def _wanted(threshold: Threshold) -> str:
    parts = [("at least", threshold.at_least), ("at most", threshold.at_most)]
    return " and ".join(f"{word} {value}" for word, value in parts if value is not None)
