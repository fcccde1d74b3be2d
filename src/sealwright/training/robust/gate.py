"""A checkpoint is measured on data held out before it is signed. Spec: docs/spec/privacy.md, Gate."""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from math import isfinite
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from sealwright.crypto.document import Count, Digest, Document, Name, Time
from sealwright.crypto.dsse import Envelope
from sealwright.errors import AppraisalError, AppraisalFailure, VerificationError

PAYLOAD_TYPE = "application/vnd.sealwright.gate+json"
Signed = Annotated[str, Field(max_length=24, pattern=r"^-?[0-9]{1,12}(?:\.[0-9]{1,11})?$")]


class GateRule(Document):
    """What a checkpoint has to reach, on which data."""

    format: Literal["sealwright-gate-rule/v1"] = "sealwright-gate-rule/v1"
    metric: Name
    better: Literal["higher", "lower"]
    threshold: Signed
    data: Digest  # of the held-out data
    rows: Annotated[int, Field(ge=1, lt=1 << 53)]

    def passes(self, value: Fraction) -> bool:
        """Return whether a value is as good as the threshold, or better."""
        limit = Fraction(self.threshold)
        return value >= limit if self.better == "higher" else value <= limit


class GateResult(Document):
    """That a checkpoint was measured, and passed: there is none for one that did not."""

    format: Literal["sealwright-gate-result/v1"] = "sealwright-gate-result/v1"
    rule: Digest
    checkpoint: Digest
    run_spec: Digest
    round: Count
    value: Signed
    time: Time

    @classmethod
    def opened(
        cls, envelope: bytes, *, key: Ed25519PublicKey, rule: GateRule, checkpoint: bytes
    ) -> GateResult:
        """Return the result in an envelope: signed by `key`, for this checkpoint under this rule, and passed.

        Raises:
            MessageFormatError: malformed. VerificationError: a signature that does not hold; `gate-other`.
            AppraisalError: `gate-failed`.
        """
        payload = Envelope.parse(envelope).verify(PAYLOAD_TYPE, [key])
        result = cls.parse(payload)
        if result.rule != rule.digest() or result.checkpoint != checkpoint:
            raise VerificationError(
                "the gate's result is of another checkpoint or rule", code="gate-other", stage="gate"
            )
        _check(rule, result.value)
        return result


def sign_gate(
    rule: GateRule,
    value: float,
    *,
    data: bytes,
    rows: int,
    checkpoint: bytes,
    run_spec: bytes,
    round_number: int,
    time: datetime,
    key: Ed25519PrivateKey,
) -> bytes:
    """Return the signed result (DSSE), if the value passes.

    Args:
        value: what was measured.
        data, rows: digest and size of what it was measured on, as the caller read it.
        checkpoint: digest.
        key: born in the TEE.

    Raises:
        VerificationError: `gate-other`: measured on other data than the rule names.
        AppraisalError: `gate-failed`: under the threshold, or no finite number.
    """
    if data != rule.data or rows != rule.rows:
        raise VerificationError("measured on other data than the rule names", code="gate-other", stage="gate")
    text = _text(value, rule)
    _check(rule, text)
    result = GateResult(
        rule=rule.digest(),
        checkpoint=checkpoint,
        run_spec=run_spec,
        round=round_number,
        value=text,
        time=time,
    )
    return Envelope.sign(PAYLOAD_TYPE, result.encode(), key).encode()


def _text(value: float, rule: GateRule) -> str:
    """Nine places, rounded to the worse side: rounding lets nothing pass."""
    if not (isfinite(value) and abs(value) < 10**12):
        raise _failed(f"{rule.metric} is {value}")
    scaled = Fraction(value) * 10**9
    worse = scaled.__floor__() if rule.better == "higher" else scaled.__ceil__()
    sign, (whole, rest) = "-" if worse < 0 else "", divmod(abs(worse), 10**9)
    return f"{sign}{whole}.{rest:09d}"


def _check(rule: GateRule, value: str) -> None:
    if not rule.passes(Fraction(value)):
        raise _failed(f"{rule.metric} is {value} where {rule.threshold} is wanted ({rule.better} is better)")


def _failed(what: str) -> AppraisalError:
    return AppraisalError([AppraisalFailure(f"{what}: not signed", code="gate-failed")], stage="gate")
