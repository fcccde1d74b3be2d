"""What every collector of hardware evidence offers: a quote over 64 bytes, and what it says of itself.

Evidence is collected here and believed nowhere: whoever receives it verifies it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sealwright.errors import UnavailableError, VerificationError

if TYPE_CHECKING:  # a guest's initrd reads registers by these modules, with the standard library alone
    from sealwright.evidence.envelope import EvidenceEnvelope, PlatformType

REPORT_DATA_SIZE = 64  # bytes
STAGE = "collect"


class Attester(Protocol):
    """One source of evidence on this machine."""

    @property
    def platform(self) -> PlatformType:
        """The type of the envelopes that `quote` returns."""

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        """Return evidence over `report_data` (64 bytes; another length is a ValueError). Thread-safe.

        Raises:
            UnavailableError: the interface is not there, not open to this user, or refused.
            VerificationError: `report-data-mismatch`: what came back is not over this report data.
        """

    def describe(self) -> Mapping[str, object]:
        """Return what this interface says of itself, as JSON values. Nothing of it is signed.

        Raises:
            UnavailableError: as `quote`.
        """


@runtime_checkable
class BindsConfig(Protocol):
    """An attester that puts the enclave config into its platform's register itself; elsewhere launch or initrd did."""

    def bind_config(self, config_digest: bytes) -> None:
        """Put `config_digest` (32 bytes) into the register, or prove that it is what the register holds alone.

        Raises:
            VerificationError: `config-register-used`: the register holds something else.
            UnavailableError: as `quote`.
        """


@runtime_checkable
class Closes(Protocol):
    """An attester that holds something between quotes, such as a key in a TPM."""

    def close(self) -> None:
        """Let go of it."""


@runtime_checkable
class TakesNotes(Protocol):
    """An attester that says what it left out of its last quote."""

    @property
    def note(self) -> str:
        """What a person should know; empty: nothing was left out."""


def check_report_data(report_data: bytes) -> None:
    """Refuse, as a ValueError, report data that is not 64 bytes: it is never padded or cut here."""
    if len(report_data) != REPORT_DATA_SIZE:
        raise ValueError(f"report data has {REPORT_DATA_SIZE} bytes, not {len(report_data)}")


def check_ours(found: bytes, report_data: bytes) -> None:
    """Check that evidence carries the report data that was asked for: somebody else may have written too.

    Raises:
        VerificationError: `report-data-mismatch`.
    """
    if not hmac.compare_digest(found, report_data):
        raise VerificationError(
            "the evidence that came back is not over the report data that was asked for",
            code="report-data-mismatch",
            stage=STAGE,
        )


def missing(text: str) -> UnavailableError:
    """Return the error for an interface that is not there."""
    return UnavailableError(text, code="tee-interface-missing", stage=STAGE)


def forbidden(path: str) -> UnavailableError:
    """Return the error for an interface that this user may not use."""
    return UnavailableError(f"{path} is not open to this user", code="tee-permission", stage=STAGE)


def refused(text: str) -> UnavailableError:
    """Return the error for a device or firmware that answered no."""
    return UnavailableError(text, code="tee-refused", stage=STAGE)


def busy(text: str) -> UnavailableError:
    """Return the error for an interface that others kept busy, or meddled with, each time."""
    return UnavailableError(text, code="tee-busy", stage=STAGE)
