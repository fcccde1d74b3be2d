"""What the rules of every hardware platform share: registers, admitted conditions, roots, outage policy.

Each platform adds its own in a module of its name. Spec: docs/spec/appraisal.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr

from sealwright.appraisal.hexbytes import HexBytes as HexBytes
from sealwright.appraisal.reference import ReferenceRule, ReferenceValues
from sealwright.appraisal.rego import RegoRule
from sealwright.appraisal.rego_engine import Engine
from sealwright.crypto.document import Digest, Record
from sealwright.errors import AppraisalFailure, SettingsError
from sealwright.verify.context import CollateralKind, Context, Tolerance
from sealwright.verify.eventlog import SYSTEM
from sealwright.verify.verified import Verified


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
    reference: ReferenceRule | None = None  # signed reference values; one of them has to match as a whole
    admit: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)  # conditions, by code
    roots: Annotated[list[Digest], Field(max_length=64)] = Field(default_factory=list)
    outage: dict[CollateralKind, OutageRule] = Field(default_factory=dict)
    rego: RegoRule | None = None  # one rule more, in Trustee's form; needs the extra `rego`
    _builds: tuple[ReferenceValues, ...] = PrivateAttr(default=())
    _engine: Engine | None = PrivateAttr(default=None)

    def prepared(self, platform: str, at: datetime, *, engine: Engine | None = None) -> Self:
        """Return these rules with their reference values proved to be signed and in force at `at`.

        Args:
            engine: what evaluates `rego`, such as `sealwright.client.rego_process.evaluate_apart`; None: it is refused.

        Raises:
            SettingsError, VerificationError, CollateralError: see `ReferenceRule.opened`.
        """
        found = self if self.reference is None else self._referring(self.reference, platform, at)
        if self.rego is not None and engine is not None:
            found = found.model_copy()
            found._engine = engine
        return found

    def _referring(self, reference: ReferenceRule, platform: str, at: datetime) -> Self:
        builds = tuple(reference.opened(platform, at))
        registers = {self.config_register, *(build.config_register for build in builds)} - {""}
        if len(registers) > 1:
            raise SettingsError(
                f"reference values and policy disagree on the config's register: {sorted(registers)}",
                code="config-register",
            )
        copy = self.model_copy(update={"config_register": next(iter(registers), "")})
        copy._builds = builds
        return copy

    def context(self, given: Context) -> Context:
        """Return what a verification for these rules assumes: `given`, with their roots and outage policy."""
        tolerances = {kind: rule.tolerance() for kind, rule in self.outage.items()}
        return replace(given, roots=given.roots | frozenset(self.roots), outage=tolerances)

    @property
    def policies(self) -> tuple[bytes, ...]:
        """Digests (32 bytes) of the Rego policies that are rules of these."""
        return () if self.rego is None else (self.rego.digest,)

    @property
    def bound(self) -> frozenset[str]:
        """Registers that need not replay from an event log: the config's, and those of the system that are named."""
        return (self.listed & SYSTEM) | {self.config_register}

    @property
    def listed(self) -> frozenset[str]:
        """The registers whose values are listed, here or in every build of the reference values."""
        inline = {name for name, values in self.registers.items() if values}
        builds = [set(build.registers) for build in self._builds]
        return frozenset(inline.union(set.intersection(*builds) if builds else set()))

    def names_code(self, verified: Verified) -> bool:
        """Say whether registers are listed, and all of them hold what is listed."""
        return bool(self.listed) and not any(self._measurements(verified.registers))

    def held_config(self, verified: Verified) -> bytes:
        """Return what the config's register holds; empty where there is none."""
        return verified.registers.get(self.config_register, b"")

    def failures(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse `verified`."""
        yield from self.shared_refusals(verified)
        yield from self.refusals(verified)
        if self.rego is not None:
            yield from self.rego.failures(verified, self._engine)

    def shared_refusals(self, verified: Verified) -> Iterator[AppraisalFailure]:
        """Yield what every platform refuses alike: conditions not admitted, roots, measurements."""
        for condition in verified.conditions:
            if condition.code not in self.admit:
                yield AppraisalFailure(condition.text, code=condition.code)
        yield from self.root_refusals(verified)
        yield from self._measurements(verified.registers)

    def root_refusals(self, verified: Verified) -> Iterator[AppraisalFailure]:
        """Yield a failure if `verified` ends in a root that counts for nothing here."""
        if not verified.vendor_root and verified.root not in self.roots:
            text = f"root {verified.root.hex()[:16]}… is not the vendor's, and the policy does not name it"
            yield AppraisalFailure(text, code="root-not-allowed")

    def refusals(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason of this platform's own to refuse `verified`; overridden by each platform."""
        yield from ()

    def _measurements(self, registers: Mapping[str, bytes]) -> Iterator[AppraisalFailure]:
        if self.reference is not None and not self._builds:
            raise RuntimeError("rules with reference values are used as `prepared` returns them")
        for name, values in self.registers.items():
            if name not in registers:
                text = f"the evidence has no register {name}, which the policy asks for"
                yield AppraisalFailure(text, code="register-missing")
            elif registers[name] not in values:
                text = f"register {name} is {registers[name].hex()[:16]}…, which the policy does not list"
                yield AppraisalFailure(text, code="measurement-not-allowed")
        closest = min((build.matches(registers) for build in self._builds), key=len, default=[])
        if closest:
            text = f"no build of the reference values matches; the closest differs in {', '.join(closest)}"
            yield AppraisalFailure(text, code="measurement-not-allowed")
