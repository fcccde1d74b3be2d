"""A real broker over HTTP, four owners with a shard each, and agents on a fake platform that attest to it for real."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.enclave.support import BROKER, CODE, TENANT, Clock, _served

from sealwright.appraisal.policy import KeyPolicy
from sealwright.broker.data import DataKeys
from sealwright.broker.service import Running, init_broker, open_broker
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.crypto.hpke import HpkePrivateKey, Kem, open_from
from sealwright.crypto.statement import ed25519
from sealwright.protocol.plan import Plan
from sealwright.protocol.sealing_key import SealingKey
from sealwright.protocol.training_data import Budget, DataPolicy, Shard
from sealwright.sealing import read_manifest
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform
from sealwright.testing.workload import FakeWorkload
from sealwright.training.agent.config import AgentPayload, TrainingConfig
from sealwright.training.agent.main import build
from sealwright.training.agent.wire import Call, Handler, answered
from sealwright.training.countersign import FarCountersign
from sealwright.training.data import seal_shard
from sealwright.training.drive import Driver, Node
from sealwright.training.rerun import own_code
from sealwright.training.routes import Runs, training_routes
from sealwright.training.secagg.spec import RunSpec

FEATURES, CLASSES, ROWS = 4, 3, 60
PURPOSE = "to test"
OWNERS = ("north", "south", "east", "west", "centre")


def rows(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return data that a linear model learns."""
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, ROWS)
    centres = np.eye(CLASSES, FEATURES) * 3
    return {
        "x": (centres[y] + random.normal(0, 1, (ROWS, FEATURES))).astype(np.float32),
        "y": y.astype(np.int64),
    }


@dataclass
class World:
    """Everything of a run but its engine."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    code: bytes = CODE
    epochs: int = 8
    mode: str = "masked"
    running: Running = field(init=False)
    shards: dict[str, Shard] = field(default_factory=dict)
    policies: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            self.platform = SoftwareTestPlatform(self.clock())
        made = init_broker(self.folder / "broker", clock=self.clock)
        self.root, self.log_key = made.root_public, made.log_key
        self.owner = Ed25519PrivateKey.generate()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Serve the broker; make keys, shards, policies, and register the run."""
        with open_broker(self.folder / "broker", clock=self.clock) as running:
            self.running = replace(running, more=training_routes(running.core))
            with _served(self.running) as self.peer:
                self._set_up()
                yield

    def _set_up(self) -> None:
        runs, admin = Runs(self.running.core), self.running.admin
        self.peers = KeyPolicy.from_json(self.policy())
        self.spec = RunSpec.from_json(
            {
                "format": "sealwright-run-spec/v1",
                "run": "triage",
                "mode": self.mode,
                "elements": (FEATURES + 1) * CLASSES + 2,
                "clip": "4",
                "max_weight": 100,
                "min_roster": 2,
                "max_roster": 8,
                "min_survivors": 2,
                "degree": 63,
                "threshold": 40,
                "countersigner": b64url(runs.key.public_key().public_bytes_raw()),
                "enrolment_policy": self.peers.digest().hex(),
                "purpose": PURPOSE,
            }
        )
        runs.register(self.spec.encode())
        self.plan = Plan(
            run="triage",
            trainer="sealwright.training.rerun:softmax",
            code=own_code(),
            parameters={"features": str(FEATURES), "classes": str(CLASSES), "rate": "0.5"},
            seed=7,
            epochs=self.epochs,
            batch_rows=20,
            aggregation=self.spec.digest(),
            gate=[],
            purpose=PURPOSE,
        )
        admin.add_owner(TENANT, self.owner.public_key().public_bytes_raw())
        keys = DataKeys(self.running.core)
        for at, name in enumerate(OWNERS):
            self.shards[name] = self._shard(name, at)
            policy = self.data_policy(name)
            self.policies[name] = policy.sign(self.owner)
            keys.admit_policy(self.policies[name])
            admin.admit(name, read_manifest(self.folder / f"{name}.npz.sealed"), owner_key=None, force=False)

    def _shard(self, name: str, seed: int) -> Shard:
        self.running.admin.create_key(TENANT, name, "data", self.peers.encode())
        columns: dict[str, Any] = rows(seed)
        np.savez(self.folder / f"{name}.npz", **columns)
        return seal_shard(
            self.folder / f"{name}.npz",
            self.folder / f"{name}.npz.sealed",
            name=name,
            dek=self._dek(name),
            kid=name,
            owner=self.owner,
        )

    def _dek(self, kid: str) -> bytes:
        private = HpkePrivateKey.generate(Kem.XWING)
        release = self.running.core.secrets.release.public_key().public_bytes_raw()
        raw = self.running.admin.sealing_key(kid, private.public.raw)
        said = SealingKey.verify(raw, [ed25519(release)], stage="signature")
        return open_from(private, said.enc, said.hpke_info(), b"", said.ciphertext)

    def data_policy(self, name: str, **changes: Any) -> DataPolicy:
        """Return what an owner allows: these workers, this run."""
        said = {
            "dataset": name,
            "tenant": TENANT,
            "version": 1,
            "created": self.clock(),
            "expires": self.clock() + timedelta(days=30),
            "shards": [self.shards[name]],
            "measurements": [self.measurement()],
            "configs": [self.config("worker").digest()],
            "code": [own_code()],
            "run": self.plan.digest(),
            "purpose": PURPOSE,
            "budget": Budget(epochs=self.epochs, rows=self.epochs * ROWS),
        }
        return DataPolicy.model_validate(said | changes)

    def measurement(self) -> bytes:
        """Return what the agents' code measures to, as appraisal says it."""
        return self.code

    def policy(self, **changes: Any) -> dict[str, Any]:
        now = self.clock().replace(microsecond=0)
        platform = {
            "vector": {"hardware": 97, "runtime-opaque": 96},
            "roots": [self.platform.root_fingerprint.hex()],
            "code": [self.code.hex()],
            "claims": {},
        }
        return {
            "format": "sealwright-policy/v1",
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(now - timedelta(hours=1)),
            "expires": rfc3339(now + timedelta(hours=20)),
            "platforms": {"software": platform},
            "config": {"brokers": [b64url(self.root)], "log_keys": [self.log_key]},
            "lease_s": 600,
            **changes,
        }

    def config(self, role: str, **changes: Any) -> TrainingConfig:
        said = {
            "format": "sealwright-training-config/v1",
            "workload": {"name": "train", "entry": "sealwright.training.agent.main:main"},
            "role": role,
            "brokers": [{"url": f"http://{BROKER[0]}", "root": b64url(self.root)}],
            "policy_signers": [],
            "log": {
                "origin": self.log_key.split("+")[0],
                "keys": [self.log_key],
                "witnesses": [],
                "quorum": 0,
            },
            "egress": [],
            "plan": self.plan.to_json(),
            "run_spec": self.spec.to_json(),
            "peers": self.peers.to_json(),
            "metrics": ["accuracy", "loss"],
            "threads": 1,
        }
        return TrainingConfig.from_json(said | changes)

    def workload(
        self, role: str, names: Sequence[str] = (), kids: Sequence[str] = (), **changes: Any
    ) -> FakeWorkload:
        manifests = {name: b64url(read_manifest(self.folder / f"{name}.npz.sealed")) for name in names}
        payload = AgentPayload.from_json(
            {
                "format": "sealwright-agent-payload/v1",
                "kids": list(kids or names) or [OWNERS[0]],
                "policies": [b64url(self.policies[name]) for name in names],
                "manifests": manifests,
            }
        )
        settings: dict[str, Any] = {
            "code": self.code,
            "config": self.config(role).encode(),
            "payload": payload.encode(),
            "peers": {BROKER: self.peer},
            "extra_fds": {name: os.open(self.folder / f"{name}.npz.sealed", os.O_RDONLY) for name in names},
            **changes,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            return FakeWorkload(self.platform, **settings)

    def agents(self) -> dict[Node, Handler]:
        return {name: build(self.workload("worker", [name])) for name in OWNERS}

    def driver(self, agents: Mapping[Node, Handler], aggregator: Handler | None = None) -> Driver:
        own = aggregator or build(self.workload("aggregator"))
        runs = Runs(self.running.core)
        return Driver(
            Direct(agents),
            lambda call: answered(own, Call.parse(call.encode())),
            FarCountersign(self.spec.digest(), lambda call: runs.call(Call.parse(call.encode()))),
        )


@dataclass
class Direct:
    """A transport in this process."""

    agents: Mapping[Node, Handler]

    def nodes(self) -> Sequence[Node]:
        return list(self.agents)

    def exchange(self, calls: Mapping[Node, Call], *, timeout_s: float) -> Mapping[Node, Call]:
        return {
            node: Call.parse(answered(self.agents[node], Call.parse(call.encode())).encode())
            for node, call in calls.items()
        }
