"""The highest version that is known: at the broker, in a file, and through restarts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.training.checkpoint.chains import LINEAGE, Run, run

from sealwright.broker.data import DataKeys
from sealwright.errors import SealwrightError
from sealwright.protocol.checkpoint import CheckpointStatement
from sealwright.training.checkpoint import NewestFile, check_newest


def refused(work: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(SealwrightError) as caught:
        work()
    return caught.value.stage, caught.value.code


def bent(statement: CheckpointStatement, **changes: object) -> CheckpointStatement:
    predicate = statement.predicate.model_copy(update=changes)
    return statement.model_copy(update={"predicate": predicate})


def test_the_broker_takes_the_next_version_alone(tmp_path: Path) -> None:
    with run(tmp_path, versions=2) as made:
        keys, sign, second = made.site.keys, made.keys.receipt, made.last
        assert second is not None
        assert keys.newest(LINEAGE) == (2, second.digest())
        assert keys.newest(bytes(16)) is None
        again = keys.advance(made.envelopes[1])  # an answer that was lost
        assert again > 0
        cases = [
            (made.envelopes[0], "checkpoint-rollback"),
            (bent(second, epoch=9).sign(sign), "checkpoint-forked"),
            (bent(second, version=4).sign(sign), "checkpoint-parent"),
            (bent(second, version=3, parent=bytes(32)).sign(sign), "checkpoint-parent"),
            (bent(second, version=3, parent=second.digest(), plan=bytes(32)).sign(sign), "lineage-foreign"),
            (bent(second, lineage=bytes(16)).sign(sign), "checkpoint-parent"),
        ]
        for envelope, code in cases:
            assert refused(lambda: keys.advance(envelope)) == ("lineage", code), code  # noqa: B023
        stranger = bent(second, version=3, parent=second.digest()).sign(Ed25519PrivateKey.generate())
        assert refused(lambda: keys.advance(stranger)) == ("signature", "untrusted-signer")
        unknown = bent(second, signer=second.predicate.signer.model_copy(update={"evidence": bytes(32)}))
        assert refused(lambda: keys.advance(unknown.sign(sign))) == ("session", "not-attested")
        assert keys.newest(LINEAGE) == (2, second.digest())


def test_lineages_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwright.broker.data.MAX_LINEAGES", 1)
    with run(tmp_path, versions=1) as made:
        assert made.last is not None
        other = bent(made.last, lineage=bytes(16)).sign(made.keys.receipt)
        assert refused(lambda: made.site.keys.advance(other)) == ("lineage", "too-many-lineages")
        made.write()  # the one that is there goes on


def test_only_one_of_two_branches_gets_in(tmp_path: Path) -> None:
    with run(tmp_path, versions=1) as made:
        first, keys = made.last, made.site.keys
        assert first is not None
        branches = [
            bent(first, version=2, parent=first.digest(), epoch=epoch).sign(made.keys.receipt)
            for epoch in range(8)
        ]
        start, taken, codes = threading.Barrier(8), [], set()

        def advance(envelope: bytes) -> None:
            start.wait()
            try:
                taken.append(keys.advance(envelope))
            except SealwrightError as error:
                codes.add(error.code)

        threads = [threading.Thread(target=advance, args=(envelope,)) for envelope in branches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(taken), codes) == (1, {"checkpoint-forked"})


def test_another_build_does_not_go_on(tmp_path: Path) -> None:
    """The key policy is widened to another measurement: whoever went on would not be the build that began."""
    with run(tmp_path, versions=1) as made:
        first, site = made.last, made.site
        assert first is not None
        other = bytes(reversed(range(32)))
        platforms = json.loads(site.world.policy())["platforms"]
        platforms["software"]["code"].append(other.hex())
        for kid in ("weights", "shard-a"):
            site.running.admin.set_policy(kid, site.world.policy(version=2, platforms=platforms))
        site.enrol(code=other)
        said = bent(first, version=2, parent=first.digest(), signer=made.attested())
        assert refused(lambda: site.keys.advance(said.sign(made.keys.receipt))) == (
            "lineage",
            "lineage-foreign",
        )


def test_the_broker_remembers_through_a_restart(tmp_path: Path) -> None:
    with run(tmp_path, versions=2) as made:
        world, newest = made.site.world, made.last
    assert newest is not None
    with world.open() as running:
        assert DataKeys(running.core).newest(LINEAGE) == (2, newest.digest())


def test_a_file_only_goes_forward(honest: Run, tmp_path: Path) -> None:
    first, second = (one.statement for one in honest.verify().checkpoints)
    path = tmp_path / "newest.json"
    assert NewestFile(path).newest(LINEAGE) is None
    NewestFile(path).accept(first)
    NewestFile(path).accept(first)
    NewestFile(path).accept(second)
    assert NewestFile(path).newest(LINEAGE) == (2, second.digest())
    assert refused(lambda: NewestFile(path).accept(first)) == ("lineage", "checkpoint-rollback")
    assert refused(lambda: NewestFile(path).accept(bent(second, epoch=9))) == ("lineage", "checkpoint-forked")
    assert refused(lambda: NewestFile(path).newest(bytes(16))) == ("lineage", "lineage-foreign")
    check_newest(first, None)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"lineage":"00","version":1,"statement":"00"}', b"\xff"]
)
def test_a_damaged_file_is_no_reason_to_start_over(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "newest.json"
    path.write_bytes(raw)
    assert refused(lambda: NewestFile(path).newest(LINEAGE)) == ("lineage", "malformed-newest")


def test_a_file_that_cannot_be_written_is_told(honest: Run, tmp_path: Path) -> None:
    statement = honest.verify().newest.statement
    assert refused(lambda: NewestFile(tmp_path / "absent" / "f").accept(statement)) == (
        "lineage",
        "output-failed",
    )
    assert refused(lambda: NewestFile(tmp_path).newest(LINEAGE)) == ("lineage", "input-unreadable")
