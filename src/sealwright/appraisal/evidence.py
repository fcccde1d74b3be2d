"""From an evidence envelope to an appraisal, whatever the platform: the one way broker and client take."""

from __future__ import annotations

from datetime import datetime

from sealwright.appraisal.platform import Appraisal, appraise
from sealwright.appraisal.policy import KeyPolicy, TrustFile
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import AppraisalError, AppraisalFailure, CollateralError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.verify.context import Context, SignatureCache
from sealwright.verify.evidence import verify_evidence


def appraise_evidence(
    envelope: EvidenceEnvelope,
    rules: KeyPolicy | TrustFile,
    *,
    expected_report_data: bytes,
    at: datetime,
    collateral: Endorsements | None = None,
    signatures: SignatureCache | None = None,
) -> Appraisal:
    """Return what `rules` say of evidence that was proved genuine.

    Args:
        expected_report_data: 64 bytes, computed by the caller for its own purpose and nonce.
        at: the caller's time; `rules` must be in force then.
        collateral: what the caller has beside the envelope's own endorsements.

    Raises:
        EvidenceFormatError, VerificationError, RevokedError, CollateralError: not genuine, or not
            decidable. Failures of appraisal are in the result, see `Appraisal.require`.
    """
    rules.check_time(at)
    given = Context(at=at, signatures=signatures)
    own = rules.platforms.rules(envelope.type, at)
    try:
        verified = verify_evidence(
            envelope,
            expected_report_data=expected_report_data,
            context=given if own is None else own.context(given),
            collateral=collateral or Endorsements(),
        )
    except CollateralError:
        if own is not None:
            raise
        # Nothing says how old its collateral may be, and it would be refused anyhow.
        text = f"the policy does not name platform `{envelope.type}`"
        raise AppraisalError([AppraisalFailure(text, code="platform-not-allowed")]) from None
    return appraise(verified, own, require_hardware=rules.require_hardware)
