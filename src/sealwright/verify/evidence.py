"""From an envelope to verified evidence, whatever the platform: the one place that knows them all."""

from __future__ import annotations

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.software import SoftwareEndorsement
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.software import SoftwareQuote
from sealwright.verify.context import Context
from sealwright.verify.software import verify_software
from sealwright.verify.verified import Verified


def verify_evidence(
    envelope: EvidenceEnvelope, *, expected_report_data: bytes, context: Context, collateral: Endorsements
) -> Verified:
    """Return the envelope's own evidence, proved genuine; its vTPM and devices are verified apart.

    Args:
        expected_report_data: 64 bytes, computed by the caller for its own purpose and nonce.
        collateral: what the caller has beside the envelope's own endorsements.

    Raises:
        EvidenceFormatError, VerificationError, RevokedError, CollateralError.
    """
    if envelope.type != "software" or collateral != Endorsements():
        raise EvidenceFormatError(f"{envelope.type} is not verified here yet", code="unknown-format")
    return verify_software(
        SoftwareQuote.parse(envelope.evidence),
        SoftwareEndorsement.parse(envelope.endorsements),
        expected_report_data=expected_report_data,
        at=context.at,
    )


def unverified_report_data(envelope: EvidenceEnvelope) -> bytes:
    """Return the 64 bytes that the evidence says it was made for, to judge all but its freshness.

    Raises:
        EvidenceFormatError: the evidence is not in its format.
    """
    return SoftwareQuote.parse(envelope.evidence).unverified_body.report_data
