"""Statements that are altered, skipped, replayed or out of order; gates that refuse. A stand-in for the broker."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.rollout.support import NEW, OLD, Site

from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.signed import REFERENCE_VALUES
from sealwright.audit.cases import read_cases
from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import validated
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.errors import (
    AppraisalError,
    MessageFormatError,
    SealwrightError,
    SettingsError,
    VerificationError,
)
from sealwright.ops.publish import publish
from sealwright.ops.rollout import steps
from sealwright.ops.rollout.chain import NEXT
from sealwright.ops.rollout.dryrun import dry_run
from sealwright.ops.rollout.folder import Folder
from sealwright.ops.rollout.retire import check_barred
from sealwright.ops.rollout.statement import STAGES, Counted, Plan, RolloutStatement, Stage


class StandIn:
    """Answers as a broker that does what it is told, and has seen enough of the new build."""

    def __init__(self, policy: bytes) -> None:
        self.policy = policy
        self.root, self.log_key = b"\x07" * 32, "log.test/broker+00000000+AAAA"

    def identity(self) -> tuple[bytes, str]:
        return self.root, self.log_key

    def key(self) -> tuple[str, bytes]:
        return "acme", KeyPolicy.load(self.policy).digest()

    def require_policy(self, digest: bytes) -> str:
        if self.key()[1] != digest:
            raise VerificationError("another policy", code="rollout-broker-differs", stage="broker")
        return "acme"

    def set_policy(self, raw: bytes, digest: bytes, *, force: bool = False) -> None:
        self.policy = raw

    def attestations(self, **_: object) -> list[Counted]:
        return [Counted(index=1, commitment=bytes(32))]


class Stand:
    """A site, a stand-in broker, and a rollout's folder."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.broker: Any = StandIn(site.policies["current"])
        self.folder = Folder(site.root / "rollout")
        self.at = site.now

    def hand(self, *keys: Ed25519PrivateKey) -> steps.Hand:
        self.at += timedelta(seconds=1)
        return steps.Hand(
            operator="tester",
            keys=keys or (self.site.anna, self.site.boris),
            log=self.site.root / "log",
            log_signer=self.site.log,
            clock=lambda: self.at,
        )

    def plan(self, policies: dict[Stage, bytes] | None = None, *keys: Ed25519PrivateKey) -> None:
        steps.make_plan(
            self.folder,
            self.hand(*keys),
            self.broker,
            policies or self.site.policies,
            kid="k1",
            attestations=1,
            within_s=3600,
            random=lambda size: b"\x09" * size,
        )

    def dry(self, builds: dict[str, bytes] | None = None, *, force: bool = False) -> Any:
        folder = self.site.root / f"recorded-{self.at.timestamp()}"
        path = self.site.record(folder, builds or {"running": OLD, "fresh": NEW})
        return steps.run_dry(self.folder, self.hand(), read_cases(path), folder, force=force)

    def step(self, step: Stage) -> None:
        steps.advance(self.folder, self.hand(), self.broker, step)

    def whole(self) -> None:
        self.plan()
        self.dry()
        for step in STAGES[1:]:
            self.step(step)

    def file(self, name: str) -> Path:
        return self.folder.root / "statements" / f"{name}.dsse.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    stand = Stand(Site(root=tmp_path_factory.mktemp("rollout")))
    stand.whole()
    return stand


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(Site(root=tmp_path))


@pytest.fixture
def copy(finished: Stand, tmp_path: Path) -> Stand:
    shutil.copytree(finished.site.root, tmp_path / "copy")
    made = object.__new__(Stand)
    made.site, made.at, made.broker = finished.site, finished.at, finished.broker
    made.folder = Folder(tmp_path / "copy/rollout")
    return made


def refused(error: type[SealwrightError], action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(error) as caught:
        action()
    return caught.value.stage, caught.value.code


def codes(action: Callable[[], object]) -> set[str]:
    with pytest.raises(AppraisalError) as caught:
        action()
    return {failure.code for failure in caught.value.failures}


NAMES = ["0001-plan", "0002-dry-run", "0003-canary", "0004-promote", "0005-retire"]


def test_a_finished_rollout_is_verified(finished: Stand) -> None:
    chain, policies = finished.folder.load()
    assert [one.name for one in chain.statements] == NAMES
    assert all(len(names) == 2 for names in chain.signed_by)
    assert finished.broker.key()[1] == policies["retire"].digest() == chain.last.after
    evidence = chain.statements[1].predicate.evidence
    assert evidence is not None
    assert (evidence.admitted, evidence.newly_admitted, evidence.retired) == (
        ["running"],
        ["fresh"],
        ["running"],
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [0, 1])
def test_each_signature_of_each_statement_counts(copy: Stand, name: str, at: int) -> None:
    document = json.loads(copy.file(name).read_text())
    signature = bytearray(base64.b64decode(document["signatures"][at]["sig"]))
    signature[3] ^= 1
    document["signatures"][at]["sig"] = base64.b64encode(signature).decode()
    copy.file(name).write_bytes(canonical(document))
    assert refused(VerificationError, copy.folder.load) == ("signers", "bad-signature")
    document["signatures"].pop(at)
    copy.file(name).write_bytes(canonical(document))
    assert refused(VerificationError, copy.folder.load) == ("signers", "untrusted-signer")


def resign(copy: Stand, name: str, change: Callable[[dict[str, Any]], None], *, log: bool = True) -> None:
    """Alter a statement as the signers themselves could, log it, and put it in the folder."""
    document = json.loads(Envelope.parse(copy.file(name).read_bytes()).unverified_payload)
    change(document)
    raw = canonical(document)
    envelope = Envelope.sign(RolloutStatement.PAYLOAD_TYPE, raw, copy.site.anna, copy.site.boris)
    copy.file(name).write_bytes(envelope.encode())
    if log:
        entry = RolloutStatement.parse(raw).log_entry()
        proof = publish(copy.folder.root.parent / "log", copy.site.log, entry)
        copy.file(name).with_name(f"{name}.tlog-proof").write_bytes(proof)


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "another key": ("0003-canary", lambda d: d["predicate"].update(kid="k2"), "rollout-chain-broken"),
    "another broker": (
        "0003-canary",
        lambda d: d["predicate"].update(broker="A" * 43),
        "rollout-chain-broken",
    ),
    "another rollout": (
        "0003-canary",
        lambda d: d["predicate"].update(rollout="00" * 16),
        "rollout-chain-broken",
    ),
    "another past": (
        "0003-canary",
        lambda d: d["predicate"].update(previous="00" * 32),
        "rollout-chain-broken",
    ),
    "an earlier time": (
        "0003-canary",
        lambda d: d["predicate"].update(at="2020-01-01T00:00:00Z"),
        "rollout-chain-broken",
    ),
    "another number": ("0003-canary", lambda d: d["predicate"].update(sequence=4), "rollout-chain-broken"),
    "another policy": (
        "0003-canary",
        lambda d: d["subject"][1]["digest"].update(sha256="00" * 32),
        "rollout-step-order",
    ),
    "from another policy": (
        "0003-canary",
        lambda d: d["subject"][0]["digest"].update(sha256="00" * 32),
        "rollout-step-order",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_statement_that_does_not_fit_is_refused_though_signed_and_logged(copy: Stand, case: str) -> None:
    name, change, code = CHANGES[case]
    resign(copy, name, change)
    with pytest.raises(VerificationError) as caught:
        copy.folder.load()
    assert caught.value.code == code


def test_a_statement_that_is_not_logged_is_refused(copy: Stand) -> None:
    resign(copy, "0005-retire", lambda d: d["predicate"].update(operator="another"), log=False)
    with pytest.raises(VerificationError) as caught:
        copy.folder.load()
    assert caught.value.code == "bad-inclusion-proof"


def test_a_step_cannot_be_taken_out_or_replayed(copy: Stand) -> None:
    copy.file("0003-canary").unlink()
    assert refused(VerificationError, copy.folder.load) == ("parse", "rollout-chain-broken")
    copy.file("0002-dry-run").rename(copy.file("0003-canary"))
    assert refused(VerificationError, copy.folder.load)[1] == "rollout-chain-broken"


def test_one_rollout_is_not_continued_by_the_statements_of_another(copy: Stand, stand: Stand) -> None:
    stand.plan()
    for name in NAMES[1:]:
        shutil.copy(copy.file(name), stand.file(name))
        shutil.copy(
            copy.file(name).with_name(f"{name}.tlog-proof"), stand.file(name).with_name(f"{name}.tlog-proof")
        )
    assert refused(VerificationError, stand.folder.load) == ("signers", "untrusted-signer")


@pytest.mark.parametrize("stage", STAGES)
def test_a_swapped_policy_is_refused(copy: Stand, stage: Stage) -> None:
    path = copy.folder.root / "policies" / f"{stage}.policy"
    path.write_bytes(copy.site.policy(5, [OLD, NEW]))
    assert refused(VerificationError, copy.folder.load) == ("policies", "rollout-policy-differs")


def test_a_second_history_gets_no_proof(copy: Stand) -> None:
    document = json.loads(Envelope.parse(copy.file("0005-retire").read_bytes()).unverified_payload)
    document["predicate"]["operator"] = "another"
    statement = RolloutStatement.parse(canonical(document))
    log = copy.folder.root.parent / "log"
    action = lambda: publish(log, copy.site.log, statement.log_entry(), check=steps._other(statement))  # noqa: E731
    assert refused(VerificationError, action) == ("log", "rollout-equivocation")


def test_steps_follow_their_order_and_no_other(stand: Stand) -> None:
    stand.plan()
    done: list[Stage] = []
    for step in STAGES[1:]:
        if step == "canary":
            assert refused(VerificationError, lambda: stand.step("canary")) == ("order", "rollout-step-order")
            stand.dry()
            stand.dry()
        for other in STAGES[1:]:
            if other != step:
                assert refused(VerificationError, lambda other=other: stand.step(other)) == (
                    "order",
                    "rollout-step-order",
                )  # type: ignore[misc]
        stand.step(step)
        done.append(step)
        assert refused(VerificationError, lambda step=step: stand.step(step)) == (
            "order",
            "rollout-step-order",
        )  # type: ignore[misc]
    assert refused(VerificationError, stand.dry) == ("order", "rollout-step-order")
    assert set(NEXT) == {"plan", "dry-run", "revoke", *done}


def test_a_plan_needs_its_signers(stand: Stand) -> None:
    assert refused(VerificationError, lambda: stand.plan(None, stand.site.anna)) == (
        "signers",
        "untrusted-signer",
    )
    assert not (stand.folder.root / "statements").exists()
    unsigned = validated(
        KeyPolicy,
        {**KeyPolicy.load(stand.site.policies["current"]).to_json(), "signers": None},
        SettingsError,
    ).encode()
    stand.broker.policy = unsigned
    policies: dict[Stage, bytes] = {**stand.site.policies, "current": unsigned}
    assert refused(VerificationError, lambda: stand.plan(policies)) == ("policies", "rollout-unsigned")


def test_policies_follow_each_other(stand: Stand) -> None:
    site = stand.site
    same: dict[Stage, bytes] = {**site.policies, "promote": site.policy(2, [OLD, NEW])}
    assert refused(VerificationError, lambda: stand.plan(same)) == ("version", "version-rollback")
    alone: dict[Stage, bytes] = {**site.policies, "retire": site.policy(4, [NEW], keys=[site.anna])}
    assert refused(VerificationError, lambda: stand.plan(alone))[1] == "untrusted-signer"
    canary = {"code": [NEW.hex()], "leases": 1}
    for stage, raw in {
        "canary": site.policy(2, [OLD, NEW]),
        "promote": site.policy(3, [OLD, NEW], canary=canary),
        "retire": site.policy(4, [NEW], canary=canary),
    }.items():
        assert codes(lambda stage=stage, raw=raw: stand.plan({**site.policies, stage: raw})) == {
            "rollout-no-canary"
        }  # type: ignore[misc]
    stand.broker.policy = site.policies["promote"]
    assert refused(VerificationError, stand.plan)[1] == "rollout-broker-differs"
    stand.broker.policy = site.policies["current"]
    stand.plan()
    assert refused(SettingsError, stand.plan)[1] == "rollout-exists"


def test_the_dry_run_says_who_is_locked_out_and_refuses_when_it_is_all(stand: Stand) -> None:
    site = stand.site
    third = b"\x03" * 32
    canary = {"code": [NEW.hex()], "leases": 1}
    site.policies |= {
        "current": site.policy(1, [OLD, third]),
        "canary": site.policy(2, [OLD, NEW], canary=canary),
    }
    stand.broker.policy = site.policies["current"]
    stand.plan()
    outcome = stand.dry({"running": OLD, "lost": third, "fresh": NEW})
    assert outcome.summary(bytes(32)).locked_out == ["lost"]
    assert codes(lambda: stand.dry({"lost": third, "fresh": NEW})) == {"rollout-locks-out"}
    assert codes(lambda: stand.dry({"fresh": NEW})) == {"rollout-evidence-empty"}
    assert codes(lambda: stand.dry({"running": OLD})) == {"rollout-admits-nothing"}
    before = len(stand.folder.links())
    assert stand.dry({"lost": third}, force=True).forced()
    assert len(stand.folder.links()) == before + 1
    assert stand.folder.load()[0].last.predicate.forced is True


def test_a_build_that_stays_is_not_retired_and_one_without_limit_is_never_let_in(stand: Stand) -> None:
    site = stand.site
    site.policies["retire"] = site.policy(4, [OLD, NEW])
    stand.plan()
    assert codes(stand.dry) == {"rollout-not-retired"}
    other = Stand(Site(root=site.root / "other"))
    other.site.policies["canary"] = other.site.policy(
        2, [OLD, NEW], canary={"code": [(b"\x05" * 32).hex()], "leases": 1}
    )
    other.plan()
    assert codes(lambda: other.dry(force=True)) == {"rollout-unlimited"}


def test_a_revocation_goes_forward_and_revokes_something(stand: Stand) -> None:
    site = stand.site
    back = site.policy(9, [OLD])
    action = lambda policy=back, **more: steps.revoke(  # noqa: E731
        stand.folder, stand.hand(), stand.broker, policy, reason="broken", **more
    )
    stand.plan()
    assert refused(VerificationError, action) == ("order", "rollout-step-order")
    stand.dry()
    stand.step("canary")
    assert refused(VerificationError, lambda: action(site.policies["current"])) == (
        "version",
        "version-rollback",
    )
    assert refused(VerificationError, lambda: action(site.policies["retire"])) == (
        "order",
        "rollout-step-order",
    )
    assert (
        refused(VerificationError, lambda: action(site.policy(9, [OLD], keys=[site.anna])))[1]
        == "untrusted-signer"
    )
    path = site.record(site.root / "old", {"running": OLD})
    assert codes(lambda: action(cases=read_cases(path), beside=path.parent)) == {"rollout-revokes-nothing"}
    path = site.record(site.root / "both", {"running": OLD, "fresh": NEW})
    chain = action(cases=read_cases(path), beside=path.parent)
    evidence = chain.last.predicate.evidence
    assert evidence is not None
    assert evidence.locked_out == ["fresh"]
    assert stand.broker.policy == back
    assert refused(VerificationError, action) == ("order", "rollout-step-order")


def test_recorded_evidence_is_judged_by_policies_of_today(stand: Stand) -> None:
    """It was recorded before the new policy was written: collateral of then, rules of now."""
    site = stand.site
    path = site.record(site.root / "recorded", {"fresh": NEW})
    later = site.policy(2, [NEW], created=rfc3339(site.now + timedelta(hours=1)))
    policies: dict[Stage, KeyPolicy] = {"current": KeyPolicy.load(later)}
    (old,) = dry_run(read_cases(path), policies, at=site.now).cases
    assert list(old.verdicts["current"].codes) == ["policy-not-yet"]
    (now,) = dry_run(read_cases(path), policies, at=site.now + timedelta(hours=2)).cases
    assert now.admitted
    assert now.build == NEW


def reference_policy(at: datetime, versions: list[int], minimum: int) -> KeyPolicy:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    values = []
    for version in versions:
        document = {
            "format": "sealwright-reference-values/v1",
            "name": "guest",
            "version": version,
            "created": rfc3339(at),
            "expires": rfc3339(at + timedelta(days=1)),
            "platform": "snp",
            "registers": {"measurement": [f"{version:02x}" * 48]},
            "config_register": "host_data",
        }
        values.append(json.loads(Envelope.sign(REFERENCE_VALUES, canonical(document), key).encode()))
    reference = {
        "signers": {"keys": [b64url(key.public_key().public_bytes_raw())]},
        "minimum_version": minimum,
        "values": values,
    }
    members = {
        "format": "sealwright-policy/v1",
        "version": 1,
        "created": rfc3339(at),
        "expires": rfc3339(at + timedelta(days=1)),
        "platforms": {
            "snp": {
                "reference": reference,
                "config_register": "host_data",
                "products": {
                    "Genoa": {"minimum_tcb": {"boot_loader": 10, "tee": 0, "snp": 23, "microcode": 84}}
                },
            }
        },
        "config": {"digests": ["00" * 32]},
    }
    return validated(KeyPolicy, members, SettingsError)


def test_dropped_reference_values_are_barred_by_version(stand: Stand) -> None:
    at = stand.site.now
    current = reference_policy(at, [1, 2], 1)
    assert codes(lambda: check_barred(current, reference_policy(at, [3], 1))) == {"rollout-old-not-barred"}
    assert codes(lambda: check_barred(current, reference_policy(at, [3], 2))) == {"rollout-old-not-barred"}
    check_barred(current, reference_policy(at, [3], 3))
    check_barred(current, reference_policy(at, [1, 2, 3], 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["predicate"].update(step="leap"),
        lambda d: d["predicate"].pop("previous"),
        lambda d: d["predicate"].update(plan={}),
        lambda d: d["predicate"].update(reason="x"),
        lambda d: d["subject"].reverse(),
        lambda d: d.update(predicateType="urn:sealwright:rollout:v2"),
        lambda d: d["predicate"].update(more=1),
    ],
)
def test_a_statement_out_of_form_is_refused(
    finished: Stand, change: Callable[[dict[str, Any]], None]
) -> None:
    document = json.loads(Envelope.parse(finished.file("0003-canary").read_bytes()).unverified_payload)
    change(document)
    with pytest.raises(MessageFormatError):
        RolloutStatement.parse(canonical(document))


def test_a_folder_without_statements_is_no_rollout(copy: Stand) -> None:
    shutil.rmtree(copy.folder.root / "statements")
    assert refused(VerificationError, copy.folder.load) == ("parse", "rollout-empty")


def test_a_plan_has_every_policy(finished: Stand) -> None:
    plan = finished.folder.load()[0].plan
    assert {plan.digest_of(stage) for stage in STAGES} == {
        KeyPolicy.load(raw).digest() for raw in finished.site.policies.values()
    }
    assert isinstance(plan, Plan)
