"""Is genuine evidence allowed? One rule set a platform; every failure is listed.

Spec: docs/spec/appraisal.md. DESIGN names the honest result of platform `software`: hardware 97
(not recognised as hardware), runtime-opaque 96 (visible to the host).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from sealwright.appraisal.vector import status
from sealwright.crypto.document import Digest, Record
from sealwright.errors import AppraisalError, AppraisalFailure
from sealwright.verify.software import VerifiedSoftware

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
    """Admits platform `software`: the exact vector, the machines' quoting roots, the code, weaker claims."""

    vector: dict[str, int]
    roots: Annotated[list[Digest], Field(min_length=1, max_length=64)]
    code: Annotated[list[Digest], Field(min_length=1, max_length=256)]
    claims: dict[str, list[str]] = Field(default_factory=dict)


class Platforms(Record):
    """The platforms admitted; a platform that is not named is refused."""

    software: SoftwareRules | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """What was found: a vector, its status, and every reason to refuse (none: allowed)."""

    platform: str
    confidential: bool  # true only for hardware TEEs
    vector: Mapping[str, int]
    config_digest: bytes  # 32 bytes, as measured
    code: bytes  # 32 bytes
    claims: Mapping[str, str]
    failures: tuple[AppraisalFailure, ...]

    @property
    def status(self) -> str:
        """The EAR status: the tier of the worst claim."""
        return status(self.vector)

    def require(self) -> None:
        """Raise AppraisalError with every failure, if there is any."""
        if self.failures:
            raise AppraisalError(self.failures)


def appraise_software(
    verified: VerifiedSoftware, platforms: Platforms, *, require_hardware: bool, demo: bool
) -> Appraisal:
    """Appraise software evidence against `platforms`.

    Args:
        require_hardware: refuse, whatever the rules say.
        demo: the policy is a demo policy, which alone may admit reachable swap.
    """
    rules = platforms.software
    code, config_digest = verified.registers
    failures = list(_refusals(verified, rules, require_hardware, demo))
    vector = dict(SOFTWARE_VECTOR)
    vector["instance-identity"] = 2 if rules is not None and verified.root_fingerprint in rules.roots else 97
    vector["executables"] = 2 if rules is not None and code in rules.code else 33
    vector["configuration"] = 2 if not failures else 36
    return Appraisal(
        platform="software",
        confidential=False,
        vector=vector,
        config_digest=config_digest,
        code=code,
        claims=verified.claims.to_json(),
        failures=tuple(failures),
    )


def _refusals(
    verified: VerifiedSoftware, rules: SoftwareRules | None, require_hardware: bool, demo: bool
) -> Sequence[AppraisalFailure]:
    found: list[AppraisalFailure] = []

    def refuse(code: str, text: str) -> None:
        found.append(AppraisalFailure(text, code=code))

    if require_hardware:
        refuse("hardware-required", "platform `software` is not hardware, and the policy requires hardware")
    if rules is None:
        refuse("platform-not-allowed", "the policy does not name platform `software`")
        return found
    if rules.vector != SOFTWARE_VECTOR:
        refuse(
            "vector-not-allowed", f"the policy must name the vector of `software` exactly: {SOFTWARE_VECTOR}"
        )
    if verified.root_fingerprint not in rules.roots:
        refuse(
            "quoting-root-not-allowed",
            f"quoting root {verified.root_fingerprint.hex()[:16]}… is not in the policy; "
            "is this another machine?",
        )
    if verified.registers[0] not in rules.code:
        refuse(
            "code-not-allowed",
            f"code {verified.registers[0].hex()[:16]}… is not in the policy; is it another build?",
        )
    found += _claim_refusals(verified.claims.to_json(), rules.claims, demo)
    return found


def _claim_refusals(
    claims: Mapping[str, str], extra: Mapping[str, Sequence[str]], demo: bool
) -> list[AppraisalFailure]:
    found = []
    for name in sorted(STRICT_CLAIMS.keys() | claims.keys()):
        value = claims.get(name, "missing")
        allowed = set(STRICT_CLAIMS.get(name, ())) | set(extra.get(name, ()))
        if value == "reachable" and not demo:
            allowed.discard(value)
        if value not in allowed:
            text = f"claim {name} is {value!r}; the policy admits {', '.join(sorted(allowed)) or 'nothing'}"
            found.append(AppraisalFailure(text, code="claim-not-allowed"))
    return found
