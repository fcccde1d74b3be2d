"""What the rules of every hardware platform share: registers, admitted conditions, roots, outage policy.

Each platform adds its own in a module of its name. Spec: docs/spec/appraisal.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator

from sealwright.crypto.document import Digest, Record
from sealwright.crypto.encoding import hex_decode
from sealwright.errors import AppraisalFailure, FormatError
from sealwright.verify.context import CollateralKind, Context, Tolerance
from sealwright.verify.verified import Verified


def _hex(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("hex text is wanted")
    try:
        return hex_decode(value)
    except FormatError as exc:
        raise ValueError(str(exc)) from None


HexBytes = Annotated[bytes, PlainValidator(_hex), PlainSerializer(bytes.hex, return_type=str)]


class OutageRule(Record):
    """How stale one kind of collateral may be, and whether to decide without it."""

    stale_s: Annotated[int, Field(ge=0, le=90 * 24 * 3600)] = 0
    missing: bool = False

    def tolerance(self) -> Tolerance:
        """Return it as a verification takes it."""
        return Tolerance(stale=timedelta(seconds=self.stale_s), missing=self.missing)


class HardwareRules(Record):
    """Admits one hardware platform. What is not named is refused."""

    registers: Annotated[dict[str, list[HexBytes]], Field(max_length=64)] = Field(default_factory=dict)
    config_register: Annotated[str, Field(max_length=32)] = ""  # holds config_digest; empty: none does
    admit: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)  # conditions, by code
    roots: Annotated[list[Digest], Field(max_length=64)] = Field(default_factory=list)
    outage: dict[CollateralKind, OutageRule] = Field(default_factory=dict)

    def context(self, given: Context) -> Context:
        """Return what a verification for these rules assumes: `given`, with their roots and outage policy."""
        tolerances = {kind: rule.tolerance() for kind, rule in self.outage.items()}
        return replace(given, roots=given.roots | frozenset(self.roots), outage=tolerances)

    def names_code(self, verified: Verified) -> bool:
        """Say whether registers are listed, and all of them hold what is listed."""
        return bool(self.registers) and all(
            verified.registers.get(name) in values for name, values in self.registers.items()
        )

    def failures(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse `verified`: what all platforms refuse alike, then this one's own."""
        yield from self._conditions(verified)
        if not verified.vendor_root and verified.root not in self.roots:
            text = f"root {verified.root.hex()[:16]}… is not the vendor's, and the policy does not name it"
            yield AppraisalFailure(text, code="root-not-allowed")
        yield from self._registers(verified)
        yield from self.refusals(verified)

    def refusals(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason of this platform's own to refuse `verified`; overridden by each platform."""
        yield from ()

    def _conditions(self, verified: Verified) -> Iterator[AppraisalFailure]:
        for condition in verified.conditions:
            if condition.code not in self.admit:
                yield AppraisalFailure(condition.text, code=condition.code)

    def _registers(self, verified: Verified) -> Iterator[AppraisalFailure]:
        for name, values in self.registers.items():
            found = verified.registers.get(name)
            if found is None:
                text = f"the evidence has no register {name}, which the policy asks for"
                yield AppraisalFailure(text, code="register-missing")
            elif found not in values:
                text = f"register {name} is {found.hex()[:16]}…, which the policy does not list"
                yield AppraisalFailure(text, code="measurement-not-allowed")
