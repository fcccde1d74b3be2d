"""From an attestation bundle to a `VerifiedEnclave`, in the seven steps of docs/spec/keyset.md. No I/O."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from sealwright.appraisal.config import ConfigFacts, appraise_config
from sealwright.appraisal.ear import Ear, verify_ear
from sealwright.appraisal.evidence import appraise_evidence
from sealwright.appraisal.platform import Appraisal
from sealwright.appraisal.policy import TrustFile
from sealwright.client.findings import Findings
from sealwright.client.rego_process import evaluate_apart
from sealwright.crypto.canonical import canonical
from sealwright.crypto.suites import accepted_suite
from sealwright.errors import AppraisalError, MessageFormatError, SettingsError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.protocol.attestation import MAX_BUNDLE, AttestationBundle
from sealwright.protocol.enclave_config import MAX_CONFIG, EnclaveConfig
from sealwright.protocol.keyset import HpkeKey, Keyset
from sealwright.protocol.lease import BrokerKeys, Lease, verify_broker_keys, verify_lease
from sealwright.protocol.report_data import Purpose, device_nonce, report_data

_ONLY_HERE = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEnclave:
    """An enclave that a trust file admits. Made by `verify_attestation` and `renewed` alone."""

    config: EnclaveConfig
    config_digest: bytes  # 32 bytes
    keyset: Keyset
    keyset_digest: bytes  # 32 bytes
    hpke_key: HpkeKey  # of the suite that was accepted: requests are sealed to it
    broker_keys: BrokerKeys
    lease: Lease
    lease_envelope: bytes | None  # DSSE of a lease taken after the bundle; None: the bundle's own
    appraisal: Appraisal
    ear: Ear
    bundle: bytes  # as it was verified, with `nonce`: what an auditor verifies again
    nonce: bytes
    _made_by: object

    def __post_init__(self) -> None:
        if self._made_by is not _ONLY_HERE:
            raise TypeError("a VerifiedEnclave is made by verify_attestation alone")

    @property
    def confidential(self) -> bool:
        """True only for hardware TEEs."""
        return self.appraisal.confidential


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    bundle: AttestationBundle
    evidence: EvidenceEnvelope
    config: EnclaveConfig
    keyset: Keyset


def verify_attestation(bundle: bytes, *, nonce: bytes, trust: TrustFile, at: datetime) -> VerifiedEnclave:
    """Return the enclave that `bundle` proves, by `trust`, at `at`.

    Steps 1 and 2 refuse at once. Of the others every one that can be judged is, and the gravest
    refusal is raised, with every appraisal failure listed.

    Args:
        bundle: as the enclave answered it.
        nonce: the 32 bytes this verifier chose for it.
        at: the verifier's own time.

    Raises:
        FormatError, VerificationError, RevokedError, CollateralError, AppraisalError: the stage names the step.
    """
    # 1. Formats, sizes, versions.
    parsed = _parse(bundle)
    # 2. Suite, of config and keyset, with a key of exactly its algorithms.
    hpke_key = _suite_key(parsed, trust)
    findings = Findings()
    appraisal: Appraisal | None = None
    with findings.step():
        # 3. Evidence, bound to our nonce, this config and this keyset.
        appraisal = _evidence(parsed, nonce, trust, at)
    if appraisal is not None:
        # 4. Appraisal of platform, code and config; every failure is listed.
        _appraise(parsed.config, appraisal, trust, findings)
    with findings.step():
        # 5. The keyset's dates.
        parsed.keyset.check_time(at)
    leased: tuple[BrokerKeys, Lease, Ear] | None = None
    with findings.step():
        # 6. The broker's keys, under a root that trust file and config both name.
        broker = _broker(parsed, trust, at)
        # 7. Its lease over this keyset and config, and the result that the lease rests on.
        lease = _lease(canonical(parsed.bundle.lease), parsed, broker, trust, at)
        leased = broker, lease, _ear(parsed, broker, lease)
        _pins(lease, trust, findings)
    findings.settle()
    if appraisal is None or leased is None:
        raise RuntimeError("a step neither passed nor refused")
    return VerifiedEnclave(
        config=parsed.config,
        config_digest=parsed.config.digest(),
        keyset=parsed.keyset,
        keyset_digest=parsed.keyset.digest(),
        hpke_key=hpke_key,
        broker_keys=leased[0],
        lease=leased[1],
        lease_envelope=None,
        appraisal=appraisal,
        ear=leased[2],
        bundle=bundle,
        nonce=nonce,
        _made_by=_ONLY_HERE,
    )


def renewed(enclave: VerifiedEnclave, lease: bytes, *, trust: TrustFile, at: datetime) -> VerifiedEnclave:
    """Return `enclave` under another lease of the same broker keys, with everything that ends checked at `at`.

    Args:
        lease: DSSE envelope, as a sealed response head carried it.

    Raises:
        FormatError, VerificationError, RevokedError, CollateralError, AppraisalError: the lease does not
            hold, or trust file, keyset or broker keys are not in force at `at`.
    """
    trust.check_time(at)
    enclave.keyset.check_time(at)
    root = [broker.root for broker in enclave.config.brokers if broker.root in trust.brokers]
    broker = verify_broker_keys(canonical(AttestationBundle.parse(enclave.bundle).broker_keys), root, at=at)
    findings = Findings()
    taken = verify_lease(
        lease,
        broker,
        tenant=trust.tenant,
        keyset_digest=enclave.keyset_digest,
        config_digest=enclave.config_digest,
        at=at,
    )
    _pins(taken, trust, findings)
    findings.settle()
    return replace(enclave, lease=taken, lease_envelope=lease)


def _parse(raw: bytes) -> _Parsed:
    bundle = AttestationBundle.parse(raw, limit=MAX_BUNDLE)
    return _Parsed(
        bundle=bundle,
        evidence=EvidenceEnvelope.parse(canonical(bundle.evidence)),
        config=EnclaveConfig.parse(bundle.config, limit=MAX_CONFIG),
        keyset=Keyset.parse(bundle.keyset, limit=MAX_CONFIG),
    )


def _suite_key(parsed: _Parsed, trust: TrustFile) -> HpkeKey:
    if parsed.keyset.suite != parsed.config.suite:
        raise VerificationError(
            "keyset and config name different suites", code="suite-mismatch", stage="suite"
        )
    suite = accepted_suite(parsed.keyset.suite, trust.suites)
    for key in parsed.keyset.hpke:
        if (key.kem, key.kdf, key.aead) == (suite.kem, suite.kdf, suite.aead):
            return key
    raise MessageFormatError(
        "the keyset has no key of its own suite", code="keyset-without-suite-key", stage="suite"
    )


def _evidence(parsed: _Parsed, nonce: bytes, trust: TrustFile, at: datetime) -> Appraisal:
    config_digest = parsed.config.digest()
    expected = report_data(
        Purpose.SERVE,
        nonce=nonce,
        config_digest=config_digest,
        keyset_digest=parsed.keyset.digest(),
        devices=parsed.evidence.device_digests(),
    )
    appraisal = appraise_evidence(
        parsed.evidence,
        trust,
        expected_report_data=expected,
        expected_device_nonce=device_nonce(nonce, parsed.keyset.digest()),
        at=at,
        rego=evaluate_apart,
    )
    # The quote binds what the code *says* its config is; the register holds what it was started with.
    appraisal.config.check(config_digest, stage="evidence")
    return appraisal


def _appraise(config: EnclaveConfig, appraisal: Appraisal, trust: TrustFile, findings: Findings) -> None:
    facts = ConfigFacts(
        digest=config.digest(),
        brokers=[broker.root for broker in config.brokers],
        policy_signers=config.policy_signers,
        log_keys=config.log.keys,
        egress=config.egress,
    )
    failures = (*appraisal.failures, *appraise_config(facts, trust.config))
    with findings.step():
        if failures:
            raise AppraisalError(failures)


def _broker(parsed: _Parsed, trust: TrustFile, at: datetime) -> BrokerKeys:
    roots = [broker.root for broker in parsed.config.brokers if broker.root in trust.brokers]
    return verify_broker_keys(canonical(parsed.bundle.broker_keys), roots, at=at)


def _lease(envelope: bytes, parsed: _Parsed, broker: BrokerKeys, trust: TrustFile, at: datetime) -> Lease:
    return verify_lease(
        envelope,
        broker,
        tenant=trust.tenant,
        keyset_digest=parsed.keyset.digest(),
        config_digest=parsed.config.digest(),
        at=at,
    )


def _ear(parsed: _Parsed, broker: BrokerKeys, lease: Lease) -> Ear:
    """Prove that the result is the broker's, over this keyset and config, and the one the lease rests on."""
    try:
        key = ECKey.import_key(broker.ear_key.to_json())
    except (JoseError, ValueError):
        raise SettingsError("the broker's result key is not on its curve", code="malformed-ear-key") from None
    # Its own freshness was the broker's affair: the lease says until when it counts.
    ear = verify_ear(parsed.bundle.ear, key, at=None)
    if not hmac.compare_digest(ear.digest, lease.ear_digest):
        raise VerificationError("the lease rests on another result", code="ear-mismatch", stage="lease")
    match ear.claims:
        case {"submods": {"cpu0": {"sealwright": {"allowed": True, **said}}}} if (
            said.get("keyset_digest") == lease.keyset_digest.hex()
            and said.get("config_digest") == lease.config_digest.hex()
        ):
            return ear
    raise VerificationError(
        "the result is of another enclave, or a refusal", code="ear-mismatch", stage="lease"
    )


def _pins(lease: Lease, trust: TrustFile, findings: Findings) -> None:
    """Refuse leases longer than the trust file wants, and manifests that it does not admit."""
    longest = timedelta(seconds=trust.longest_lease_s)
    if lease.not_after - lease.not_before > longest:
        findings.refuse(
            "lease-too-long",
            f"the lease runs {lease.not_after - lease.not_before}; the trust file accepts {longest}",
            stage="lease",
        )
    for key in lease.kids if trust.manifests else ():
        if key.manifest_digest not in trust.manifests:
            findings.refuse(
                "manifest-not-allowed",
                f"the lease opens manifest {key.manifest_digest.hex()[:16]}… for {key.kid}, "
                "which the trust file does not list",
                stage="lease",
            )
