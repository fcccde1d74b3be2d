"""What the rules of SGX and TDX share: TCB status, advisories, floors, and which platforms are admitted.

Spec: docs/spec/dcap.md, "Rules".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sealwright.appraisal.hexbytes import HexBytes
from sealwright.appraisal.rules import HardwareRules
from sealwright.crypto.document import Name
from sealwright.errors import AppraisalFailure
from sealwright.verify.dcap import VerifiedDcap
from sealwright.verify.dcap_tcb import STATUS_CODES
from sealwright.verify.verified import Verified

TcbStatusName = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
]


def sized(length: int) -> AfterValidator:
    """Return a validator of bytes of one length: a ban that can never match must not pass for one."""

    def check(value: bytes) -> bytes:
        if len(value) != length:
            raise ValueError(f"{len(value)} bytes where {length} are wanted")
        return value

    return AfterValidator(check)


Fmspc = Annotated[HexBytes, sized(6)]
PlatformId = Annotated[HexBytes, sized(16)]
Svn = Annotated[int, Field(ge=0, le=0xFFFF)]
Advisory = Annotated[str, Field(pattern=r"^INTEL-[A-Z]{2}-[0-9]{5}$")]


def _up_to_date() -> list[TcbStatusName]:
    return ["UpToDate"]


class DcapRules(HardwareRules):
    """Admits Intel platforms. "any" is written where a rule shall admit everything.

    A status counts as admitted if it is listed here, or if `admit` lists all its conditions.
    """

    minimum_tcb_evaluation: Annotated[int, Field(ge=0, lt=1 << 31)]  # floor of tcbEvaluationDataNumber
    tcb_statuses: Annotated[list[TcbStatusName], Field(max_length=16)] = Field(default_factory=_up_to_date)
    advisories: Annotated[list[Advisory], Field(max_length=512)] | Literal["any"] = Field(
        default_factory=list
    )
    minimum_qe_svn: Svn = 0  # of the QE report, which the PCK signed
    minimum_pce_svn: Svn = 0  # of the PCK certificate
    fmspc: Annotated[list[Fmspc], Field(max_length=256)] | Literal["any"] = "any"
    fmspc_banned: Annotated[list[Fmspc], Field(max_length=256)] = Field(default_factory=list)
    platforms: Annotated[list[PlatformId], Field(max_length=4096)] | Literal["any"] = (
        "any"  # PPID or instance
    )
    providers: dict[Name, list[PlatformId]] | Literal["any"] = "any"  # who runs which platforms

    def shared_refusals(self, verified: Verified) -> Iterator[AppraisalFailure]:
        """Yield what every platform refuses alike; the conditions of a listed TCB status count as admitted."""
        codes: tuple[str, ...] = ()
        if isinstance(verified, VerifiedDcap) and verified.tcb.status in self.tcb_statuses:
            codes = STATUS_CODES[verified.tcb.status]
        rules = self.model_copy(update={"admit": [*self.admit, *codes]})
        yield from super(DcapRules, rules).shared_refusals(verified)

    def provider(self, verified: VerifiedDcap) -> str | None:
        """Return the name of the provider that is known to run this platform."""
        if self.providers == "any":
            return None
        ids = _platform_ids(verified)
        return next((name for name, known in self.providers.items() if ids & set(known)), None)

    def dcap_refusals(self, verified: VerifiedDcap) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse that SGX and TDX share."""
        yield from self._tcb_refusals(verified)
        yield from self._platform_refusals(verified)

    def _tcb_refusals(self, verified: VerifiedDcap) -> Iterator[AppraisalFailure]:
        number = verified.tcb_evaluation_data_number
        if number < self.minimum_tcb_evaluation:
            yield AppraisalFailure(
                f"Intel's collateral is of evaluation {number}; the policy wants {self.minimum_tcb_evaluation} "
                "or later",
                code="tcb-evaluation-too-old",
            )
        for advisory in verified.tcb.advisory_ids:
            if self.advisories != "any" and advisory not in self.advisories:
                text = f"the platform is affected by {advisory}, which the policy does not list"
                yield AppraisalFailure(text, code="advisory-not-allowed")
        yield from _below("the quoting enclave's SVN", verified.qe_report.isv_svn, self.minimum_qe_svn)
        yield from _below("the provisioning enclave's SVN", verified.pck.pce_svn, self.minimum_pce_svn)

    def _platform_refusals(self, verified: VerifiedDcap) -> Iterator[AppraisalFailure]:
        fmspc = verified.pck.fmspc
        if fmspc in self.fmspc_banned or (self.fmspc != "any" and fmspc not in self.fmspc):
            text = f"platforms of FMSPC {fmspc.hex()} are not admitted by the policy"
            yield AppraisalFailure(text, code="product-not-allowed")
        if self.platforms != "any" and not _platform_ids(verified) & set(self.platforms):
            text = f"platform {verified.pck.ppid.hex()[:16]}… is not in the policy"
            yield AppraisalFailure(text, code="chip-not-allowed")
        if self.providers != "any" and self.provider(verified) is None:
            text = f"platform {verified.pck.ppid.hex()[:16]}… is not known to be one of a listed provider"
            yield AppraisalFailure(text, code="provider-not-allowed")


def _below(what: str, found: int, wanted: int) -> Iterator[AppraisalFailure]:
    """Yield a failure if a security version is under its floor."""
    if found < wanted:
        yield AppraisalFailure(
            f"{what} is {found}; the policy wants {wanted} or later", code="tcb-below-minimum"
        )


def _platform_ids(verified: VerifiedDcap) -> set[bytes]:
    """Return what names the platform: PPID, and the platform instance where there is one."""
    instance = verified.pck.platform_instance_id
    return {verified.pck.ppid} | ({instance} if instance is not None else set())
