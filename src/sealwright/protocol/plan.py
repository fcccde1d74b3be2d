"""What is trained, on what and how: the same for all who take part, and for who runs it again.

Spec: docs/spec/checkpoint.md, Plan.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.document import Count, Digest, Document, Name, Record
from sealwright.protocol.training_data import PurposeText

# A decimal in its one spelling: no exponent, no sign of zero, no zeros that say nothing.
DecimalText = Annotated[
    str,
    Field(
        pattern=r"^(?:0|-?(?:0\.[0-9]{0,24}[1-9]|[1-9][0-9]{0,17}(?:\.[0-9]{0,24}[1-9])?))$", max_length=48
    ),
]
Parameter = Annotated[str, Field(max_length=256)]


def decimal_text(value: float | int | str | Decimal) -> str:
    """Return a finite number as the one text that `DecimalText` admits (24 decimals at most).

    Raises:
        ValueError: not finite, or too large.
    """
    number = Decimal(str(value))
    if not number.is_finite() or abs(number) >= Decimal(10) ** 18:
        raise ValueError("a finite number under 10^18 is wanted")
    text = f"{number:.24f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


class Threshold(Record):
    """A hold-out metric that a checkpoint has to reach before it is promoted."""

    metric: Name
    at_least: DecimalText | None = None
    at_most: DecimalText | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a threshold says at_least or at_most")
        return self


class Plan(Document):
    """One run. `digest()` is the `run` of data policies, requests, grants and checkpoints."""

    format: Literal["sealwright-training-plan/v1"] = "sealwright-training-plan/v1"
    run: Name
    trainer: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.]*:[a-z_][a-z0-9_]*$", max_length=256)]
    code: Digest  # of the training code: `code_digest`
    parameters: Annotated[dict[Name, Parameter], Field(max_length=64)]
    seed: Count
    epochs: Annotated[int, Field(ge=1, le=1 << 20)]
    batch_rows: Annotated[int, Field(ge=1, le=1 << 24)]
    base: Digest | None = None  # SHA-256 of the weights it begins with; none: made from the seed
    aggregation: Digest | None = None  # of the run specification of secure aggregation
    gate: Annotated[list[Threshold], Field(max_length=16)]
    purpose: PurposeText

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({threshold.metric for threshold in self.gate}) != len(self.gate):
            raise ValueError("a metric has two thresholds")
        return self

    @property
    def attested_as(self) -> bytes:
        """What the report data of the run's workers name as `run_spec_digest` (32 bytes)."""
        return self.digest() if self.aggregation is None else self.aggregation
