"""What a rollout would do to running enclaves, by evidence recorded of them. Spec: docs/spec/rollout.md, Gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sealwright.appraisal.policy import KeyPolicy
from sealwright.audit.cases import Recorded, Verdict
from sealwright.errors import AppraisalError, AppraisalFailure
from sealwright.ops.rollout.statement import EvidenceSet, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseOutcome:
    """What each policy says of one case."""

    name: str
    verdicts: Mapping[Stage, Verdict]

    @property
    def admitted(self) -> bool:
        """Whether the current policy admits it: it runs today."""
        return self.verdicts["current"].admitted

    @property
    def stays(self) -> bool:
        """Whether it is admitted until the old build is retired."""
        return self.verdicts["canary"].admitted and self.verdicts["promote"].admitted

    @property
    def retires(self) -> bool:
        """Whether it ends with the old build."""
        return not self.verdicts["retire"].admitted

    @property
    def build(self) -> bytes:
        """The code that was measured; empty: no policy got so far."""
        return next((one.build for one in self.verdicts.values() if one.build), b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """The outcome of a whole set."""

    cases: Sequence[CaseOutcome]
    policies: Mapping[Stage, KeyPolicy]

    def summary(self, digest: bytes) -> EvidenceSet:
        """Return what the statement says. Args: digest: of the set."""
        return EvidenceSet(
            digest=digest,
            cases=len(self.cases),
            admitted=[one.name for one in self.cases if one.admitted],
            locked_out=[one.name for one in self.cases if one.admitted and not one.stays],
            newly_admitted=[one.name for one in self.cases if not one.admitted and one.stays],
            refused=[one.name for one in self.cases if not one.admitted and not one.stays],
            retired=[one.name for one in self.cases if one.admitted and one.retires],
        )

    def check(self, *, force: bool) -> None:
        """Raise AppraisalError with every finding that speaks against going on; `force` passes over most."""
        found = [*self._never(), *([] if force else self._findings())]
        if found:
            raise AppraisalError(found, stage="dry-run")

    def forced(self) -> bool:
        """Say whether only `force` lets this pass."""
        return any(True for _ in self._findings())

    def _never(self) -> Iterator[AppraisalFailure]:
        canary = self.policies["canary"].canary
        listed = [] if canary is None else canary.code
        for one in self.cases:
            if not one.admitted and one.verdicts["canary"].admitted and one.build not in listed:
                text = (
                    f"{one.name}: build {one.build.hex()} is newly admitted, and canary.code does not list it"
                )
                yield AppraisalFailure(text, code="rollout-unlimited")

    def _findings(self) -> Iterator[AppraisalFailure]:
        running = [one for one in self.cases if one.admitted]
        if not running:
            text = "the current policy admits none of the evidence, so nothing is shown of what runs"
            yield AppraisalFailure(text, code="rollout-evidence-empty")
        elif not any(one.stays for one in running):
            text = f"all {len(running)} running enclaves of the evidence would be locked out"
            yield AppraisalFailure(text, code="rollout-locks-out")
        for one in running:
            if not one.retires:
                text = f"{one.name} is admitted today, and the last policy still admits it"
                yield AppraisalFailure(text, code="rollout-not-retired")
        if not any(not one.admitted and one.stays and not one.retires for one in self.cases):
            text = "no evidence shows the new build admitted from canary to the end: record some"
            yield AppraisalFailure(text, code="rollout-admits-nothing")


def dry_run(cases: Sequence[Recorded], policies: Mapping[Stage, KeyPolicy], *, at: datetime) -> DryRun:
    """Return what each policy says of each case. Args: at: now: when policies and reference values are in force."""
    outcomes = [
        CaseOutcome(
            name=one.case.name,
            verdicts={stage: one.judge(policy, rules_at=at) for stage, policy in policies.items()},
        )
        for one in cases
    ]
    return DryRun(cases=outcomes, policies=policies)
