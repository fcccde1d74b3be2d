"""The steps of a rollout: gate, statement, signatures, log, then the broker. Spec: docs/spec/rollout.md."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.appraisal.policy import KeyPolicy
from sealwright.audit.cases import Recorded, set_digest
from sealwright.crypto.canonical import parse_canonical
from sealwright.crypto.document import validated
from sealwright.errors import AppraisalError, AppraisalFailure, FormatError, SettingsError, VerificationError
from sealwright.ops.publish import find, publish
from sealwright.ops.rollout.broker import RolloutBroker, window
from sealwright.ops.rollout.chain import (
    Chain,
    check_order,
    check_policies,
    check_step,
    signers_of,
    verify_one,
)
from sealwright.ops.rollout.dryrun import DryRun, dry_run
from sealwright.ops.rollout.folder import REVOKE, Folder
from sealwright.ops.rollout.retire import check_barred
from sealwright.ops.rollout.statement import (
    STAGES,
    EvidenceSet,
    Plan,
    RolloutPredicate,
    RolloutStatement,
    Stage,
    Step,
)
from sealwright.tlog.keys import Signer


class Random(Protocol):
    """See `os.urandom`."""

    def __call__(self, size: int, /) -> bytes:
        """Return `size` random bytes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """Who does a step: name, keys, and the log that it goes into."""

    operator: str
    keys: Sequence[Ed25519PrivateKey]
    log: Path
    log_signer: Signer
    clock: Callable[[], datetime]


def make_plan(
    folder: Folder,
    hand: Hand,
    broker: RolloutBroker,
    policies: Mapping[Stage, bytes],
    *,
    kid: str,
    attestations: int,
    within_s: int,
    random: Random,
) -> Chain:
    """Begin a rollout: fix its policies and its gate. The broker has to have the current policy.

    Raises:
        SettingsError: `rollout-exists`, or a policy is not in its format. VerificationError: a policy is not signed
            or does not follow; `rollout-broker-differs`. AppraisalError: `rollout-no-canary`, `rollout-old-not-barred`.
    """
    loaded = {stage: KeyPolicy.load(policies[stage]) for stage in STAGES}
    plan = validated(
        Plan,
        {stage: policy.digest() for stage, policy in loaded.items()}
        | {"attestations": attestations, "within_s": within_s},
        SettingsError,
    )
    check_policies(plan, policies)
    signers_of(loaded["current"])
    _check_canary(loaded)
    check_barred(loaded["current"], loaded["retire"])
    root, log_key = broker.identity()
    broker.require_policy(plan.current)
    folder.create(policies)
    predicate: dict[str, Any] = {
        "rollout": random(16),
        "sequence": 1,
        "step": "plan",
        "kid": kid,
        "broker": root,
        "broker_log": log_key,
        "log": hand.log_signer.vkey.encode(),
        "plan": plan,
    }
    _write(folder, hand, [], predicate, loaded["current"], after=plan.current)
    return folder.load()[0]


def run_dry(folder: Folder, hand: Hand, cases: Sequence[Recorded], beside: Path, *, force: bool) -> DryRun:
    """Judge recorded evidence by all four policies, and state what came of it.

    Raises:
        AppraisalError: `rollout-evidence-empty`, `rollout-locks-out`, `rollout-not-retired`, `rollout-admits-nothing`
            (unless `force`), `rollout-unlimited`.
    """
    chain, policies = resumed(folder, hand)
    check_step(chain.last.predicate.step, "dry-run")
    outcome = dry_run(cases, policies, at=hand.clock())
    outcome.check(force=force)
    said = {"evidence": outcome.summary(set_digest(cases, beside)), "forced": outcome.forced()}
    _next(folder, hand, chain, policies["current"], "dry-run", said, after=chain.plan.current)
    return outcome


def advance(folder: Folder, hand: Hand, broker: RolloutBroker, step: Stage) -> Chain:
    """Take the step `canary`, `promote` or `retire`: check its gate, state it, and give the broker its policy.

    Raises:
        VerificationError: `rollout-step-order`, `rollout-broker-differs`. AppraisalError: `rollout-not-proven`,
            `rollout-old-not-barred`.
    """
    if step == "current":
        raise ValueError("a rollout goes forward")
    chain, policies = resumed(folder, hand)
    check_step(chain.last.predicate.step, step)
    _same_broker(chain, broker)
    broker.require_policy(chain.last.after)
    said = _gate(chain, policies, broker, step, hand.clock())
    policies[step].check_time(hand.clock())
    _next(folder, hand, chain, policies["current"], step, said, after=chain.plan.digest_of(step))
    apply(folder, broker)
    return folder.load()[0]


def revoke(
    folder: Folder,
    hand: Hand,
    broker: RolloutBroker,
    policy: bytes,
    *,
    reason: str,
    cases: Sequence[Recorded] = (),
    beside: Path | None = None,
) -> Chain:
    """End the rollout with a policy that the signers signed: back to the old build, or on without it.

    Args:
        cases: recorded evidence; one has to be admitted now and refused then.

    Raises:
        VerificationError: `rollout-step-order`, `rollout-broker-differs`, `version-rollback`, `untrusted-signer`.
        AppraisalError: `rollout-revokes-nothing`.
    """
    chain, policies = resumed(folder, hand)
    check_step(chain.last.predicate.step, "revoke")
    _same_broker(chain, broker)
    broker.require_policy(chain.last.after)
    now = _policy_now(chain, policies)
    new = now.succeeded_by(policy, at=hand.clock())
    said: dict[str, Any] = {"reason": reason}
    if cases and beside is not None:
        said["evidence"] = _revoked(cases, now, new, hand.clock(), set_digest(cases, beside))
    folder.put_revoke(policy)
    _next(folder, hand, chain, policies["current"], "revoke", said, after=new.digest())
    apply(folder, broker)
    return folder.load()[0]


def resumed(folder: Folder, hand: Hand) -> tuple[Chain, dict[Stage, KeyPolicy]]:
    """Return chain and policies, after finishing a statement that was logged and not yet put into the folder.

    Raises:
        FormatError, VerificationError: as `Folder.load`.
    """
    for name, envelope in folder.begun():
        statement = RolloutStatement.unverified(envelope)
        proof = find(hand.log, hand.log_signer, statement.log_entry())
        if proof is not None and statement.name == name:
            folder.add(statement, envelope, proof)
        else:
            folder.drop(name)  # not logged: it never was
    return folder.load()


def apply(folder: Folder, broker: RolloutBroker) -> bytes:
    """Give the broker the policy that the last statement ends in, if it has the one before; return its digest.

    Raises:
        VerificationError: `rollout-broker-differs`: it has neither.
    """
    chain, _ = folder.load()
    _same_broker(chain, broker)
    last = chain.last
    _, found = broker.key()
    if hmac.compare_digest(found, last.after):
        return found
    broker.require_policy(last.before)
    name = REVOKE if last.predicate.step == "revoke" else last.predicate.step
    raw = folder.policy(name)
    if KeyPolicy.load(raw).digest() != last.after:
        raise VerificationError(
            f"{name}.policy is not the one that the statement names",
            code="rollout-policy-differs",
            stage="policies",
        )
    broker.set_policy(raw, last.after, force=name == REVOKE)
    return last.after


def _gate(
    chain: Chain, policies: Mapping[Stage, KeyPolicy], broker: RolloutBroker, step: Stage, now: datetime
) -> dict[str, Any]:
    if step == "retire":
        check_barred(policies["current"], policies["retire"])
    if step != "promote":
        return {}
    canary = policies["canary"].canary
    return {
        "attested": broker.attestations(
            log_key=chain.first.broker_log,
            policy=chain.plan.canary,
            builds=[] if canary is None else canary.code,
            wanted=chain.plan.attestations,
            since=window(now, chain.plan.within_s),
        )
    }


def _check_canary(policies: Mapping[Stage, KeyPolicy]) -> None:
    found = []
    if policies["canary"].canary is None:
        text = "the canary policy has no member `canary`: nothing would limit the new build"
        found.append(AppraisalFailure(text, code="rollout-no-canary"))
    for stage in ("promote", "retire"):
        if policies[stage].canary is not None:
            text = f"the {stage} policy still has a member `canary`"
            found.append(AppraisalFailure(text, code="rollout-no-canary"))
    if found:
        raise AppraisalError(found, stage="policies")


def _revoked(
    cases: Sequence[Recorded], now: KeyPolicy, new: KeyPolicy, at: datetime, digest: bytes
) -> EvidenceSet:
    before = {one.case.name: one.judge(now, rules_at=at).admitted for one in cases}
    after = {one.case.name: one.judge(new, rules_at=at).admitted for one in cases}
    gone = [name for name in before if before[name] and not after[name]]
    if not gone:
        text = "no evidence that is admitted now would be refused: the policy revokes nothing of it"
        raise AppraisalError([AppraisalFailure(text, code="rollout-revokes-nothing")], stage="revoke")
    return EvidenceSet(
        digest=digest,
        cases=len(cases),
        admitted=[name for name in before if before[name]],
        locked_out=gone,
        newly_admitted=[name for name in before if after[name] and not before[name]],
        refused=[name for name in before if not before[name] and not after[name]],
        retired=gone,
    )


def _policy_now(chain: Chain, policies: Mapping[Stage, KeyPolicy]) -> KeyPolicy:
    step = chain.last.predicate.step
    for stage in STAGES:
        if stage == step:
            return policies[stage]
    raise RuntimeError("a revocation follows a step that set a policy")


def _same_broker(chain: Chain, broker: RolloutBroker) -> None:
    root, log_key = broker.identity()
    if (root, log_key) != (chain.first.broker, chain.first.broker_log):
        raise VerificationError(
            "this is another broker than the plan's", code="rollout-broker-differs", stage="broker"
        )


def _same(first: RolloutPredicate) -> dict[str, Any]:
    return {name: getattr(first, name) for name in ("rollout", "kid", "broker", "broker_log", "log")}


def _next(
    folder: Folder,
    hand: Hand,
    chain: Chain,
    current: KeyPolicy,
    step: Step,
    said: Mapping[str, Any],
    *,
    after: bytes,
) -> None:
    if hand.log_signer.vkey.encode() != chain.first.log:
        raise VerificationError(
            "the plan names another log than this key's", code="rollout-chain-broken", stage="log"
        )
    predicate = {
        **_same(chain.first),
        **said,
        "sequence": len(chain.statements) + 1,
        "step": step,
        "previous": chain.last.digest(),
    }
    _write(folder, hand, chain.statements, predicate, current, after=after)


def _write(
    folder: Folder,
    hand: Hand,
    before: Sequence[RolloutStatement],
    said: Mapping[str, Any],
    current: KeyPolicy,
    *,
    after: bytes,
) -> None:
    predicate = validated(
        RolloutPredicate, {**said, "at": hand.clock(), "operator": hand.operator}, SettingsError
    )
    statement = RolloutStatement.of(
        predicate, before=before[-1].after if before else current.digest(), after=after
    )
    check_order(statement, before)
    envelope = statement.sign(*hand.keys)
    verify_one(envelope, signers_of(current))  # by their threshold, or nothing is logged
    folder.begin(statement, envelope)
    proof = publish(hand.log, hand.log_signer, statement.log_entry(), check=_other(statement))
    folder.add(statement, envelope, proof)


def _other(statement: RolloutStatement) -> Callable[[bytes], None]:
    wanted = ("rollout", statement.predicate.rollout.hex(), statement.predicate.sequence)

    def check(entry: bytes) -> None:
        try:
            said = parse_canonical(entry)
        except FormatError:
            return  # others may write to this log too
        if (said.get("type"), said.get("rollout"), said.get("sequence")) == wanted:
            raise VerificationError(
                f"the log holds another statement {statement.predicate.sequence} of this rollout",
                code="rollout-equivocation",
                stage="log",
            )

    return check
