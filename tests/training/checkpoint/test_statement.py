"""Statements, trust, environments and promotions: strict parsers, one spelling, and rules of their own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.training.checkpoint.chains import NOW

from sealwright.crypto.document import Document
from sealwright.crypto.dsse import Envelope
from sealwright.errors import FormatError, SealwrightError
from sealwright.protocol.checkpoint import (
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
from sealwright.protocol.plan import Threshold
from sealwright.training.checkpoint import Environment, TrainingTrust, this_environment
from sealwright.training.checkpoint.promote import Promotion

D, E = bytes(32), bytes(range(32))
ENTRY = WorkerEntry(worker=D, evidence=D, result=D, grants=[E])
PREDICATE = CheckpointPredicate(
    lineage=bytes(16), version=2, parent=D, created=NOW, run="triage", plan=D, run_spec=D, code=D, epoch=1,
    artefact=Artefact(kid="weights", manifest_digest=D), model_key=b"spki",
    signer=Attested(evidence=D, result=D), broker_keys=D, data=[DataUse(policy=D, stages=[E])], workers=[ENTRY],
    aggregation=Aggregation(mode="none", contributors=1), metrics={"accuracy": "0.5"}, environment=D,
    privacy=Privacy(
        mechanism="gaussian", accountant="rdp", epsilon="1", delta="0.1", clip="1", noise_multiplier="1"
    ),
    log=LogPosition(origin="log.test/one", size=1),
)  # fmt: skip
STATEMENT = CheckpointStatement.of(PREDICATE, weights=E)
PROMOTION = Promotion(
    lineage=bytes(16), version=1, checkpoint=D, run="triage", gate=[Threshold(metric="m", at_least="1")],
    approved=NOW,
)  # fmt: skip
DOCUMENTS: tuple[Document, ...] = (STATEMENT, PROMOTION, this_environment())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: type(one).__name__)
@given(data=st.data())
def test_a_parser_raises_only_its_own_error(document: Document, data: st.DataObject) -> None:
    assert type(document).parse(document.encode()) == document
    raw = bytearray(document.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert type(document).parse(bytes(raw)).encode() == bytes(raw)
    except FormatError:
        return


@given(raw=st.binary(max_size=300))
def test_noise_is_no_trust_and_no_statement(raw: bytes) -> None:
    for parse in (CheckpointStatement.claimed, TrainingTrust.load, Environment.parse):
        with pytest.raises(SealwrightError):
            parse(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1},
        {"version": 0},
        {"parent": None},
        {"workers": []},
        {"workers": [ENTRY, ENTRY]},
        {"workers": [ENTRY.model_copy(update={"worker": E}), ENTRY]},
        {"data": [DataUse(policy=D, stages=[]), DataUse(policy=D, stages=[])]},
        {"data": [DataUse(policy=E, stages=[]), DataUse(policy=D, stages=[])]},
        {"metrics": {"accuracy": "0.50"}},
        {"metrics": {"a b": "1"}},
        {"run": ""},
        {"surplus": 1},
    ],
    ids=str,
)
def test_a_predicate_has_one_form(changes: dict[str, Any]) -> None:
    said = {name: getattr(PREDICATE, name) for name in CheckpointPredicate.model_fields} | changes
    with pytest.raises(ValueError):
        CheckpointPredicate.model_validate(said)


@pytest.mark.parametrize(
    "changes",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "urn:sealwright:inference-receipt:v1"},
        {"subject": []},
        {"subject": [{"name": "other", "digest": {"sha256": "00" * 32}}]},
        {"subject": [{"name": "model.safetensors", "digest": {"sha512": "00" * 64}}]},
    ],
    ids=str,
)
def test_a_statement_is_about_one_set_of_weights(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        CheckpointStatement.from_json(STATEMENT.to_json() | changes)


def test_a_receipt_does_not_pass_for_a_checkpoint() -> None:
    """Both are in-toto statements under one payload type: the predicate's type keeps them apart."""
    from sealwright.protocol.receipt import ReceiptStatement

    envelope = Envelope(
        payload_type=CheckpointStatement.PAYLOAD_TYPE,
        unverified_payload=STATEMENT.encode(),
        signatures=(("k", bytes(64)),),
    )
    with pytest.raises(FormatError):
        ReceiptStatement.unverified(envelope.encode())


def test_large_statements_are_read_and_larger_ones_refused() -> None:
    def many(count: int) -> bytes:
        workers = [ENTRY.model_copy(update={"worker": at.to_bytes(32, "big")}) for at in range(count)]
        predicate = PREDICATE.model_copy(update={"workers": workers})
        payload = CheckpointStatement.of(predicate, weights=E).encode()
        return Envelope(
            payload_type=CheckpointStatement.PAYLOAD_TYPE,
            unverified_payload=payload,
            signatures=(("k", bytes(64)),),
        ).encode()

    assert len(CheckpointStatement.claimed(many(4096)).predicate.workers) == 4096
    with pytest.raises(FormatError):
        CheckpointStatement.claimed(many(4097))


def test_entries_of_the_log_are_public_digests() -> None:
    said = json.loads(STATEMENT.log_entry())
    assert said == {"type": "checkpoint", "commitment": STATEMENT.digest().hex()}
