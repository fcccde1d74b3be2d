"""Keys of training data, released under owners' policies and budgets; and the newest checkpoint of each lineage.

Spec: docs/spec/training-data.md, Release; docs/spec/checkpoint.md, Rollback. Every decision is logged before it is returned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from sealwright import __version__
from sealwright.appraisal.ear import ear_digest, issue_ear
from sealwright.appraisal.platform import Appraisal, together
from sealwright.broker.backend import wiped
from sealwright.broker.core import Core, changed, decided, present, wrap_context
from sealwright.broker.data_rows import DataPolicyRow, LineageRow, policies_of, spent_with
from sealwright.broker.enrolled import Enrolled, Workers
from sealwright.broker.rows import Changes, KeyRow, OwnerRow
from sealwright.broker.state import View
from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Time
from sealwright.crypto.hpke import HpkePublicKey, Kem, seal_to
from sealwright.crypto.statement import ed25519
from sealwright.errors import RevokedError, UnavailableError
from sealwright.protocol.checkpoint import MAX_STATEMENT, CheckpointStatement
from sealwright.protocol.commitment import LogEntry
from sealwright.protocol.training_data import (
    DataGrant,
    DataPolicy,
    DataRelease,
    DataRequest,
    check_allowed,
    not_allowed,
    refused,
    release_info,
)
from sealwright.protocol.worker import MAX_WORKER_EVIDENCE, WorkerEvidence, appraise_worker

MAX_LINEAGES = 4096


class DataKeys:
    """Answers workers of training and data owners. May be called from several threads."""

    def __init__(self, core: Core, workers: Workers | None = None) -> None:
        self._core, self._state = core, core.state
        self._workers = workers or Workers(core.random)

    def admit_policy(self, envelope: bytes) -> bytes:
        """Put an owner's policy (DSSE) in force for its data set and run; return its digest.

        Its tenant's owner keys are those the broker knows (`broker owner add`). It admits nothing by itself: each
        key has a key policy too, and both have to agree.

        Raises:
            FormatError, CollateralError, VerificationError: not the owner's, or not above the version before.
        """
        said: dict[str, object] = {}

        def work(view: View) -> tuple[Changes, bytes]:
            claimed = DataPolicy.unverified(envelope)
            owners = view.all(OwnerRow, "owner", prefix=f"{claimed.tenant}/")
            policy = DataPolicy.verify(envelope, [ed25519(row.key) for row in owners], stage="data-policy")
            said.update(tenant=policy.tenant, dataset=policy.dataset, data_policy=policy.digest())
            policy.check_time(self._state.now())
            row = DataPolicyRow(policy=policy)
            _check_kids(view, policy)
            before = view.get(DataPolicyRow, *row.row_key)
            if before is not None and policy.version <= before.policy.version:
                raise refused("there is a newer policy of this data set", "version-rollback", "data-policy")
            return {row.row_key: row.encode()}, policy.digest()

        return changed(self._core, "data-policy", said, work)

    def nonce(self) -> bytes:
        """Return the nonce (32 bytes) that a worker's evidence has to answer."""
        with self._state.lock:
            return self._workers.nonce(self._state.now())

    def enrol(self, raw: bytes, kids: Sequence[str]) -> str:
        """Return the result (EAR, compact JWT) about a worker's evidence, by the policies of all keys it will ask for.

        Args:
            raw: `WorkerEvidence`, over a nonce of this broker.
            kids: keys of shards, or of the checkpoint; at least one.

        Raises:
            SealwrightError: refused; the nonce is used up.
        """
        said: dict[str, object] = {"kids": list(kids)}
        with decided(self._core, "enrol", said):
            evidence = WorkerEvidence.parse(raw, limit=MAX_WORKER_EVIDENCE)
            with self._state.lock:
                now = self._state.now()
                self._workers.use(evidence.nonce, now)
                view = self._state.view()
                rows = {row.policy.digest(): row for row in (_active(view, kid) for kid in kids)}
                appraisals = [self._appraised(evidence, row, now) for row in rows.values()]
                if not appraisals:
                    raise not_allowed("a worker names the keys it will ask for", "key-unknown", "key")
                token = self._result(evidence, sorted(rows), appraisals, now)
                one = self._workers.add(evidence, now)
                said |= {"keyset_digest": one.keyset_digest, "config_digest": evidence.config_digest}
                said |= {"evidence_digest": _envelope_digest(evidence), "ear_digest": ear_digest(token)}
                ticket = self._state.decide(present({**said, "action": "enrol", "verdict": "grant"}))
            self._state.ledger.settle(ticket)
            return token

    def release(self, envelope: bytes) -> bytes:
        """Return a shard's key for one epoch (`DataRelease`), its cost taken from the budget before it leaves.

        The request granted last, sent again, is answered again and costs nothing.

        Args:
            envelope: `DataRequest` (DSSE).

        Raises:
            SealwrightError: refused.
        """
        said: dict[str, object] = {}
        with decided(self._core, "data-release", said):
            return self._release(envelope, said)

    def advance(self, envelope: bytes) -> int:
        """Log a checkpoint as the newest of its lineage; return its index in the log.

        The newest, sent again, is logged again; a version that is not the next, or goes on from another parent, is refused.

        Args:
            envelope: `CheckpointStatement` (DSSE), signed by an enrolled worker's `receipt_key`.

        Raises:
            VerificationError: `checkpoint-rollback`, `checkpoint-forked`, `checkpoint-parent`, `lineage-foreign`.
        """
        said: dict[str, object] = {}
        with decided(self._core, "checkpoint", said):
            with self._state.lock:
                now = self._state.now()
                statement, one = self._signed(envelope, now)
                view = self._state.view()
                key = _active(view, statement.predicate.artefact.kid)
                measurement = self._appraised(one.evidence, key, now).code
                row = _next(view, statement, measurement)
                said |= {"lineage": row.lineage, "version": row.version, "statement": row.statement}
                fields = present({**said, "action": "checkpoint", "verdict": "grant"})
                self._state.change(view, {row.row_key: row.encode()}, fields)
                ticket = self._state.ledger.submit(statement.log_entry())
            return self._state.ledger.settle(ticket)

    def newest(self, lineage: bytes) -> tuple[int, bytes] | None:
        """Return version and statement digest of a lineage's newest checkpoint."""
        with self._state.lock:
            row = self._state.view().get(LineageRow, "lineage", lineage.hex())
        return None if row is None else (row.version, row.statement)

    def prove(self, index: int) -> bytes:
        """Return the `.tlog-proof` of a log entry under the latest checkpoint."""
        return self._state.ledger.prove(index).encode()

    @property
    def log_size(self) -> int:
        """Entries in the log: what a statement says of its position."""
        return self._state.ledger.size

    def _release(self, envelope: bytes, said: dict[str, object]) -> bytes:
        with self._state.lock:
            now = self._state.now()
            one, request = self._asked(envelope, now)
            said |= {"kid": request.kid, "data_policy": request.policy, "epoch": request.epoch}
            said |= {"rows": request.rows, "keyset_digest": one.keyset_digest}
            view = self._state.view()
            policy, key, appraisal = self._judged(view, one, request, now)
            row = spent_with(view, policy, request, now)
            grant = _grant(request, one, policy, key, appraisal, row.spent, row.granted)
            said |= {"grant": grant.digest(), "tenant": key.tenant}
            fields = present({**said, "action": "data-release", "verdict": "grant"})
            self._state.change(view, {row.row_key: row.encode()}, fields)
            ticket = self._state.ledger.submit(grant_entry(grant))
        self._state.ledger.settle(ticket)
        # A backend may be far away, or hang: nobody else waits for it. What it costs is spent already.
        secret = self._core.backend.unwrap(key.wrapped, wrap_context(key))
        with wiped(secret):
            self._check_still(key)
            recipient = HpkePublicKey(kem=Kem.XWING, raw=one.keyset.tee_pubkey.pub)
            enc, sealed = seal_to(recipient, release_info(grant), b"", bytes(secret))
        signed = json.loads(grant.sign(self._core.secrets.release))
        return DataRelease(grant=signed, enc=enc, ciphertext=sealed).encode()

    def _asked(self, envelope: bytes, now: Time) -> tuple[Enrolled, DataRequest]:
        one = self._workers.get(DataRequest.unverified(envelope).keyset_digest, now)
        one.keyset.check_time(now)
        return one, DataRequest.verify(envelope, [ed25519(one.keyset.receipt_key)], stage="signature")

    def _judged(
        self, view: View, one: Enrolled, request: DataRequest, now: Time
    ) -> tuple[DataPolicy, KeyRow, Appraisal]:
        found = [policy for policy in policies_of(view, request.kid) if policy.run == request.run]
        if not found:
            raise not_allowed(
                f"no owner's policy lets this run read {request.kid}", "run-not-allowed", "data-policy"
            )
        policy = found[0]
        policy.check_time(now)
        key = _active(view, request.kid)
        appraisal = self._appraised(one.evidence, key, now)
        shard = check_allowed(policy, request, measurement=appraisal.code, config=one.evidence.config_digest)
        if key.tenant != policy.tenant:
            raise not_allowed(f"tenant {policy.tenant} has no key {key.kid}", "key-unknown", "key")
        if key.admitted is None or key.admitted.manifest_digest != shard.manifest_digest:
            text = f"the shard of {key.kid} in the policy is not the manifest admitted"
            raise not_allowed(text, "manifest-mismatch", "key")
        return policy, key, appraisal

    def _appraised(self, evidence: WorkerEvidence, row: KeyRow, now: Time) -> Appraisal:
        found = appraise_worker(evidence, row.policy, appraise=self._core.appraise, at=now)
        canary = row.policy.canary
        if canary is not None and found.code in canary.code:
            # Its limit counts leases, which workers of training have none of.
            text = f"the policy of {row.kid} admits this build as a canary: not for training"
            raise not_allowed(text, "canary-not-training", "key")
        return found

    def _result(
        self, evidence: WorkerEvidence, policies: Sequence[bytes], appraisals: Sequence[Appraisal], now: Time
    ) -> str:
        return issue_ear(
            together(appraisals),
            self._core.secrets.ear,
            nonce=evidence.nonce,
            config_digest=evidence.config_digest,
            keyset_digest=evidence.parsed_keyset().digest(),
            evidence_digest=_envelope_digest(evidence),
            policies=policies,
            at=now,
            build=__version__,
        )

    def _signed(self, envelope: bytes, now: Time) -> tuple[CheckpointStatement, Enrolled]:
        claimed = CheckpointStatement.claimed(envelope)
        one = self._workers.by_evidence(claimed.predicate.signer.evidence, now)
        one.keyset.check_time(now)
        keys = [ed25519(one.keyset.receipt_key)]
        return CheckpointStatement.verify(envelope, keys, stage="signature", limit=MAX_STATEMENT), one

    def _check_still(self, key: KeyRow) -> None:
        with self._state.lock:
            now = _active(self._state.view(), key.kid)
        if now != key:
            raise UnavailableError(
                "the key was changed meanwhile; ask again", code="state-busy", stage="state"
            )


def grant_entry(grant: DataGrant) -> bytes:
    """Return the entry that the log holds for a grant."""
    return LogEntry(type="data-grant", commitment=grant.digest()).encode()


def _grant(
    request: DataRequest,
    one: Enrolled,
    policy: DataPolicy,
    key: KeyRow,
    appraisal: Appraisal,
    spent: object,
    granted: Time,
) -> DataGrant:
    return DataGrant.model_validate(
        {
            "request": request.digest(),
            "policy": policy.digest(),
            "key_policy": key.policy.digest(),
            "tenant": key.tenant,
            "config_digest": one.evidence.config_digest,
            "measurement": appraisal.code,
            "spent": spent,
            "granted": granted,
        }
        | {name: getattr(request, name) for name in _OF_REQUEST}
    )


_OF_REQUEST = ("kid", "manifest_digest", "keyset_digest", "run", "code", "purpose", "epoch", "rows")


def _next(view: View, statement: CheckpointStatement, measurement: bytes) -> LineageRow:
    """Return the lineage's row with this checkpoint as its newest."""
    said = statement.predicate
    row = LineageRow(
        lineage=said.lineage,
        version=said.version,
        statement=statement.digest(),
        plan=said.plan,
        measurement=measurement,
    )
    before = view.get(LineageRow, *row.row_key)
    if before is None and len(view.all(LineageRow, "lineage")) >= MAX_LINEAGES:
        raise not_allowed(f"a broker follows {MAX_LINEAGES} lineages", "too-many-lineages", "lineage")
    if before == row:
        return row
    version, newest = (0, None) if before is None else (before.version, before.statement)
    if before is not None and (before.plan, before.measurement) != (row.plan, row.measurement):
        raise refused("the lineage is of another plan or build", "lineage-foreign", "lineage")
    if said.version < version:
        raise refused(f"version {version} of this lineage is signed", "checkpoint-rollback", "lineage")
    if said.version == version:
        raise refused(f"another version {version} of this lineage is signed", "checkpoint-forked", "lineage")
    if said.version != version + 1 or said.parent != newest:
        raise refused("the checkpoint does not go on from the newest", "checkpoint-parent", "lineage")
    return row


def _active(view: View, kid: str) -> KeyRow:
    key = view.get(KeyRow, "key", kid)
    if key is None:
        raise not_allowed(f"there is no key {kid}", "key-unknown", "key")
    if key.status != "active":
        raise RevokedError(f"key {kid} was revoked", code="key-revoked", stage="key")
    return key


def _check_kids(view: View, policy: DataPolicy) -> None:
    for shard in policy.shards:
        for other in policies_of(view, shard.kid):
            if other.run == policy.run and other.dataset != policy.dataset:
                text = f"{shard.kid} stands in the policy of {other.dataset} for this run already"
                raise not_allowed(text, "kid-in-two-policies", "data-policy")
        key = view.get(KeyRow, "key", shard.kid)
        if key is None or key.tenant != policy.tenant:
            text = f"tenant {policy.tenant} has no key {shard.kid}"
            raise not_allowed(text, "key-unknown", "key")


def _envelope_digest(evidence: WorkerEvidence) -> bytes:
    return hashlib.sha256(canonical(evidence.evidence)).digest()
