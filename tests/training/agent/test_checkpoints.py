"""A run of agents over a real broker ends with checkpoints that an auditor walks offline, to the owners' policies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.enclave.support import TENANT
from tests.training.agent.world import OWNERS, World

from sealwright.cli import main
from sealwright.crypto.encoding import b64url
from sealwright.enclave.http import Answer
from sealwright.errors import SealwrightError
from sealwright.protocol.worker import MAX_WORKER_EVIDENCE, WorkerEvidence
from sealwright.sealing import Manifest, open_to_file
from sealwright.training.agent.introduction import Introduction
from sealwright.training.agent.main import build
from sealwright.training.agent.wire import AgentRefusal, Call, Handler, answered
from sealwright.training.broker import TrainingBroker
from sealwright.training.checkpoint import CheckpointFolder, TrainingTrust, verify_chain
from sealwright.training.drive import Driver
from sealwright.training.safetensors import decode_safetensors
from sealwright.training.save import save_checkpoint

LINEAGE = bytes(range(16))
KID = "weights"


class Stage:
    """A run, its folder of checkpoints, and an auditor's trust."""

    def __init__(self, world: World, root: Path) -> None:
        self.world, self.folder = world, CheckpointFolder(root)
        world.running.admin.create_key(TENANT, KID, "model", world.peers.encode())
        self.aggregator: Handler = build(world.workload("aggregator", kids=[KID]))
        self.driver: Driver = world.driver(world.agents(), self.aggregator)

    def sealing_key(self) -> bytes:
        """What the model's owner does: verify the aggregator's evidence, then have the key sealed to it."""
        shown = answered(self.aggregator, Call("introduce"))
        said = Introduction.parse(bytes(shown.part()), limit=1 << 24)
        keyset = WorkerEvidence.parse(said.evidence, limit=MAX_WORKER_EVIDENCE).parsed_keyset()
        return self.world.running.admin.sealing_key(KID, keyset.tee_pubkey.pub)

    def save(self, key: bytes | None = None) -> int:
        def request(method: str, path: str, body: bytes) -> Answer:
            host, port = self.world.peer
            found = httpx2.request(method, f"http://{host}:{port}{path}", content=body, trust_env=False)
            return Answer(found.status_code, "", found.content)

        return save_checkpoint(
            lambda call: Call.parse(answered(self.aggregator, Call.parse(call.encode())).encode()),
            self.folder,
            TrainingBroker(request, self.world.root),
            sealing_key=key or self.sealing_key(),
            lineage=LINEAGE,
            origin=self.world.log_key.split("+")[0],
            log_size=self.world.running.data.log_size,
        )

    def trust(self, **changes: Any) -> TrainingTrust:
        policy = self.world.policy()
        del policy["lease_s"]
        more = {
            "format": "sealwright-trust/v1",
            "tenant": TENANT,
            "brokers": [b64url(self.world.root)],
            "log_policy": f"log {self.world.log_key}\nquorum none\n",
        }
        said = {
            "format": "sealwright-training-trust/v1",
            "trust": {**policy, **more},
            "owners": {TENANT: [b64url(self.world.owner.public_key().public_bytes_raw())]},
        }
        return TrainingTrust.load(json.dumps(said | changes).encode())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    world = World(tmp_path / "world")
    with world.open():
        one = Stage(world, tmp_path / "run")
        assert one.driver.enrol() == {}
        yield one


def test_the_chain_of_a_run_holds_down_to_the_owners_policies(stage: Stage, tmp_path: Path) -> None:
    stage.driver.round()
    assert stage.save() == 1
    stage.driver.round()
    stage.driver.round()
    assert stage.save() == 2
    chain = verify_chain(stage.folder.root, stage.trust(), at=stage.world.clock())
    newest = chain.newest.statement.predicate
    assert (newest.version, newest.epoch, newest.lineage) == (2, 3, LINEAGE)
    assert len(newest.workers) == newest.aggregation.contributors == len(OWNERS)
    assert newest.aggregation.mode == "masked"
    assert {used.policy.dataset for used in chain.policies.values()} == set(OWNERS)
    assert [len(entry.grants) for entry in newest.workers] == [2] * len(OWNERS)
    assert float(newest.metrics["accuracy"]) > 0.8
    # The weights are what the aggregator has, and open with the broker's key alone.
    manifest = Manifest.unverified_parse(stage.folder.read(2, "model.safetensors.sealed.json"))
    open_to_file(stage.folder.artefact(2), manifest, stage.world._dek(KID), tmp_path / "weights")
    weights = decode_safetensors((tmp_path / "weights").read_bytes())["weights"]
    assert np.allclose(weights.ravel(), stage.aggregator._weights, atol=1e-6)


def test_the_command_line(stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.driver.round()
    stage.save()
    trust = tmp_path / "trust.json"
    trust.write_bytes(stage.trust().encode())
    verify = ["train", "verify", str(stage.folder.root), "--trust", str(trust)]
    assert main(verify) == 0
    shown = capsys.readouterr().out
    assert "1 versions, each proved" in shown
    assert all(f"{name} of {TENANT}" in shown for name in OWNERS)
    assert main([*verify, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["newest"], said["confidential"], len(said["policies"])) == (1, False, len(OWNERS))
    assert main([*verify, "--at", "2020-01-01T00:00:00Z"]) == 12
    host, port = stage.world.peer
    broker = [
        "--broker",
        f"http://{host}:{port}",
        "--token-file",
        str(stage.world.folder / "broker/admin-token"),
    ]
    capsys.readouterr()
    assert main(["train", "countersigner", *broker]) == 0
    assert capsys.readouterr().out.strip() == b64url(stage.world.spec.countersigner)
    (tmp_path / "spec").write_bytes(stage.world.spec.encode())
    assert main(["train", "register", str(tmp_path / "spec"), *broker, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": stage.world.spec.digest().hex()}
    (tmp_path / "config").write_bytes(stage.world.config("worker").encode())
    assert main(["train", "measure", str(tmp_path / "config"), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["config_digest"] == stage.world.config("worker").digest().hex()
    assert main(["train", "agent", str(tmp_path / "spec"), "--listen", str(tmp_path / "s")]) == 65
    assert main(["train", "agent", str(tmp_path / "config"), "--listen", "s", "--shard", "no"]) == 2


def test_what_was_changed_is_refused(stage: Stage, tmp_path: Path) -> None:
    stage.driver.round()
    stage.save()
    trust, at = stage.trust(), stage.world.clock()
    names = sorted(path.name for path in (stage.folder.root / "sidecars").iterdir())
    assert len(names) > 3 * len(OWNERS)
    for name in names:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(stage.folder.root, copy)
        raw = bytearray((copy / "sidecars" / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (copy / "sidecars" / name).write_bytes(raw)
        with pytest.raises(SealwrightError):
            verify_chain(copy, trust, at=at)
    stranger = b64url(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    with pytest.raises(SealwrightError) as caught:
        verify_chain(stage.folder.root, stage.trust(owners={TENANT: [stranger]}), at=at)
    assert caught.value.stage == "data-policy"


def test_a_worker_that_dropped_out_is_not_in_it(stage: Stage) -> None:
    transport: Any = stage.driver._transport
    inner = transport.exchange

    def lossy(calls: Any, *, timeout_s: float) -> Any:
        found = dict(inner(calls, timeout_s=timeout_s))
        if any(call.name == "train" for call in calls.values()):
            found.pop("west")
        return found

    transport.exchange = lossy
    done = stage.driver.round()
    assert dict(done.dropped) == {"west": "no-answer"}
    stage.save()
    chain = verify_chain(stage.folder.root, stage.trust(), at=stage.world.clock())
    assert len(chain.newest.statement.predicate.workers) == len(OWNERS) - 1
    assert {used.policy.dataset for used in chain.policies.values()} == set(OWNERS) - {"west"}


def test_without_a_new_round_there_is_no_checkpoint(stage: Stage) -> None:
    with pytest.raises(AgentRefusal) as caught:
        stage.save()
    assert caught.value.code == "no-round"
    stage.driver.round()
    stage.save()
    with pytest.raises(AgentRefusal):
        stage.save()
    assert stage.folder.versions() == [1]


def test_a_key_sealed_to_somebody_else_or_by_somebody_else_is_refused(stage: Stage) -> None:
    from sealwright.crypto.hpke import HpkePrivateKey, Kem

    stage.driver.round()
    other = stage.world.running.admin.sealing_key(KID, HpkePrivateKey.generate(Kem.XWING).public.raw)
    with pytest.raises(AgentRefusal) as caught:
        stage.save(other)
    assert (caught.value.code, caught.value.stage) == ("sealing-key-foreign", "sealing-key")
    forged = bytearray(stage.sealing_key())
    forged[-20] ^= 1
    with pytest.raises(AgentRefusal):
        stage.save(bytes(forged))
    assert stage.folder.versions() == []


def test_a_grant_of_another_worker_drops_who_shows_it(stage: Stage) -> None:
    transport: Any = stage.driver._transport
    inner = transport.exchange

    def swapped(calls: Any, *, timeout_s: float) -> Any:
        found = dict(inner(calls, timeout_s=timeout_s))
        if any(call.name == "train" for call in calls.values()):
            east, west = found["east"], found["west"]
            found["west"] = Call("ok", west.said, [*west.parts[:2], *east.parts[2:]])
        return found

    transport.exchange = swapped
    assert dict(stage.driver.round().dropped) == {"west": "grant-mismatch"}


def test_an_update_in_the_name_of_nobody_is_refused(stage: Stage) -> None:
    driver: Any = stage.driver
    asked: list[Call] = []
    inner = driver._aggregator

    def also_for_nobody(call: Call) -> Call:
        if call.name == "receive" and not asked:
            asked.append(inner(Call("receive", {**call.said, "worker": "00" * 32}, call.parts)))
        return inner(call)

    driver._aggregator = also_for_nobody
    assert driver.round().contributors == len(OWNERS)
    (answer,) = asked
    assert (answer.name, answer.said["code"]) == ("refused", "peer-unverified")
