"""What a policy admits of AWS Nitro, beside registers, conditions and roots. Spec: docs/spec/nitro.md."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from sealwright.appraisal.binding import resettable
from sealwright.appraisal.boot import PCRS, BootRules
from sealwright.appraisal.reference import ReferenceRule
from sealwright.errors import AppraisalFailure, SettingsError
from sealwright.verify.nitro import VerifiedNitro

# The registers that name what runs in an enclave; a policy lists the values of one of them at least.
CODE_REGISTERS = ("pcr0", "pcr8")


class NitroRules(BootRules):
    """Admits documents of one kind, that are young enough, of named code and, if named, of named instances."""

    # An instance can put into a NitroTPM register the very value that an enclave's image has: kinds never mix.
    document: Literal["enclave", "nitrotpm"] = "enclave"
    oldest_document_s: Annotated[int, Field(ge=0, le=3 * 3600)] = 300
    instances: Annotated[list[str], Field(max_length=256)] | Literal["any"] = "any"  # EC2 instance ids

    def _referring(self, reference: ReferenceRule, platform: str, at: datetime) -> Self:
        """An enclave's PCR 16 is locked; an instance's can be reset: values of the one are none of the other's."""
        found = super()._referring(reference, platform, at)
        if self.document == "nitrotpm" and resettable("nitrotpm", found.config_register):
            raise SettingsError(
                f"{found.config_register} of a NitroTPM cannot hold the config: it can be reset",
                code="config-register",
            )
        return found

    def refusals(self, verified: Any) -> Iterator[AppraisalFailure]:
        """Yield every reason of Nitro's own to refuse `verified`, a `VerifiedNitro`."""
        if not isinstance(verified, VerifiedNitro):
            raise TypeError("rules of platform nitro appraise a VerifiedNitro")
        document = verified.document
        if document.kind != self.document:
            text = f"the document is of kind {document.kind}; the policy admits {self.document}"
            yield AppraisalFailure(text, code="document-kind-not-allowed")
        if verified.age_s > self.oldest_document_s:
            text = f"the document is {verified.age_s} s old; the policy admits {self.oldest_document_s} s"
            yield AppraisalFailure(text, code="document-too-old")
        yield from self._code_refusals(verified)
        if self.instances != "any" and document.instance_id not in self.instances:
            text = f"instance {document.instance_id or 'without a name'} is not in the policy"
            yield AppraisalFailure(text, code="instance-not-allowed")

    def _code_refusals(self, verified: VerifiedNitro) -> Iterator[AppraisalFailure]:
        if self.document == "nitrotpm":
            # An instance boots like any machine with a TPM: one of its registers alone admits most systems.
            yield from self.unlisted(PCRS)
            yield from self.extended(verified.registers)
        elif not self.listed & set(CODE_REGISTERS):
            names = " or ".join(CODE_REGISTERS)
            yield AppraisalFailure(
                f"the policy names no code: it lists no value of {names}", code="no-code-named"
            )
