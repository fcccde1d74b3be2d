"""What was revoked, and whether it is what asks. Judged at each attestation, lease and release.

Spec: docs/spec/life-cycle.md, Revocation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date

from sealwright.appraisal.platform import Appraisal
from sealwright.broker.rows import RevocationRow, RevokedKind
from sealwright.broker.state import View
from sealwright.broker.subject import SNP_PARTS, generations, intel_tcb, measurements, snp_level
from sealwright.errors import MessageFormatError, RevokedError

STAGE = "revocation"
MAX_REVOCATIONS = 4096
_SNP = re.compile(rf"snp:([A-Za-z0-9]{{1,16}}):({'|'.join(SNP_PARTS)})<([0-9]{{1,3}})", re.ASCII)
_INTEL_DATE = re.compile(r"intel:date<([0-9]{4}-[0-9]{2}-[0-9]{2})", re.ASCII)
_INTEL_STATUS = re.compile(r"intel:status=([A-Za-z]{1,64})", re.ASCII)
_FORMS: Mapping[RevokedKind, str] = {
    "measurement": r"([0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}|[0-9a-f]{40})",
    "tcb": rf"({_SNP.pattern}|{_INTEL_DATE.pattern}|{_INTEL_STATUS.pattern})",
    "cpu": r"(snp:[A-Za-z0-9]{1,16}|fmspc:[0-9a-f]{12})",
    "enclave": r"[0-9a-f]{64}",
    "config": r"[0-9a-f]{64}",
    "manifest": r"[0-9a-f]{64}",
    "tenant": r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
}
_CODES: Mapping[RevokedKind, str] = {
    "measurement": "measurement-revoked",
    "tcb": "tcb-level-revoked",
    "cpu": "cpu-revoked",
    "enclave": "enclave-revoked",
    "config": "config-revoked",
    "manifest": "manifest-revoked",
    "tenant": "tenant-revoked",
}
# What nothing brings back: it can be made anew.
FINAL: frozenset[RevokedKind] = frozenset({"enclave"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who asks, by every name that can be revoked."""

    tenant: str | None = None
    enclave: bytes | None = None  # keyset digest
    config: bytes | None = None  # config digest
    manifests: tuple[bytes, ...] = ()
    appraisals: tuple[Appraisal, ...] = field(default=())


def check_value(kind: RevokedKind, value: str) -> None:
    """Prove that a value has the form of its kind. Raises MessageFormatError: `malformed-revocation`."""
    good = re.fullmatch(_FORMS[kind], value, re.ASCII) is not None
    dated = _INTEL_DATE.fullmatch(value) if kind == "tcb" else None
    try:
        if dated is not None:
            date.fromisoformat(dated[1])
    except ValueError:
        good = False
    if not good:
        raise MessageFormatError(
            f"that is not a {kind} as docs/spec/life-cycle.md writes it", code="malformed-revocation"
        )


def check_revoked(view: View, subject: Subject) -> None:
    """Prove that nothing of `subject` was revoked.

    Raises:
        RevokedError: `tenant-revoked`, `enclave-revoked`, `config-revoked`, `manifest-revoked`, `measurement-revoked`,
            `cpu-revoked`, `tcb-level-revoked`.
    """
    rows = view.all(RevocationRow, "revocation")
    if not rows:
        return
    seen = _names(subject)
    for row in rows:
        if row.value in seen[row.kind] or (row.kind == "tcb" and _below(row.value, subject.appraisals)):
            raise RevokedError(
                f"{row.kind} {row.value} was revoked: {row.reason}", code=_CODES[row.kind], stage=STAGE
            )


def _names(subject: Subject) -> Mapping[RevokedKind, set[str]]:
    def all_of(names: Callable[[Appraisal], set[str]]) -> set[str]:
        return set().union(*(names(one) for one in subject.appraisals))

    return {
        "measurement": all_of(measurements),
        "tcb": set(),
        "cpu": all_of(generations),
        "enclave": _hex(subject.enclave),
        "config": _hex(subject.config),
        "manifest": {one.hex() for one in subject.manifests},
        "tenant": set() if subject.tenant is None else {subject.tenant},
    }


def _hex(value: bytes | None) -> set[str]:
    return set() if value is None else {value.hex()}


def _below(value: str, appraisals: Iterable[Appraisal]) -> bool:
    return any(_has_level(value, one) for one in appraisals)


def _has_level(value: str, appraisal: Appraisal) -> bool:
    """Say whether evidence is of the TCB levels that `value` names."""
    if snp := _SNP.fullmatch(value):
        level = snp_level(appraisal, snp[1], snp[2])
        return level is not None and level < int(snp[3])
    tcb = intel_tcb(appraisal)
    if not tcb:
        return False
    if status := _INTEL_STATUS.fullmatch(value):
        return status[1] in (tcb.get("status"), tcb.get("platform_status"), tcb.get("module_status"))
    dated = _INTEL_DATE.fullmatch(value)
    # A level without a date is one that the vendor does not list: as old as can be.
    return dated is not None and str(tcb.get("tcb_date") or "")[:10] < dated[1]
