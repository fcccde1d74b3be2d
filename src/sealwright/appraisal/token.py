"""What a policy admits of tokens, beside registers and conditions. Spec: docs/spec/token.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt, StrictStr

from sealwright.appraisal.rules import HardwareRules
from sealwright.errors import AppraisalFailure
from sealwright.verify.token import VerifiedToken
from sealwright.verify.verified import Verified

Scalar = StrictStr | StrictBool | StrictInt


class TokenRules(HardwareRules):
    """Admits tokens of named issuers, that are young enough and say what is listed.

    The base's `roots` names signing keys here (SHA-256 of SubjectPublicKeyInfo); empty: any key that was pinned for
    the issuer. `somebody-elses-verdict` stands under `admit`, or nothing is admitted.
    """

    issuers: Annotated[list[str], Field(min_length=1, max_length=16)]
    oldest_token_s: Annotated[int, Field(ge=0, le=24 * 3600)] = 300
    claims: Annotated[dict[str, list[Scalar]], Field(max_length=64)] = Field(
        default_factory=dict
    )  # JSON pointers

    def shared_refusals(self, verified: Verified) -> Iterator[AppraisalFailure]:
        """Yield what every platform refuses alike; keys count as pinned where none is named."""
        for failure in super().shared_refusals(verified):
            if failure.code != "root-not-allowed" or self.roots:
                yield failure

    def refusals(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason of tokens' own to refuse `verified`, a `VerifiedToken`."""
        if not isinstance(verified, VerifiedToken):
            raise TypeError("rules of tokens appraise a VerifiedToken")
        if verified.issuer not in self.issuers:
            text = f"issuer {verified.issuer} is not in the policy"
            yield AppraisalFailure(text, code="issuer-not-allowed")
        if verified.age_s > self.oldest_token_s:
            text = f"the token is {verified.age_s} s old; the policy admits {self.oldest_token_s} s"
            yield AppraisalFailure(text, code="token-too-old")
        if not any(self.registers.values()) and not any(self.claims.values()):
            text = "the policy names no code: it lists no value of a register or claim"
            yield AppraisalFailure(text, code="no-code-named")
        for pointer, values in self.claims.items():
            found = _at(verified.claims, pointer)
            # True is no 1, and 1 no True.
            if not any(type(found) is type(value) and found == value for value in values):
                text = f"claim {pointer} is not what the policy lists"
                yield AppraisalFailure(text, code="token-claim-not-allowed")


def _at(claims: Mapping[str, Any], pointer: str) -> Any:
    """Return the member that a JSON pointer (RFC 6901) names, or None; through objects only."""
    value: Any = claims
    for name in pointer.split("/")[1:]:
        value = value.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(value, Mapping) else None
    return value if pointer.startswith("/") else None
