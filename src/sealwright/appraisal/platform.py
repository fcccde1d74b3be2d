"""Is genuine evidence allowed? One rule set a platform, one appraisal for all. Spec: docs/spec/appraisal.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from sealwright.appraisal.binding import ConfigBinding
from sealwright.appraisal.software import SoftwareRules
from sealwright.appraisal.vector import status, worse
from sealwright.crypto.canonical import canonical_digest
from sealwright.crypto.document import Record
from sealwright.errors import AppraisalError, AppraisalFailure
from sealwright.verify.context import Context
from sealwright.verify.verified import Fact, Verified

# Registers that hold code rather than configuration: what `Appraisal.code` is made of.
_CODE = {
    "software": ("code",),
    "snp": ("measurement",),
    "tdx": ("mrtd", "rtmr0", "rtmr1", "rtmr2"),
    "sgx": ("mrenclave", "mrsigner"),
    "nitro": ("pcr0", "pcr1", "pcr2"),
    "tpm": ("pcr4", "pcr7", "pcr9", "pcr11"),
    "az-snp-vtpm": ("measurement", "pcr4", "pcr7", "pcr9", "pcr11"),
    "az-tdx-vtpm": ("mrtd", "pcr4", "pcr7", "pcr9", "pcr11"),
}
_TEES = frozenset(_CODE) - {"software", "tpm"}


class Rules(Protocol):
    """What a policy says of one platform."""

    @property
    def roots(self) -> Sequence[bytes]:
        """SHA-256 of roots that are admitted beside the vendor's."""
        ...

    @property
    def config_register(self) -> str:
        """The register that holds `config_digest`."""
        ...

    def prepared(self, platform: str, at: datetime) -> Rules:
        """Return these rules with their reference values opened."""
        ...

    def context(self, given: Context) -> Context:
        """Return what a verification for this policy assumes."""
        ...

    def names_code(self, verified: Any) -> bool:
        """Say whether every register of code is listed."""
        ...

    def failures(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse."""
        ...


class Platforms(Record):
    """The platforms admitted; a platform that is not named is refused."""

    software: SoftwareRules | None = None

    def rules(self, platform: str, at: datetime) -> Rules | None:
        """Return the rules of a platform, as they are at `at`; None: it is not named.

        Raises:
            SettingsError, VerificationError, CollateralError: its reference values do not count.
        """
        found: Rules | None = getattr(self, platform.replace("-", "_"), None)
        return None if found is None else found.prepared(platform, at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """What was found: a vector, its status, and every reason to refuse (none: allowed)."""

    platform: str
    confidential: bool  # true only for hardware TEEs under their vendor's root
    vector: Mapping[str, int]
    config: ConfigBinding
    code: bytes  # 32 bytes: the register, or SHA-256 of JCS {name: hex} of the registers that hold code
    claims: Mapping[str, Fact]
    failures: tuple[AppraisalFailure, ...]
    parts: Mapping[str, Appraisal] = field(default_factory=dict)  # vTPM and devices, by EAR submodule

    @property
    def status(self) -> str:
        """The EAR status: the tier of the worst claim."""
        return status(self.vector)

    def require(self) -> None:
        """Raise AppraisalError with every failure, if there is any."""
        if self.failures:
            raise AppraisalError(self.failures)


def is_confidential(verified: Verified) -> bool:
    """Say whether the host cannot look in: a TEE under its vendor's root, and not in debug mode."""
    tee = verified.platform in _TEES and verified.vendor_root
    return tee and not any(condition.code == "debug" for condition in verified.conditions)


def appraise(verified: Verified, rules: Rules | None, *, require_hardware: bool) -> Appraisal:
    """Appraise one piece of evidence by the rules of its platform.

    Args:
        rules: None: the policy does not name this platform.
        require_hardware: refuse what is not a TEE under its vendor's root, whatever the rules say.
    """
    tee = verified.platform in _TEES and verified.vendor_root
    failures = list(_refusals(verified, rules, tee or not require_hardware))
    register = "" if rules is None else rules.config_register
    return Appraisal(
        platform=verified.platform,
        confidential=is_confidential(verified),
        vector=_vector(verified, rules, tee=tee, allowed=not failures),
        config=ConfigBinding(register=register, held=verified.registers.get(register, b"")),
        code=_code(verified),
        claims=verified.facts,
        failures=tuple(failures),
    )


def _refusals(verified: Verified, rules: Rules | None, hardware: bool) -> Iterator[AppraisalFailure]:
    name = verified.platform
    if not hardware:
        text = f"platform `{name}` is not hardware, and the policy requires hardware"
        if verified.platform in _TEES:
            text = f"this {name} evidence ends in a root that is not its vendor's: it is not hardware, which the policy requires"
        yield AppraisalFailure(text, code="hardware-required")
    if rules is None:
        yield AppraisalFailure(f"the policy does not name platform `{name}`", code="platform-not-allowed")
    else:
        yield from rules.failures(verified)


def _vector(verified: Verified, rules: Rules | None, *, tee: bool, allowed: bool) -> dict[str, int]:
    known = verified.vendor_root or (rules is not None and verified.root in rules.roots)
    vector: dict[str, int] = {
        "instance-identity": 2 if known else 97,
        "configuration": 2 if allowed else 36,
        "executables": 2 if rules is not None and rules.names_code(verified) else 33,
        "hardware": 2 if tee else 97,
        "runtime-opaque": 2 if tee else 96,
    }
    for condition in verified.conditions:
        vector[condition.claim] = worse(vector.get(condition.claim, 2), condition.value)
    return vector


def _code(verified: Verified) -> bytes:
    names = [name for name in _CODE.get(verified.platform, ()) if name in verified.registers]
    if len(names) == 1 and len(verified.registers[names[0]]) == 32:
        return verified.registers[names[0]]
    return canonical_digest({name: verified.registers[name].hex() for name in names})
