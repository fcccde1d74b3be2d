"""From the newest checkpoint to its base and to the owners of its data, offline. Spec: docs/spec/checkpoint.md, Verifying.

Reads one folder; no network, no clock, and nothing of the folder is believed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sealwright.crypto.statement import ed25519
from sealwright.crypto.streaming import SEGMENT_BYTES, Layout
from sealwright.errors import SealwrightError, VerificationError
from sealwright.protocol.checkpoint import (
    MAX_STATEMENT,
    MODEL_FILE,
    CheckpointPredicate,
    CheckpointStatement,
)
from sealwright.protocol.lease import SKEW
from sealwright.protocol.plan import Plan
from sealwright.sealing import Manifest
from sealwright.sealing.files import FileReader
from sealwright.sealing.model_signing import verify_model
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LoggedEntry, LogProof
from sealwright.training.checkpoint.attested import Attesting, Participant, check_digest, in_version
from sealwright.training.checkpoint.data_use import Budgets, UsedData, verify_data
from sealwright.training.checkpoint.environment import Environment
from sealwright.training.checkpoint.folder import (
    MANIFEST,
    MODEL_SIGNATURE,
    PROOF,
    STATEMENT,
    CheckpointFolder,
)
from sealwright.training.checkpoint.model_key import model_key
from sealwright.training.checkpoint.rounds import verify_round
from sealwright.training.checkpoint.trust import TrainingTrust
from sealwright.training.checkpoint.versions import Newest, check_newest
from sealwright.training.secagg.spec import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCheckpoint:
    """One version, with all it rests on. Made by `verify_chain` alone."""

    statement: CheckpointStatement
    plan: Plan
    signer: Participant
    workers: Mapping[bytes, Participant]  # by worker id
    data: tuple[UsedData, ...]
    run_spec: RunSpec | None  # of secure aggregation
    environment: Environment
    manifest: Manifest
    logged: LoggedEntry

    @property
    def version(self) -> int:
        """Its number."""
        return self.statement.predicate.version

    @property
    def confidential(self) -> bool:
        """True only if signer and all workers ran in hardware TEEs."""
        return all(one.appraisal.confidential for one in (self.signer, *self.workers.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedChain:
    """A lineage from its base to its newest version."""

    checkpoints: tuple[VerifiedCheckpoint, ...]  # from version 1 on

    @property
    def newest(self) -> VerifiedCheckpoint:
        """The last one."""
        return self.checkpoints[-1]

    @property
    def lineage(self) -> bytes:
        """The lineage's id (16 bytes)."""
        return self.newest.statement.predicate.lineage

    @property
    def policies(self) -> dict[bytes, UsedData]:
        """The owners' policies that any version used, by digest, with the last use."""
        return {used.policy.digest(): used for one in self.checkpoints for used in one.data}


def verify_chain(
    folder: Path, trust: TrainingTrust, *, at: datetime, newest: Newest | None = None
) -> VerifiedChain:
    """Return the lineage in `folder`, every version proved, from the base to the newest.

    Resuming begins with this: a checkpoint whose chain does not hold is not trained on.

    Args:
        trust: whom the auditor believes.
        at: the auditor's time.
        newest: what is known of the lineage beside `trust.newest`: a broker, or a file.

    Raises:
        FormatError, VerificationError, RevokedError, CollateralError, AppraisalError: the first step that failed,
            by stage and code; the text says in which version.
    """
    trust.check_time(at)
    walk = _Walk(CheckpointFolder(folder), trust, at)
    versions = walk.folder.versions()
    if not versions:
        raise VerificationError("the folder has no checkpoint", code="checkpoint-missing", stage="chain")
    if versions != list(range(1, len(versions) + 1)):
        # In order and each once, so the first that is not in its place is where the gap is.
        absent = next(place for place, version in enumerate(versions, 1) if place != version)
        raise VerificationError(
            f"version {absent} is not there: the chain has a gap", code="checkpoint-missing", stage="chain"
        )
    done: list[VerifiedCheckpoint] = []
    for version in versions:
        try:
            done.append(walk.verify(version, done[-1] if done else None))
        except SealwrightError as error:
            raise in_version(version, error) from None
    chain = VerifiedChain(checkpoints=tuple(done))
    _check_known(chain, trust, newest)
    return chain


class _Walk:
    def __init__(self, folder: CheckpointFolder, trust: TrainingTrust, at: datetime) -> None:
        self.folder, self._trust, self._at = folder, trust, at
        self._attesting = Attesting(folder, trust, at)
        self._budgets = Budgets()
        self._log: LogPolicy = trust.log()

    def verify(self, version: int, parent: VerifiedCheckpoint | None) -> VerifiedCheckpoint:
        # 1. Format. Nothing of it is believed before the signature holds.
        envelope = self.folder.read(version, STATEMENT)
        said = CheckpointStatement.claimed(envelope).predicate
        # 2. The broker of the time, and the evidence of who signed.
        broker = self._attesting.broker_keys(said)
        signer = self._attesting.participant(said.signer, said, broker)
        # 3. The signature, by the key that this evidence vouches for.
        keys = [ed25519(signer.keyset.receipt_key)]
        statement = CheckpointStatement.verify(envelope, keys, stage="signature", limit=MAX_STATEMENT)
        # 4. The chain.
        _check_chain(statement, version, parent, self._at)
        # 5. The plan, and the weights it began with.
        plan = self._plan(said)
        # 6. Each worker.
        workers = {}
        for entry in said.workers:
            workers[entry.worker] = worker = self._attesting.participant(entry, said, broker)
            if not hmac.compare_digest(worker.worker, entry.worker):
                raise VerificationError(
                    "the evidence is of another worker", code="worker-mismatch", stage="evidence"
                )
        # 7. Owners' policies, grants, budgets, pre-processing.
        data = verify_data(
            said,
            plan,
            workers,
            broker=broker,
            folder=self.folder,
            trust=self._trust,
            budgets=self._budgets,
        )
        # 8. The round.
        run_spec = verify_round(said, plan, self.folder)
        # 9. Weights: model signature, and the sealed artefact.
        self._check_model(version, statement)
        manifest = self._manifest(version, said, signer)
        # 10. Where it was made, and the log.
        return VerifiedCheckpoint(
            statement=statement,
            plan=plan,
            signer=signer,
            workers=workers,
            data=data,
            run_spec=run_spec,
            environment=self._environment(said),
            manifest=manifest,
            logged=self._logged(version, statement, parent),
        )

    def _plan(self, said: CheckpointPredicate) -> Plan:
        raw = self.folder.sidecar(said.plan, "the plan")
        check_digest(hashlib.sha256(raw).digest(), said.plan, "plan", "the plan")
        plan = Plan.parse(raw)
        wanted = (plan.run, plan.code, plan.base, plan.attested_as)
        if (said.run, said.code, said.base, said.run_spec) != wanted:
            raise VerificationError(
                "run, code, base or run specification are not those of the plan",
                code="plan-mismatch",
                stage="plan",
            )
        if plan.base is not None and plan.base not in self._trust.bases:
            raise VerificationError(
                f"the trust file does not list base weights {plan.base.hex()[:16]}…",
                code="base-unknown",
                stage="plan",
            )
        return plan

    def _check_model(self, version: int, statement: CheckpointStatement) -> None:
        said = statement.predicate
        bundle = self.folder.read(version, MODEL_SIGNATURE)
        name = verify_model(bundle, {MODEL_FILE: statement.weights}, model_key(said.model_key))
        if name != f"{said.run}-{version}":
            raise VerificationError(
                "the model's signature is of another model", code="model-differs", stage="model-signature"
            )

    def _manifest(self, version: int, said: CheckpointPredicate, signer: Participant) -> Manifest:
        envelope = self.folder.read(version, MANIFEST)
        keys = [ed25519(signer.keyset.receipt_key)]
        manifest = Manifest.verify(envelope, keys, said.artefact.manifest_digest)
        found = (manifest.artefact_id, manifest.version, manifest.kid, len(manifest.lengths))
        if found != (said.lineage, version, said.artefact.kid, 1):
            raise VerificationError(
                "the sealed weights are of another lineage, version or key",
                code="checkpoint-artefact",
                stage="artefact",
            )
        path = self.folder.artefact(version)
        if path.exists():  # an auditor may have been given none: the manifest is what the statement names
            with FileReader(path) as reader:
                wanted = Layout(length=manifest.lengths[0], segment_bytes=SEGMENT_BYTES).sealed_length
                if not reader.holds(wanted):
                    raise VerificationError(
                        f"the sealed weights have {reader.size} bytes, the manifest says {wanted}",
                        code="wrong-artefact-length",
                        stage="artefact",
                    )
        return manifest

    def _environment(self, said: CheckpointPredicate) -> Environment:
        raw = self.folder.sidecar(said.environment, "the environment")
        check_digest(hashlib.sha256(raw).digest(), said.environment, "environment", "the environment")
        return Environment.parse(raw)

    def _logged(
        self, version: int, statement: CheckpointStatement, parent: VerifiedCheckpoint | None
    ) -> LoggedEntry:
        proof = LogProof.parse(self.folder.read(version, PROOF))
        logged = proof.verify(statement.log_entry(), self._log)
        place = statement.predicate.log
        before = -1 if parent is None else parent.logged.index
        if logged.origin != place.origin or not before < place.size <= logged.index:
            raise VerificationError(
                f"entry {logged.index} of {logged.origin} is not where the statement says it would come",
                code="log-position",
                stage="log",
            )
        return logged


def _check_chain(
    statement: CheckpointStatement, version: int, parent: VerifiedCheckpoint | None, at: datetime
) -> None:
    said = statement.predicate
    if said.version != version:
        raise VerificationError(
            f"the statement is of version {said.version}", code="checkpoint-version", stage="chain"
        )
    if said.created > at + SKEW:
        raise VerificationError(
            "the checkpoint is dated in the future", code="checkpoint-not-yet", stage="chain"
        )
    if parent is None:
        return
    before = parent.statement.predicate
    if said.lineage != before.lineage:
        raise VerificationError("the checkpoint is of another lineage", code="lineage-foreign", stage="chain")
    if said.parent is None or not hmac.compare_digest(said.parent, parent.statement.digest()):
        raise VerificationError(
            "the checkpoint goes on from another parent", code="checkpoint-parent", stage="chain"
        )
    if said.plan != before.plan:
        raise VerificationError("the plan was changed in a lineage", code="plan-changed", stage="chain")
    if said.created < before.created or said.epoch < before.epoch:
        raise VerificationError(
            "the checkpoint is older than its parent, or of an earlier epoch",
            code="checkpoint-order",
            stage="chain",
        )


def _check_known(chain: VerifiedChain, trust: TrainingTrust, newest: Newest | None) -> None:
    statement = chain.newest.statement
    if trust.newest is not None:
        if trust.newest.lineage != chain.lineage:
            raise VerificationError(
                "the trust file is about another lineage", code="lineage-foreign", stage="lineage"
            )
        _check_held(chain, (trust.newest.version, trust.newest.statement))
    if newest is not None:
        _check_held(chain, newest.newest(statement.predicate.lineage))


def _check_held(chain: VerifiedChain, held: tuple[int, bytes] | None) -> None:
    check_newest(chain.newest.statement, held)
    if held is not None:
        # A newer version is fine only where it goes on from the one that is known.
        check_newest(chain.checkpoints[held[0] - 1].statement, held)
