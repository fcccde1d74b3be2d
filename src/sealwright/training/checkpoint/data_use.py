"""From a checkpoint to the owners of its data: policies, grants, budgets over the whole chain, pre-processing.

Spec: docs/spec/checkpoint.md, Verifying, stages `data-policy`, `grant`, `budget`, `stages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sealwright.crypto.statement import ed25519
from sealwright.errors import VerificationError
from sealwright.protocol.checkpoint import CheckpointPredicate, DataUse, WorkerEntry
from sealwright.protocol.lease import BrokerKeys
from sealwright.protocol.plan import Plan
from sealwright.protocol.training_data import (
    DataGrant,
    DataPolicy,
    check_allowed,
    not_allowed,
    refused,
    require,
    spend,
)
from sealwright.training.checkpoint.attested import Participant, check_digest
from sealwright.training.checkpoint.folder import CheckpointFolder
from sealwright.training.checkpoint.trust import TrainingTrust
from sealwright.training.data.stages import StageRecord, verify_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedData:
    """Data of one owner that went into one checkpoint, proved to be within the owner's policy."""

    policy: DataPolicy
    grants: tuple[DataGrant, ...]
    stages: tuple[StageRecord, ...]


@dataclass(slots=True)
class Budgets:
    """What was read until now of each shard, by key and run: highest epoch, epochs, rows."""

    spent: dict[tuple[str, bytes], tuple[int, int, int]] = field(default_factory=dict)

    def add(self, grant: DataGrant, policy: DataPolicy) -> None:
        """Count a grant. Grants whose work is in no checkpoint leave gaps: the broker has counted more, never less.

        Raises:
            AppraisalError: stage `budget`: `epoch-spent`, `epochs-over-budget`, `rows-over-budget`.
            VerificationError: `spent-mismatch`.
        """
        name = grant.kid, grant.run
        epoch, epochs, rows = self.spent.get(name, (0, 0, 0))
        if grant.epoch <= epoch:
            raise not_allowed(
                f"epoch {grant.epoch} of {grant.kid} is in the chain already, or a later one is",
                "epoch-spent",
                "budget",
            )
        least = spend(policy.budget, (epochs, rows), grant.rows)
        said = grant.spent
        if said.epochs > policy.budget.epochs:
            raise not_allowed(
                f"{said.epochs} epochs of {grant.kid} were granted", "epochs-over-budget", "budget"
            )
        if said.rows > policy.budget.rows:
            raise not_allowed(f"{said.rows} rows of {grant.kid} were granted", "rows-over-budget", "budget")
        if said.epochs < least.epochs or said.rows < least.rows:
            raise refused(
                f"the broker counted {said.epochs} epochs and {said.rows} rows of {grant.kid}, "
                f"the chain has {least.epochs} and {least.rows}",
                "spent-mismatch",
                "budget",
            )
        self.spent[name] = grant.epoch, said.epochs, said.rows


def verify_data(
    said: CheckpointPredicate,
    plan: Plan,
    workers: Mapping[bytes, Participant],
    *,
    broker: BrokerKeys,
    folder: CheckpointFolder,
    trust: TrainingTrust,
    budgets: Budgets,
) -> tuple[UsedData, ...]:
    """Return the data that went into a checkpoint, each owner's policy held against what the broker granted.

    Args:
        workers: by id, already proved.
        budgets: of the versions before; what this one used is added.

    Raises:
        FormatError, CollateralError, VerificationError, AppraisalError.
    """
    policies = {use.policy: _policy(use, said, plan, folder, trust) for use in said.data}
    found: dict[bytes, list[DataGrant]] = {digest: [] for digest in policies}
    for entry in said.workers:
        for grant in _grants(entry, workers[entry.worker], policies, said, broker, folder):
            found[grant.policy].append(grant)
    for digest, grants in found.items():
        if not grants:
            raise refused(
                f"no grant under the policy of {policies[digest].dataset} is named", "data-unused", "grant"
            )
        for grant in sorted(grants, key=lambda one: (one.kid, one.epoch)):
            budgets.add(grant, policies[digest])
    return tuple(
        UsedData(
            policy=policies[use.policy],
            grants=tuple(found[use.policy]),
            stages=_stages(use, plan, policies[use.policy], found[use.policy], workers, folder),
        )
        for use in said.data
    )


def _policy(
    use: DataUse, said: CheckpointPredicate, plan: Plan, folder: CheckpointFolder, trust: TrainingTrust
) -> DataPolicy:
    envelope = folder.sidecar(use.policy, "an owner's policy")
    tenant = DataPolicy.unverified(envelope).tenant
    if tenant not in trust.owners:
        raise VerificationError(
            f"the trust file names no owner {tenant}", code="owner-unknown", stage="data-policy"
        )
    policy = DataPolicy.verify(envelope, map(ed25519, trust.owners[tenant]), stage="data-policy")
    check_digest(policy.digest(), use.policy, "data-policy", "an owner's policy")
    policy.check_time(said.created)
    about = f"the policy of {policy.dataset}"
    checks = (
        (policy.run == plan.digest(), "run-not-allowed", f"{about} is for another run"),
        (
            plan.code in policy.code,
            "training-code-not-allowed",
            f"{about} does not list the training code",
        ),
        (
            plan.purpose == policy.purpose,
            "data-purpose-not-allowed",
            f"{about} allows {policy.purpose!r} alone",
        ),
    )
    require(checks, "data-policy")
    return policy


def _grants(
    entry: WorkerEntry,
    worker: Participant,
    policies: Mapping[bytes, DataPolicy],
    said: CheckpointPredicate,
    broker: BrokerKeys,
    folder: CheckpointFolder,
) -> list[DataGrant]:
    grants = []
    for digest in entry.grants:
        envelope = folder.sidecar(digest, "a grant")
        grant = DataGrant.verify(envelope, [ed25519(broker.release_key)], stage="grant")
        check_digest(grant.digest(), digest, "grant", "a grant")
        policy = policies.get(grant.policy)
        if policy is None:
            raise refused(
                f"{grant.kid} was granted under a policy that is not named", "grant-without-policy", "grant"
            )
        own = (worker.keyset_digest, worker.evidence.config_digest, worker.appraisal.code)
        if (grant.keyset_digest, grant.config_digest, grant.measurement) != own:
            raise refused(f"{grant.kid} was granted to another worker", "grant-mismatch", "grant")
        check_allowed(policy, grant, measurement=worker.appraisal.code, config=worker.evidence.config_digest)
        policy.check_time(grant.granted)
        if grant.tenant != policy.tenant or grant.granted > said.created:
            raise refused(
                f"{grant.kid} was granted after the checkpoint, or for another tenant",
                "grant-mismatch",
                "grant",
            )
        grants.append(grant)
    return grants


def _stages(
    use: DataUse,
    plan: Plan,
    policy: DataPolicy,
    grants: Sequence[DataGrant],
    workers: Mapping[bytes, Participant],
    folder: CheckpointFolder,
) -> tuple[StageRecord, ...]:
    keys = [ed25519(worker.keyset.receipt_key) for worker in workers.values()]
    records = []
    for digest in use.stages:
        envelope = folder.sidecar(digest, "a stage of pre-processing")
        record = StageRecord.verify(envelope, keys, stage="stages")
        check_digest(record.digest(), digest, "stages", "a stage of pre-processing")
        records.append(record)
    sources = {grant.manifest_digest for grant in grants}
    verify_stages(records, sources=sources, run=plan.digest(), code=policy.code)
    return tuple(records)
