"""What a countersigner says of the round behind a checkpoint, held against the statement."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.training.checkpoint.chains import Run, run
from tests.training.world import plan

from sealwright.errors import SealwrightError
from sealwright.protocol.checkpoint import Aggregation
from sealwright.training.secagg.messages import Member, Opening, Roster, Survivors
from sealwright.training.secagg.spec import RunSpec

COUNTERSIGNER = Ed25519PrivateKey.generate()
PHANTOM = b"\xff" * 32


def run_spec(mode: str = "masked", **changes: Any) -> RunSpec:
    said: dict[str, Any] = {
        "run": "triage", "mode": mode, "elements": 8, "clip": "1", "max_weight": 4, "min_roster": 2, "max_roster": 3,
        "min_survivors": 2, "degree": 2, "threshold": 2, "enrolment_policy": bytes(32), "purpose": "triage",
        "countersigner": COUNTERSIGNER.public_key().public_bytes_raw(),
    }  # fmt: skip
    return RunSpec.model_validate(said | changes)


def statements(made: Run, spec: RunSpec, **changes: Any) -> tuple[Opening, Survivors]:
    own = hashlib.sha256(made.site.worker.keyset.receipt_key).digest()
    workers = sorted([own, PHANTOM])
    members = [Member(worker=one, enrolment=bytes(32), nonce=bytes(32)) for one in workers]
    roster = Roster(run_spec=changes.get("run_spec", spec.digest()), round=1, members=members)
    opening = Opening(roster=roster, beacon=bytes(32))
    survivors = Survivors(
        run_spec=spec.digest(),
        round=changes.get("round", 1),
        roster=roster.digest(),
        alive=changes.get("alive", [1, 2]),
    )
    return opening, survivors


def outcome(
    folder: Path, bend: Callable[[Run, RunSpec], Aggregation], spec: RunSpec | None = None
) -> tuple[str, str] | None:
    chosen = spec or run_spec()
    with run(folder, versions=0, made=plan(aggregation=chosen.digest())) as made:
        made.folder.put_sidecar(chosen.digest(), chosen.encode())
        made.write(made.draft(aggregation=bend(made, chosen)))
        try:
            assert made.verify().newest.run_spec == chosen
        except SealwrightError as error:
            return error.stage, error.code
        return None


def signed(
    made: Run,
    opening: Opening,
    survivors: Survivors,
    *,
    key: Ed25519PrivateKey = COUNTERSIGNER,
    contributors: int = 2,
) -> Aggregation:
    made.folder.put_sidecar(opening.digest(), opening.sign(key))
    made.folder.put_sidecar(survivors.digest(), survivors.sign(key))
    return Aggregation(
        mode="masked", contributors=contributors, opening=opening.digest(), survivors=survivors.digest()
    )


MISMATCH = ("aggregation", "aggregation-mismatch")


def test_survivors_are_attested_workers(tmp_path: Path) -> None:
    """The second survivor has no evidence in the statement: nobody attested is behind its update."""
    assert outcome(tmp_path, lambda made, spec: signed(made, *statements(made, spec))) == MISMATCH


def test_a_round_with_all_its_workers_attested_holds(tmp_path: Path) -> None:
    from tests.training.world import Worker

    from sealwright.broker.data import DataKeys
    from sealwright.protocol.checkpoint import WorkerEntry

    chosen = run_spec()
    with run(tmp_path, versions=0, made=plan(aggregation=chosen.digest())) as made:
        made.folder.put_sidecar(chosen.digest(), chosen.encode())
        first = made.attested()
        grant = made.grant()
        own = hashlib.sha256(made.site.worker.keyset.receipt_key).digest()
        mine = WorkerEntry(worker=own, evidence=first.evidence, result=first.result, grants=[grant])
        peer = Worker.make(made.site.world)
        assert isinstance(made.site.keys, DataKeys)
        made.site.enrol(peer)
        second = made.attested()
        peer_id = hashlib.sha256(peer.keyset.receipt_key).digest()
        other = WorkerEntry(worker=peer_id, evidence=second.evidence, result=second.result, grants=[])
        members = [Member(worker=one, enrolment=bytes(32), nonce=bytes(32)) for one in sorted([own, peer_id])]
        roster = Roster(run_spec=chosen.digest(), round=1, members=members)
        opening = Opening(roster=roster, beacon=bytes(32))
        survivors = Survivors(run_spec=chosen.digest(), round=1, roster=roster.digest(), alive=[1, 2])
        draft = made.draft(aggregation=signed(made, opening, survivors), workers=(mine, other), signer=first)
        made.site.evidence = None
        statement = made.write(draft, log=False)
        made.folder.put_proof(1, made.logged(statement))
        chain = made.verify()
        assert set(chain.newest.workers) == {own, peer_id}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"run_spec": bytes(32)}, ("roster", "other-run")),
        ({"round": 2}, ("aggregation", "survivors-other-roster")),
        ({"alive": [1, 3]}, MISMATCH),
        ({"alive": [1]}, ("aggregation", "survivors-too-few")),
    ],
)
def test_the_round_is_one(tmp_path: Path, changes: dict[str, Any], wanted: tuple[str, str]) -> None:
    assert outcome(tmp_path, lambda made, spec: signed(made, *statements(made, spec, **changes))) == wanted


def test_another_countersigner_is_refused(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    assert outcome(tmp_path, lambda made, spec: signed(made, *statements(made, spec), key=key)) == (
        "aggregation",
        "untrusted-signer",
    )


def test_contributors_are_counted(tmp_path: Path) -> None:
    assert (
        outcome(tmp_path, lambda made, spec: signed(made, *statements(made, spec), contributors=3))
        == MISMATCH
    )


def test_the_mode_is_the_run_specifications(tmp_path: Path) -> None:
    assert outcome(tmp_path / "none", lambda *_: Aggregation(mode="none", contributors=1)) == MISMATCH
    assert (
        outcome(tmp_path / "tee", lambda *_: Aggregation(mode="tee", contributors=1), run_spec("tee")) is None
    )
    assert (
        outcome(tmp_path / "two", lambda *_: Aggregation(mode="tee", contributors=2), run_spec("tee"))
        == MISMATCH
    )


@pytest.mark.parametrize("fields", [{"mode": "masked"}, {"mode": "tee", "opening": bytes(32)}])
def test_masked_modes_name_their_round(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="masked modes"):
        Aggregation(contributors=1, **fields)
