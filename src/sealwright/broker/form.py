"""The keyset form of an attestation, checked up to where evidence and policies decide.

Spec: docs/spec/key-release.md, step 2. Nothing here is believed before the evidence has vouched for it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from sealwright.appraisal.config import ConfigFacts
from sealwright.crypto.canonical import canonical
from sealwright.crypto.hpke import HpkePublicKey, Kem
from sealwright.crypto.suites import DEFAULT, accepted_suite
from sealwright.errors import AppraisalError, AppraisalFailure, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.protocol.enclave_config import MAX_CONFIG, EnclaveConfig, TenantList
from sealwright.protocol.kbs import AttestRequest, decode_nonce
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.report_data import Purpose, device_nonce, report_data
from sealwright.tlog.keys import VerifierKey

MAX_KEYSET = 32 * 1024  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What an enclave says of itself."""

    keyset: Keyset
    config: EnclaveConfig
    openings: dict[str, TenantList]
    envelope: bytes  # canonical
    evidence: EvidenceEnvelope
    report_data: bytes  # 64 bytes; what the evidence must hold
    device_nonce: bytes  # 32 bytes; what devices must answer


def parse_form(request: AttestRequest, nonce: bytes) -> Form:
    """Return the documents of an attestation, and the report data that they and our nonce ask for.

    Raises:
        FormatError: a document is not in its format. VerificationError: `nonce-mismatch`.
    """
    said = request.runtime_data
    if not hmac.compare_digest(decode_nonce(said.nonce), nonce):
        raise VerificationError("the nonce is not this session's", code="nonce-mismatch", stage="nonce")
    keyset = Keyset.parse(said.sealwright.keyset, limit=MAX_KEYSET)
    config = EnclaveConfig.parse(said.sealwright.config, limit=MAX_CONFIG)
    envelope = canonical(request.tee_evidence.primary_evidence)
    evidence = EvidenceEnvelope.parse(envelope)
    bound = report_data(
        Purpose.LEASE,
        nonce=nonce,
        config_digest=config.digest(),
        keyset_digest=keyset.digest(),
        devices=evidence.device_digests(),
    )
    return Form(
        keyset=keyset,
        config=config,
        openings={opened.tenant: opened for opened in said.sealwright.openings},
        envelope=envelope,
        evidence=evidence,
        report_data=bound,
        device_nonce=device_nonce(nonce, keyset.digest()),
    )


def check_form(form: Form, request: AttestRequest, *, tee: str, root: bytes, log_key: str) -> None:
    """Prove that the documents agree with each other and name this broker; the evidence is still to be verified.

    Args:
        tee: as the session was opened for.
        root, log_key: this broker's.

    Raises:
        FormatError, VerificationError, AppraisalError.
    """
    said = request.runtime_data
    for suite in (form.keyset.suite, form.config.suite):
        accepted_suite(suite, [DEFAULT.name])
    if said.tee_pubkey != form.keyset.tee_pubkey:
        raise VerificationError("tee-pubkey is not the keyset's", code="tee-pubkey-mismatch", stage="keyset")
    HpkePublicKey(kem=Kem.XWING, raw=said.tee_pubkey.pub)
    _check_named(form.config, root, log_key)
    if len(form.openings) != len(said.sealwright.openings) or not form.openings:
        raise VerificationError("no tenant list, or one twice", code="tenant-list-mismatch", stage="config")
    for opened in form.openings.values():
        opened.check(form.config)
    if form.evidence.type != tee:
        raise VerificationError(
            "the evidence is of another TEE than the session", code="tee-mismatch", stage="evidence"
        )


def config_facts(config: EnclaveConfig) -> ConfigFacts:
    """Return what a policy's rules look at."""
    return ConfigFacts(
        digest=config.digest(),
        brokers=[broker.root for broker in config.brokers],
        policy_signers=config.policy_signers,
        log_keys=config.log.keys,
        egress=config.egress,
    )


def _check_named(config: EnclaveConfig, root: bytes, log_key: str) -> None:
    failures = []
    if root not in [broker.root for broker in config.brokers]:
        text = "the enclave config does not name this broker's root"
        failures.append(AppraisalFailure(text, code="broker-not-named"))
    if VerifierKey.parse(log_key) not in [VerifierKey.parse(key) for key in config.log.keys]:
        failures.append(
            AppraisalFailure("the enclave config does not name this broker's log", code="log-not-named")
        )
    if config.log.quorum:
        text = "the enclave config asks for a witness quorum, and this broker's log has no witnesses"
        failures.append(AppraisalFailure(text, code="log-quorum-unsupported"))
    if failures:
        raise AppraisalError(failures, stage="config")
