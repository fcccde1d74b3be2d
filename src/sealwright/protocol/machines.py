"""Which machines stand in a region, by their operator's signature. Spec: docs/spec/life-cycle.md, Regions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.document import Name, Time
from sealwright.crypto.statement import Statement

MAX_MACHINES = 4096
MAX_STATEMENT = 1 << 20  # bytes
# As `sealwright.broker.subject` writes what evidence names.
Identity = Annotated[str, Field(pattern=r"^(snp-chip|intel-ppid):[0-9a-f]{16,128}$")]


class Machines(Statement):
    """An operator's word for where its machines stand."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.machines.v1+json"

    format: Literal["sealwright-machines/v1"] = "sealwright-machines/v1"
    operator: Name
    region: Name
    machines: Annotated[list[Identity], Field(min_length=1, max_length=MAX_MACHINES)]
    not_before: Time
    not_after: Time

    @model_validator(mode="after")
    def _dates(self) -> Self:
        if self.not_after <= self.not_before:
            raise ValueError("it ends before it begins")
        return self

    def in_force(self, at: datetime) -> bool:
        """Say whether it counts at `at`."""
        return self.not_before <= at < self.not_after
