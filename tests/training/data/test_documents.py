"""Policies, requests, grants, plans and worker evidence: strict parsers, and no field that a signature does not cover."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.training.world import NOW, PURPOSE, TRAINING_CODE, later, plan

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Document
from sealwright.crypto.dsse import Envelope
from sealwright.errors import FormatError, SealwrightError, VerificationError
from sealwright.protocol.plan import Plan, Threshold, decimal_text
from sealwright.protocol.training_data import Budget, DataGrant, DataPolicy, DataRequest, Shard
from sealwright.protocol.worker import WorkerEvidence
from sealwright.training.data import StageRecord

KEY = Ed25519PrivateKey.generate()
D = bytes(range(32))
SHARD = Shard(name="a", kid="shard-a", manifest_digest=D, kind="npz", rows=10)
POLICY = DataPolicy(
    dataset="north", tenant="acme", version=1, created=NOW, expires=later(days=1), shards=[SHARD],
    measurements=[D], configs=[D], code=[TRAINING_CODE], run=D, purpose=PURPOSE, budget=Budget(epochs=3, rows=30),
)  # fmt: skip
REQUEST = DataRequest(
    nonce=D, keyset_digest=D, policy=D, kid="shard-a", manifest_digest=D, run=D, code=D, epoch=1, rows=10,
    purpose=PURPOSE,
)  # fmt: skip
GRANT = DataGrant(
    request=D, policy=D, key_policy=D, tenant="acme", kid="shard-a", manifest_digest=D, keyset_digest=D,
    config_digest=D, measurement=D, run=D, code=D, purpose=PURPOSE, epoch=1, rows=10,
    spent=Budget(epochs=1, rows=10), granted=NOW,
)  # fmt: skip
STAGE = StageRecord(run=D, name="scale", inputs=[D], code=D, parameters={"by": "2"}, output=D, rows=3)
EVIDENCE = WorkerEvidence(evidence={"a": 1}, nonce=D, config=b"{}", keyset=b"{}", run_spec=D)
STATEMENTS = (POLICY, REQUEST, GRANT, STAGE)
DOCUMENTS: tuple[Document, ...] = (*STATEMENTS, plan(), EVIDENCE)


def paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where each scalar of a JSON value stands."""
    if isinstance(value, dict):
        return [found for key in value for found in paths(value[key], (*before, key))]
    if isinstance(value, list):
        return [found for at in range(len(value)) for found in paths(value[at], (*before, at))]
    return [before]


def bend(value: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy with one scalar changed to another of its type."""
    copied = json.loads(json.dumps(value))
    parent = copied
    for step in path[:-1]:
        parent = parent[step]
    old = parent[path[-1]]
    new: Any = old + 1 if isinstance(old, int) else ("1" if old[:1] == "0" else "0") + old[1:]
    parent[path[-1]] = new
    return copied


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: type(one).__name__)
def test_documents_read_back_as_they_were_written(document: Document) -> None:
    assert type(document).parse(document.encode()) == document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: type(one).__name__)
@given(data=st.data())
def test_a_parser_raises_only_its_own_error(document: Document, data: st.DataObject) -> None:
    raw = bytearray(document.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    try:
        parsed = type(document).parse(bytes(raw))
    except FormatError:
        return
    assert parsed.encode() == bytes(raw)


@given(raw=st.binary(max_size=300))
def test_noise_is_no_document(raw: bytes) -> None:
    for document in DOCUMENTS:
        with pytest.raises(FormatError):
            type(document).parse(raw)


@pytest.mark.parametrize(
    ("statement", "path"),
    [(one, path) for one in STATEMENTS for path in paths(one.to_json())],
    ids=lambda value: type(value).__name__ if isinstance(value, Document) else ".".join(map(str, value)),
)
def test_every_member_is_signed(statement: Any, path: tuple[Any, ...]) -> None:
    envelope = Envelope.parse(statement.sign(KEY))
    bent = Envelope(
        payload_type=envelope.payload_type,
        unverified_payload=canonical(bend(statement.to_json(), path)),
        signatures=envelope.signatures,
    ).encode()
    with pytest.raises(VerificationError) as caught:
        type(statement).verify(bent, [KEY.public_key()], stage="test")
    assert (caught.value.stage, caught.value.code) == ("test", "bad-signature")


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda one: type(one).__name__)
def test_every_bit_of_a_signature_counts(statement: Any) -> None:
    envelope = Envelope.parse(statement.sign(KEY))
    name, signature = envelope.signatures[0]
    for at in range(0, 8 * len(signature), 7):
        bent = bytearray(signature)
        bent[at // 8] ^= 1 << at % 8
        raw = Envelope(
            payload_type=envelope.payload_type,
            unverified_payload=envelope.unverified_payload,
            signatures=((name, bytes(bent)),),
        ).encode()
        with pytest.raises(VerificationError, match="does not hold"):
            type(statement).verify(raw, [KEY.public_key()], stage="test")


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda one: type(one).__name__)
def test_one_statement_does_not_pass_for_another(statement: Any) -> None:
    for other in STATEMENTS:
        if type(other) is not type(statement):
            with pytest.raises(SealwrightError) as caught:
                type(other).verify(statement.sign(KEY), [KEY.public_key()], stage="test")
            assert caught.value.code == "wrong-payload-type"


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": []},
        {"shards": [SHARD, SHARD]},
        {"shards": [SHARD, SHARD.model_copy(update={"name": "b", "kid": "other"})]},
        {"measurements": []},
        {"configs": []},
        {"code": []},
        {"purpose": ""},
        {"version": 0},
        {"egress": "some"},
        {"expires": NOW},
        {"budget": {"epochs": 0, "rows": 1}},
        {"budget": {"epochs": 1, "rows": 0}},
    ],
)
def test_a_policy_that_says_too_little_is_none(changes: dict[str, Any]) -> None:
    said = POLICY.to_json() | {
        name: [one.to_json() for one in value] if name == "shards" else value
        for name, value in changes.items()
    }
    if "expires" in changes:
        said["expires"] = said["created"]
    with pytest.raises(FormatError):
        DataPolicy.from_json(said)


@pytest.mark.parametrize(
    "text", ["", "00", "-0", "1.0", "1e3", ".5", "0.50", "+1", "1.", "nan", "0x1", "1" * 49]
)
def test_a_decimal_has_one_spelling(text: str) -> None:
    with pytest.raises(FormatError):
        Plan.from_json(plan().to_json() | {"gate": [{"metric": "m", "at_least": text}]})


@given(number=st.floats(min_value=-1e15, max_value=1e15, allow_nan=False))
def test_numbers_become_that_spelling(number: float) -> None:
    text = decimal_text(number)
    assert Threshold(metric="m", at_most=text).at_most == text
    assert float(text) == pytest.approx(number, rel=1e-12, abs=1e-24)


def test_numbers_without_a_spelling_are_refused() -> None:
    for number in (float("nan"), float("inf"), 1e18):
        with pytest.raises(ValueError, match="finite number"):
            decimal_text(number)


def test_a_plan_is_attested_by_its_aggregation_or_itself() -> None:
    alone = plan()
    assert alone.attested_as == alone.digest()
    assert plan(aggregation=D).attested_as == D
    with pytest.raises(FormatError):
        Plan.from_json(plan().to_json() | {"gate": [{"metric": "m"}]})
    with pytest.raises(FormatError):
        Plan.from_json(plan().to_json() | {"gate": [{"metric": "m", "at_least": "1"}] * 2})
