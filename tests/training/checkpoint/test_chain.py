"""From the newest checkpoint to the owners: what holds, and every way in which it does not, by stage and code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.training.checkpoint.chains import LINEAGE, NOW, Run, run
from tests.training.data.test_documents import bend, paths
from tests.training.world import ROWS

from sealwright.crypto.canonical import canonical
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.errors import SealwrightError
from sealwright.protocol.training_data import Budget
from sealwright.training.checkpoint import NewestFile
from sealwright.training.checkpoint.folder import (
    MANIFEST,
    MODEL_SIGNATURE,
    PROOF,
    SEALED,
    STATEMENT,
    CheckpointFolder,
    put_file,
)
from sealwright.training.checkpoint.model_key import spki_of

HEX = "ab" * 32
Change = Callable[[dict[str, Any]], None]


def refused(work: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(SealwrightError) as caught:
        work()
    return caught.value.stage, caught.value.code


def test_an_honest_chain_leads_to_the_owners(honest: Run) -> None:
    chain = honest.verify()
    assert [one.version for one in chain.checkpoints] == [1, 2]
    assert chain.lineage == LINEAGE
    assert not chain.newest.confidential  # platform `software` hides nothing
    (used,) = chain.policies.values()
    assert used.policy == honest.site.policy
    assert [
        grant.spent.epochs for one in chain.checkpoints for data in one.data for grant in data.grants
    ] == [1, 2]
    assert [record.name for record in used.stages] == ["scale"]
    assert chain.checkpoints[0].logged.index < chain.newest.logged.index


def test_an_auditor_needs_no_ciphertext(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy")
    folder.artefact(1).unlink()
    honest.verify(folder.root)
    with folder.artefact(2).open("ab") as file:
        file.write(b"x")
    assert refused(lambda: honest.verify(folder.root)) == ("artefact", "wrong-artefact-length")


@pytest.mark.parametrize("name", [STATEMENT, PROOF, MODEL_SIGNATURE, MANIFEST])
def test_a_file_that_is_missing(honest: Run, tmp_path: Path, name: str) -> None:
    folder = honest.copy(tmp_path / "copy")
    (folder.root / "v000002" / name).unlink()
    assert refused(lambda: honest.verify(folder.root)) == ("folder", "checkpoint-file-missing")


def test_each_sidecar_is_needed_and_no_other_takes_its_place(honest: Run, tmp_path: Path) -> None:
    names = sorted(path.name for path in (honest.folder.root / "sidecars").iterdir())
    for at, name in enumerate(names):
        folder = honest.copy(tmp_path / f"gone{at}")
        path = folder.root / "sidecars" / name
        path.unlink()
        assert refused(lambda: honest.verify(folder.root)) == ("folder", "checkpoint-file-missing")  # noqa: B023
        # Another document of the folder under its name.
        shutil.copy(folder.root / "sidecars" / names[at - 1], path)
        assert refused(lambda: honest.verify(folder.root))  # noqa: B023
        shutil.rmtree(folder.root)


def test_each_sidecar_counts_to_the_byte(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy")
    for path in sorted((folder.root / "sidecars").iterdir()):
        raw = path.read_bytes()
        for at in range(5, len(raw), max(1, len(raw) // 5)):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            assert refused(lambda: honest.verify(folder.root))
        path.write_bytes(raw)
    honest.verify(folder.root)


@pytest.mark.parametrize("name", [STATEMENT, MODEL_SIGNATURE, MANIFEST, PROOF])
def test_each_file_counts_to_the_byte(honest: Run, tmp_path: Path, name: str) -> None:
    folder = honest.copy(tmp_path / "copy")
    path = folder.root / "v000002" / name
    raw = path.read_bytes()
    spared = []
    for at in range(0, len(raw), max(1, len(raw) // 40)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        try:
            honest.verify(folder.root)
        except SealwrightError:
            continue
        spared.append(raw[at - 20 : at + 20])
    # In a sigstore bundle the hint of a key and its media type's neighbours decide nothing.
    assert not spared or (name == MODEL_SIGNATURE and len(spared) <= 6), spared


def members(run_: Run) -> list[tuple[Any, ...]]:
    envelope = Envelope.parse(run_.folder.read(2, STATEMENT))
    return paths(json.loads(envelope.unverified_payload))


def test_every_member_of_a_statement_is_signed(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy")
    path = folder.root / "v000002" / STATEMENT
    envelope = Envelope.parse(path.read_bytes())
    said = json.loads(envelope.unverified_payload)
    assert len(members(honest)) > 35
    for place in members(honest):
        bent = Envelope(
            payload_type=envelope.payload_type,
            unverified_payload=canonical(bend(said, place)),
            signatures=envelope.signatures,
        )
        path.write_bytes(bent.encode())
        stage, code = refused(lambda: honest.verify(folder.root))
        # What leads to the key is looked up before the signature; the rest is refused by it, or is no statement.
        assert stage in {"signature", "folder", "evidence", "parse", "broker", "result", "keyset"}, (
            place,
            stage,
            code,
        )


def set_(*place: Any) -> Callable[[Any], Change]:
    def to(value: Any) -> Change:
        def change(said: dict[str, Any]) -> None:
            parent: Any = said
            for step in place[:-1]:
                parent = parent[step]
            parent[place[-1]] = value

        return change

    return to


def of(*place: Any) -> Callable[[Any], Change]:
    return set_("predicate", *place)


OTHER_SPKI = b64url(spki_of(ec.generate_private_key(ec.SECP256R1()).public_key()))
OTHER_CURVE = b64url(spki_of(ec.generate_private_key(ec.SECP384R1()).public_key()))


@pytest.mark.parametrize(
    ("change", "stage", "code"),
    [
        (of("lineage")("00" * 16), "chain", "lineage-foreign"),
        (of("version")(3), "chain", "checkpoint-version"),
        (of("parent")(HEX), "chain", "checkpoint-parent"),
        (of("plan")(HEX), "chain", "plan-changed"),
        (of("epoch")(0), "chain", "checkpoint-order"),
        (of("created")(rfc3339(NOW + timedelta(seconds=30))), "chain", "checkpoint-order"),
        (of("created")(rfc3339(NOW + timedelta(minutes=30))), "chain", "checkpoint-not-yet"),
        (of("created")(rfc3339(NOW + timedelta(hours=2))), "result", "evidence-too-old"),
        (of("created")(rfc3339(NOW + timedelta(hours=13))), "keyset", "keyset-ended"),
        (of("created")(rfc3339(NOW + timedelta(days=3))), "broker", "broker-keys-ended"),
        (of("base")(HEX), "plan", "plan-mismatch"),
        (of("run")("other"), "plan", "plan-mismatch"),
        (of("code")(HEX), "plan", "plan-mismatch"),
        (of("run_spec")(HEX), "evidence", "evidence-other-run"),
        (of("signer", "evidence")(HEX), "folder", "checkpoint-file-missing"),
        (of("signer", "result")(HEX), "folder", "checkpoint-file-missing"),
        (of("broker_keys")(HEX), "folder", "checkpoint-file-missing"),
        (of("workers", 0, "worker")(HEX), "evidence", "worker-mismatch"),
        (of("workers", 0, "grants")([]), "grant", "data-unused"),
        (of("workers", 0, "grants")([HEX]), "folder", "checkpoint-file-missing"),
        (of("data")([]), "grant", "grant-without-policy"),
        (of("data", 0, "policy")(HEX), "folder", "checkpoint-file-missing"),
        (of("data", 0, "stages")([HEX]), "folder", "checkpoint-file-missing"),
        (of("aggregation", "mode")("tee"), "aggregation", "aggregation-mismatch"),
        (of("aggregation", "contributors")(2), "aggregation", "aggregation-mismatch"),
        (of("model_key")(OTHER_SPKI), "model-signature", "bad-signature"),
        (of("model_key")(OTHER_CURVE), "model-signature", "malformed-model-signature"),
        (of("model_key")("AAAA"), "model-signature", "malformed-model-signature"),
        (set_("subject", 0, "digest", "sha256")(HEX), "model-signature", "model-differs"),
        (of("artefact", "kid")("other"), "artefact", "checkpoint-artefact"),
        (of("artefact", "manifest_digest")(HEX), "admitted", "manifest-not-admitted"),
        (of("environment")(HEX), "folder", "checkpoint-file-missing"),
        (of("log", "origin")("log.test/other"), "log", "log-position"),
        (of("log", "size")(0), "log", "log-position"),
        (of("log", "size")(1 << 40), "log", "log-position"),
    ],
)  # fmt: skip
def test_what_a_broken_worker_signs_is_refused(
    honest: Run, tmp_path: Path, change: Change, stage: str, code: str
) -> None:
    folder = honest.copy(tmp_path / "copy")
    honest.resign(folder, 2, change)
    with pytest.raises(SealwrightError, match="version 2: ") as caught:
        honest.verify(folder.root)
    assert (caught.value.stage, caught.value.code) == (stage, code)


def test_a_grant_counts_once(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy")
    before = honest.verify().checkpoints[0].statement.predicate.workers[0].grants[0].hex()
    honest.resign(folder, 2, of("workers", 0, "grants")([before]))
    assert refused(lambda: honest.verify(folder.root)) == ("budget", "epoch-spent")


def test_another_key_does_not_sign(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy")
    honest.resign(folder, 2, lambda _: None, key=Ed25519PrivateKey.generate())
    assert refused(lambda: honest.verify(folder.root)) == ("signature", "untrusted-signer")


def test_versions_that_are_gone_or_exchanged(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy").root
    (folder / "v000001").rename(folder / "v000003")
    assert refused(lambda: honest.verify(folder)) == ("chain", "checkpoint-missing")
    (folder / "v000002").rename(folder / "v000001")
    (folder / "v000003").rename(folder / "v000002")
    assert refused(lambda: honest.verify(folder)) == ("chain", "checkpoint-version")
    shutil.rmtree(folder / "v000001")
    assert refused(lambda: honest.verify(folder)) == ("chain", "checkpoint-missing")
    shutil.rmtree(folder / "v000002")
    assert refused(lambda: honest.verify(folder)) == ("chain", "checkpoint-missing")
    assert refused(lambda: honest.verify(tmp_path / "nowhere")) == ("chain", "checkpoint-missing")


def test_an_older_chain_is_refused_where_a_newer_is_known(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy").root
    second = honest.verify().newest.statement
    known = {"lineage": LINEAGE.hex(), "version": 2, "statement": second.digest().hex()}
    state = NewestFile(tmp_path / "newest.json")
    state.accept(second)
    honest.verify(folder, trust=honest.trust(newest=known), newest=state)
    honest.verify(folder, newest=honest.site.keys)
    shutil.rmtree(folder / "v000002")
    for options in ({"trust": honest.trust(newest=known)}, {"newest": state}, {"newest": honest.site.keys}):
        assert refused(lambda: honest.verify(folder, **options)) == ("lineage", "checkpoint-rollback")  # noqa: B023


def test_a_fork_is_refused_where_the_other_branch_is_known(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy")
    forked = honest.resign(folder, 2, of("metrics")({"accuracy": "0.99"}))
    honest.verify(folder.root)  # by itself it holds: the attested worker signed both
    assert refused(lambda: honest.verify(folder.root, newest=honest.site.keys)) == (
        "lineage",
        "checkpoint-forked",
    )
    assert refused(lambda: honest.site.keys.advance(forked.sign(honest.keys.receipt))) == (
        "lineage",
        "checkpoint-forked",
    )
    # The first version of another branch, under a newer one that is known.
    first = {"lineage": LINEAGE.hex(), "version": 1, "statement": HEX}
    assert refused(lambda: honest.verify(trust=honest.trust(newest=first))) == (
        "lineage",
        "checkpoint-forked",
    )
    other = {"lineage": "00" * 16, "version": 1, "statement": HEX}
    assert refused(lambda: honest.verify(trust=honest.trust(newest=other))) == ("lineage", "lineage-foreign")


def test_proofs_are_of_their_own_entries(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy")
    folder.put_proof(2, folder.read(1, PROOF))
    assert refused(lambda: honest.verify(folder.root))[1] == "bad-inclusion-proof"


def test_an_artefact_of_another_version_is_refused(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy").root
    for name in (SEALED, MANIFEST):
        shutil.copy(folder / "v000001" / name, folder / "v000002" / name)
    assert refused(lambda: honest.verify(folder)) == ("admitted", "manifest-not-admitted")
    folder = honest.copy(tmp_path / "other").root
    shutil.copy(folder / "v000001" / MODEL_SIGNATURE, folder / "v000002" / MODEL_SIGNATURE)
    assert refused(lambda: honest.verify(folder))[0] == "model-signature"


def with_trust(honest: Run, **changes: Any) -> Any:
    said = json.loads(json.dumps(honest.trust().to_json()))
    said["trust"] |= changes
    return type(honest.trust()).from_json(said)


def key() -> str:
    return b64url(Ed25519PrivateKey.generate().public_key().public_bytes_raw())


def test_nobody_is_trusted_who_is_not_named(honest: Run) -> None:
    platforms = json.loads(json.dumps(honest.trust().to_json()))["trust"]["platforms"]
    platforms["software"]["code"] = [HEX]
    config = honest.trust().to_json()["trust"]["config"]
    cases: list[tuple[Any, str, str]] = [
        (honest.trust(owners={"acme": [key()]}), "data-policy", "untrusted-signer"),
        (honest.trust(owners={"other": [key()]}), "data-policy", "owner-unknown"),
        (with_trust(honest, brokers=[key()]), "broker", "untrusted-signer"),
        (with_trust(honest, platforms=platforms), "appraisal", "code-not-allowed"),
        (with_trust(honest, config={**config, "brokers": [key()]}), "appraisal", "broker-not-allowed"),
        (with_trust(honest, oldest_evidence_s=60), "result", "evidence-too-old"),
        (with_trust(honest, require_hardware=True), "appraisal", "hardware-required"),
    ]
    for trust, stage, code in cases:
        assert refused(lambda: honest.verify(trust=trust)) == (stage, code), code  # noqa: B023


def test_another_log_is_not_trusted(honest: Run) -> None:
    from sealwright.testing.broker import FakeLog

    vkey = FakeLog(honest.origin).signer.vkey.encode()
    trust = with_trust(honest, log_policy=f"log {vkey}\nquorum none\n")
    assert refused(lambda: honest.verify(trust=trust)) == ("log-signature", "untrusted-signer")


def test_the_auditors_time_counts(honest: Run) -> None:
    assert refused(lambda: honest.verify(at=NOW - timedelta(minutes=4))) == ("chain", "checkpoint-not-yet")
    assert refused(lambda: honest.verify(at=NOW + timedelta(days=2))) == ("policy", "policy-expired")
    honest.verify(at=NOW + timedelta(hours=19))  # long after leases, keysets and results have ended


def bent_run(folder: Path, bend_: Callable[[Run], dict[str, Any]], **policy: Any) -> tuple[str, str]:
    """Return how the second checkpoint of a run is refused, whose draft is bent."""
    with run(folder, versions=1, **policy) as made:
        made.site.world.clock.forward(seconds=60)
        statement = made.write(made.draft(**bend_(made)), log=False)
        made.folder.put_proof(2, made.logged(statement))
        return refused(made.verify)


GRANTS: list[tuple[dict[str, Any], str, str]] = [
    ({"keyset_digest": bytes(32)}, "grant", "grant-mismatch"),
    ({"config_digest": bytes(32)}, "grant", "grant-mismatch"),
    ({"measurement": bytes(32)}, "grant", "grant-mismatch"),
    ({"tenant": "other"}, "grant", "grant-mismatch"),
    ({"granted": NOW + timedelta(seconds=121)}, "grant", "grant-mismatch"),
    ({"granted": NOW - timedelta(days=1)}, "data-policy", "policy-not-yet"),
    ({"policy": bytes(32)}, "grant", "grant-without-policy"),
    ({"kid": "other"}, "data-policy", "shard-unknown"),
    ({"manifest_digest": bytes(32)}, "data-policy", "shard-swapped"),
    ({"run": bytes(32)}, "data-policy", "run-not-allowed"),
    ({"code": bytes(32)}, "data-policy", "training-code-not-allowed"),
    ({"purpose": "advertising"}, "data-policy", "data-purpose-not-allowed"),
    ({"rows": ROWS + 1}, "data-policy", "rows-over-shard"),
    ({"epoch": 1}, "budget", "epoch-spent"),
    ({"spent": Budget(epochs=4, rows=20)}, "budget", "epochs-over-budget"),
    ({"spent": Budget(epochs=2, rows=31)}, "budget", "rows-over-budget"),
    ({"spent": Budget(epochs=1, rows=20)}, "budget", "spent-mismatch"),
    ({"spent": Budget(epochs=2, rows=19)}, "budget", "spent-mismatch"),
]


@pytest.mark.parametrize(("changes", "stage", "code"), GRANTS, ids=lambda value: str(value)[:40])
def test_a_grant_outside_the_policy_is_refused(
    tmp_path: Path, changes: dict[str, Any], stage: str, code: str
) -> None:
    def grants(made: Run) -> dict[str, Any]:
        return {"grants": [made.forge_grant(**changes)]}

    assert bent_run(tmp_path, grants) == (stage, code)


def test_budgets_hold_over_the_whole_chain(tmp_path: Path) -> None:
    def over(made: Run) -> dict[str, Any]:
        return {"grants": [made.forge_grant() for _ in range(3)]}

    assert bent_run(tmp_path / "epochs", over) == ("budget", "epochs-over-budget")
    budget = Budget(epochs=9, rows=ROWS + 5)
    assert bent_run(
        tmp_path / "rows",
        lambda made: {"grants": [made.forge_grant(spent=Budget(epochs=2, rows=15))]},
        budget=budget,
    ) == ("budget", "rows-over-budget")


def test_a_grant_by_another_broker_is_refused(tmp_path: Path) -> None:
    def grants(made: Run) -> dict[str, Any]:
        digest = made.forge_grant()
        envelope = Envelope.parse(made.folder.sidecar(digest, "grant"))
        forged = Envelope.sign(
            envelope.payload_type, envelope.unverified_payload, Ed25519PrivateKey.generate()
        )
        made.folder.put_sidecar(digest, forged.encode())
        return {"grants": [digest]}

    assert bent_run(tmp_path, grants) == ("grant", "untrusted-signer")


def test_policies_of_another_run_or_time_are_refused(tmp_path: Path) -> None:
    from sealwright.protocol.checkpoint import DataUse

    cases: list[tuple[dict[str, Any], str]] = [
        ({"run": bytes(32)}, "run-not-allowed"),
        ({"code": [bytes(32)]}, "training-code-not-allowed"),
        ({"purpose": "advertising"}, "data-purpose-not-allowed"),
        ({"expires": NOW + timedelta(seconds=90)}, "policy-expired"),
        ({"created": NOW + timedelta(days=1)}, "policy-not-yet"),
    ]
    for at, (changes, code) in enumerate(cases):

        def other(made: Run, changes: dict[str, Any] = changes) -> dict[str, Any]:
            policy = made.site.policy.model_copy(update=changes)
            made.folder.put_sidecar(policy.digest(), policy.sign(made.site.world.owner))
            return {"data": (DataUse(policy=policy.digest(), stages=[]),)}

        assert bent_run(tmp_path / str(at), other) == ("data-policy", code)


def test_stages_are_signed_by_workers_and_allowed(tmp_path: Path) -> None:
    from sealwright.protocol.checkpoint import DataUse

    cases: list[tuple[dict[str, Any], str]] = [
        ({"code": bytes(32)}, "stage-code"),
        ({"run": bytes(32)}, "stage-other-run"),
        ({"inputs": [bytes(32)]}, "stage-input-unknown"),
    ]
    for at, (changes, code) in enumerate(cases):

        def stages(made: Run, changes: dict[str, Any] = changes) -> dict[str, Any]:
            return {"data": (DataUse(policy=made.policy(), stages=[made.stage(**changes)]),)}

        assert bent_run(tmp_path / str(at), stages) == ("stages", code)

    def foreign(made: Run) -> dict[str, Any]:
        digest = made.stage()
        envelope = Envelope.parse(made.folder.sidecar(digest, "stage"))
        forged = Envelope.sign(
            envelope.payload_type, envelope.unverified_payload, Ed25519PrivateKey.generate()
        )
        made.folder.put_sidecar(digest, forged.encode())
        return {"data": (DataUse(policy=made.policy(), stages=[digest]),)}

    assert bent_run(tmp_path / "foreign", foreign) == ("stages", "untrusted-signer")


def test_the_result_is_of_this_evidence(tmp_path: Path) -> None:
    """A result of the same broker about another worker, and one over another nonce."""
    import hashlib

    from sealwright.protocol.checkpoint import Attested

    def other(made: Run) -> dict[str, Any]:
        attested = made.attested()
        made.site.enrol()  # the same worker, a new nonce
        raw = made.site.result.encode()
        digest = hashlib.sha256(raw).digest()
        made.folder.put_sidecar(digest, raw)
        return {"signer": Attested(evidence=attested.evidence, result=digest)}

    assert bent_run(tmp_path, other) == ("result", "ear-mismatch")


def test_a_base_is_one_that_is_named(tmp_path: Path) -> None:
    from tests.training.world import plan

    base = bytes(range(32))
    with run(tmp_path, versions=1, made=plan(base=base)) as made:
        assert refused(made.verify) == ("plan", "base-unknown")
        made.verify(trust=made.trust(bases=[base.hex()]))


def test_a_folder_with_too_much_in_it(honest: Run, tmp_path: Path) -> None:
    folder = honest.copy(tmp_path / "copy")
    put_file(folder.root / "v000002" / STATEMENT, b"x" * (9 << 20))
    assert refused(lambda: honest.verify(folder.root)) == ("folder", "too-large")
    shutil.rmtree(folder.root / "v000002")
    (folder.root / "v9999999999").mkdir()  # a gap of ten thousand million is found at its start
    with pytest.raises(SealwrightError, match="version 2 is not there"):
        honest.verify(folder.root)
    (folder.root / "v9999999999").rmdir()
    (folder.root / "v2").mkdir()  # not our spelling: not a version
    assert CheckpointFolder(folder.root).versions() == [1]
