"""Whom an auditor of checkpoints trusts. Spec: docs/spec/checkpoint.md, Trust."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field

from sealwright.appraisal.policy import TrustFile
from sealwright.appraisal.yaml import load_yaml
from sealwright.crypto.document import Bytes32, Digest, Document, Id16, Name, Record, validated
from sealwright.errors import SettingsError
from sealwright.protocol.training_data import Version
from sealwright.tlog.policy import LogPolicy

Keys = Annotated[list[Bytes32], Field(min_length=1, max_length=16)]


class Known(Record):
    """The newest checkpoint that the auditor has seen of the lineage: nothing older is accepted."""

    lineage: Id16
    version: Version
    statement: Digest


class TrainingTrust(Document):
    """A trust file for enclaves and log, and beside it: data owners, base models, and who may approve."""

    format: Literal["sealwright-training-trust/v1"] = "sealwright-training-trust/v1"
    trust: TrustFile  # platforms, config, brokers, log policy, age of evidence; the rest is about serving
    owners: Annotated[dict[Name, Keys], Field(max_length=256)]  # Ed25519, by tenant
    bases: Annotated[list[Digest], Field(max_length=64)] = Field(default_factory=list)  # SHA-256 of weights
    approvers: Annotated[list[Bytes32], Field(max_length=32)] = Field(default_factory=list)
    approvals: Annotated[int, Field(ge=1, le=16)] = 1  # signatures that a promotion needs
    newest: Known | None = None

    @classmethod
    def load(cls, raw: bytes) -> Self:
        """Return the trust in YAML or JSON. Raises SettingsError."""
        return validated(cls, load_yaml(raw), SettingsError)

    def log(self) -> LogPolicy:
        """Return whom to trust for the log. Raises LogFormatError."""
        return LogPolicy.parse(self.trust.log_policy.encode())

    def check_time(self, at: datetime) -> None:
        """Prove that it is in force. Raises CollateralError."""
        self.trust.check_time(at)
