"""Who made or contributed to a checkpoint: evidence appraised again, the broker's result about it, offline.

Spec: docs/spec/checkpoint.md, Verifying, stages `broker`, `evidence`, `result`.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from sealwright.appraisal.ear import MAX_EAR, Ear, verify_ear
from sealwright.appraisal.evidence import appraise_evidence
from sealwright.appraisal.platform import Appraisal
from sealwright.client.rego_process import evaluate_apart
from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url
from sealwright.errors import CollateralError, SealwrightError, SettingsError, VerificationError
from sealwright.protocol.checkpoint import Attested, CheckpointPredicate
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.lease import SKEW, BrokerKeys, verify_broker_keys
from sealwright.protocol.worker import MAX_WORKER_EVIDENCE, WorkerEvidence, appraise_worker
from sealwright.training.checkpoint.folder import CheckpointFolder
from sealwright.training.checkpoint.trust import TrainingTrust
from sealwright.verify.context import WorkCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A worker or signer whose evidence holds by the auditor's own rules. Made by `Attesting.participant` alone."""

    evidence: WorkerEvidence
    keyset: Keyset
    keyset_digest: bytes
    appraisal: Appraisal
    ear: Ear
    attested: datetime  # when the broker judged it

    @property
    def worker(self) -> bytes:
        """Its id: SHA-256 of its `receipt_key` (32 bytes)."""
        return hashlib.sha256(self.keyset.receipt_key).digest()


class Attesting:
    """Judges evidence once, however many checkpoints name it."""

    def __init__(self, folder: CheckpointFolder, trust: TrainingTrust, at: datetime) -> None:
        self._folder, self._trust, self._at = folder, trust, at
        self._known: dict[tuple[bytes, bytes, bytes], Participant] = {}
        self._work = WorkCache()

    def broker_keys(self, said: CheckpointPredicate) -> BrokerKeys:
        """Return the broker's keys of the time, proved to be a trusted broker's. Stage `broker`."""
        envelope = self._folder.sidecar(said.broker_keys, "the broker's keys")
        keys = verify_broker_keys(envelope, self._trust.trust.brokers, at=said.created)
        check_digest(keys.digest(), said.broker_keys, "broker", "the broker's keys")
        return keys

    def participant(self, one: Attested, said: CheckpointPredicate, broker: BrokerKeys) -> Participant:
        """Return who is behind evidence and result, proved for this run and fresh when the checkpoint was made.

        Raises:
            FormatError, VerificationError, RevokedError, CollateralError, AppraisalError.
        """
        name = (one.evidence, one.result, broker.digest())
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._judge(one, broker)
        if not hmac.compare_digest(found.evidence.run_spec, said.run_spec):
            raise VerificationError(
                "the evidence was made for another run", code="evidence-other-run", stage="evidence"
            )
        found.keyset.check_time(said.created)
        oldest = timedelta(seconds=self._trust.trust.oldest_evidence_s)
        if not found.attested - SKEW <= said.created <= found.attested + oldest:
            raise CollateralError(
                f"the evidence is of {found.attested:%Y-%m-%d %H:%M:%SZ}, the checkpoint of "
                f"{said.created:%Y-%m-%d %H:%M:%SZ}: {oldest} apart at most",
                code="evidence-too-old",
                stage="result",
            )
        return found

    def _judge(self, one: Attested, broker: BrokerKeys) -> Participant:
        raw = self._folder.sidecar(one.evidence, "evidence")
        check_digest(hashlib.sha256(raw).digest(), one.evidence, "evidence", "evidence")
        evidence = WorkerEvidence.parse(raw, limit=MAX_WORKER_EVIDENCE)
        ear = self._result(one.result, evidence, broker)
        attested = issued_at(ear)
        appraisal = appraise_worker(
            evidence,
            self._trust.trust,
            appraise=appraise_evidence,
            at=attested,
            rules_at=self._at,
            work=self._work,
            rego=evaluate_apart,
        )
        keyset = evidence.parsed_keyset()
        return Participant(
            evidence=evidence,
            keyset=keyset,
            keyset_digest=keyset.digest(),
            appraisal=appraisal,
            ear=ear,
            attested=attested,
        )

    def _result(self, digest: bytes, evidence: WorkerEvidence, broker: BrokerKeys) -> Ear:
        raw = self._folder.sidecar(digest, "a result")
        check_digest(hashlib.sha256(raw).digest(), digest, "result", "a result")
        return verified_result(raw, evidence, broker)


def verified_result(raw: bytes, evidence: WorkerEvidence, broker: BrokerKeys) -> Ear:
    """Return the broker's result about exactly this evidence, proved to be signed by it and to allow.

    How old it may be is for the caller to say: its own few minutes were the broker's affair.

    Args:
        raw: an EAR, compact JWT. broker: already verified, see `verify_broker_keys`.

    Raises:
        SettingsError: `malformed-ear-key`. VerificationError: `ear-mismatch`, and what `verify_ear` raises.
    """
    try:
        token = raw[: MAX_EAR + 1].decode("ascii")
        key = ECKey.import_key(broker.ear_key.to_json())
    except (UnicodeDecodeError, JoseError, ValueError):
        raise SettingsError(
            "the result is no JWT, or the broker's key for it is none",
            code="malformed-ear-key",
            stage="result",
        ) from None
    ear = verify_ear(token, key, at=None)
    wanted = {
        "allowed": True,
        "keyset_digest": evidence.parsed_keyset().digest().hex(),
        "config_digest": evidence.config_digest.hex(),
        "evidence_digest": hashlib.sha256(canonical(evidence.evidence)).hexdigest(),
    }
    match ear.claims:
        case {"eat_nonce": str(nonce), "submods": {"cpu0": {"sealwright": dict(said)}}} if nonce == b64url(
            evidence.nonce
        ) and _holds(said, wanted):
            return ear
    raise VerificationError(
        "the broker's result is of another worker or nonce, or a refusal",
        code="ear-mismatch",
        stage="result",
    )


def check_digest(found: bytes, wanted: bytes, stage: str, what: str) -> None:
    """Prove that a sidecar is what it is named. Raises VerificationError: `sidecar-mismatch`."""
    if not hmac.compare_digest(found, wanted):
        raise VerificationError(
            f"{what} in the folder is not what the statement names", code="sidecar-mismatch", stage=stage
        )


def in_version(version: int, error: SealwrightError) -> SealwrightError:
    """Return the error, whose text says which version it is of."""
    error.args = (f"version {version}: {error}",)
    return error


def _holds(said: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(said.get(name) == value for name, value in wanted.items())


def issued_at(ear: Ear) -> datetime:
    """Return when the broker issued a result. Raises VerificationError: `ear-mismatch`."""
    issued = ear.claims.get("iat")
    if not isinstance(issued, int) or isinstance(issued, bool) or not 0 <= issued < 1 << 40:
        raise VerificationError("the result has no time of issue", code="ear-mismatch", stage="result")
    return datetime.fromtimestamp(issued, UTC)
