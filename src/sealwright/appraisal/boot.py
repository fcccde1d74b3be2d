"""Rules of platforms whose code is in several registers: each is listed, or the policy says that it is not checked.

A policy that forgot one would admit any code that is measured there. Spec: docs/spec/appraisal.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from sealwright.appraisal.rules import HardwareRules
from sealwright.errors import AppraisalFailure
from sealwright.evidence.tpmwire import Bank
from sealwright.verify.eventlog import SYSTEM

# Firmware and its options (0, 2: differ by the VM's shape), boot loader (4), Secure Boot state (7), kernel command
# line and initrd (9), unified kernel image (11).
PCRS = ("pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11")
# Overrides of a unified kernel image's command line, and system extensions: nothing may come in that way.
UNEXTENDED = ("pcr12", "pcr13")

ALL_PCRS = frozenset(f"pcr{number}" for number in range(24))


def _sha256() -> list[Bank]:
    return ["sha256"]


class BootRules(HardwareRules):
    """Registers of code are listed in `registers` or by reference values, or stand in `unchecked`."""

    unchecked: Annotated[list[str], Field(max_length=32)] = Field(default_factory=list)

    UNCHECKABLE: ClassVar[frozenset[str]] = ALL_PCRS  # what may stand there

    @model_validator(mode="after")
    def _unchecked_are_registers(self) -> Self:
        if unknown := set(self.unchecked) - self.UNCHECKABLE:
            raise ValueError(f"no registers of this platform: {', '.join(sorted(unknown))}")
        return self

    @property
    def bound(self) -> frozenset[str]:
        """Registers that need not replay from an event log: the config's, and those of the system that are named."""
        return super().bound | (SYSTEM & frozenset(self.unchecked))

    def unlisted(self, names: Collection[str]) -> Iterator[AppraisalFailure]:
        """Yield a failure for each register of code that the policy does not speak of."""
        for name in names:
            if name not in self.listed and name not in self.unchecked:
                text = f"the policy neither lists {name} nor names it in `unchecked`"
                yield AppraisalFailure(text, code="register-not-listed")

    def extended(self, registers: Mapping[str, bytes]) -> Iterator[AppraisalFailure]:
        """Yield a failure for each PCR that has to be unextended and is not, or is not there."""
        for name in UNEXTENDED:
            found = registers.get(name)
            if name in self.listed or name in self.unchecked:
                continue
            if found is None:
                text = f"the evidence has no register {name}, which has to be unextended"
                yield AppraisalFailure(text, code="register-missing")
            elif any(found):
                text = f"register {name} was extended; list its value, or start without what was added"
                yield AppraisalFailure(text, code="pcr-extended")


class QuotedPcrRules(BootRules):
    """Rules of PCRs that a TPM quotes, in banks."""

    banks: Annotated[list[Bank], Field(min_length=1, max_length=4)] = Field(default_factory=_sha256)

    def pcr_refusals(
        self, registers: Mapping[str, bytes], banks: Collection[str]
    ) -> Iterator[AppraisalFailure]:
        """Yield every reason that lies in the PCRs. Args: banks: those that the quote covers."""
        for bank in self.banks:
            if bank not in banks:
                text = f"the quote does not cover PCR bank {bank}, which the policy asks for"
                yield AppraisalFailure(text, code="pcr-bank-missing")
        yield from self.unlisted(PCRS)
        yield from self.extended(registers)
