"""What an appraisal says of a machine, as revocations and regions name it. Spec: docs/spec/life-cycle.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sealwright.appraisal.platform import Appraisal
from sealwright.verify.verified import Fact

_MASKED = re.compile(r"0*")
SNP_PARTS = ("fmc", "boot_loader", "tee", "snp", "microcode")


def measurements(appraisal: Appraisal) -> set[str]:
    """Return what was measured, hex: the code as results name it, and every register, of devices and vTPMs too."""
    found = {appraisal.code.hex(), *(value.hex() for value in appraisal.registers.values())}
    for part in appraisal.parts.values():
        found |= measurements(part)
    return found


def hardware(appraisal: Appraisal) -> Mapping[str, Any]:
    """Return the facts of the processor: under a paravisor those of the hardware beneath."""
    nested = appraisal.claims.get("hardware")
    return nested if isinstance(nested, Mapping) else appraisal.claims


def generations(appraisal: Appraisal) -> set[str]:
    """Return the processor's generation: `snp:PRODUCT`, `fmspc:HEX`; empty where evidence names none."""
    facts = hardware(appraisal)
    named = {"snp": facts.get("product"), "fmspc": facts.get("fmspc")}
    return {f"{kind}:{value}" for kind, value in named.items() if isinstance(value, str)}


def snp_level(appraisal: Appraisal, product: str, part: str) -> int | None:
    """Return a part of the reported TCB of an SEV-SNP platform of `product`; None: it is another platform."""
    facts = hardware(appraisal)
    tcb = facts.get("reported_tcb")
    if facts.get("product") != product or not isinstance(tcb, Mapping):
        return None
    level = tcb.get(part)
    return level if isinstance(level, int) else None


def intel_tcb(appraisal: Appraisal) -> Mapping[str, Fact]:
    """Return what the TCB info says of an Intel platform; empty: it is another platform."""
    tcb = hardware(appraisal).get("tcb")
    return tcb if isinstance(tcb, Mapping) else {}


def identities(appraisal: Appraisal) -> list[str]:
    """Return which machine the evidence says it is: `snp-chip:HEX`, `intel-ppid:HEX`; empty: it does not."""
    return list(_identities(hardware(appraisal)))


def _identities(facts: Mapping[str, Any]) -> Iterator[str]:
    chip = facts.get("hwid") or facts.get("chip_id")
    if isinstance(chip, str) and not _MASKED.fullmatch(chip):
        yield f"snp-chip:{chip}"
    if isinstance(facts.get("ppid"), str):
        yield f"intel-ppid:{facts['ppid']}"
