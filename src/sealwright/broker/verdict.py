"""May this enclave have this tenant's keys, by their policies of this moment?"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sealwright.appraisal.config import appraise_config
from sealwright.appraisal.platform import Appraisal, together
from sealwright.appraisal.policy import KeyPolicy
from sealwright.broker.core import Appraiser
from sealwright.broker.form import Form, config_facts
from sealwright.broker.revocations import Subject, check_revoked
from sealwright.broker.rows import GenerationRow, KeyRow, Place
from sealwright.broker.state import View
from sealwright.errors import AppraisalError, AppraisalFailure, RevokedError, SealwrightError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A tenant's keys, all of which the enclave may have."""

    keys: tuple[KeyRow, ...]
    appraisal: Appraisal

    @property
    def policies(self) -> list[bytes]:
        """Digests of the policies that allowed it."""
        return sorted({key.policy.digest() for key in self.keys})


def tenant_keys(view: View, listed: TenantList) -> tuple[KeyRow, ...]:
    """Return the keys of a tenant's list, each the tenant's, active, and admitted for the listed manifest.

    Raises:
        RevokedError: `key-revoked`. AppraisalError: `key-unknown`, `manifest-mismatch`.
    """
    keys: list[KeyRow] = []
    failures = []
    for entry in listed.artefacts:
        key = view.get(KeyRow, "key", entry.kid)
        if key is None or key.tenant != listed.tenant:
            # One answer for both: a tenant does not learn which kids others have.
            text = f"tenant {listed.tenant} has no key {entry.kid}"
            failures.append(AppraisalFailure(text, code="key-unknown"))
            continue
        if key.status != "active":
            raise RevokedError(f"key {entry.kid} was revoked", code="key-revoked", stage="key")
        found = next((one for one in generations(view, key) if _opens(one, entry.manifest_digest)), None)
        if found is None:
            text = f"the manifest listed for {entry.kid} is not the one admitted"
            failures.append(AppraisalFailure(text, code="manifest-mismatch"))
            continue
        keys.append(found)
    if failures:
        raise AppraisalError(failures, stage="key")
    return tuple(keys)


def generations(view: View, key: KeyRow) -> list[KeyRow]:
    """Return the generations of a key that are released: the current one, the previous, the next."""
    places: tuple[Place, ...] = ("previous", "next")
    others = [view.get(GenerationRow, "generation", f"{key.kid}@{place}") for place in places]
    return [key, *(one for one in others if one is not None)]


def _opens(key: KeyRow, manifest_digest: bytes) -> bool:
    return key.admitted is not None and hmac.compare_digest(key.admitted.manifest_digest, manifest_digest)


def is_judged(view: View, form: Form) -> bool:
    """Say whether a policy of a tenant's active keys, named with their manifests, is about the evidence's platform."""
    for listed in form.openings.values():
        try:
            keys = tenant_keys(view, listed)
        except SealwrightError:
            continue
        platform = form.evidence.type.replace("-", "_")
        if any(getattr(key.policy.platforms, platform) is not None for key in keys):
            return True
    return False


def judge(
    view: View,
    listed: TenantList,
    config: EnclaveConfig,
    envelope: EvidenceEnvelope,
    *,
    report_data: bytes,
    device_nonce: bytes,
    keyset_digest: bytes,
    appraise: Appraiser,
    at: datetime,
) -> Verdict:
    """Return the tenant's keys, with the evidence proved genuine and allowed by every one of their policies.

    Raises:
        SealwrightError: not genuine, not decidable, revoked, or not allowed.
    """
    named = Subject(
        tenant=listed.tenant,
        enclave=keyset_digest,
        config=config.digest(),
        manifests=tuple(entry.manifest_digest for entry in listed.artefacts),
    )
    check_revoked(view, named)
    keys = tenant_keys(view, listed)
    policies = {key.policy.digest(): key.policy for key in keys}
    appraisals = [
        appraised(
            policy,
            config,
            envelope,
            report_data=report_data,
            device_nonce=device_nonce,
            appraise=appraise,
            at=at,
        )
        for policy in policies.values()
    ]
    check_revoked(view, replace(named, appraisals=tuple(appraisals)))
    _require(appraisals)
    return Verdict(keys=keys, appraisal=together(appraisals))


def appraised(
    policy: KeyPolicy,
    config: EnclaveConfig,
    envelope: EvidenceEnvelope,
    *,
    report_data: bytes,
    device_nonce: bytes,
    appraise: Appraiser,
    at: datetime,
) -> Appraisal:
    """Return what one policy says of evidence that was proved genuine, and of the config. Raises SealwrightError."""
    appraisal = appraise(
        envelope, policy, expected_report_data=report_data, expected_device_nonce=device_nonce, at=at
    )
    facts = config_facts(config)
    appraisal.config.check(facts.digest, stage="config")
    return replace(appraisal, failures=(*appraisal.failures, *appraise_config(facts, policy.config)))


def _require(appraisals: Sequence[Appraisal]) -> None:
    failures = [failure for appraisal in appraisals for failure in appraisal.failures]
    if failures:
        raise AppraisalError(list(dict.fromkeys(failures)))
