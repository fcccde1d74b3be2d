"""A worker's evidence as one document, and its appraisal: by the broker, by peers, and offline years later.

Spec: docs/spec/training-data.md, Worker evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

from sealwright.appraisal.config import ConfigFacts, appraise_config
from sealwright.appraisal.platform import Appraisal
from sealwright.appraisal.policy import KeyPolicy, TrustFile
from sealwright.crypto.canonical import canonical, parse_canonical
from sealwright.crypto.document import Bytes, Bytes32, Digest, Document
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import AppraisalError, AppraisalFailure, FormatError, MessageFormatError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.protocol.enclave_config import MAX_CONFIG
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.report_data import Purpose, device_nonce, report_data

MAX_WORKER_EVIDENCE = 2 << 20  # bytes
Appraise = Callable[..., Appraisal]
"""`sealwright.appraisal.evidence.appraise_evidence`, or with what its caller keeps filled in."""


class WorkerEvidence(Document):
    """Evidence of one worker, made for a verifier's nonce, bound to its keyset, config and run."""

    format: Literal["sealwright-worker-evidence/v1"] = "sealwright-worker-evidence/v1"
    evidence: dict[str, Any]  # evidence envelope
    nonce: Bytes32
    config: Bytes  # as it was measured; canonical JSON
    keyset: Bytes  # canonical
    run_spec: Digest  # what the report data names: `Plan.attested_as`

    @property
    def envelope(self) -> EvidenceEnvelope:
        """The evidence. Raises EvidenceFormatError."""
        return EvidenceEnvelope.parse(canonical(self.evidence))

    @property
    def config_digest(self) -> bytes:
        """SHA-256 of the config (32 bytes)."""
        return hashlib.sha256(self.config).digest()

    def parsed_keyset(self) -> Keyset:
        """Return the keyset. Raises MessageFormatError."""
        return Keyset.parse(self.keyset)

    def report_data(self) -> bytes:
        """Return the 64 bytes that the evidence has to be over."""
        return report_data(
            Purpose.ENROL,
            nonce=self.nonce,
            config_digest=self.config_digest,
            keyset_digest=self.parsed_keyset().digest(),
            devices=self.envelope.device_digests(),
            run_spec_digest=self.run_spec,
        )

    def device_nonce(self) -> bytes:
        """Return the 32 bytes that devices beside the CPU have to answer."""
        return device_nonce(self.nonce, self.parsed_keyset().digest())

    def config_facts(self) -> ConfigFacts:
        """Return what appraisal looks at in the config, whose further members are the workload's own.

        Raises:
            MessageFormatError: `malformed-worker-config`.
        """
        said = parse_canonical(self.config, limit=MAX_CONFIG)
        try:
            return ConfigFacts(
                digest=self.config_digest,
                brokers=[b64url_decode(one["root"], length=32) for one in said["brokers"]],
                policy_signers=[b64url_decode(one, length=32) for one in said["policy_signers"]],
                log_keys=_texts(said["log"]["keys"]),
                egress=_texts(said["egress"]),
            )
        except (KeyError, TypeError, AttributeError, FormatError):
            raise MessageFormatError(
                "the worker's config does not name brokers, policy_signers, log.keys and egress",
                code="malformed-worker-config",
            ) from None


def appraise_worker(
    evidence: WorkerEvidence,
    rules: KeyPolicy | TrustFile,
    *,
    appraise: Appraise,
    at: datetime,
    **options: Any,
) -> Appraisal:
    """Return the appraisal of a worker whose evidence is genuine, allowed by `rules`, and whose config lets nothing out.

    That the nonce was fresh is for the caller to prove.

    Args:
        appraise: see `Appraise`. options: passed on to it.
        at: the time of the evidence.

    Raises:
        FormatError, VerificationError, RevokedError, CollateralError, AppraisalError.
    """
    evidence.parsed_keyset().check_time(at)
    facts = evidence.config_facts()
    appraisal = appraise(
        evidence.envelope,
        rules,
        expected_report_data=evidence.report_data(),
        expected_device_nonce=evidence.device_nonce(),
        at=at,
        **options,
    )
    appraisal.config.check(facts.digest, stage="config")
    failures = [*appraisal.failures, *appraise_config(facts, rules.config)]
    if facts.egress:
        text = "a worker that opens sealed data has no egress, and this config names some"
        failures.append(AppraisalFailure(text, code="worker-egress"))
    if failures:
        raise AppraisalError(failures)
    return appraisal


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError("a list of texts is wanted")
    return value
