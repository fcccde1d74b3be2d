"""The broker releases shards within owners' policies and budgets, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.broker.support import CODE, Enclave, Kbs
from tests.training.world import NOW, ROWS, Site, Worker, later, plan, site

from sealwright.broker.data import DataKeys
from sealwright.broker.data_rows import DataBudgetRow, budget_key
from sealwright.crypto.canonical import canonical
from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.errors import AppraisalError, SealwrightError
from sealwright.protocol.training_data import Budget, DataRelease, DataRequest
from sealwright.training.data import open_release


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path / "site") as made:
        yield made


def refused(work: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(SealwrightError) as caught:
        work()
    return caught.value.stage, caught.value.code


def spent(one: Site) -> Budget:
    row = one.running.core.state.view().get(DataBudgetRow, *budget_key("shard-a", one.plan.digest()))
    assert row is not None
    return row.spent


def test_a_worker_gets_the_key_within_the_budget(one: Site) -> None:
    one.enrol()
    for epoch in (1, 2, 3):
        released = one.released(epoch)
        assert released.dek == bytearray(one.dek)
        assert released.grant.spent == Budget(epochs=epoch, rows=epoch * ROWS)
    assert refused(lambda: one.released(4)) == ("budget", "epochs-over-budget")
    assert spent(one) == Budget(epochs=3, rows=3 * ROWS)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run": bytes(32)}, "run-not-allowed"),
        ({"policy": bytes(32)}, "data-policy-mismatch"),
        ({"manifest_digest": bytes(32)}, "shard-swapped"),
        ({"code": bytes(32)}, "training-code-not-allowed"),
        ({"purpose": "advertising"}, "data-purpose-not-allowed"),
        ({"rows": ROWS + 1}, "rows-over-shard"),
        ({"kid": "weights"}, "run-not-allowed"),
    ],
)
def test_a_request_outside_the_policy_is_refused_and_costs_nothing(
    one: Site, changes: dict[str, Any], code: str
) -> None:
    one.enrol()
    assert refused(lambda: one.ask(one.request(1, **changes))) == ("data-policy", code)
    assert one.running.core.state.view().get(DataBudgetRow, *budget_key("shard-a", one.plan.digest())) is None
    assert one.released(1).grant.spent.epochs == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run": plan(seed=8).digest()}, "run-not-allowed"),
        ({"measurements": [bytes(32)]}, "data-measurement-not-allowed"),
        ({"configs": [bytes(32)]}, "data-config-not-allowed"),
        ({"code": [bytes(32)]}, "training-code-not-allowed"),
        ({"purpose": "another"}, "data-purpose-not-allowed"),
    ],
)
def test_a_policy_for_something_else_allows_nothing(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    with site(tmp_path / "site", **changes) as one:
        one.enrol()
        assert refused(lambda: one.released(1)) == ("data-policy", code)


def test_a_policy_ends(one: Site) -> None:
    one.admit(version=2, expires=later(minutes=30))
    one.enrol()
    one.world.clock.forward(minutes=30)
    assert refused(lambda: one.released(1)) == ("data-policy", "policy-expired")


def test_rows_are_counted_over_epochs(tmp_path: Path) -> None:
    with site(tmp_path / "site", budget=Budget(epochs=9, rows=ROWS + 3)) as one:
        one.enrol()
        assert one.released(1, rows=ROWS).grant.spent.rows == ROWS
        assert refused(lambda: one.released(2, rows=4)) == ("budget", "rows-over-budget")
        assert one.released(2, rows=3).grant.spent == Budget(epochs=2, rows=ROWS + 3)
        assert refused(lambda: one.released(3, rows=1)) == ("budget", "rows-over-budget")


def test_an_epoch_is_granted_once_and_none_before_it(one: Site) -> None:
    one.enrol()
    one.released(2)
    assert refused(lambda: one.released(2)) == ("budget", "epoch-spent")
    assert refused(lambda: one.released(1)) == ("budget", "epoch-spent")


def test_the_last_request_again_costs_nothing(one: Site) -> None:
    one.enrol()
    request = one.request(1)
    first, again = (
        open_release(one.ask(request), request, broker=one.broker_keys, tee=one.worker.tee) for _ in range(2)
    )
    assert first.grant == again.grant
    assert spent(one).epochs == 1


def test_a_new_version_of_the_policy_resets_nothing(one: Site) -> None:
    one.enrol()
    for epoch in (1, 2, 3):
        one.released(epoch)
    one.admit(version=2, budget=Budget(epochs=4, rows=4 * ROWS))
    assert one.released(4).grant.spent.epochs == 4
    assert refused(lambda: one.released(5)) == ("budget", "epochs-over-budget")


def test_concurrent_requests_never_pass_the_budget(one: Site) -> None:
    one.enrol()
    granted: list[int] = []
    codes: set[str] = set()
    start = threading.Barrier(8)

    def ask(epoch: int) -> None:
        request = one.request(epoch)
        start.wait()
        try:
            one.ask(request)
            granted.append(epoch)
        except SealwrightError as error:
            codes.add(error.code)

    threads = [threading.Thread(target=ask, args=(epoch,)) for epoch in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(granted) <= 3
    assert spent(one) == Budget(epochs=len(granted), rows=len(granted) * ROWS)
    assert codes <= {"epoch-spent", "epochs-over-budget"}


def test_what_was_spent_outlives_the_broker(tmp_path: Path) -> None:
    with site(tmp_path / "site") as one:
        one.enrol()
        for epoch in (1, 2, 3):
            one.released(epoch)
        world = one.world
    with world.open() as running:
        again = replace(one, running=running, keys=DataKeys(running.core))
        assert refused(lambda: again.released(4)) == ("session", "not-attested")
        again.enrol()
        assert refused(lambda: again.released(4)) == ("budget", "epochs-over-budget")


def test_a_failed_unwrap_is_asked_again_for_free(one: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one.enrol()
    request = one.request(1)
    backend = one.running.core.backend

    def gone(*_: object) -> bytearray:
        raise SealwrightError("away", code="backend-unavailable", stage="backend")

    with monkeypatch.context() as patched:
        patched.setattr(type(backend), "unwrap", gone)
        assert refused(lambda: one.ask(request)) == ("backend", "backend-unavailable")
    assert spent(one).epochs == 1
    one.ask(request)
    assert spent(one).epochs == 1


async def test_the_ordinary_release_does_not_go_round_the_budget(one: Site) -> None:
    enclave = Enclave.make(one.world, one.running, {"acme": ["shard-a"]})
    kbs = Kbs(one.running)
    await kbs.leased(enclave)
    answer = await kbs.resource("shard-a")
    assert answer.status_code == 401
    assert one.running.admin.decisions(1)[0]["code"] == "key-budgeted"


def test_policies_are_the_owners_and_only_go_forward(one: Site) -> None:
    stranger = Ed25519PrivateKey.generate()
    newer = one.policy.model_copy(update={"version": 2})
    assert refused(lambda: one.keys.admit_policy(newer.sign(stranger))) == ("data-policy", "untrusted-signer")
    assert refused(lambda: one.admit(purpose="another")) == ("data-policy", "version-rollback")
    one.admit(version=2)
    assert refused(lambda: one.admit(version=1)) == ("data-policy", "version-rollback")
    late = {"version": 3, "created": later(days=2), "expires": later(days=3)}
    assert refused(lambda: one.admit(**late)) == ("data-policy", "policy-not-yet")


def test_a_key_stands_in_one_data_set_of_a_run(one: Site) -> None:
    assert refused(lambda: one.admit(dataset="south")) == ("data-policy", "kid-in-two-policies")


def test_a_policy_names_keys_of_its_own_tenant(one: Site) -> None:
    shard = one.shard.model_copy(update={"kid": "nobody", "name": "b"})
    assert refused(lambda: one.admit(version=2, shards=[shard])) == ("key", "key-unknown")


def test_a_nonce_is_good_once_and_not_for_long(one: Site) -> None:
    keys, run_spec = one.keys, one.plan.attested_as
    evidence = one.worker.evidence(keys.nonce(), run_spec).encode()
    keys.enrol(evidence, ["shard-a"])
    assert refused(lambda: keys.enrol(evidence, ["shard-a"])) == ("nonce", "nonce-mismatch")
    foreign = one.worker.evidence(b"n" * 32, run_spec).encode()
    assert refused(lambda: keys.enrol(foreign, ["shard-a"])) == ("nonce", "nonce-mismatch")
    late = one.worker.evidence(keys.nonce(), run_spec).encode()
    one.world.clock.forward(minutes=5)
    assert refused(lambda: keys.enrol(late, ["shard-a"])) == ("nonce", "nonce-mismatch")


def test_evidence_is_bound_to_run_config_and_keyset(one: Site) -> None:
    other = Worker.make(one.world)
    for changes in (
        {"run_spec": bytes(32)},
        {"config": canonical({"brokers": [], "policy_signers": [], "log": {"keys": []}, "egress": []})},
        {"keyset": other.keyset.encode()},
    ):
        evidence = one.worker.evidence(one.keys.nonce(), one.plan.attested_as).model_copy(update=changes)
        stage, code = refused(lambda: one.keys.enrol(evidence.encode(), ["shard-a"]))  # noqa: B023
        assert code == "report-data-mismatch", stage


def test_changed_code_is_refused(one: Site) -> None:
    assert refused(lambda: one.enrol(code=bytes(32))) == ("appraisal", "code-not-allowed")


def test_a_worker_that_names_a_way_out_is_refused(one: Site) -> None:
    worker = Worker.make(one.world, egress=["collector.test:443"])
    with pytest.raises(AppraisalError) as caught:
        one.enrol(worker)
    assert {failure.code for failure in caught.value.failures} == {"egress-host-not-allowed", "worker-egress"}


def test_a_worker_names_keys_and_a_config_that_can_be_judged(one: Site) -> None:
    evidence = one.worker.evidence(one.keys.nonce(), one.plan.attested_as).encode()
    assert refused(lambda: one.keys.enrol(evidence, [])) == ("key", "key-unknown")
    evidence = one.worker.evidence(one.keys.nonce(), one.plan.attested_as).encode()
    assert refused(lambda: one.keys.enrol(evidence, ["nobody"])) == ("key", "key-unknown")
    worker = Worker.make(one.world, brokers="none")
    assert refused(lambda: one.enrol(worker)) == ("parse", "malformed-worker-config")


def test_evidence_is_judged_again_and_ends(one: Site) -> None:
    one.enrol()
    one.running.admin.set_policy(
        "shard-a", one.world.policy(version=2, platforms=_software(one, code=[bytes(32).hex()]))
    )
    assert refused(lambda: one.released(1)) == ("appraisal", "code-not-allowed")
    one.running.admin.set_policy("shard-a", one.world.policy(version=3))
    one.released(1)
    one.world.clock.forward(hours=1)
    assert refused(lambda: one.released(2)) == ("session", "session-expired")


def test_a_canary_does_not_train(one: Site) -> None:
    canary = {"code": [CODE.hex()], "leases": 1}
    one.running.admin.set_policy("shard-a", one.world.policy(version=2, canary=canary))
    assert refused(one.enrol) == ("key", "canary-not-training")


def _software(one: Site, **changes: Any) -> dict[str, Any]:
    import json

    platforms: dict[str, Any] = json.loads(one.world.policy())["platforms"]
    platforms["software"] |= changes
    return platforms


def test_a_revoked_key_and_another_manifest_are_refused(one: Site) -> None:
    one.enrol()
    manifest = one.world.manifest(one.dek, "shard-a", version=2)
    one.running.admin.admit("shard-a", manifest, owner_key=None, force=True)
    assert refused(lambda: one.released(1)) == ("key", "manifest-mismatch")
    one.running.admin.revoke_key("shard-a")
    assert refused(lambda: one.released(1)) == ("key", "key-revoked")


def test_a_request_is_signed_by_the_enrolled_keyset(one: Site) -> None:
    one.enrol()
    request = one.request(1)
    stranger = Ed25519PrivateKey.generate()
    assert refused(lambda: one.keys.release(request.sign(stranger))) == ("signature", "untrusted-signer")
    envelope = bytearray(request.sign(one.worker.receipt))
    envelope[-12] ^= 1
    assert refused(lambda: one.keys.release(bytes(envelope)))[1] in {"bad-signature", "malformed-base64"}


def test_the_worker_takes_only_the_answer_to_its_request(one: Site) -> None:
    one.enrol()
    broker, tee = one.broker_keys, one.worker.tee
    request, other = one.request(1), one.request(2)
    raw = one.ask(request)
    assert refused(lambda: open_release(raw, other, broker=broker, tee=tee)) == ("grant", "grant-mismatch")
    foreign = broker.model_copy(
        update={"release_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw()}
    )
    assert refused(lambda: open_release(raw, request, broker=foreign, tee=tee)) == (
        "grant",
        "untrusted-signer",
    )
    with pytest.raises(SealwrightError):
        open_release(raw, request, broker=broker, tee=HpkePrivateKey.generate(Kem.XWING))
    release = DataRelease.parse(raw)
    for field in ("enc", "ciphertext"):
        value = bytearray(getattr(release, field))
        value[3] ^= 1
        bent = release.model_copy(update={field: bytes(value)}).encode()
        with pytest.raises(SealwrightError):
            open_release(bent, request, broker=broker, tee=tee)


def test_a_key_is_bound_to_its_grant(one: Site) -> None:
    """The broker's answers to two requests, with their grants exchanged, open nothing."""
    one.enrol()
    first, second = one.request(1), one.request(2)
    a, b = DataRelease.parse(one.ask(first)), DataRelease.parse(one.ask(second))
    mixed = a.model_copy(update={"enc": b.enc, "ciphertext": b.ciphertext}).encode()
    with pytest.raises(SealwrightError):
        open_release(mixed, first, broker=one.broker_keys, tee=one.worker.tee)


def test_every_decision_is_logged_with_its_reason(one: Site) -> None:
    one.enrol()
    one.released(1)
    refused(lambda: one.ask(one.request(2, purpose="advertising")))
    newest, before = one.running.admin.decisions(2)
    assert (newest["action"], newest["code"]) == ("data-release", "data-purpose-not-allowed")
    assert (before["action"], before["verdict"], before["rows"]) == ("data-release", "grant", ROWS)


def test_an_unknown_worker_is_told_nothing(one: Site) -> None:
    assert refused(lambda: one.released(1)) == ("session", "not-attested")
    assert isinstance(one.request(1), DataRequest)
    assert one.policy.created == NOW
