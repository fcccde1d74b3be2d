"""Is a genuine TPM quote allowed? Spec: docs/spec/tpm.md, "Appraisal"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from sealwright.appraisal.hexbytes import HexBytes
from sealwright.appraisal.rules import HardwareRules
from sealwright.errors import AppraisalFailure
from sealwright.evidence.tpmwire import Bank
from sealwright.verify.tpm import VerifiedTpm

# Firmware and its options (0, 2: differ by the VM's shape), boot loader (4), Secure Boot state (7), kernel command
# line and initrd (9), unified kernel image (11).
NAMED = ("pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11")
# Overrides of a unified kernel image's command line, and system extensions: nothing may come in that way.
UNEXTENDED = ("pcr12", "pcr13")

Register = Annotated[str, Field(pattern=r"^pcr(?:1?[0-9]|2[0-3])$")]


def _sha256() -> list[Bank]:
    return ["sha256"]


class TpmRules(HardwareRules):
    """Admits platform `tpm`. PCRs of the boot are listed in `registers`, or stand in `unchecked`."""

    tpm: Literal["", "provider"] = ""  # where the TPM may be run: `provider` has to be named
    banks: Annotated[list[Bank], Field(min_length=1, max_length=4)] = Field(default_factory=_sha256)
    unchecked: Annotated[list[Register], Field(max_length=24)] = Field(default_factory=list)
    minimum_firmware: Annotated[HexBytes, Field(min_length=8, max_length=8)]  # "0000000000000000": any

    def refusals(self, verified: VerifiedTpm) -> Iterator[AppraisalFailure]:
        """Yield what TPMs alone are refused for."""
        if self.tpm != verified.tpm:
            text = f"the TPM is run outside the TEE; the policy does not say `tpm: {verified.tpm}`"
            yield AppraisalFailure(text, code="tpm-not-allowed")
        for bank in self.banks:
            if bank not in verified.quote.pcrs:
                text = f"the quote does not cover PCR bank {bank}, which the policy asks for"
                yield AppraisalFailure(text, code="pcr-bank-missing")
        firmware = verified.quote.attest.firmwareVersion.to_bytes(8, "big")
        if firmware < self.minimum_firmware:
            text = f"TPM firmware {firmware.hex()} is older than {self.minimum_firmware.hex()}"
            yield AppraisalFailure(text, code="tpm-firmware-too-old")
        yield from self._unlisted()
        yield from self._extended(verified)

    def _unlisted(self) -> Iterator[AppraisalFailure]:
        for name in NAMED:
            if name not in self.listed and name not in self.unchecked:
                text = f"the policy neither lists {name} nor names it in `unchecked`"
                yield AppraisalFailure(text, code="register-not-listed")

    def _extended(self, verified: VerifiedTpm) -> Iterator[AppraisalFailure]:
        for name in UNEXTENDED:
            if name in self.listed or name in self.unchecked:
                continue
            found = verified.registers.get(name)
            if found is None:
                text = f"the evidence has no register {name}, which has to be unextended"
                yield AppraisalFailure(text, code="register-missing")
            elif any(found):
                text = f"register {name} was extended; list its value, or start without what was added"
                yield AppraisalFailure(text, code="pcr-extended")
