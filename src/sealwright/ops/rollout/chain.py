"""The statements of a rollout checked as one chain. Spec: docs/spec/rollout.md, Checking a chain. No I/O."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.signed import Signers
from sealwright.crypto.dsse import Envelope, key_id
from sealwright.errors import SealwrightError, VerificationError
from sealwright.ops.rollout.statement import STAGES, Plan, RolloutPredicate, RolloutStatement, Stage, Step
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LogProof

# What may follow what. A revocation ends a rollout.
NEXT: Mapping[Step, frozenset[Step]] = {
    "plan": frozenset({"dry-run"}),
    "dry-run": frozenset({"dry-run", "canary"}),
    "canary": frozenset({"promote", "revoke"}),
    "promote": frozenset({"retire", "revoke"}),
    "retire": frozenset({"revoke"}),
    "revoke": frozenset(),
}
# From which policy to which.
_POLICIES: Mapping[Step, tuple[Stage, Stage]] = {
    "plan": ("current", "current"),
    "dry-run": ("current", "current"),
    "canary": ("current", "canary"),
    "promote": ("canary", "promote"),
    "retire": ("promote", "retire"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One statement as it lies in the folder: its name, its envelope and its proof."""

    name: str
    envelope: bytes
    proof: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A rollout so far. Made by `verify_chain` only."""

    statements: Sequence[RolloutStatement]
    signed_by: Sequence[Sequence[str]]  # key ids, by statement

    @property
    def first(self) -> RolloutPredicate:
        """What the plan says."""
        return self.statements[0].predicate

    @property
    def last(self) -> RolloutStatement:
        """The newest statement."""
        return self.statements[-1]

    @property
    def plan(self) -> Plan:
        """What the rollout will do."""
        plan = self.first.plan
        if plan is None:
            raise RuntimeError("a chain begins with its plan")
        return plan


def verify_chain(links: Sequence[Link], signers: Signers) -> Chain:
    """Return the chain, every statement proved to be signed, in its place, and in the log that the plan names.

    Raises:
        FormatError: `parse`. VerificationError: `rollout-empty`, `bad-signature`, `untrusted-signer`,
            `rollout-chain-broken`, `rollout-step-order`, and as `LogProof.verify`.
    """
    if not links:
        raise VerificationError("the rollout has no statement", code="rollout-empty", stage="parse")
    signed = [_opened(link, signers) for link in links]
    statements = [statement for statement, _ in signed]
    if statements[0].predicate.step != "plan":
        raise _broken("the first statement is no plan")
    log = LogPolicy.of_key(statements[0].predicate.log)
    for position, (link, statement) in enumerate(zip(links, statements, strict=True)):
        _check_place(link, statement, statements[:position])
        check_order(statement, statements[:position])
        LogProof.parse(link.proof).verify(statement.log_entry(), log)
    return Chain(statements=statements, signed_by=[names for _, names in signed])


def check_step(last: Step, step: Step) -> None:
    """Check that `step` may follow `last`. Raises VerificationError `rollout-step-order`."""
    if step not in NEXT[last]:
        allowed = ", ".join(sorted(NEXT[last])) or "nothing"
        raise _order(f"{step} cannot follow {last}: {allowed} can")


def check_order(statement: RolloutStatement, before: Sequence[RolloutStatement]) -> None:
    """Check that a step may follow, and leads from the right policy to the right one.

    Raises:
        VerificationError: `rollout-step-order`.
    """
    step = statement.predicate.step
    if before:
        check_step(before[-1].predicate.step, step)
    plan = (before[0] if before else statement).predicate.plan
    if plan is None:
        raise _order("a rollout begins with its plan")
    at = before[-1].after if before else plan.current
    stages = _POLICIES.get(step)
    wanted = (at, statement.after) if stages is None else tuple(map(plan.digest_of, stages))
    if (statement.before, statement.after) != wanted or statement.before != at:
        raise _order(f"{step} is not between the policies that the plan names for it")
    if step == "revoke" and statement.after in {plan.digest_of(stage) for stage in STAGES}:
        raise _order("a revocation sets a policy of its own, of a higher version")


def check_policies(plan: Plan, policies: Mapping[Stage, bytes]) -> dict[Stage, KeyPolicy]:
    """Return the four policies, proved to be those of the plan, each signed and following the one before.

    Raises:
        SettingsError, VerificationError: `signers-missing`, `rollout-policy-differs`, and as `KeyPolicy.load` and
            succession.
    """
    found: dict[Stage, KeyPolicy] = {}
    for stage in STAGES:
        policy = KeyPolicy.load(policies[stage])
        if not hmac.compare_digest(policy.digest(), plan.digest_of(stage)):
            raise VerificationError(
                f"{stage}.policy is not the one that the plan names",
                code="rollout-policy-differs",
                stage="policies",
            )
        found[stage] = policy
    for old, new in pairwise(STAGES):
        found[old].succeeded_by(policies[new], at=found[new].created)
    return found


def signers_of(policy: KeyPolicy) -> Signers:
    """Return who signs the steps. Raises VerificationError `rollout-unsigned`: the policy names nobody."""
    if policy.signers is None:
        raise VerificationError(
            "the current policy names no signers, so anyone who reaches the broker could go around a rollout",
            code="rollout-unsigned",
            stage="policies",
        )
    return policy.signers


def verify_one(envelope: bytes, signers: Signers) -> tuple[RolloutStatement, list[str]]:
    """Return a statement and the ids of the trusted keys that signed it; every one of their signatures holds.

    Raises:
        MessageFormatError: not a statement. VerificationError: as `Envelope.verify`.
    """
    opened = Envelope.parse(envelope)
    names = [name for name, _ in opened.signatures]
    keys = signers.public_keys()
    trusted = sorted({key_id(key) for key in keys} & set(names))
    if len(set(names)) != len(names):
        raise _broken("a key signs once")
    threshold = max(signers.threshold, len(trusted))
    payload = opened.verify(RolloutStatement.PAYLOAD_TYPE, keys, threshold=threshold, stage="signers")
    return RolloutStatement.parse(payload), trusted


def _opened(link: Link, signers: Signers) -> tuple[RolloutStatement, list[str]]:
    try:
        return verify_one(link.envelope, signers)
    except SealwrightError as error:
        error.args = (f"{link.name}: {error}",)
        raise


def _check_place(link: Link, statement: RolloutStatement, before: Sequence[RolloutStatement]) -> None:
    said = statement.predicate
    if statement.name != link.name or said.sequence != len(before) + 1:
        raise _broken(f"{link.name} holds statement {said.sequence}, {said.step}")
    if not before:
        return
    plan = before[0].predicate
    same = ("rollout", "kid", "broker", "broker_log", "log")
    if any(getattr(said, name) != getattr(plan, name) for name in same):
        raise _broken(f"{link.name} is of another rollout, key or broker")
    if said.previous != before[-1].digest():
        raise _broken(f"{link.name} does not name the statement before it")
    if said.at < before[-1].predicate.at:
        raise _broken(f"{link.name} is dated before the statement before it")


def _broken(text: str) -> VerificationError:
    return VerificationError(text, code="rollout-chain-broken", stage="chain")


def _order(text: str) -> VerificationError:
    return VerificationError(text, code="rollout-step-order", stage="order")
