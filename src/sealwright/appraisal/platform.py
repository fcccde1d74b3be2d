"""Is genuine evidence allowed? One rule set a platform, one appraisal for all. Spec: docs/spec/appraisal.md."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol, Self

from pydantic import ConfigDict, Field, model_validator

from sealwright.appraisal.azure import AzSnpRules, AzTdxRules
from sealwright.appraisal.binding import ConfigBinding, resettable
from sealwright.appraisal.nitro import NitroRules
from sealwright.appraisal.nvgpu import GpuRules
from sealwright.appraisal.rego_engine import Engine
from sealwright.appraisal.sgx import SgxRules
from sealwright.appraisal.snp import SnpRules
from sealwright.appraisal.software import SoftwareRules
from sealwright.appraisal.tdx import TdxRules
from sealwright.appraisal.tpm import TpmRules
from sealwright.appraisal.vector import status, worse, worst
from sealwright.crypto.canonical import canonical_digest
from sealwright.crypto.document import Record
from sealwright.errors import AppraisalError, AppraisalFailure
from sealwright.verify.context import Context
from sealwright.verify.verified import Fact, Verified

# Registers that hold code rather than configuration: what `Appraisal.code` is made of.
_CODE: dict[str, tuple[str, ...]] = {
    "software": ("code",),
    "snp": ("measurement",),
    "tdx": ("mrtd", "rtmr0", "rtmr1", "rtmr2"),
    "sgx": ("mrenclave", "mrsigner"),
    "nitro": (
        "pcr0",
        "pcr1",
        "pcr2",
        "pcr4",
        "pcr7",
        "pcr8",
        "pcr11",
    ),  # enclaves, and instances with a NitroTPM
    "tpm": ("pcr4", "pcr7", "pcr9", "pcr11"),
    "az-snp-vtpm": ("measurement", "pcr4", "pcr7", "pcr9", "pcr11"),
    "az-tdx-vtpm": ("mrtd", "pcr4", "pcr7", "pcr9", "pcr11"),
}
_TEES = frozenset(_CODE) - {"software", "tpm"}
# Their rules ask for more than one of these (SNP, TDX), or that each is listed or said to be unchecked (TPMs).
_SAY_THEMSELVES = frozenset({"snp", "tdx", "nitro", "tpm", "az-snp-vtpm", "az-tdx-vtpm"})
# Conditions in which the host may look into a TEE, or nobody knows whether this is one: a level that was revoked
# can be imitated by whoever holds what leaked.
_OPEN = frozenset({"debug", "profiling", "tcb-revoked"})
_DEVICES = frozenset({"nvgpu", "nvswitch"})  # mode and debug of these are conditions and rules of their own


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

    @property
    def policies(self) -> tuple[bytes, ...]:
        """Digests (32 bytes) of further policies that are rules of these."""
        ...

    @property
    def bound(self) -> frozenset[str]:
        """The registers that need not replay from an event log."""
        ...

    def prepared(self, platform: str, at: datetime, *, engine: Engine | None = None) -> Rules:
        """Return these rules with their reference values opened, and with what evaluates Rego."""
        ...

    def context(self, given: Context) -> Context:
        """Return what a verification for this policy assumes."""
        ...

    @property
    def listed(self) -> Collection[str]:
        """The registers whose values are listed."""
        ...

    def names_code(self, verified: Any) -> bool:
        """Say whether every register of code is listed."""
        ...

    def held_config(self, verified: Any) -> bytes:
        """Return what the config's register holds."""
        ...

    def failures(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse."""
        ...


class Platforms(Record):
    """The platforms admitted; a platform that is not named is refused.

    `vtpm` and `nvgpu` are asked for beside the platform's own evidence wherever they are named.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    software: SoftwareRules | None = None
    snp: SnpRules | None = None
    tdx: TdxRules | None = None
    sgx: SgxRules | None = None
    nitro: NitroRules | None = None
    tpm: TpmRules | None = None
    az_snp_vtpm: AzSnpRules | None = Field(default=None, alias="az-snp-vtpm")
    az_tdx_vtpm: AzTdxRules | None = Field(default=None, alias="az-tdx-vtpm")
    vtpm: TpmRules | None = None
    nvgpu: GpuRules | None = None

    @model_validator(mode="after")
    def _config_stays(self) -> Self:
        for name, rules in self:
            register = "" if rules is None else rules.config_register
            is_tpm = isinstance(rules, NitroRules) and rules.document == "nitrotpm"
            if resettable("nitrotpm" if is_tpm else name.replace("_", "-"), register):
                raise ValueError(f"{register} cannot hold the config: it can be reset")
        return self

    def rules(self, platform: str, at: datetime, *, engine: Engine | None = None) -> Rules | None:
        """Return the rules of a platform, as they are at `at`; None: it is not named.

        Args:
            engine: what evaluates Rego; None: rules that have some refuse.

        Raises:
            SettingsError, VerificationError, CollateralError: its reference values do not count.
        """
        found: Rules | None = getattr(self, platform.replace("-", "_"), None)
        return None if found is None else found.prepared(platform, at, engine=engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """What was found: a vector, its status, and every reason to refuse (none: allowed)."""

    platform: str
    confidential: bool  # true only for hardware TEEs under their vendor's root
    vector: Mapping[str, int]
    config: ConfigBinding
    code: bytes  # 32 bytes: the register, or SHA-256 of JCS {name: hex} of the registers that hold code
    claims: Mapping[str, Fact]
    registers: Mapping[str, bytes] = field(default_factory=dict)
    policies: tuple[bytes, ...] = ()  # digests of Rego policies it was appraised by, beside the one it is of
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


def together(appraisals: Sequence[Appraisal]) -> Appraisal:
    """Return what several policies say of the same evidence: the worst of each claim, in every part, all failures."""
    first, vectors = appraisals[0], [one.vector for one in appraisals]
    return replace(
        first,
        vector=worst(vectors),
        policies=tuple(dict.fromkeys(digest for one in appraisals for digest in one.policies)),
        failures=tuple(dict.fromkeys(failure for one in appraisals for failure in one.failures)),
        parts={name: together([one.parts[name] for one in appraisals]) for name in first.parts},
    )


def is_confidential(verified: Verified) -> bool:
    """Say whether the host cannot look in: a TEE under its vendor's root, not open to debugging, not revoked."""
    return _is_tee(verified) and not any(condition.code in _OPEN for condition in verified.conditions)


def _is_tee(verified: Verified) -> bool:
    # A NitroTPM attests what an instance booted, on any type of instance: its memory may be in the clear.
    encrypted = verified.platform in _TEES and verified.facts.get("document") != "nitrotpm"
    return encrypted and verified.vendor_root


def appraise(verified: Verified, rules: Rules | None, *, require_hardware: bool) -> Appraisal:
    """Appraise one piece of evidence by the rules of its platform.

    Args:
        rules: None: the policy does not name this platform.
        require_hardware: refuse what is not a TEE under its vendor's root, whatever the rules say.
    """
    tee = _is_tee(verified)
    failures = list(_refusals(verified, rules, tee or not require_hardware))
    return Appraisal(
        platform=verified.platform,
        confidential=is_confidential(verified),
        vector=_vector(verified, rules, allowed=not failures),
        config=ConfigBinding(register="", held=b"")
        if rules is None
        else ConfigBinding(register=rules.config_register, held=rules.held_config(verified)),
        code=_code(verified),
        claims=verified.facts,
        registers=verified.registers,
        policies=() if rules is None else rules.policies,
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
        return
    yield from rules.failures(verified)
    code = () if verified.platform in _SAY_THEMSELVES else _CODE.get(verified.platform, ())
    if code and not set(code) & set(rules.listed):
        text = f"the policy names no code: it lists no value of {' or '.join(code)}"
        yield AppraisalFailure(text, code="no-code-named")


def _vector(verified: Verified, rules: Rules | None, *, allowed: bool) -> dict[str, int]:
    known = verified.vendor_root or (rules is not None and verified.root in rules.roots)
    vector: dict[str, int] = {
        "instance-identity": 2 if known else 97,
        "configuration": 2 if allowed else 36,
        "executables": 2 if rules is not None and rules.names_code(verified) else 33,
        "hardware": 2 if verified.vendor_root else 97,
        "runtime-opaque": 2 if is_confidential(verified) or verified.platform in _DEVICES else 96,
    }
    for condition in verified.conditions:
        vector[condition.claim] = worse(vector.get(condition.claim, 2), condition.value)
    return vector


def _code(verified: Verified) -> bytes:
    names = [name for name in _CODE.get(verified.platform, ()) if name in verified.registers]
    if len(names) == 1 and len(verified.registers[names[0]]) == 32:
        return verified.registers[names[0]]
    return canonical_digest({name: verified.registers[name].hex() for name in names})
