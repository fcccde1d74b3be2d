"""Is a genuine TD allowed? Registers are in the shared rules; these are Intel's own. Spec: docs/spec/dcap.md, "Rules"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from sealwright.appraisal.boot import BootRules
from sealwright.appraisal.dcap import DcapRules, sized
from sealwright.appraisal.hexbytes import HexBytes
from sealwright.errors import AppraisalFailure
from sealwright.verify.tdx import VerifiedTdx
from sealwright.verify.verified import Verified

Bits64 = Annotated[HexBytes, sized(8)]  # little-endian, as in the TD report


# Firmware's configuration, ACPI tables among it (0), boot loader and kernel (1), command line and initrd (2).
_RTMRS = ("rtmr0", "rtmr1", "rtmr2")


class TdxRules(BootRules, DcapRules):
    """Admits TDs on Intel TDX. `mrtd` is listed; of RTMR0 to 2 each is listed, or stands in `unchecked`."""

    UNCHECKABLE = frozenset(_RTMRS)
    minimum_tee_tcb_svn: Annotated[HexBytes, sized(16)] = bytes(16)  # each byte is a floor of its own
    mr_seam: Annotated[list[Annotated[HexBytes, sized(48)]], Field(max_length=256)] | Literal["any"] = "any"
    # Digests of the service TDs that may move a TD whose `migration` is admitted: they get its memory.
    service_tds: Annotated[list[Annotated[HexBytes, sized(48)]], Field(max_length=256)] | Literal["any"] = (
        Field(default_factory=list)
    )
    td_attributes: Bits64 | Literal["any"] = "any"  # exactly these
    td_attributes_required: Bits64 = bytes(8)
    xfam_allowed: Bits64 | Literal["any"] = "any"  # no others

    def names_code(self, verified: Verified) -> bool:
        """Say whether firmware (MRTD), boot loader, kernel and their command lines (RTMR1, RTMR2) are listed."""
        return self.listed >= {"mrtd", "rtmr1", "rtmr2"} and super().names_code(verified)

    def refusals(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason of TDX's own to refuse `verified`."""
        if not isinstance(verified, VerifiedTdx):
            raise TypeError("rules of TDX are for a VerifiedTdx")
        if "mrtd" not in self.listed:
            text = "the policy names no code: it lists no value of mrtd"
            yield AppraisalFailure(text, code="no-code-named")
        yield from self.unlisted(_RTMRS)
        yield from self.hardware_refusals(verified)

    def hardware_refusals(self, verified: VerifiedTdx) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse `verified` but that nothing names its code."""
        yield from self.dcap_refusals(verified)
        yield from self._module_refusals(verified)
        yield from self._bit_refusals(verified)
        yield from self._mover_refusals(verified)

    def _mover_refusals(self, verified: VerifiedTdx) -> Iterator[AppraisalFailure]:
        if "migration" not in self.admit or self.service_tds == "any":
            return
        for digest in verified.quote.report.service_tds:
            if digest not in self.service_tds:
                text = f"service TD {digest.hex()[:16]}… may move the TD, and the policy does not list it"
                yield AppraisalFailure(text, code="service-td-not-allowed")

    def _module_refusals(self, verified: VerifiedTdx) -> Iterator[AppraisalFailure]:
        report = verified.quote.report
        floors = self.minimum_tee_tcb_svn
        if any(have < need for have, need in zip(report.tee_tcb_svn, floors, strict=True)):
            text = f"TEE_TCB_SVN is {report.tee_tcb_svn.hex()}; the policy wants at least {floors.hex()}"
            yield AppraisalFailure(text, code="tcb-below-minimum")
        if self.mr_seam != "any" and report.mr_seam not in self.mr_seam:
            text = f"the TDX module {report.mr_seam.hex()[:16]}… is not in the policy"
            yield AppraisalFailure(text, code="measurement-not-allowed")

    def _bit_refusals(self, verified: VerifiedTdx) -> Iterator[AppraisalFailure]:
        report = verified.quote.report
        found = report.td_attributes
        exact = self.td_attributes in ("any", found)
        if not exact or _and(found, self.td_attributes_required) != self.td_attributes_required:
            text = f"TD attributes are {found.hex()}, which the policy does not admit"
            yield AppraisalFailure(text, code="attributes-not-allowed")
        if self.xfam_allowed != "any" and _and(report.xfam, self.xfam_allowed) != report.xfam:
            text = f"XFAM is {report.xfam.hex()}; the policy admits no more than {self.xfam_allowed.hex()}"
            yield AppraisalFailure(text, code="attributes-not-allowed")


def _and(left: bytes, right: bytes) -> bytes:
    return bytes(one & other for one, other in zip(left, right, strict=True))
