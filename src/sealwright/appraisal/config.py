"""Is the enclave config allowed? By its digest, or by rules over what it names. Spec: docs/spec/appraisal.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

from sealwright.crypto.document import Bytes32, Digest, Record
from sealwright.crypto.encoding import b64url
from sealwright.errors import AppraisalFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFacts:
    """What appraisal looks at in an enclave config."""

    digest: bytes
    brokers: Sequence[bytes]  # roots, raw Ed25519
    policy_signers: Sequence[bytes]
    log_keys: Sequence[str]
    egress: Sequence[str]


class ConfigRules(Record):
    """Either `digests`, or lists in which *every* broker, signer, log key and egress host must stand."""

    digests: Annotated[list[Digest], Field(max_length=256)] = Field(default_factory=list)
    brokers: Annotated[list[Bytes32], Field(max_length=64)] = Field(default_factory=list)
    policy_signers: Annotated[list[Bytes32], Field(max_length=64)] = Field(default_factory=list)
    log_keys: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)
    egress: Annotated[list[str], Field(max_length=256)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        rules = bool(self.brokers or self.policy_signers or self.log_keys or self.egress)
        if bool(self.digests) == rules:
            raise ValueError("config takes either digests or rules (brokers and log_keys at least)")
        if rules and not (self.brokers and self.log_keys):
            raise ValueError("config rules name brokers and log_keys at least")
        return self


def appraise_config(facts: ConfigFacts, rules: ConfigRules) -> tuple[AppraisalFailure, ...]:
    """Return every reason to refuse the config; none: allowed."""
    if rules.digests:
        if facts.digest in rules.digests:
            return ()
        text = f"config {facts.digest.hex()[:16]}… is not one that is allowed"
        return (AppraisalFailure(text, code="config-not-allowed"),)
    return (
        *_outside("broker", map(b64url, facts.brokers), map(b64url, rules.brokers)),
        *_outside("policy signer", map(b64url, facts.policy_signers), map(b64url, rules.policy_signers)),
        *_outside("log key", facts.log_keys, rules.log_keys),
        *_outside("egress host", facts.egress, rules.egress),
    )


def _outside(what: str, named: Iterable[str], allowed: Iterable[str]) -> list[AppraisalFailure]:
    known = set(allowed)
    code = f"{what.replace(' ', '-')}-not-allowed"
    return [
        AppraisalFailure(f"the config names {what} {item}, which is not allowed", code=code)
        for item in named
        if item not in known
    ]
