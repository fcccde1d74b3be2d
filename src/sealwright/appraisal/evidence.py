"""From an evidence envelope to an appraisal, whatever the platform: the one way broker and client take."""

from __future__ import annotations

from datetime import datetime

from sealwright.appraisal.platform import Appraisal, appraise_software
from sealwright.appraisal.policy import KeyPolicy, TrustFile
from sealwright.endorsement.software import SoftwareEndorsement
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.software import SoftwareQuote
from sealwright.verify.software import verify_software


def appraise_evidence(
    envelope: EvidenceEnvelope, rules: KeyPolicy | TrustFile, *, expected_report_data: bytes, at: datetime
) -> Appraisal:
    """Return what `rules` say of evidence that was proved genuine.

    Args:
        expected_report_data: 64 bytes, computed by the caller for its own purpose and nonce.
        at: the caller's time; `rules` must be in force then.

    Raises:
        EvidenceFormatError, VerificationError, RevokedError, CollateralError: not genuine, or not
            decidable. Failures of appraisal are in the result, see `Appraisal.require`.
    """
    rules.check_time(at)
    verified = verify_software(
        SoftwareQuote.parse(envelope.evidence),
        SoftwareEndorsement.parse(envelope.endorsements),
        expected_report_data=expected_report_data,
        at=at,
    )
    return appraise_software(
        verified,
        rules.platforms,
        require_hardware=rules.require_hardware,
        demo=rules.profile == "demo",
    )
