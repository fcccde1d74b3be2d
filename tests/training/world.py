"""A broker, an owner with one sealed shard, and a worker on a fake platform that trains on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.broker.support import CODE, NOW, World, _keyset

from sealwright.broker.data import DataKeys
from sealwright.broker.service import Running
from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url
from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.lease import BrokerKeys, verify_broker_keys
from sealwright.protocol.plan import Plan
from sealwright.protocol.training_data import Budget, DataPolicy, DataRequest, Shard
from sealwright.protocol.worker import WorkerEvidence
from sealwright.sealing import read_manifest
from sealwright.training.data import Released, data_request, open_release, seal_shard

TRAINING_CODE = bytes.fromhex("c0de" * 16)
PURPOSE = "triage model, hospital north"
ROWS = 10


def plan(**changes: Any) -> Plan:
    said: dict[str, Any] = {
        "run": "triage",
        "trainer": "sealwright.training.rerun:softmax",
        "code": TRAINING_CODE,
        "parameters": {"rate": "0.1"},
        "seed": 7,
        "epochs": 2,
        "batch_rows": 4,
        "gate": [{"metric": "accuracy", "at_least": "0.5"}],
        "purpose": PURPOSE,
    }
    return Plan.model_validate(said | changes)


@dataclass(slots=True)
class Worker:
    """Keys and config of a worker's boot."""

    world: World
    receipt: Ed25519PrivateKey
    tee: HpkePrivateKey
    keyset: Keyset
    config: bytes

    @classmethod
    def make(cls, world: World, **config: Any) -> Worker:
        receipt, tee = Ed25519PrivateKey.generate(), HpkePrivateKey.generate(Kem.XWING)
        said = {
            "format": "test-worker-config/v1",
            "brokers": [{"root": b64url(world.broker_root)}],
            "policy_signers": [],
            "log": {"keys": [world.log_key]},
            "egress": [],
        }
        keyset = _keyset(tee, receipt, world.clock.now)
        return cls(world=world, receipt=receipt, tee=tee, keyset=keyset, config=canonical(said | config))

    def evidence(self, nonce: bytes, run_spec: bytes, *, code: bytes = CODE) -> WorkerEvidence:
        bare = WorkerEvidence(
            evidence={}, nonce=nonce, config=self.config, keyset=self.keyset.encode(), run_spec=run_spec
        )
        # The report data is the same for whatever evidence is put in: the fake has no devices.
        from sealwright.protocol.report_data import Purpose, report_data

        bound = report_data(
            Purpose.ENROL,
            nonce=nonce,
            config_digest=bare.config_digest,
            keyset_digest=self.keyset.digest(),
            run_spec_digest=run_spec,
        )
        quoted = self.world.platform.quote(bound, (code, bare.config_digest))
        return bare.model_copy(update={"evidence": quoted.to_json()})


@dataclass(slots=True)
class Site:
    """An open broker with one key `shard-a` and one `weights`, and what the owner made."""

    world: World
    running: Running
    folder: Path
    keys: DataKeys
    worker: Worker
    plan: Plan
    shard: Shard
    dek: bytes
    policy: DataPolicy
    evidence: WorkerEvidence | None = None
    result: str = ""
    weights_dek: bytes = field(default=b"", repr=False)

    @property
    def artefact(self) -> Path:
        return self.folder / "a.npz.sealed"

    @property
    def broker_envelope(self) -> bytes:
        return self.running.core.broker_keys()

    @property
    def broker_keys(self) -> BrokerKeys:
        return verify_broker_keys(self.broker_envelope, [self.world.broker_root], at=self.world.clock.now)

    def admit(self, **changes: Any) -> DataPolicy:
        """Put the owner's policy, changed, in force."""
        self.policy = self.policy.model_copy(update=changes)
        self.keys.admit_policy(self.policy.sign(self.world.owner))
        return self.policy

    def enrol(self, worker: Worker | None = None, *, code: bytes = CODE) -> WorkerEvidence:
        """Attest a worker for the run."""
        one = worker or self.worker
        self.evidence = one.evidence(self.keys.nonce(), self.plan.attested_as, code=code)
        self.result = self.keys.enrol(self.evidence.encode(), ["shard-a", "weights"])
        return self.evidence

    def request(self, epoch: int = 1, **changes: Any) -> DataRequest:
        made = data_request(
            self.policy, "shard-a", self.plan, keyset_digest=self.worker.keyset.digest(), epoch=epoch
        )
        return made.model_copy(update=changes)

    def ask(self, request: DataRequest) -> bytes:
        return self.keys.release(request.sign(self.worker.receipt))

    def released(self, epoch: int = 1, **changes: Any) -> Released:
        request = self.request(epoch, **changes)
        return open_release(self.ask(request), request, broker=self.broker_keys, tee=self.worker.tee)

    def manifest(self) -> bytes:
        return read_manifest(self.artefact)


def arrays(rows: int = ROWS) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "x": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3),
        "y": (np.arange(rows) % 2).astype(np.int64),
    }


def data_policy(shard: Shard, made: Plan, worker: Worker, **changes: Any) -> DataPolicy:
    said: dict[str, Any] = {
        "dataset": "north",
        "tenant": "acme",
        "version": 1,
        "created": NOW,
        "expires": NOW + timedelta(days=30),
        "shards": [shard],
        "measurements": [CODE],
        "configs": [_sha256(worker.config)],
        "code": [TRAINING_CODE],
        "run": made.digest(),
        "purpose": PURPOSE,
        "budget": Budget(epochs=3, rows=3 * ROWS),
    }
    return DataPolicy.model_validate(said | changes)


@contextmanager
def site(folder: Path, *, made: Plan | None = None, **policy: Any) -> Iterator[Site]:
    """A broker with an owner's key, shard and policy; nobody is enrolled yet."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder / "broker")
    with world.open() as running:
        owner = world.owner.public_key().public_bytes_raw()
        running.admin.create_key("acme", "shard-a", "data", world.policy())
        running.admin.add_owner("acme", owner)
        dek = world.sealing_key(running, "shard-a")
        np.savez(folder / "a.npz", **arrays())
        shard = seal_shard(
            folder / "a.npz",
            folder / "a.npz.sealed",
            name="a",
            dek=dek,
            kid="shard-a",
            owner=world.owner,
        )
        worker = Worker.make(world)
        chosen = made or plan()
        one = Site(
            world=world,
            running=running,
            folder=folder,
            keys=DataKeys(running.core),
            worker=worker,
            plan=chosen,
            shard=shard,
            dek=dek,
            policy=data_policy(shard, chosen, worker, **policy),
        )
        one.admit()
        running.admin.admit("shard-a", read_manifest(one.artefact), owner_key=None, force=False)
        running.admin.create_key("acme", "weights", "model", world.policy())
        one.weights_dek = world.sealing_key(running, "weights")
        yield one


def _sha256(raw: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(raw).digest()


__all__ = ["NOW", "Site", "Worker", "arrays", "data_policy", "plan", "site"]


def later(**amount: float) -> datetime:
    """Return a time after the tests' start."""
    return NOW + timedelta(**amount)
