"""Recorded evidence, and what policies say of it: for `policy test` and rollouts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.yaml import load_yaml
from sealwright.audit.evidence import check_evidence
from sealwright.audit.given import Given, folder
from sealwright.client.trust_source import read_file
from sealwright.crypto.canonical import canonical_digest
from sealwright.crypto.document import Name, Record, Time, validated
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import AppraisalError, SealwrightError, SettingsError

MAX_EVIDENCE = 4 << 20  # bytes


class Case(Record):
    """Recorded evidence, and what a policy should say of it."""

    name: Name
    evidence: str  # path, beside the file of cases
    endorsements: str | None = None  # folder
    at: Time  # when it was recorded
    expect: Annotated[list[str], Field(max_length=32)] | Literal["allowed"] | None = (
        None  # or the codes, all of them, in any order
    )


class Cases(Record):
    """A file of cases."""

    cases: Annotated[list[Case], Field(min_length=1, max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a policy says of a case: the codes of its refusal, and which code was measured, if it got so far."""

    codes: Sequence[str]
    build: bytes  # `Appraisal.code`; empty: refused before it was known

    @property
    def admitted(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A case with its bytes."""

    case: Case
    raw: bytes
    given: Given

    def judge(self, policy: KeyPolicy, *, rules_at: datetime | None = None) -> Verdict:
        """Return what `policy` says of it. Args: rules_at: when the policy is in force; None: as the evidence."""
        try:
            report = check_evidence(
                self.raw, rules=policy, at=self.case.at, rules_at=rules_at, given=self.given
            )
        except AppraisalError as error:
            return Verdict(codes=[failure.code for failure in error.failures], build=b"")
        except SealwrightError as error:
            return Verdict(codes=[error.code], build=b"")
        main = report.appraisals.get("cpu0")
        return Verdict(
            codes=[failure.code for failure in report.failures], build=b"" if main is None else main.code
        )


def read_cases(path: Path) -> list[Recorded]:
    """Return the cases of a YAML file, with their evidence and endorsements. Raises SettingsError, EvidenceFormatError."""
    listed = validated(Cases, load_yaml(read_file(path)), SettingsError)
    names = [case.name for case in listed.cases]
    if len(set(names)) != len(names):
        raise SettingsError("two cases have one name", code="malformed-document", stage="cases")
    return [_recorded(case, path.parent) for case in listed.cases]


def set_digest(cases: Sequence[Recorded], beside: Path) -> bytes:
    """Return what names a set of evidence: SHA-256 of JCS of its names, times and the digests of its files."""
    return canonical_digest(
        [
            {
                "name": one.case.name,
                "at": rfc3339(one.case.at),
                "evidence": hashlib.sha256(one.raw).hexdigest(),
                "endorsements": _digests(one.case, beside),
            }
            for one in cases
        ]
    )


def _recorded(case: Case, beside: Path) -> Recorded:
    given = Given(collateral=folder(beside / case.endorsements)) if case.endorsements else Given()
    return Recorded(case=case, raw=read_file(beside / case.evidence, limit=MAX_EVIDENCE), given=given)


def _digests(case: Case, beside: Path) -> list[str]:
    if case.endorsements is None:
        return []
    path = beside / case.endorsements
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    return sorted(hashlib.sha256(read_file(one, limit=MAX_EVIDENCE)).hexdigest() for one in files)
