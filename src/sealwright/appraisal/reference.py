"""Reference values: which registers a build gives, and which register holds the config. Signed, versioned, expiring.

Spec: docs/spec/signed-documents.md. A document stands for one build: evidence matches it as a whole, so that the
kernel of one release with the root of another is nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sealwright.appraisal.binding import resettable
from sealwright.appraisal.hexbytes import HexBytes
from sealwright.appraisal.signed import REFERENCE_VALUES, Signers
from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Document, Name, Record, Time
from sealwright.crypto.dsse import Envelope
from sealwright.errors import CollateralError, SettingsError, VerificationError
from sealwright.evidence.envelope import PlatformType

MAX_REFERENCE_VALUES = 256 * 1024  # bytes
# A policy names a provider's vTPM apart from the TEE beside it, so that values of it stand apart too.
ReferencePlatform = PlatformType | Literal["vtpm"]


class ReferenceValues(Document):
    """What one build measures to."""

    format: Literal["sealwright-reference-values/v1"] = "sealwright-reference-values/v1"
    name: Name  # of the product: versions of one name replace each other
    version: Annotated[int, Field(ge=1, lt=1 << 31)]
    created: Time
    expires: Time
    platform: ReferencePlatform
    registers: Annotated[dict[str, list[HexBytes]], Field(min_length=1, max_length=64)]
    config_register: Annotated[str, Field(max_length=32)] = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.expires <= self.created:
            raise ValueError("they expire before they are created")
        if not all(self.registers.values()):
            raise ValueError("a register without a value admits nothing")
        if resettable(self.platform, self.config_register):
            raise ValueError(f"{self.config_register} cannot hold the config: it can be reset")
        return self

    def check_time(self, at: datetime) -> None:
        """Prove that they are in force. Raises CollateralError `reference-values-expired`."""
        if not self.created <= at < self.expires:
            raise CollateralError(
                f"reference values {self.name} {self.version} are not in force at this time; get newer ones",
                code="reference-values-expired",
                stage="reference-values",
            )

    def matches(self, registers: Mapping[str, bytes]) -> list[str]:
        """Return the names of registers that hold something else; none: this is the build."""
        return [name for name, values in self.registers.items() if registers.get(name) not in values]


class ReferenceRule(Record):
    """Reference values that a policy believes: who signs them, and the documents themselves (DSSE)."""

    signers: Signers
    minimum_version: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    values: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=64)]

    def opened(self, platform: str, at: datetime) -> list[ReferenceValues]:
        """Return the documents, each proved to be signed, of this platform, new enough and in force at `at`.

        Raises:
            SettingsError, VerificationError: not signed; `version-rollback`. CollateralError: expired.
        """
        return [self._open(canonical(value), platform, at) for value in self.values]

    def _open(self, raw: bytes, platform: str, at: datetime) -> ReferenceValues:
        payload = self.signers.check(
            Envelope.parse(raw, error=SettingsError), REFERENCE_VALUES, stage="reference-values"
        )
        values = ReferenceValues.parse(payload, limit=MAX_REFERENCE_VALUES, error=SettingsError)
        if values.platform != platform:
            raise SettingsError(
                f"reference values {values.name} are of platform {values.platform}, not {platform}",
                code="reference-values-platform",
            )
        if values.version < self.minimum_version:
            raise VerificationError(
                f"reference values {values.name} {values.version} are older than {self.minimum_version}",
                code="version-rollback",
                stage="reference-values",
            )
        values.check_time(at)
        return values
