"""Is a genuine TPM quote allowed? Spec: docs/spec/tpm.md, "Appraisal"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sealwright.appraisal.boot import QuotedPcrRules
from sealwright.appraisal.hexbytes import HexBytes
from sealwright.errors import AppraisalFailure
from sealwright.verify.tpm import VerifiedTpm
from sealwright.verify.verified import Verified


class TpmRules(QuotedPcrRules):
    """Admits platform `tpm`, under CAs in `roots`, under the pinned ones of vTPM providers, or both."""

    tpm: Literal["", "provider"] = ""  # where the TPM may be run: `provider` has to be named
    # Google's CA certifies the vTPM of every customer: who admits it admits a VM that anybody can rent.
    vendor_roots: bool = False
    minimum_firmware: Annotated[HexBytes, Field(min_length=8, max_length=8)]  # "0000000000000000": any

    @model_validator(mode="after")
    def _some_root(self) -> Self:
        if not self.roots and not self.vendor_roots:
            raise ValueError("name your CA in `roots`, or say `vendor_roots: true` for Google's")
        if not all(name.startswith("pcr") for name in self.unchecked):
            raise ValueError("a TPM has PCRs alone to leave unchecked")
        return self

    def root_refusals(self, verified: Verified) -> Iterator[AppraisalFailure]:
        """Yield a failure if the key was certified under another root than those admitted."""
        if verified.root in self.roots or (verified.vendor_root and self.vendor_roots):
            return
        whose = "a provider's, and the policy does not say `vendor_roots: true`"
        other = "not one that the policy names"
        text = f"root {verified.root.hex()[:16]}… is {whose if verified.vendor_root else other}"
        yield AppraisalFailure(text, code="root-not-allowed")

    def refusals(self, verified: VerifiedTpm) -> Iterator[AppraisalFailure]:
        """Yield what TPMs alone are refused for."""
        if self.tpm != verified.tpm:
            text = f"the TPM is run outside the TEE; the policy does not say `tpm: {verified.tpm}`"
            yield AppraisalFailure(text, code="tpm-not-allowed")
        firmware = verified.quote.attest.firmwareVersion.to_bytes(8, "big")
        if firmware < self.minimum_firmware:
            text = f"TPM firmware {firmware.hex()} is older than {self.minimum_firmware.hex()}"
            yield AppraisalFailure(text, code="tpm-firmware-too-old")
        yield from self.pcr_refusals(verified.registers, verified.quote.pcrs)
