"""What a run is, the same for all who take part. Spec: docs/spec/secure-aggregation.md, Run specification."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.document import Bytes32, Digest, Document, Name

MAX_ROSTER = 4096
MAX_DEGREE = 1024  # a masked update has the shares of degree² secrets in its head
MAX_SUM = 2**31 - 1  # of absolute values of a sum: what fits signed 32 bits
Mode = Literal["masked", "tee", "tee+masked"]


class RunSpec(Document):
    """One run. `digest()` stands in every enrolment, so in the evidence of every worker."""

    format: Literal["sealwright-run-spec/v1"] = "sealwright-run-spec/v1"
    run: Name
    mode: Mode
    elements: Annotated[int, Field(ge=1, le=2**31)]
    clip: Annotated[str, Field(max_length=24, pattern=r"^[0-9]{1,12}(?:\.[0-9]{1,11})?$")]
    max_weight: Annotated[int, Field(ge=1, le=2**20)]
    min_roster: Annotated[int, Field(ge=2, le=MAX_ROSTER)]
    max_roster: Annotated[int, Field(ge=2, le=MAX_ROSTER)]
    min_survivors: Annotated[int, Field(ge=2, le=MAX_ROSTER)]
    degree: Annotated[int, Field(ge=2, le=MAX_DEGREE)]
    threshold: Annotated[int, Field(ge=2, le=MAX_DEGREE)]
    countersigner: Bytes32  # Ed25519
    enrolment_policy: Digest  # of the policy that workers are appraised under
    purpose: Annotated[str, Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.min_roster <= self.max_roster:
            raise ValueError("min_roster is over max_roster")
        if not self.min_roster // 2 < self.min_survivors <= self.max_roster:
            raise ValueError("min_survivors is more than half of min_roster, and at most max_roster")
        if not self.degree // 2 < self.threshold <= max(self.degree - 1, 2):
            raise ValueError("threshold is more than half of degree, and under degree")
        if self.degree % 2 and self.degree + 1 < self.max_roster:
            raise ValueError("an odd degree is for complete graphs: rosters of at most degree + 1")
        if self.scale < 1:
            raise ValueError("run-spec-too-coarse: max_roster, max_weight and clip leave no bits for numbers")
        return self

    @property
    def clip_value(self) -> Fraction:
        """Largest absolute value of one number. Exact: no context of the process rounds it."""
        value = Fraction(self.clip)
        if not value:
            raise ValueError("clip is zero")
        return value

    @property
    def steps(self) -> int:
        """Largest absolute value of one number in fixed point, rounded: so many fit in a sum from each."""
        return MAX_SUM // (self.max_roster * self.max_weight)

    @property
    def scale(self) -> int:
        """Steps to the unit of fixed-point numbers."""
        return int(self.steps / self.clip_value)

    @property
    def masked(self) -> bool:
        """Whether updates are masked."""
        return self.mode != "tee"

    def threshold_of(self, neighbours: int) -> int:
        """Return how many shares open a secret of a worker with so many neighbours."""
        return self.threshold if neighbours >= self.degree else -(-self.threshold * neighbours // self.degree)
