"""What a verification returns, whatever the platform: registers, facts, conditions, and what proved them.

A *condition* is a state that genuine evidence says its platform is in and that is refused unless a policy admits
its code: debug, provisional firmware, a TCB that is out of date. It has the same code on every platform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

MADE_BY_VERIFY = object()  # `sealwright.verify` alone names this

Fact = str | int | bool | None | Sequence["Fact"] | Mapping[str, "Fact"]
Claim = Literal[
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One step of the chain of trust, for people: what was proved, by whom, until when."""

    what: str  # "VCEK of chip 3ac1…"
    by: str  # "SEV-Milan"
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A state that is refused unless a policy admits `code`; `claim` and `value` are its part of the vector."""

    code: str
    text: str
    claim: Claim = "hardware"
    value: int = 96  # AR4SI; 32: a warning, 96: contraindicated


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralUse:
    """A piece of collateral that the decision rests on, and how old it was."""

    kind: str  # "intel-tcb-info"
    digest: bytes  # SHA-256 of it, 32 bytes; empty: it was missing, and the outage policy allows that
    issued: datetime | None
    next_update: datetime | None
    age_s: int  # at the time of verification; 0 where nothing says when it was issued
    stale_s: int = 0  # how far past `next_update`; more than 0 only where the outage policy allows it


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Genuine evidence. Made by the functions of `sealwright.verify` alone."""

    platform: str
    report_data: bytes  # as signed, in the platform's own length
    registers: Mapping[str, bytes]  # measurements by the platform's own names, as signed
    facts: Mapping[str, Fact]  # everything else worth knowing, JSON values, as signed
    conditions: tuple[Condition, ...]
    proofs: tuple[Proof, ...]  # from the evidence up to the root
    not_proved: tuple[str, ...] = ()  # what this evidence cannot show, for people
    collateral: tuple[CollateralUse, ...] = ()
    root: bytes  # SHA-256 of the root certificate, 32 bytes
    vendor_root: bool  # pinned in this package; else a policy has to name it
    until: datetime | None = None  # the earliest end among certificates and collateral
    _made_by: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._made_by is not MADE_BY_VERIFY:
            raise TypeError(f"a {type(self).__name__} is made by sealwright.verify alone")
