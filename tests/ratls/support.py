"""What tests of attested TLS share: a software platform of our own, and an appraisal that verifies its quotes."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec

from sealwright.endorsement.software import SoftwareEndorsement
from sealwright.errors import AppraisalError, AppraisalFailure
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.software import QuoteBody, SoftwareQuote
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform
from sealwright.verify.software import verify_software

NOW = datetime(2026, 2, 3, 12, tzinfo=UTC)
CODE, OTHER_CODE, CONFIG = b"\x01" * 32, b"\x03" * 32, b"\x02" * 32
NONCE = bytes(range(32))


def clock() -> datetime:
    return NOW


def new_platform() -> SoftwareTestPlatform:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return SoftwareTestPlatform(NOW)


PLATFORM = new_platform()
KEY = ec.generate_private_key(ec.SECP256R1())


def attest(report_data: bytes) -> EvidenceEnvelope:
    return PLATFORM.quote(report_data, (CODE, CONFIG))


def attest_other_code(report_data: bytes) -> EvidenceEnvelope:
    return PLATFORM.quote(report_data, (OTHER_CODE, CONFIG))


def appraise(envelope: EvidenceEnvelope, report_data: bytes) -> QuoteBody:
    """Verify a quote, and admit CODE of PLATFORM alone; return what was quoted."""
    quote = SoftwareQuote.parse(envelope.evidence)
    endorsement = SoftwareEndorsement.parse(envelope.endorsements)
    verify_software(quote, endorsement, expected_report_data=report_data, at=NOW)
    quoted = quote.unverified_body
    if quoted.registers[0] != CODE or endorsement.root_fingerprint() != PLATFORM.root_fingerprint:
        raise AppraisalError([AppraisalFailure("not this code", code="code-not-allowed")])
    return quoted
