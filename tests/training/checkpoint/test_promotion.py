"""The gate and the people before `promoted`; and receipts that name the checkpoint that answered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.training.checkpoint.chains import NOW, Run
from tests.training.world import plan

from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url
from sealwright.enclave.receipts import Answer
from sealwright.errors import AppraisalError, SealwrightError
from sealwright.protocol.enclave_config import ArtefactEntry, TenantList
from sealwright.training.checkpoint.promote import (
    Promotion,
    approve,
    check_gate,
    promotion,
    verify_promotion,
)
from sealwright.training.checkpoint.serve import served_checkpoint

ONE, TWO, STRANGER = (Ed25519PrivateKey.generate() for _ in range(3))
LATER = NOW + timedelta(minutes=10)


def trust(honest: Run, *keys: Ed25519PrivateKey, approvals: int = 1) -> Any:
    names = [b64url(key.public_key().public_bytes_raw()) for key in keys]
    return honest.trust(approvers=names, approvals=approvals)


def refused(work: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(SealwrightError) as caught:
        work()
    return caught.value.stage, caught.value.code


def test_enough_people_promote_a_checkpoint(honest: Run) -> None:
    newest = honest.verify().newest
    made = promotion(newest, at=LATER)
    envelope = made.sign(ONE)
    assert verify_promotion(envelope, newest, trust(honest, ONE), at=LATER) == made
    two = trust(honest, ONE, TWO, approvals=2)
    assert refused(lambda: verify_promotion(envelope, newest, two, at=LATER)) == (
        "promotion",
        "untrusted-signer",
    )
    both = approve(envelope, TWO)
    assert verify_promotion(both, newest, two, at=LATER) == made
    assert refused(lambda: verify_promotion(both, newest, trust(honest, STRANGER), at=LATER)) == (
        "promotion",
        "untrusted-signer",
    )
    assert refused(lambda: verify_promotion(both, newest, honest.trust(), at=LATER)) == (
        "promotion",
        "untrusted-signer",
    )
    with pytest.raises(ValueError, match="has signed"):
        approve(both, ONE)


def test_one_person_counts_once(honest: Run) -> None:
    newest = honest.verify().newest
    one = Envelope.parse(promotion(newest, at=LATER).sign(ONE))
    twice = Envelope(
        payload_type=one.payload_type,
        unverified_payload=one.unverified_payload,
        signatures=(*one.signatures, *one.signatures),
    ).encode()
    two = trust(honest, ONE, TWO, approvals=2)
    assert refused(lambda: verify_promotion(twice, newest, two, at=LATER)) == (
        "promotion",
        "untrusted-signer",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1},
        {"lineage": bytes(16)},
        {"checkpoint": bytes(32)},
        {"run": "other"},
        {"gate": [{"metric": "accuracy", "at_least": "0.1"}]},
        {"approved": NOW - timedelta(minutes=5)},
        {"approved": LATER + timedelta(minutes=6)},
    ],
)
def test_a_promotion_is_of_one_checkpoint_and_its_gate(honest: Run, changes: dict[str, Any]) -> None:
    newest = honest.verify().newest
    made = Promotion.model_validate(promotion(newest, at=LATER).model_dump() | changes)
    assert refused(lambda: verify_promotion(made.sign(ONE), newest, trust(honest, ONE), at=LATER)) == (
        "promotion",
        "checkpoint-promotion",
    )


GATE = [
    {"metric": "accuracy", "at_least": "0.5"},
    {"metric": "loss", "at_most": "0.3"},
    {"metric": "recall", "at_least": "0.2", "at_most": "0.9"},
]


@pytest.mark.parametrize(
    ("gate", "metrics", "codes"),
    [
        (GATE, {"accuracy": "0.5", "loss": "0.3", "recall": "0.9"}, []),
        (GATE, {"accuracy": "0.49", "loss": "0.31", "recall": "0.1"}, ["gate-not-met"] * 3),
        (GATE, {"accuracy": "0.75", "recall": "0.95"}, ["metric-missing", "gate-not-met"]),
        (GATE, {}, ["metric-missing"] * 3),
        ([], {"accuracy": "1"}, ["gate-empty"]),
    ],
)
def test_the_gate(gate: list[Any], metrics: dict[str, str], codes: list[str]) -> None:
    made = plan(gate=gate)
    if not codes:
        check_gate(made, metrics)
        return
    with pytest.raises(AppraisalError) as caught:
        check_gate(made, metrics)
    assert [failure.code for failure in caught.value.failures] == codes
    assert caught.value.stage == "gate"


def test_a_receipt_names_the_checkpoint_that_answered(honest: Run) -> None:
    chain = honest.verify()
    said = chain.newest.statement
    entry = ArtefactEntry(
        kid="weights",
        manifest_digest=said.predicate.artefact.manifest_digest,
        model="triage",
        checkpoint=said.digest(),
    )
    values = receipt_values(entry)
    assert served_checkpoint(values, chain) is chain.newest
    for changes, code in (
        ({"checkpoint": None}, "served-unnamed"),
        ({"manifest_digest": None}, "served-unnamed"),
        ({"checkpoint": "00" * 32}, "served-elsewhere"),
        ({"checkpoint": chain.checkpoints[0].statement.digest().hex()}, "served-elsewhere"),
        ({"manifest_digest": "00" * 32}, "served-elsewhere"),
    ):
        assert refused(lambda: served_checkpoint(values | changes, chain)) == ("serving", code)  # noqa: B023


def receipt_values(entry: ArtefactEntry) -> dict[str, object]:
    """Return the fields as a receipt has them, opened."""
    import json

    answer = Answer(
        tenant="acme", caller="ward", kid=entry.kid, manifest_digest=entry.manifest_digest, model=entry.model,
        decision="allow", status="complete", request=bytes(32), response=bytes(32), tokens_in=1, tokens_out=1,
        transport="ohttp", checkpoint=entry.checkpoint,
    )  # fmt: skip
    return {name: json.loads(value) for name, value in answer.fields().items()}


def test_models_that_are_no_checkpoints_are_listed_as_before() -> None:
    entry = ArtefactEntry(kid="k", manifest_digest=bytes(32), model="m")
    assert "checkpoint" not in entry.to_json()
    assert "checkpoint" not in receipt_values(entry)
    listed = TenantList(tenant="acme", salt=bytes(32), artefacts=[entry])
    named = TenantList(
        tenant="acme", salt=bytes(32), artefacts=[entry.model_copy(update={"checkpoint": bytes(32)})]
    )
    assert listed.commitment() != named.commitment()
