"""Any file of evidence, looked at offline: what was proved, and what was *not* checked. No I/O.

With a trust file an attestation bundle is verified whole; without one only genuineness can be judged, and the
report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sealwright.appraisal.binding import ConfigBinding
from sealwright.appraisal.config import ConfigFacts, appraise_config
from sealwright.appraisal.evidence import VTPM, appraise_evidence
from sealwright.appraisal.platform import is_confidential
from sealwright.appraisal.policy import KeyPolicy, TrustFile
from sealwright.audit.receipts import verify_receipt_file
from sealwright.client.receipts import ReceiptFile
from sealwright.client.rego_process import evaluate_apart
from sealwright.client.verifier import VerifiedEnclave, verify_attestation
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.encoding import rfc3339
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    EvidenceFormatError,
)
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.protocol.attestation import MAX_BUNDLE, AttestationBundle
from sealwright.protocol.enclave_config import EnclaveConfig
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.receipt import verify_receipt
from sealwright.protocol.report_data import Purpose, device_nonce, report_data
from sealwright.tlog.policy import LogPolicy
from sealwright.verify.context import Context
from sealwright.verify.evidence import unverified_device_nonce, unverified_report_data, verify_evidence
from sealwright.verify.verified import Verified

BUNDLE, RECEIPT = "sealwright-attestation/v1", "sealwright-receipt/v1"
Rules = TrustFile | KeyPolicy


@dataclass(slots=True, kw_only=True)
class Report:
    """What a file proves. `allowed` is None where nothing was there to judge by."""

    kind: str
    platform: str
    confidential: bool
    allowed: bool | None
    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)

    def require_hardware(self) -> None:
        """Raise AppraisalError unless the platform is a hardware TEE."""
        if not self.confidential:
            text = f"platform `{self.platform}` is not hardware"
            raise AppraisalError([AppraisalFailure(text, code="hardware-required")])


def kind_of(raw: bytes) -> str | None:
    """Return the format that a file of ours names, a bundle or a receipt; None: it is something else."""
    if not raw.lstrip().startswith(b"{"):
        return None
    match parse_json(raw, limit=4 << 20, error=EvidenceFormatError):
        case {"format": str(name)} if name in (BUNDLE, RECEIPT):
            return name
    return None


def check_bundle(raw: bytes, *, rules: Rules | None, nonce: bytes | None, at: datetime) -> Report:
    """Report on an attestation bundle. With a trust file and a nonce it is verified as a client does it.

    Raises:
        FormatError, VerificationError, RevokedError, CollateralError, AppraisalError
    """
    bundle = AttestationBundle.parse(raw, limit=MAX_BUNDLE)
    if isinstance(rules, TrustFile) and nonce is not None:
        return _of_enclave(verify_attestation(raw, nonce=nonce, trust=rules, at=at))
    envelope = EvidenceEnvelope.parse(canonical(bundle.evidence))
    config, keyset = EnclaveConfig.parse(bundle.config), Keyset.parse(bundle.keyset)
    expected = None if nonce is None else _serve(nonce, config, keyset, envelope)
    genuine = _genuine(envelope, expected, at, rules)
    report = _of(BUNDLE, genuine)
    _check_config(report, genuine, rules, config, at)
    _freshness(report, nonce is not None, "nonce, and with it the keyset")
    report.not_checked.append("lease, broker and result (they need a trust file and the nonce)")
    if rules is None and (envelope.devices or envelope.vtpm is not None):
        report.not_checked.append(
            "vTPM and devices beside the platform's own evidence: not even whether they are genuine"
        )
    report.details["keyset_digest"] = keyset.digest().hex()
    fresh = None if nonce is None else device_nonce(nonce, keyset.digest())
    _judge(report, envelope, genuine, rules, config, at, fresh)
    return report


def check_receipt(raw: bytes, *, trust: TrustFile | None) -> Report:
    """Report on a receipt file, as of its time of issue.

    Raises:
        FormatError, VerificationError, RevokedError, CollateralError, AppraisalError
    """
    file = ReceiptFile.parse(raw)
    if trust is not None:
        policy = LogPolicy.parse(trust.log_policy.encode())
        verified = verify_receipt_file(file, trust=trust, log_policy=policy)
        report = _of_enclave(verified.enclave)
        report.kind = RECEIPT
        report.checked += ["receipt: signature, commitment, fields", "log: the receipt's entry is in it"]
        report.details["receipt_id"] = verified.statement.predicate.receipt_id.hex()
        return report
    said = file.receipt.unverified_statement().predicate
    report = check_bundle(file.attestation.encode(), rules=None, nonce=file.nonce, at=said.issued)
    config, keyset = EnclaveConfig.parse(file.attestation.config), Keyset.parse(file.attestation.keyset)
    verify_receipt(file.receipt, keyset, config_digest=config.digest())
    report.kind = RECEIPT
    report.checked.append("receipt: signature by the quoted keyset, commitment, fields")
    report.not_checked.append("log (no trust file)")
    report.details |= {"receipt_id": said.receipt_id.hex(), "issued": rfc3339(said.issued)}
    return report


def _of_enclave(found: VerifiedEnclave) -> Report:
    return Report(
        kind=BUNDLE,
        platform=found.appraisal.platform,
        confidential=found.confidential,
        allowed=True,
        checked=[
            "evidence: genuine, made for this nonce, keyset and config",
            "platform, root, code, config and claims: allowed by the trust file",
            "keyset, broker keys, lease and result: genuine and in force",
        ],
        details={
            "code": found.appraisal.code.hex(),
            "config_digest": found.config_digest.hex(),
            "keyset_digest": found.keyset_digest.hex(),
            "claims": dict(found.appraisal.claims),
            "tenant": found.lease.tenant,
            "lease_until": rfc3339(found.lease.not_after),
        },
    )


def _genuine(
    envelope: EvidenceEnvelope, expected: bytes | None, at: datetime, rules: Rules | None
) -> Verified:
    context = Context(at=at)
    own = None if rules is None else rules.platforms.rules(envelope.type, at)
    return verify_evidence(
        envelope,
        expected_report_data=unverified_report_data(envelope) if expected is None else expected,
        context=context if own is None else own.context(context),
        collateral=Endorsements(),
        bound=frozenset() if own is None else own.bound,
    )


def _serve(nonce: bytes, config: EnclaveConfig, keyset: Keyset, envelope: EvidenceEnvelope) -> bytes:
    return report_data(
        Purpose.SERVE,
        nonce=nonce,
        config_digest=config.digest(),
        keyset_digest=keyset.digest(),
        devices=envelope.device_digests(),
    )


def _of(kind: str, genuine: Verified) -> Report:
    return Report(
        kind=kind,
        platform=genuine.platform,
        confidential=is_confidential(genuine),
        allowed=None,
        checked=["evidence: signed by its key, whose chain and revocation hold"],
        details={
            "root": genuine.root.hex(),
            **{name: value.hex() for name, value in genuine.registers.items()},
            "report_data": genuine.report_data.hex(),
            "claims": dict(genuine.facts),
        },
    )


def _check_config(
    report: Report, genuine: Verified, rules: Rules | None, config: EnclaveConfig, at: datetime
) -> None:
    """Prove that the config was measured, where it is known which register holds it."""
    own = None if rules is None else rules.platforms.rules(genuine.platform, at)
    register = "config" if genuine.platform == "software" else "" if own is None else own.config_register
    if not register:
        report.not_checked.append("whether the config was measured (only a policy says where)")
        return
    if register.startswith(VTPM):
        return  # it is in the vTPM, which is looked at with the policy
    held = ConfigBinding(register=register, held=genuine.registers.get(register, b""))
    held.check(config.digest(), stage="evidence")
    report.checked.append("the enclave config is the measured one")


def _freshness(report: Report, given: bool, what: str) -> None:
    if given:
        report.checked.append(f"freshness: the expected {what}")
    else:
        report.not_checked.append(f"freshness (no expected {what})")


def _judge(
    report: Report,
    envelope: EvidenceEnvelope,
    genuine: Verified,
    rules: Rules | None,
    config: EnclaveConfig | None,
    at: datetime,
    fresh: bytes | None,
) -> None:
    """Judge by rules, if there are any. Args: fresh: what the devices must answer; None: whatever they answer."""
    if rules is None:
        _judge_conditions(report, genuine)
        if envelope.devices:
            report.not_checked.append("devices (no trust file or policy)")
        if envelope.vtpm is not None:
            report.not_checked.append("vTPM (no trust file or policy)")
        return
    appraisal = appraise_evidence(
        envelope,
        rules,
        expected_report_data=unverified_report_data(envelope),
        at=at,
        expected_device_nonce=unverified_device_nonce(envelope.devices) if fresh is None else fresh,
        rego=evaluate_apart,
    )
    failures = list(appraisal.failures)
    digest = appraisal.config.digest if config is None else config.digest()
    if config is not None and appraisal.config.register.startswith(VTPM):
        appraisal.config.check(digest, stage="evidence")
        report.checked.append("the enclave config is the measured one")
    if config is not None or (digest and rules.config.digests):
        failures += appraise_config(_facts(digest, config), rules.config)
        report.checked.append("config: allowed")
    else:
        report.not_checked.append("config (its digest alone does not say what it names)")
    if failures:
        raise AppraisalError(failures)
    report.allowed = True
    report.checked.append("platform, root, code and claims: allowed")


def _judge_conditions(report: Report, genuine: Verified) -> None:
    """Without a policy nothing is allowed, but what none may admit unawares is refused all the same."""
    if genuine.platform != "software":
        failures = [AppraisalFailure(one.text, code=one.code) for one in genuine.conditions]
        if failures:
            raise AppraisalError(failures)
        report.checked.append("conditions: no debug, no old or unknown firmware, nothing else unusual")
    report.not_checked.append("whether root, code, config and claims are allowed (no trust file or policy)")


def _facts(digest: bytes, config: EnclaveConfig | None) -> ConfigFacts:
    named: Mapping[str, Any] = {"brokers": (), "policy_signers": (), "log_keys": (), "egress": ()}
    if config is not None:
        named = {
            "brokers": [broker.root for broker in config.brokers],
            "policy_signers": config.policy_signers,
            "log_keys": config.log.keys,
            "egress": config.egress,
        }
    return ConfigFacts(digest=digest, **named)
