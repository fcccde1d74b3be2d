"""Is a genuine SGX enclave allowed? Registers are in the shared rules. Spec: docs/spec/dcap.md, "Rules"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sealwright.appraisal.dcap import DcapRules, Svn, sized
from sealwright.appraisal.hexbytes import HexBytes
from sealwright.crypto.document import Digest
from sealwright.errors import AppraisalFailure
from sealwright.verify.sgx import VerifiedSgx
from sealwright.verify.verified import Verified

ConfigId = Annotated[HexBytes, sized(64)]


def _no_config_id() -> list[bytes]:
    return [bytes(64)]


class SgxRules(DcapRules):
    """Admits SGX enclaves: by MRENCLAVE, or by MRSIGNER together with the product."""

    isv_prod_id: Annotated[list[Svn], Field(max_length=256)] | Literal["any"] = "any"
    minimum_isv_svn: Svn = 0
    # Who loads an enclave with KSS chooses these; code that reads them is another program with each.
    config_ids: Annotated[list[ConfigId], Field(min_length=1, max_length=256)] | Literal["any"] = Field(
        default_factory=_no_config_id
    )
    minimum_config_svn: Svn = 0
    # A manifest is measured into MRENCLAVE; which config it holds is known to whoever built it.
    configs: Annotated[dict[str, Digest], Field(max_length=256)] = Field(default_factory=dict)

    def held_config(self, verified: Verified) -> bytes:
        """Return the config that the policy says is in this enclave's manifest."""
        if self.config_register != "mrenclave":
            return super().held_config(verified)
        return self.configs.get(verified.registers["mrenclave"].hex(), b"")

    @model_validator(mode="after")
    def _names_code(self) -> Self:
        # One signer has many products: without MRENCLAVE, any of them would pass.
        by_signer = self.registers.get("mrsigner") and self.isv_prod_id != "any"
        if self.reference is None and not (self.registers.get("mrenclave") or by_signer):
            raise ValueError("list mrenclave, or mrsigner together with isv_prod_id")
        return self

    def refusals(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason of SGX's own to refuse `verified`."""
        if not isinstance(verified, VerifiedSgx):
            raise TypeError("rules of SGX are for a VerifiedSgx")
        yield from self.dcap_refusals(verified)
        report = verified.quote.report
        if self.isv_prod_id != "any" and report.isv_prod_id not in self.isv_prod_id:
            text = f"product {report.isv_prod_id} of the enclave's signer is not in the policy"
            yield AppraisalFailure(text, code="enclave-not-allowed")
        if report.isv_svn < self.minimum_isv_svn:
            text = f"the enclave's SVN is {report.isv_svn}; the policy wants {self.minimum_isv_svn} or later"
            yield AppraisalFailure(text, code="enclave-below-minimum")
        if self.config_ids != "any" and report.config_id not in self.config_ids:
            text = f"CONFIGID is {report.config_id.hex()[:16]}…, which the policy does not list"
            yield AppraisalFailure(text, code="enclave-not-allowed")
        if report.config_svn < self.minimum_config_svn:
            text = f"CONFIGSVN is {report.config_svn}; the policy wants {self.minimum_config_svn} or later"
            yield AppraisalFailure(text, code="enclave-below-minimum")
