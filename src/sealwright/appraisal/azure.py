"""Is an Azure confidential VM allowed? The hardware's own rules, and what its vTPM measured. Spec: docs/spec/azure.md, "Rules"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from sealwright.appraisal.boot import ALL_PCRS, QuotedPcrRules
from sealwright.appraisal.rules import HardwareRules, HexBytes
from sealwright.appraisal.snp import SnpRules
from sealwright.appraisal.tdx import TdxRules
from sealwright.errors import AppraisalFailure
from sealwright.verify.azure import VerifiedAzure
from sealwright.verify.dcap_tcb import STATUS_CODES
from sealwright.verify.snp import VerifiedSnp
from sealwright.verify.tdx import VerifiedTdx
from sealwright.verify.verified import Verified


class _VtpmRules(QuotedPcrRules):
    """What is asked of the vTPM, beside the paravisor's own measurement."""

    user_data: Annotated[list[HexBytes], Field(max_length=256)] | Literal["any"] = "any"
    vm_ids: Annotated[list[str], Field(max_length=4096)] | Literal["any"] = "any"  # vmUniqueId

    def vtpm_refusals(self, verified: VerifiedAzure, paravisor: str) -> Iterator[AppraisalFailure]:
        """Yield every reason that lies in the paravisor or its vTPM. Args: paravisor: register of its measurement."""
        yield from self.unlisted([paravisor])
        yield from self.pcr_refusals(verified.registers, verified.quote.pcrs)
        claims = verified.claims
        if self.user_data != "any" and claims.user_data not in self.user_data:
            text = f"user-data is {claims.user_data.hex()[:16]}…, which the policy does not list"
            yield AppraisalFailure(text, code="guest-identity-not-allowed")
        machine = claims.vm_configuration.get("vmUniqueId")
        if self.vm_ids != "any" and machine not in self.vm_ids:
            yield AppraisalFailure(f"VM {machine} is not in the policy", code="guest-identity-not-allowed")

    def names_code(self, verified: Verified) -> bool:
        """Say whether registers are listed, and all of them hold what is listed; `vtpm_refusals` asks which."""
        return HardwareRules.names_code(self, verified)


class AzSnpRules(_VtpmRules, SnpRules):
    """Admits Azure's confidential VMs on SEV-SNP."""

    UNCHECKABLE = ALL_PCRS | {"measurement"}

    def refusals(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield what the rules of SEV-SNP refuse in the hardware's report, and what the vTPM is refused for."""
        if not (isinstance(verified, VerifiedAzure) and isinstance(verified.hardware, VerifiedSnp)):
            raise TypeError("rules of az-snp-vtpm are for a VerifiedAzure over SNP")
        yield from self.hardware_refusals(verified.hardware)
        yield from self.vtpm_refusals(verified, "measurement")


class AzTdxRules(_VtpmRules, TdxRules):
    """Admits Azure's confidential VMs on TDX."""

    UNCHECKABLE = ALL_PCRS | {"mrtd"}

    def refusals(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield what the rules of TDX refuse in the TD's quote, and what the vTPM is refused for."""
        if not (isinstance(verified, VerifiedAzure) and isinstance(verified.hardware, VerifiedTdx)):
            raise TypeError("rules of az-tdx-vtpm are for a VerifiedAzure over TDX")
        yield from self.hardware_refusals(verified.hardware)
        yield from self.vtpm_refusals(verified, "mrtd")

    def shared_refusals(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield what every platform refuses alike; the conditions of a listed TCB status count as admitted."""
        status = verified.hardware.tcb.status
        codes = STATUS_CODES[status] if status in self.tcb_statuses else ()
        rules = self.model_copy(update={"admit": [*self.admit, *codes]})
        yield from HardwareRules.shared_refusals(rules, verified)
