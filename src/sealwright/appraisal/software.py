"""Rules of platform `software`: the exact vector, the machines' quoting roots, the code, weaker claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated

from pydantic import Field

from sealwright.appraisal.rego_engine import Engine
from sealwright.crypto.document import Digest, Record
from sealwright.errors import AppraisalFailure
from sealwright.verify.context import Context
from sealwright.verify.software import VerifiedSoftware

# DESIGN's honest result: not recognised as hardware, visible to the host.
SOFTWARE_VECTOR = {"hardware": 97, "runtime-opaque": 96}

# What a hardened start looks like. A policy that admits less names the claim and the value.
STRICT_CLAIMS: Mapping[str, frozenset[str]] = {
    "core": frozenset({"off"}),
    "dumpable": frozenset({"never"}),
    "filesystem": frozenset({"landlock"}),
    "network": frozenset({"namespace"}),
    "sealed_root": frozenset({"tmpfs"}),
    "seccomp": frozenset({"enforced"}),
    "swap": frozenset({"none", "cgroup", "mlock"}),
    "user": frozenset({"own"}),
}


class SoftwareRules(Record):
    """Admits platform `software`. Demo profiles alone can: production requires hardware."""

    vector: dict[str, int]
    roots: Annotated[list[Digest], Field(min_length=1, max_length=64)]
    code: Annotated[list[Digest], Field(min_length=1, max_length=256)]
    claims: dict[str, list[str]] = Field(default_factory=dict)

    @property
    def policies(self) -> tuple[bytes, ...]:
        """None: it has no Rego."""
        return ()

    @property
    def bound(self) -> frozenset[str]:
        """None: it has no event log."""
        return frozenset()

    @property
    def config_register(self) -> str:
        """The quoter's register 1."""
        return "config"

    def prepared(self, platform: str, at: datetime, *, engine: Engine | None = None) -> SoftwareRules:
        """Return these rules: they have no reference values and no Rego."""
        return self

    def context(self, given: Context) -> Context:
        """Return what a verification assumes: of this platform, nothing more than was given."""
        return given

    @property
    def listed(self) -> frozenset[str]:
        """Register 0."""
        return frozenset({"code"})

    def held_config(self, verified: VerifiedSoftware) -> bytes:
        """Return register 1."""
        return verified.registers["config"]

    def names_code(self, verified: VerifiedSoftware) -> bool:
        """Say whether the code is one that is admitted, for the vector."""
        return verified.registers["code"] in self.code

    def failures(self, verified: VerifiedSoftware) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse."""
        if self.vector != SOFTWARE_VECTOR:
            yield AppraisalFailure(
                f"the policy must name the vector of `software` exactly: {SOFTWARE_VECTOR}",
                code="vector-not-allowed",
            )
        if verified.root not in self.roots:
            yield AppraisalFailure(
                f"quoting root {verified.root.hex()[:16]}… is not in the policy; is this another machine?",
                code="quoting-root-not-allowed",
            )
        if not self.names_code(verified):
            yield AppraisalFailure(
                f"code {verified.registers['code'].hex()[:16]}… is not in the policy; is it another build?",
                code="code-not-allowed",
            )
        yield from self._claims(verified.claims.to_json())

    def _claims(self, claims: Mapping[str, str]) -> Iterator[AppraisalFailure]:
        for name in sorted(STRICT_CLAIMS.keys() | claims.keys()):
            value = claims.get(name, "missing")
            allowed = set(STRICT_CLAIMS.get(name, ())) | set(self.claims.get(name, ()))
            if value not in allowed:
                text = (
                    f"claim {name} is {value!r}; the policy admits {', '.join(sorted(allowed)) or 'nothing'}"
                )
                yield AppraisalFailure(text, code="claim-not-allowed")
