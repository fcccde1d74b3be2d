"""A lineage as a worker makes it: one site, one worker that signs too, versions as many as are asked for."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.broker.support import CODE, NOW
from tests.training.world import TRAINING_CODE, Site, arrays, plan, site

from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url
from sealwright.protocol.checkpoint import (
    Aggregation,
    Attested,
    CheckpointStatement,
    DataUse,
    LogPosition,
    Privacy,
    WorkerEntry,
)
from sealwright.protocol.plan import Plan
from sealwright.protocol.training_data import DataGrant
from sealwright.training.checkpoint import (
    CheckpointFolder,
    CheckpointKeys,
    Draft,
    TrainingTrust,
    VerifiedChain,
    this_environment,
    verify_chain,
    write_checkpoint,
)
from sealwright.training.checkpoint.folder import STATEMENT, put_file
from sealwright.training.data import StageRecord, run_stage

LINEAGE = bytes(range(16))


@dataclass(slots=True)
class Run:
    """A run that writes checkpoints, and the trust that an auditor has."""

    site: Site
    folder: CheckpointFolder
    keys: CheckpointKeys
    last: CheckpointStatement | None = None
    envelopes: list[bytes] = field(default_factory=list)
    epoch: int = 0

    @property
    def now(self) -> Any:
        return self.site.world.clock.now

    def attested(self) -> Attested:
        assert self.site.evidence is not None
        raw, result = self.site.evidence.encode(), self.site.result.encode()
        found = Attested(evidence=_sha(raw), result=_sha(result))
        self.folder.put_sidecar(found.evidence, raw)
        self.folder.put_sidecar(found.result, result)
        return found

    def grant(self, epoch: int | None = None) -> bytes:
        """Spend one epoch, and keep its grant."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        released = self.site.released(self.epoch)
        self.folder.put_sidecar(released.grant.digest(), released.grant_envelope)
        return released.grant.digest()

    def stage(self, **changes: Any) -> bytes:
        _, record = run_stage(
            "scale",
            lambda columns, _: {"x": columns["x"] * 2, "y": columns["y"]},
            arrays(),
            inputs=[self.site.shard.manifest_digest],
            code=TRAINING_CODE,
            run=self.site.plan.digest(),
            parameters={"by": "2"},
        )
        record = StageRecord.model_validate(record.model_dump(by_alias=True) | changes)
        self.folder.put_sidecar(record.digest(), record.sign(self.site.worker.receipt))
        return record.digest()

    def policy(self) -> bytes:
        envelope = self.site.policy.sign(self.site.world.owner)
        self.folder.put_sidecar(self.site.policy.digest(), envelope)
        return self.site.policy.digest()

    def draft(self, **changes: Any) -> Draft:
        """What an honest worker says after one more epoch."""
        attested = self.attested()
        envelope = self.site.broker_envelope
        self.folder.put_sidecar(self.site.broker_keys.digest(), envelope)
        said: dict[str, Any] = {
            "lineage": LINEAGE,
            "parent": self.last,
            "plan": self.site.plan,
            "created": self.now,
            "signer": attested,
            "broker_keys": self.site.broker_keys.digest(),
            "aggregation": Aggregation(mode="none", contributors=1),
            "metrics": {"accuracy": "0.75"},
            "environment": this_environment(),
            "log": LogPosition(origin=self.origin, size=self.site.keys.log_size),
            "privacy": Privacy(
                mechanism="gaussian", accountant="rdp", epsilon="1.5", delta="0.00001", clip="1",
                noise_multiplier="1.1",
            ),
        }  # fmt: skip
        said |= {name: value for name, value in changes.items() if name != "grants"}
        if "data" not in said:
            said["data"] = (DataUse(policy=self.policy(), stages=[self.stage()]),)
        if "workers" not in said:
            grants = changes["grants"] if "grants" in changes else [self.grant()]
            said["workers"] = (
                WorkerEntry(
                    worker=_sha(self.site.worker.keyset.receipt_key),
                    evidence=attested.evidence,
                    result=attested.result,
                    grants=grants,
                ),
            )
        if "log" not in changes:
            said["log"] = LogPosition(origin=self.origin, size=self.site.keys.log_size)
        return Draft(**{"epoch": self.epoch} | said)

    @property
    def origin(self) -> str:
        return self.site.world.log_key.split("+")[0]

    def write(
        self, draft: Draft | None = None, *, log: bool = True, tensors: Any = None
    ) -> CheckpointStatement:
        """Write, log and prove the next version."""
        made = draft or self.draft()
        weights = tensors or {
            "w": np.full((3, 2), made.epoch, dtype=np.float32),
            "b": np.zeros(2, dtype=np.float32),
        }
        written = write_checkpoint(
            self.folder, weights, made, keys=self.keys, dek=self.site.weights_dek, kid="weights"
        )
        self.last = written.statement
        self.envelopes.append(written.envelope)
        if log:
            index = self.site.keys.advance(written.envelope)
            self.folder.put_proof(written.statement.predicate.version, self.site.keys.prove(index))
        return written.statement

    def resign(
        self,
        folder: CheckpointFolder,
        version: int,
        change: Callable[[dict[str, Any]], None],
        *,
        key: Any = None,
    ) -> CheckpointStatement:
        """Change a statement and sign it again with the attested key, as a broken worker would do; log it too."""
        envelope = Envelope.parse(folder.read(version, STATEMENT))
        said = json.loads(envelope.unverified_payload)
        change(said)
        statement = CheckpointStatement.from_json(said)
        path = folder.root / f"v{version:06d}" / STATEMENT
        put_file(path, statement.sign(key or self.keys.receipt))
        folder.put_proof(version, self.logged(statement))
        return statement

    def logged(self, statement: CheckpointStatement) -> bytes:
        """Log a statement behind the broker's back, and return the proof."""
        ledger = self.site.running.core.state.ledger
        return self.site.keys.prove(ledger.settle(ledger.submit(statement.log_entry())))

    def forge_grant(self, **changes: Any) -> bytes:
        """Keep a grant as a broken broker would sign it, and return its digest."""
        worker = self.site.worker
        self.epoch += 1
        policy = self.site.policy
        said: dict[str, Any] = {
            "request": bytes(32), "policy": policy.digest(), "key_policy": bytes(32), "tenant": "acme",
            "kid": "shard-a", "manifest_digest": self.site.shard.manifest_digest,
            "keyset_digest": worker.keyset.digest(), "config_digest": _sha(worker.config), "measurement": CODE,
            "run": self.site.plan.digest(), "code": TRAINING_CODE, "purpose": policy.purpose,
            "epoch": self.epoch, "rows": 10, "spent": {"epochs": self.epoch, "rows": 10 * self.epoch},
            "granted": self.now,
        }  # fmt: skip
        grant = DataGrant.model_validate(said | changes)
        self.epoch = grant.epoch
        self.folder.put_sidecar(grant.digest(), grant.sign(self.site.running.core.secrets.release))
        return grant.digest()

    def trust(self, **changes: Any) -> TrainingTrust:
        world = self.site.world
        policy = json.loads(world.policy())
        trust = {
            "format": "sealwright-trust/v1",
            "tenant": "acme",
            "brokers": policy["config"]["brokers"],
            "log_policy": f"log {world.log_key}\nquorum none\n",
        } | {
            name: policy[name]
            for name in (
                "version",
                "profile",
                "require_hardware",
                "created",
                "expires",
                "platforms",
                "config",
            )
        }
        said: dict[str, Any] = {
            "format": "sealwright-training-trust/v1",
            "trust": trust,
            "owners": {"acme": [b64url(world.owner.public_key().public_bytes_raw())]},
        }
        return TrainingTrust.load(json.dumps(said | changes).encode())

    def verify(self, folder: Path | None = None, **options: Any) -> VerifiedChain:
        trust = options.pop("trust", None) or self.trust()
        return verify_chain(folder or self.folder.root, trust, at=options.pop("at", self.now), **options)

    def copy(self, to: Path) -> CheckpointFolder:
        shutil.copytree(self.folder.root, to)
        return CheckpointFolder(to)


@contextmanager
def run(folder: Path, *, versions: int = 2, made: Plan | None = None, **policy: Any) -> Iterator[Run]:
    """A run with so many honest checkpoints."""
    with site(folder / "site", made=made or plan(), **policy) as one:
        one.enrol()
        going = Run(
            site=one,
            folder=CheckpointFolder(folder / "run"),
            keys=CheckpointKeys(receipt=one.worker.receipt),
        )
        for _ in range(versions):
            one.world.clock.forward(seconds=60)
            going.write()
        yield going


def _sha(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


__all__ = ["CODE", "LINEAGE", "NOW", "Run", "run"]
