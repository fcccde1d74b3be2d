"""What tests of Nitro share."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta

from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.nitro import NitroDocument
from sealwright.testing.nitro import FakePlatformWarning, NitroTestPlatform
from sealwright.verify.context import Context
from sealwright.verify.nitro import VerifiedNitro, verify_nitro

NOW = datetime(2026, 2, 3, 12, tzinfo=UTC)
REPORT = bytes(range(64))


def new_platform() -> NitroTestPlatform:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return NitroTestPlatform(NOW)


def made(document: NitroDocument) -> datetime:
    """Return the time that a document says of itself."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=document.timestamp)


def check(raw: bytes, *, report_data: bytes | None = None, context: Context | None = None) -> VerifiedNitro:
    """Verify a document, by default for its own user_data a minute after it was made."""
    document = NitroDocument.parse(raw)
    return verify_nitro(
        document,
        Endorsements(),
        expected_report_data=(document.user_data or b"") if report_data is None else report_data,
        context=context or Context(at=made(document) + timedelta(minutes=1)),
    )
