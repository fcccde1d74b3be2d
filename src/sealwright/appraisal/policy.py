"""Key policies and trust files: typed, versioned, expiring. Spec: docs/spec/appraisal.md."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sealwright.appraisal.config import ConfigRules
from sealwright.appraisal.limits import Limits
from sealwright.appraisal.platform import Platforms
from sealwright.appraisal.signed import (
    POLICY,
    TRUST,
    Signers,
    check_succession,
    is_signed,
    unverified_payload,
)
from sealwright.appraisal.yaml import MAX_YAML, load_yaml
from sealwright.crypto.document import Bytes32, Digest, Document, Name, Record, Time, validated
from sealwright.errors import CollateralError, SettingsError

SuiteName = Literal["default", "classical"]
DEMO_LIFE = timedelta(hours=24)
LONGEST_LEASE_S = 24 * 3600


class PolicyBase(Document):
    """What policies and trust files share."""

    version: Annotated[int, Field(ge=1, lt=1 << 31)]
    profile: Literal["demo", "production"] = "production"
    require_hardware: bool = True
    created: Time
    expires: Time
    platforms: Platforms
    signers: Signers | None = None  # who signs the next version; none: whoever may write the file

    _PAYLOAD_TYPE: ClassVar[str]

    @classmethod
    def load(cls, raw: bytes) -> Self:
        """Return the document in `raw`: YAML, or DSSE signed by the threshold of signers that it names itself.

        Raises:
            SettingsError: not in its format. VerificationError: signed, but not by its own signers.
        """
        if not is_signed(raw):
            return validated(cls, load_yaml(raw), SettingsError)
        envelope, payload = unverified_payload(raw)
        document = cls.parse(payload, limit=MAX_YAML, error=SettingsError)
        if document.signers is None:
            raise SettingsError("a signed document names its signers", code="signers-missing")
        document.signers.check(envelope, cls._PAYLOAD_TYPE, stage="signers")
        return document

    def succeeded_by(self, raw: bytes, *, at: datetime) -> Self:
        """Return the new version in `raw`, proved to be allowed to take the place of this one.

        Raises:
            SettingsError, VerificationError: not in its format, not signed by the threshold of our signers and of
                its own, or `version-rollback`. CollateralError: not in force at `at`.
        """
        new = self.load(raw)
        envelope = unverified_payload(raw)[0] if is_signed(raw) else None
        check_succession(
            envelope, self._PAYLOAD_TYPE, old=self.signers, old_version=self.version, version=new.version
        )
        new.check_time(at)
        return new

    @model_validator(mode="after")
    def _dates(self) -> Self:
        if self.expires <= self.created:
            raise ValueError("it expires before it is created")
        if self.profile == "demo" and self.expires - self.created > DEMO_LIFE:
            raise ValueError("a demo profile lives at most 24 hours")
        if self.profile == "production" and not self.require_hardware:
            raise ValueError("a production profile requires hardware")
        return self

    def check_time(self, at: datetime) -> None:
        """Prove that it is in force at `at`.

        Raises:
            CollateralError: `policy-not-yet`, `policy-expired`.
        """
        if at < self.created - timedelta(minutes=5):
            raise CollateralError(
                "it is dated in the future; check this machine's clock", code="policy-not-yet", stage="policy"
            )
        if at >= self.expires:
            raise CollateralError(
                "it has expired; get or write a new one", code="policy-expired", stage="policy"
            )


class Canary(Record):
    """Builds of which only so many enclaves may have a lease of one tenant at a time: docs/spec/rollout.md."""

    code: Annotated[list[Digest], Field(min_length=1, max_length=16)]  # as `Appraisal.code`
    leases: Annotated[int, Field(ge=1, le=1000)]


class KeyPolicy(PolicyBase):
    """Who gets a key. `digest()` is the policy digest that decisions and releases name."""

    format: Literal["sealwright-policy/v1"] = "sealwright-policy/v1"
    config: ConfigRules
    lease_s: Annotated[int, Field(ge=2, le=LONGEST_LEASE_S)] = 600
    grace_s: Annotated[int, Field(ge=0, le=LONGEST_LEASE_S)] | None = (
        None  # served on while no broker answers
    )
    canary: Canary | None = None
    limits: Limits | None = None

    _PAYLOAD_TYPE = POLICY

    @model_validator(mode="after")
    def _longest(self) -> Self:
        if self.lease_s + (self.grace_s or 0) > LONGEST_LEASE_S:
            raise ValueError(f"lease_s and grace_s are at most {LONGEST_LEASE_S} together")
        return self


def _default_suites() -> list[SuiteName]:
    return ["default"]


class TrustFile(PolicyBase):
    """What a client or auditor trusts."""

    format: Literal["sealwright-trust/v1"] = "sealwright-trust/v1"
    config: ConfigRules
    tenant: Name
    suites: Annotated[list[SuiteName], Field(min_length=1, max_length=4)] = Field(
        default_factory=_default_suites
    )
    brokers: Annotated[list[Bytes32], Field(min_length=1, max_length=16)]
    manifests: Annotated[list[Digest], Field(max_length=256)] = Field(
        default_factory=list
    )  # empty: whatever the lease names
    log_policy: Annotated[str, Field(min_length=1, max_length=16 * 1024)]  # tlog-policy text
    longest_lease_s: Annotated[int, Field(ge=1, le=LONGEST_LEASE_S)] = 3600
    oldest_evidence_s: Annotated[int, Field(ge=1, le=LONGEST_LEASE_S)] = 3600

    _PAYLOAD_TYPE = TRUST
