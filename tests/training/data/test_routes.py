"""Over HTTP: what a worker and an administrator send to a real broker's application."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.broker.support import Lines
from tests.training.checkpoint.chains import LINEAGE, run
from tests.training.world import Site, site

from sealwright.cli import main
from sealwright.crypto.encoding import b64url
from sealwright.errors import AppraisalError, SealwrightError, UnavailableError, VerificationError
from sealwright.protocol.training_data import TRAINING_PATH, DataRequest
from sealwright.training.broker import TrainingBroker
from sealwright.training.data import data_request


class Wire:
    """HTTP to a broker's application, and what a test does to its answers."""

    def __init__(self, one: Site) -> None:
        self.client = TestClient(one.running.app(log=Lines()))
        self.bend: Any = None

    def __call__(self, method: str, path: str, body: bytes) -> Any:
        answer = self.client.request(method, path, content=body)
        found = _Answer(answer.status_code, answer.content)
        return self.bend(path, found) if self.bend else found


class _Answer:
    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path / "site") as made:
        made.keys = made.running.data
        yield made


def broker(one: Site) -> tuple[TrainingBroker, Wire]:
    wire = Wire(one)
    return TrainingBroker(wire, one.world.broker_root), wire


def enrolled(one: Site, client: TrainingBroker) -> Any:
    def make(nonce: bytes) -> Any:
        return one.worker.evidence(nonce, one.plan.attested_as)

    return client.enrol(make, ["shard-a", "weights"], at=one.world.clock.now)


def asked(one: Site, epoch: int = 1, **changes: Any) -> DataRequest:
    made = data_request(
        one.policy, "shard-a", one.plan, keyset_digest=one.worker.keyset.digest(), epoch=epoch
    )
    return made.model_copy(update=changes)


def test_a_worker_enrols_and_gets_its_shard(one: Site) -> None:
    client, _ = broker(one)
    enrolment = enrolled(one, client)
    released = client.release(asked(one), one.worker.receipt, one.worker.tee, enrolment)
    assert released.dek == bytearray(one.dek)


def test_a_refusal_has_its_code_and_no_reason(one: Site) -> None:
    client, wire = broker(one)
    enrolment = enrolled(one, client)
    with pytest.raises(AppraisalError) as caught:
        client.release(asked(one, purpose="other"), one.worker.receipt, one.worker.tee, enrolment)
    assert (caught.value.stage, caught.value.code) == ("broker", "data-purpose-not-allowed")
    body = asked(one, 1, purpose="other").sign(one.worker.receipt)
    answer = wire("POST", f"{TRAINING_PATH}/data", body)
    assert b"triage" not in answer.body


def test_checkpoints_over_http(tmp_path: Path) -> None:
    with run(tmp_path, versions=1) as made:
        client, _ = broker(made.site)
        newest = client.newest(LINEAGE)
        assert newest is not None
        assert newest == made.site.keys.newest(LINEAGE)
        assert client.newest(bytes(16)) is None
        made.verify(newest=client)
        # The broker that the routes speak to has not enrolled the worker: enrolments are a process's own.
        with pytest.raises(AppraisalError) as caught:
            client.advance(made.envelopes[0])
        assert caught.value.code == "not-attested"
        made.site.keys = made.site.running.data
        made.site.enrol()
        statement = made.write(made.draft(epoch=made.epoch), log=False)
        made.folder.put_proof(2, client.advance(made.envelopes[-1]))
        assert made.verify(newest=client).newest.statement == statement


def test_answers_of_something_else_are_refused(one: Site) -> None:
    client, wire = broker(one)
    enrolment = enrolled(one, client)

    def answers(status: int, body: bytes) -> Any:
        return lambda *_: _Answer(status, body)

    for body in (b"", b"[]", b"{}", b'{"nonce": 1}', b"<html>"):
        wire.bend = answers(200, body)
        with pytest.raises(SealwrightError):
            enrolled(one, client)
    for body in (b"{}", b'{"version": "1"}', b'{"version": 1}', b'{"version": 1, "statement": "00"}'):
        wire.bend = answers(200, body)
        with pytest.raises(SealwrightError):
            client.newest(LINEAGE)
    wire.bend = answers(503, b'{"code": "log-timeout"}')
    with pytest.raises(UnavailableError) as caught:
        client.advance(b"{}")
    assert caught.value.code == "broker-unreachable"
    wire.bend = answers(401, b'{"code": "\\u001b[31m"}')
    with pytest.raises(AppraisalError) as refused:
        client.release(asked(one), one.worker.receipt, one.worker.tee, enrolment)
    assert refused.value.code == "broker-refused"


def test_a_nonce_is_answered_once_and_a_result_is_of_it(one: Site) -> None:
    client, wire = broker(one)
    seen: dict[str, Any] = {}

    def keep(path: str, answer: Any) -> Any:
        return seen.setdefault(path, answer)

    wire.bend = keep
    enrolled(one, client)
    with pytest.raises(VerificationError) as caught:
        enrolled(one, client)
    assert caught.value.code == "nonce-used"
    wire.bend = lambda path, answer: seen[path] if path.endswith("/enrol") else answer
    with pytest.raises(VerificationError) as caught:
        enrolled(one, client)
    assert caught.value.code == "ear-mismatch"


def test_another_broker_is_refused(one: Site, tmp_path: Path) -> None:
    client = TrainingBroker(Wire(one), bytes(32))
    with pytest.raises(VerificationError) as caught:
        enrolled(one, client)
    assert (caught.value.stage, caught.value.code) == ("broker", "untrusted-signer")


def test_the_administrator_puts_policies_in_force(one: Site) -> None:
    _, wire = broker(one)
    newer = one.policy.model_copy(update={"version": 2})
    body = {"envelope": b64url(newer.sign(one.world.owner))}
    path = "/sealwright/v1/admin/data-policies"
    assert wire.client.post(path, json=body).status_code == 401
    token = (one.world.root / "admin-token").read_text().strip()
    answer = wire.client.post(path, json=body, headers={"authorization": f"Bearer {token}"})
    assert answer.json() == {"policy": newer.digest().hex()}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("nonce", b"x"),
        ("enrol", b"{}"),
        ("enrol", b'{"evidence": {}, "kids": []}'),
        ("enrol", b'{"evidence": {"a": 1}, "kids": ["shard-a"]}'),
        ("data", b"{}"),
        ("data", b"x" * (65 << 10)),
        ("checkpoints", b"{}"),
    ],
)
def test_noise_is_refused(one: Site, path: str, body: bytes) -> None:
    _, wire = broker(one)
    answer = wire("POST", f"{TRAINING_PATH}/{path}", body)
    assert answer.status in (400, 413)
    assert json.loads(answer.body)["code"]


def test_an_unknown_lineage_is_not_found(one: Site) -> None:
    _, wire = broker(one)
    for name in ("00" * 16, "nothing"):
        answer = wire("GET", f"{TRAINING_PATH}/lineages/{name}", b"")
        assert (answer.status, json.loads(answer.body)["code"]) == (404, "lineage-unknown")


def test_the_command_puts_policies_in_force(
    one: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, wire = broker(one)
    newer = one.policy.model_copy(update={"version": 2})
    path = tmp_path / "north.policy"
    path.write_bytes(newer.sign(one.world.owner))

    def ask(_url: str, token_file: Path, method: str, route: str, body: dict[str, object]) -> Any:
        headers = {"authorization": f"Bearer {token_file.read_text().strip()}"}
        return wire.client.request(method, f"/sealwright/v1/admin{route}", json=body, headers=headers).json()

    monkeypatch.setattr("sealwright.cli.broker.ask", ask)
    token = str(one.world.root / "admin-token")
    arguments = ["broker", "data-policy", "admit", str(path), "--broker", "http://broker.test"]
    assert main([*arguments, "--token-file", token]) == 0
    assert capsys.readouterr().out == f"data policy  {newer.digest().hex()}\n"
