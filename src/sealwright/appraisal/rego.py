"""A Rego policy in Trustee's form as one more rule of a platform: it can refuse, never allow. Spec: docs/spec/rego.md.

Needs the extra `rego`; without it such a policy is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr

from sealwright.appraisal.rego_engine import Engine
from sealwright.appraisal.rego_input import input_document
from sealwright.appraisal.rego_text import MAX_POLICY, check_text
from sealwright.appraisal.vector import AFFIRMING, CLAIMS, tier
from sealwright.crypto.document import Name, Record
from sealwright.errors import AppraisalError, AppraisalFailure
from sealwright.verify.verified import Claim, Verified

Scalar = StrictStr | StrictBool | Annotated[StrictInt, Field(gt=-(1 << 53), lt=1 << 53)]
ReferenceValue = Scalar | Annotated[list[Scalar], Field(max_length=1024)]
Int8 = Annotated[StrictInt, Field(ge=-128, le=127)]

_TRUST_CLAIMS = "trust_claims"  # the rule that Trustee asks for
# What Trustee's policies begin with, for older ones that have no `trust_claims`.
_DEFAULTS = MappingProxyType({"executables": 33, "hardware": 97, "configuration": 36})
_RULES = MappingProxyType({claim.replace("-", "_"): claim for claim in CLAIMS})


class RegoRule(Record):
    """A policy, the reference values it may ask for, and what its trust claims have to be."""

    name: Name = "policy"
    policy: Annotated[str, Field(min_length=1, max_length=MAX_POLICY), AfterValidator(check_text)]
    reference_values: Annotated[dict[str, ReferenceValue], Field(max_length=256)] = Field(
        default_factory=dict
    )
    require: dict[Claim, Annotated[list[Int8], Field(min_length=1, max_length=64)]] = Field(
        default_factory=dict
    )  # else: executables, hardware, configuration affirming, and of the others each that is not 0

    @property
    def digest(self) -> bytes:
        """SHA-256 of the policy's text (32 bytes)."""
        return hashlib.sha256(self.policy.encode()).digest()

    def failures(self, verified: Verified, engine: Engine | None) -> Iterator[AppraisalFailure]:
        """Yield every claim that is not what is required, or why the policy could not be evaluated."""
        try:
            claims = self.trust_claims(verified, engine)
        except AppraisalError as exc:
            yield from exc.failures
            return
        for claim in CLAIMS:
            value = claims.get(claim, 0)
            if not self._admits(claim, value):
                text = f"Rego policy `{self.name}` gives {claim} {value}, {tier(value)}"
                yield AppraisalFailure(text, code="rego-not-allowed")

    def _admits(self, claim: str, value: int) -> bool:
        wanted: Mapping[str, list[int]] = {str(name): values for name, values in self.require.items()}
        if claim in wanted:
            return value in wanted[claim]
        return tier(value) == AFFIRMING or (value == 0 and claim not in _DEFAULTS)

    def trust_claims(self, verified: Verified, engine: Engine | None) -> Mapping[str, int]:
        """Return the AR4SI vector that the policy gives for `verified`; claims it does not assert may be missing.

        Args:
            engine: `sealwright.client.rego_process.evaluate_apart`, or what is as safe; None: nothing can be evaluated.

        Raises:
            AppraisalError: `rego-not-installed`, `rego-failed`.
        """
        if find_spec("regopy") is None:
            text = f"Rego policy `{self.name}` needs the extra `rego`: pip install 'sealwright[rego]'"
            raise AppraisalError([AppraisalFailure(text, code="rego-not-installed")])
        if engine is None:
            self._fail("cannot be evaluated here: no engine was given")
        asked = [_TRUST_CLAIMS] if re.search(rf"\b{_TRUST_CLAIMS}\b", self.policy) else list(_RULES)
        values = self._evaluated(verified, asked, engine)
        if asked == [_TRUST_CLAIMS]:
            return self._vector(values.get(_TRUST_CLAIMS))
        return self._vector({_RULES[rule]: value for rule, value in (dict(_DEFAULTS) | values).items()})

    def _evaluated(self, verified: Verified, rules: list[str], engine: Engine) -> dict[str, Any]:
        job = {
            "policy": self.policy,
            "input": input_document(verified),
            "reference": self.reference_values,
            "rules": rules,
        }
        try:
            values = json.loads(engine(json.dumps(job).encode()))
        except Exception as exc:  # noqa: BLE001 - native code and what is around it; each way to fail is a refusal
            self._fail(f"could not be evaluated ({type(exc).__name__})")
        if not isinstance(values, dict) or not values.keys() <= set(rules):
            self._fail("could not be evaluated (answer)")
        return values

    def _vector(self, value: object) -> Mapping[str, int]:
        if not isinstance(value, dict):
            self._fail("has no object `trust_claims`")
        for claim, number in value.items():
            if claim not in CLAIMS:
                self._fail("gives a trust claim that AR4SI does not know")
            # True is no 1; and what is beyond int8 would be another claim when cut.
            if type(number) is not int or not -128 <= number <= 127:
                self._fail(f"gives {claim} a value that is no int8")
        return MappingProxyType(value)

    def _fail(self, what: str) -> NoReturn:
        text = f"Rego policy `{self.name}` {what}"
        raise AppraisalError([AppraisalFailure(text, code="rego-failed")])
